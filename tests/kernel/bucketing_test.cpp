// SPDX-License-Identifier: MIT
#include "posbias/kernel/bucketing.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "reference/reference.hpp"
#include "support/catch.hpp"

using posbias::BucketOptions;
using posbias::ClampedBuckets;
using posbias::Index;
using posbias::OptionError;
using posbias::ShapeError;
using posbias::t5_bucket;
using posbias::T5Buckets;
using posbias_test::message_of;

namespace {

std::int64_t reference_bucket(std::int64_t relative, const BucketOptions& options) {
  return posbias_test::reference::t5_bucket(relative,
                                            {options.bidirectional, options.num_buckets, options.max_distance});
}

/// The first relative position whose bucket is not the formula's, or nothing.
std::string first_difference(const T5Buckets& buckets, const BucketOptions& options, std::int64_t from, std::int64_t to,
                             std::int64_t step = 1) {
  for (std::int64_t relative = from; relative <= to; relative += step)
    if (buckets(relative) != reference_bucket(relative, options))
      return "relative " + std::to_string(relative) + ": " + std::to_string(buckets(relative)) + ", not " +
             std::to_string(reference_bucket(relative, options));
  return "";
}

std::vector<Index> buckets_of(std::initializer_list<std::int64_t> relative, const BucketOptions& options = {}) {
  std::vector<Index> buckets(relative.size());
  t5_bucket(std::span(relative.begin(), relative.size()), buckets, options);
  return buckets;
}

constexpr std::int64_t lowest = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t highest = std::numeric_limits<std::int64_t>::max();

}  // namespace

TEST_CASE("near distances have a bucket each", "[bucketing]") {
  CHECK(buckets_of({-7, -3, -2, -1, 0, 1, 2, 3, 7}) == std::vector<Index>{7, 3, 2, 1, 0, 17, 18, 19, 23});
  CHECK(buckets_of({-15, -3, -1, 0, 1, 2, 100}, {.bidirectional = false}) == std::vector<Index>{15, 3, 1, 0, 0, 0, 0});
  CHECK(buckets_of({-3, 0, 1, 100}, {.bidirectional = false, .max_distance = 1 << 20}) ==
        std::vector<Index>{3, 0, 0, 0});
}

TEST_CASE("far distances share growing buckets, and the last", "[bucketing]") {
  // 8 + trunc(log(d / 8) / log(16) · 8): bucket 9 begins at 8·sqrt(2) = 11.3, 10 at 16, 15 at 90.5.
  CHECK(buckets_of({-8, -11, -12, -15, -16, -22, -23, -90, -91, -127, -128, -100000}) ==
        std::vector<Index>{8, 8, 9, 9, 10, 10, 11, 14, 15, 15, 15, 15});
  CHECK(buckets_of({8, 11, 12, 90, 91, 100000}) == std::vector<Index>{24, 24, 25, 30, 31, 31});
}

TEST_CASE("exact ties fall where float puts them", "[bucketing]") {
  // 160 + trunc(log(400/160) / log(1000/160) · 160): the quotient is 1/2 in exact arithmetic, 240 then; in double it
  // is a little less.
  const BucketOptions options{.bidirectional = false, .num_buckets = 320, .max_distance = 1000};
  CHECK(reference_bucket(-400, options) == 240);
  CHECK(t5_bucket(-400, options) == 240);
  CHECK(t5_bucket(-399, options) == 239);
}

TEST_CASE("buckets are the formula's over a wide range and many options", "[bucketing]") {
  int tables = 0;
  for (const bool bidirectional : {true, false})
    for (const Index num_buckets : {2, 3, 4, 5, 6, 7, 8, 13, 32, 33, 64, 128, 320})
      for (const Index max_distance : {2, 3, 5, 9, 17, 20, 50, 100, 128, 129, 256, 1000, 4096}) {
        const Index exact = (bidirectional ? num_buckets / 2 : num_buckets) / 2;
        if (exact < 1 || max_distance <= exact) continue;
        const BucketOptions options{bidirectional, num_buckets, max_distance};
        const T5Buckets buckets("test", options);
        INFO("bidirectional " << bidirectional << ", buckets " << num_buckets << ", distance " << max_distance);
        CHECK(first_difference(buckets, options, -2 * max_distance - 10, 2 * max_distance + 10) == "");
        CHECK(first_difference(buckets, options, -1000000, 1000000, 9973) == "");
        CHECK(first_difference(buckets, options, -(std::int64_t{1} << 40), std::int64_t{1} << 40,
                               (std::int64_t{1} << 32) + 12345) == "");
        ++tables;
      }
  CHECK(tables > 200);
}

TEST_CASE("buckets are the formula's for distances beyond float's integers", "[bucketing]") {
  const BucketOptions options{.bidirectional = true, .num_buckets = 256, .max_distance = Index{1} << 28};
  const T5Buckets buckets("test", options);
  CHECK(first_difference(buckets, options, -(Index{1} << 29), Index{1} << 29, 65521) == "");
  for (const std::int64_t edge : {std::int64_t{1} << 24, std::int64_t{1} << 26, std::int64_t{1} << 28})
    CHECK(first_difference(buckets, options, -edge - 2000, -edge + 2000) == "");
}

TEST_CASE("buckets never fall with the distance and use the whole range", "[bucketing]") {
  for (const bool bidirectional : {true, false}) {
    const BucketOptions options{.bidirectional = bidirectional};
    const T5Buckets buckets("test", options);
    for (std::int64_t distance = 1; distance < 300; ++distance) {
      if (buckets(-distance) < buckets(1 - distance)) FAIL_CHECK("back " << distance);
      if (buckets(distance + 1) < buckets(distance)) FAIL_CHECK("ahead " << distance);
    }
    CHECK(buckets(0) == 0);
    CHECK(buckets(-300) == (bidirectional ? 15 : 31));
    CHECK(buckets(300) == (bidirectional ? 31 : 0));
  }
}

TEST_CASE("the ends of 64 bits are in the last buckets", "[bucketing]") {
  CHECK(buckets_of({lowest, lowest + 1, highest - 1, highest}) == std::vector<Index>{15, 15, 31, 31});
  CHECK(buckets_of({lowest, lowest + 1, highest - 1, highest}, {.bidirectional = false}) ==
        std::vector<Index>{31, 31, 0, 0});
}

TEST_CASE("one value, a table and spans agree", "[bucketing]") {
  const BucketOptions options{.bidirectional = false, .num_buckets = 20, .max_distance = 60};
  const T5Buckets buckets("test", options);
  std::vector<std::int64_t> relative;
  for (std::int64_t r = -80; r <= 20; ++r) relative.push_back(r);
  std::vector<Index> by_span(relative.size(), -1);
  std::vector<Index> by_table(relative.size(), -1);
  t5_bucket(relative, by_span, options);
  buckets(relative, by_table);
  for (std::size_t i = 0; i < relative.size(); ++i) {
    CHECK(by_span[i] == t5_bucket(relative[i], options));
    CHECK(by_table[i] == by_span[i]);
  }
  t5_bucket(std::span<const std::int64_t>(), std::span<Index>(), options);
}

TEST_CASE("spans have the same length", "[bucketing]") {
  const std::vector<std::int64_t> relative{1, 2, 3};
  std::vector<Index> buckets(2, -1);
  CHECK(message_of<ShapeError>([&] { t5_bucket(relative, buckets); }) ==
        "T5Buckets: buckets has 2 values; relative has 3");
  CHECK(buckets == std::vector<Index>{-1, -1});
}

TEST_CASE("a default table is T5's", "[bucketing]") {
  const T5Buckets buckets;
  for (std::int64_t r = -300; r <= 300; ++r)
    if (buckets(r) != t5_bucket(r)) FAIL_CHECK("relative " << r);
}

TEST_CASE("options without meaning are refused by name", "[bucketing]") {
  const auto message = [](const BucketOptions& options) {
    return message_of<OptionError>([&] { T5Buckets("M", options); });
  };
  CHECK(message({.num_buckets = 3}) == "M: num_buckets = 3; at least 4 are needed");
  CHECK(message({.num_buckets = 0}) == "M: num_buckets = 0; at least 4 are needed");
  CHECK(message({.num_buckets = -32}) == "M: num_buckets = -32; at least 4 are needed");
  CHECK(message({.bidirectional = false, .num_buckets = 1}) == "M: num_buckets = 1; at least 2 are needed");
  CHECK(message({.num_buckets = 4, .max_distance = 2}) == "<nothing thrown>");
  CHECK(message({.bidirectional = false, .num_buckets = 2, .max_distance = 2}) == "<nothing thrown>");

  CHECK(message({.max_distance = 8}) == "M: max_distance = 8; it must exceed 8, the number of exact buckets");
  CHECK(message({.bidirectional = false, .max_distance = 16}) ==
        "M: max_distance = 16; it must exceed 16, the number of exact buckets");
  CHECK(message({.max_distance = 0}) == "M: max_distance = 0; it must exceed 8, the number of exact buckets");
  CHECK(message({.max_distance = -1}) == "M: max_distance = -1; it must exceed 8, the number of exact buckets");
  CHECK(message({.max_distance = 9}) == "<nothing thrown>");

  CHECK(message({.num_buckets = (Index{1} << 24) + 2, .max_distance = Index{1} << 30}) ==
        "M: num_buckets = 16777218; at most 16777216 are distinct in float");
  CHECK(message_of<OptionError>([] { (void)t5_bucket(1, {.num_buckets = 2}); }) ==
        "t5_bucket: num_buckets = 2; at least 4 are needed");
}

TEST_CASE("any max_distance that fits is accepted", "[bucketing]") {
  // Long before 2^62 a distance is in the last bucket; the search for where it begins must not overflow.
  for (const Index max_distance : {Index{1} << 31, Index{1} << 53, (Index{1} << 62) - 1, Index{1} << 62, highest}) {
    const BucketOptions options{.bidirectional = true, .num_buckets = 32, .max_distance = max_distance};
    const T5Buckets buckets("test", options);
    INFO("max_distance " << max_distance);
    CHECK(first_difference(buckets, options, -1000, 1000) == "");
    for (std::int64_t relative = 1; relative < (std::int64_t{1} << 62); relative *= 2) {
      CHECK(first_difference(buckets, options, relative - 1, relative + 1) == "");
      CHECK(first_difference(buckets, options, -relative - 1, -relative + 1) == "");
    }
  }
}

TEST_CASE("clamped buckets are positions from the middle on, the ends for all beyond", "[bucketing]") {
  const auto clamped = [](Index num_buckets, std::initializer_list<std::int64_t> relative) {
    const ClampedBuckets buckets("test", num_buckets);
    std::vector<Index> result;
    for (const std::int64_t r : relative) result.push_back(buckets(r));
    return result;
  };
  CHECK(clamped(7, {-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5}) == std::vector<Index>{0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6});
  // Of an even number one more lies before.
  CHECK(clamped(6, {-4, -3, -2, -1, 0, 1, 2, 3}) == std::vector<Index>{0, 0, 1, 2, 3, 4, 5, 5});
  CHECK(clamped(1, {lowest, -1, 0, 1, highest}) == std::vector<Index>{0, 0, 0, 0, 0});
  CHECK(clamped(2, {lowest, -2, -1, 0, 1, highest}) == std::vector<Index>{0, 0, 0, 1, 1, 1});
  CHECK(clamped(100, {lowest, lowest + 1, highest - 1, highest}) == std::vector<Index>{0, 0, 99, 99});
  constexpr Index many = (Index{1} << 31) - 65;
  CHECK(clamped(many, {lowest, -many / 2, 0, many, highest}) == std::vector<Index>{0, 0, many / 2, many - 1, many - 1});

  const auto message = [](Index num_buckets) {
    return message_of<OptionError>([&] { ClampedBuckets("M", num_buckets); });
  };
  CHECK(message(0) == "M: num_buckets = 0; at least 1 is needed");
  CHECK(message(-4) == "M: num_buckets = -4; at least 1 is needed");
  CHECK(message(1) == "<nothing thrown>");
}
