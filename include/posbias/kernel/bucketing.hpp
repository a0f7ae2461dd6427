// SPDX-License-Identifier: MIT
/// \file
/// The shared bucketing kernel: which bucket a relative position falls into.
///
/// T5 buckets (arXiv 1910.10683): near distances have a bucket each, far ones share logarithmically growing ones,
/// and everything from about max_distance on shares the last. With bidirectional buckets the upper half is for keys
/// after the query; otherwise such keys count as distance 0.
///
///     relative   ... -3 -2 -1  0  1  2  3 ...       key position - query position
///     bucket     ...  3  2  1  0 17 18 19 ...       bidirectional, 32 buckets
///     bucket     ...  3  2  1  0  0  0  0 ...       otherwise
///
/// Clamped buckets (arXiv 1803.02155) have the query in the middle, a bucket each for near keys on either side, and the
/// first and the last for all that are further away:
///
///     relative   ... -4 -3 -2 -1  0  1  2  3 ...
///     bucket     ...  0  0  1  2  3  4  5  5 ...       6 buckets
///
/// T5's logarithm is evaluated in float, in the order of operations of the original, because trained weights belong
/// to buckets as they were in training: exact arithmetic gives other buckets at some ties (test `bucketing`).
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"

namespace posbias {

/// How relative positions are put into buckets.
struct BucketOptions {
  bool bidirectional = true;  ///< the upper half of the buckets is for keys after the query
  Index num_buckets = 32;     ///< buckets in all, both directions together
  Index max_distance = 128;   ///< tokens; from about here on distances share the last bucket
};

/// T5's buckets as a table of all relative positions up to where the last begins: a look-up per position, no logarithm.
/// Where that is beyond 2^15, a bisection of the distances where each begins. A copyable value; construction costs
/// O(num_buckets · log max_distance), and the table.
class T5Buckets {
 public:
  T5Buckets() : T5Buckets("T5Buckets", {}) {}

  /// Throws OptionError, naming `module`, where the formula has no meaning: no exact bucket, or a max_distance that
  /// the exact buckets already reach.
  T5Buckets(std::string_view module, const BucketOptions& options) : bidirectional_(options.bidirectional) {
    const Index one_way = bidirectional_ ? options.num_buckets / 2 : options.num_buckets;
    max_exact_ = one_way / 2;
    offset_ = bidirectional_ ? one_way : 0;
    if (max_exact_ < 1)
      detail::fail<OptionError>(module, ": num_buckets = ", options.num_buckets, "; at least ", bidirectional_ ? 4 : 2,
                                " are needed");
    if (options.max_distance <= max_exact_)
      detail::fail<OptionError>(module, ": max_distance = ", options.max_distance, "; it must exceed ", max_exact_,
                                ", the number of exact buckets");
    constexpr Index max_buckets = Index{1} << 24;
    if (options.num_buckets > max_buckets)
      detail::fail<OptionError>(module, ": num_buckets = ", options.num_buckets, "; at most ", max_buckets,
                                " are distinct in float");

    // The bucket never falls with the distance, so the first distance of each is found by bisection.
    const float scale =
        static_cast<float>(std::log(static_cast<double>(options.max_distance) / static_cast<double>(max_exact_)));
    const auto far_bucket = [&](std::int64_t distance) {
      const float fraction = std::log(static_cast<float>(distance) / static_cast<float>(max_exact_)) / scale *
                             static_cast<float>(one_way - max_exact_);
      return (std::min)(max_exact_ + static_cast<Index>(fraction), one_way - 1);
    };
    std::int64_t begin = max_exact_;
    for (Index bucket = max_exact_ + 1; bucket < one_way; ++bucket) {
      std::int64_t below = begin - 1;
      std::int64_t reached =
          2 * std::min<std::int64_t>(options.max_distance, (std::numeric_limits<std::int64_t>::max)() / 2);
      while (reached - below > 1) {
        const std::int64_t middle = below + (reached - below) / 2;
        (far_bucket(middle) >= bucket ? reached : below) = middle;
      }
      begins_.push_back(begin = reached);
    }
    if (begin <= std::int64_t{1} << 15) tabulate(begin);
  }

  /// Bucket of key position minus query position, in [0, num_buckets).
  [[nodiscard]] Index operator()(std::int64_t relative) const {
    return table_.empty() ? search(relative) : table_[place(relative)];
  }

  /// Buckets of many; `buckets` is as long as `relative`.
  void operator()(std::span<const std::int64_t> relative, std::span<Index> buckets) const {
    if (relative.size() != buckets.size())
      detail::fail<ShapeError>("T5Buckets: buckets has ", buckets.size(), " values; relative has ", relative.size());
    if (table_.empty())
      std::transform(relative.begin(), relative.end(), buckets.begin(), [&](std::int64_t r) { return search(r); });
    else
      std::transform(relative.begin(), relative.end(), buckets.begin(),
                     [last = last_, table = table_.data()](std::int64_t r) { return Index{table[place(r, last)]}; });
  }

 private:
  /// Makes the table; `last` is the first distance in the last bucket.
  void tabulate(std::int64_t last) {
    last_ = last;
    table_.resize(place(last) + 1);
    Index begun = 0;
    for (std::int64_t distance = 0; distance <= last; ++distance) {
      while (begun < std::ssize(begins_) && begins_[static_cast<std::size_t>(begun)] <= distance) ++begun;
      const Index bucket = distance < max_exact_ ? distance : max_exact_ + begun;
      table_[place(-distance)] = static_cast<std::int32_t>(bucket);
      if (distance > 0) table_[place(distance)] = static_cast<std::int32_t>(bidirectional_ ? offset_ + bucket : 0);
    }
  }

  /// Where a relative position is in a table for distances up to `last`.
  [[nodiscard]] static std::size_t place(std::int64_t relative, std::int64_t last) {
    return static_cast<std::size_t>(std::clamp(relative, -last, last) + last);
  }
  [[nodiscard]] std::size_t place(std::int64_t relative) const { return place(relative, last_); }

  [[nodiscard]] Index search(std::int64_t relative) const {
    const bool after = relative > 0;
    if (after && !bidirectional_) return 0;
    const std::uint64_t distance =
        after ? static_cast<std::uint64_t>(relative) : std::uint64_t{0} - static_cast<std::uint64_t>(relative);
    return (after ? offset_ : 0) + one_way_bucket(distance);
  }

  [[nodiscard]] Index one_way_bucket(std::uint64_t distance) const {
    if (distance < static_cast<std::uint64_t>(max_exact_)) return static_cast<Index>(distance);
    constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)());
    const auto found =
        std::upper_bound(begins_.begin(), begins_.end(), static_cast<std::int64_t>((std::min)(distance, most)));
    return max_exact_ + (found - begins_.begin());
  }

  bool bidirectional_;
  Index max_exact_;                   // distances below this have a bucket each
  Index offset_;                      // added for keys after the query
  std::vector<std::int64_t> begins_;  // first distance of bucket max_exact + 1, max_exact + 2, ...
  std::int64_t last_ = 0;             // distance
  std::vector<std::int32_t> table_;   // buckets of -last .. last, if not too many
};

/// Clamped buckets: relative + num_buckets / 2, held within [0, num_buckets). A copyable value.
class ClampedBuckets {
 public:
  /// Throws OptionError, naming `module`, if there is no bucket.
  ClampedBuckets(std::string_view module, Index num_buckets)
      : before_(num_buckets / 2), after_(num_buckets - 1 - num_buckets / 2) {
    if (num_buckets < 1) detail::fail<OptionError>(module, ": num_buckets = ", num_buckets, "; at least 1 is needed");
  }

  /// Bucket of key position minus query position, in [0, num_buckets).
  [[nodiscard]] Index operator()(std::int64_t relative) const {
    return static_cast<Index>(std::clamp<std::int64_t>(relative, -before_, after_)) + before_;
  }

 private:
  Index before_, after_;  // buckets on either side of the query's own
};

/// T5 bucket of one relative position (key minus query). Throws OptionError.
/// Makes the table anew: for many positions use the overload for spans, or keep a `T5Buckets`.
template <std::integral Integer>
[[nodiscard]] Index t5_bucket(Integer relative, const BucketOptions& options = {}) {
  return T5Buckets("t5_bucket", options)(static_cast<std::int64_t>(relative));
}

/// T5 buckets of many relative positions; `buckets` is as long as `relative`. Throws OptionError and ShapeError.
inline void t5_bucket(std::span<const std::int64_t> relative, std::span<Index> buckets,
                      const BucketOptions& options = {}) {
  T5Buckets("t5_bucket", options)(relative, buckets);
}

}  // namespace posbias
