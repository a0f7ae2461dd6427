// SPDX-License-Identifier: MIT
#include "posbias/core/checked_positions.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"

using posbias::CheckedPairPositions;
using posbias::CheckedPositions;
using posbias::Index;
using posbias::PairPositions;
using posbias::PositionError;
using posbias::Positions;
using posbias::ShapeError;
using posbias::detail::BatchShape;
using posbias_test::message_of;

namespace {

template <class S, int Rank, int Layout = Eigen::RowMajor>
using Tensor = Eigen::Tensor<S, Rank, Layout>;

static_assert(posbias::PositionTensor<Tensor<std::int32_t, 1>> && posbias::PositionTensor<Tensor<std::int64_t, 3>>);
static_assert(posbias::PositionTensor<Tensor<float, 1>> && posbias::PositionTensor<Tensor<double, 2, Eigen::ColMajor>>);
static_assert(posbias::PositionTensor<Tensor<long, 1>> && posbias::PositionTensor<Tensor<long long, 1>>);
static_assert(posbias::PositionTensor<Eigen::TensorMap<const Tensor<int, 2>>>);
static_assert(!posbias::PositionTensor<Tensor<std::int64_t, 0>> && !posbias::PositionTensor<Tensor<bool, 1>>);
static_assert(posbias::PositionTensor<Tensor<std::int16_t, 1>> && posbias::PositionTensor<Tensor<std::uint32_t, 1>>);
static_assert(!std::is_constructible_v<Positions, std::vector<bool>> && !std::is_constructible_v<Positions, int>);

constexpr std::int64_t two_to_62 = std::int64_t{1} << 62;
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

BatchShape leading(std::initializer_list<Index> sizes) {
  BatchShape result;
  for (const Index size : sizes) result.sizes[static_cast<std::size_t>(result.rank++)] = size;
  return result;
}

template <class S>
Tensor<S, 1> list(std::initializer_list<S> values) {
  Tensor<S, 1> tensor(static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), tensor.data());
  return tensor;
}

template <class S>
Tensor<S, 2> rows(std::initializer_list<std::initializer_list<S>> values) {
  Tensor<S, 2> tensor(static_cast<Index>(values.size()), static_cast<Index>(values.begin()->size()));
  S* next = tensor.data();
  for (const auto& row : values) next = std::copy(row.begin(), row.end(), next);
  return tensor;
}

CheckedPositions locate(const Positions& positions, Index tokens, std::initializer_list<Index> batch = {}) {
  return {{"M", "hook"}, "pos", positions, leading(batch), tokens};
}

/// Positions are referred to, not copied, so they must outlive their locations.
CheckedPositions locate(Positions&&, Index, std::initializer_list<Index> = {}) = delete;

template <class Exception = PositionError>
std::string error(const Positions& positions, Index tokens, std::initializer_list<Index> batch = {}) {
  return message_of<Exception>([&] { (void)locate(positions, tokens, batch); });
}

std::vector<std::int64_t> integers(const CheckedPositions& at, Index n = 0) {
  std::vector<std::int64_t> values;
  for (Index i = 0; i < at.count(); ++i) values.push_back(at.integer(n, i));
  return values;
}

std::vector<double> reals(const CheckedPositions& at, Index n = 0) {
  std::vector<double> values;
  for (Index i = 0; i < at.count(); ++i) values.push_back(at.real(n, i));
  return values;
}

using Integers = std::vector<std::int64_t>;
using Reals = std::vector<double>;

}  // namespace

TEST_CASE("positions not given are 0, 1, ...", "[positions]") {
  const Positions positions;
  CHECK_FALSE(positions.given());
  const auto at = locate(positions, 4, {2, 3});
  CHECK(at.first() == 0);
  CHECK(at.count() == 4);
  CHECK(at.shared());
  CHECK(at.rows() == 1);
  CHECK(at.integral());
  CHECK(at.consecutive());
  CHECK(integers(at) == Integers{0, 1, 2, 3});
  CHECK(integers(at, 5) == Integers{0, 1, 2, 3});
  CHECK(reals(at) == Reals{0, 1, 2, 3});
}

TEST_CASE("a range starts anywhere and is as long as the tokens", "[positions]") {
  const Positions positions = Positions::range(1000);
  CHECK(positions.given());
  CHECK(integers(locate(positions, 3)) == Integers{1000, 1001, 1002});
  CHECK(integers(locate(positions, 1)) == Integers{1000});
  CHECK(locate(positions, 0).count() == 0);
  CHECK(locate(positions, 0).first() == 0);
  CHECK(locate(positions, 3).consecutive());

  const Positions negative = Positions::range(-2);
  CHECK(integers(locate(negative, 4)) == Integers{-2, -1, 0, 1});
  const Positions huge = Positions::range(Index{1} << 40);
  CHECK(integers(locate(huge, 2)) == Integers{1099511627776, 1099511627777});
}

TEST_CASE("a range ends below 2^62", "[positions]") {
  const Positions last_three = Positions::range(two_to_62 - 3);
  CHECK(integers(locate(last_three, 3)) == Integers{two_to_62 - 3, two_to_62 - 2, two_to_62 - 1});
  CHECK(error(last_three, 4) ==
        "M::hook: pos at index 0 is 4611686018427387901; integers must lie strictly between -2^62 and 2^62");
  const Positions lowest = Positions::range(1 - two_to_62);
  CHECK(integers(locate(lowest, 2)) == Integers{1 - two_to_62, 2 - two_to_62});
  const Positions below = Positions::range(-two_to_62);
  CHECK(error(below, 1) ==
        "M::hook: pos at index 0 is -4611686018427387904; integers must lie strictly between -2^62 and 2^62");
  CHECK(error(below, 0) == error(below, 1));
  for (const std::int64_t extreme :
       {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()}) {
    const Positions positions = Positions::range(extreme);
    CHECK(error(positions, 2) == "M::hook: pos at index 0 is " + std::to_string(extreme) +
                                     "; integers must lie strictly between -2^62 and 2^62");
  }
}

TEST_CASE("explicit positions are copied, whatever their type", "[positions]") {
  const auto check = [](const Positions& positions) {
    const auto at = locate(positions, 4, {2});
    CHECK(at.integral());
    CHECK(at.shared());
    CHECK(integers(at, 1) == Integers{100, 103, -7, 103});
    CHECK_FALSE(at.consecutive());
  };
  check(list<std::int32_t>({100, 103, -7, 103}));
  check(list<std::int64_t>({100, 103, -7, 103}));
  check(list<long long>({100, 103, -7, 103}));
  check(list<float>({100, 103, -7, 103}));
  check(list<double>({100, 103, -7, 103}));

  auto tensor = list<int>({100, 103, -7, 103});
  const Positions positions(tensor);
  tensor.setZero();
  check(positions);
  std::array<std::int32_t, 5> memory{-1, 100, 103, -7, 103};
  check(Eigen::TensorMap<Tensor<std::int32_t, 1>>(memory.data() + 1, 4));
  check(Eigen::TensorMap<const Tensor<std::int32_t, 1>>(memory.data() + 1, 4));
}

TEST_CASE("vectors, arrays and spans are positions of the whole batch", "[positions]") {
  const std::vector<std::int64_t> wide{100, 101, 103};
  const std::array<std::uint32_t, 3> narrow{100, 101, 103};
  const std::vector<float> singles{100, 101, 103};
  const std::span<const std::int64_t> some(wide.data() + 1, 2);
  for (const Positions& positions : {Positions(wide), Positions(narrow), Positions(singles)}) {
    const auto at = locate(positions, 4, {2});
    CHECK(at.shared());
    CHECK(at.first() == 1);
    CHECK(at.integral());
    CHECK(integers(at, 1) == Integers{100, 101, 103});
  }
  const PairPositions at{.q = some};
  CHECK(integers(locate(at.q, 2)) == Integers{101, 103});
  const Positions reals_given = std::vector<double>{0.5, 7};
  CHECK(reals(locate(reals_given, 2)) == Reals{0.5, 7});
  const Positions none = std::vector<int>();
  CHECK(none.given());
  CHECK(locate(none, 3).count() == 0);
  const Positions sizes = std::vector<std::uint64_t>{5, ~std::uint64_t{0}};
  CHECK(error(sizes, 2).find("M::hook: pos at index 1 is") == 0);
}

TEST_CASE("positions of a batch are read in row-major order from either layout", "[positions]") {
  Tensor<std::int64_t, 3, Eigen::RowMajor> row(2, 3, 5);
  Tensor<std::int64_t, 3, Eigen::ColMajor> col(2, 3, 5);
  for (Index a = 0; a < 2; ++a)
    for (Index b = 0; b < 3; ++b)
      for (Index l = 0; l < 5; ++l) row(a, b, l) = col(a, b, l) = 1000 * a + 100 * b + l * l;
  for (const Positions& positions : {Positions(row), Positions(col)}) {
    const auto at = locate(positions, 5, {2, 3});
    CHECK_FALSE(at.shared());
    CHECK(at.rows() == 6);
    CHECK(integers(at, 0) == Integers{0, 1, 4, 9, 16});
    CHECK(integers(at, 2) == Integers{200, 201, 204, 209, 216});
    CHECK(integers(at, 4) == Integers{1100, 1101, 1104, 1109, 1116});
  }
}

TEST_CASE("fewer positions than tokens belong to the rightmost", "[positions]") {
  const Positions shared = list<int>({100, 101, 102});
  const auto at = locate(shared, 5, {2});
  CHECK(at.first() == 2);
  CHECK(at.count() == 3);
  CHECK(integers(at) == Integers{100, 101, 102});

  const Positions batch = rows<int>({{7, 9}, {8, 5}});
  CHECK(locate(batch, 5, {2}).first() == 3);
  CHECK(integers(locate(batch, 5, {2}), 1) == Integers{8, 5});

  const Positions none = Tensor<int, 1>(0);
  CHECK(none.given());
  CHECK(locate(none, 5).first() == 5);
  CHECK(locate(none, 5).count() == 0);
  CHECK(locate(none, 0).count() == 0);
  const Positions no_batch = Tensor<double, 2>(0, 3);
  CHECK(locate(no_batch, 3, {0}).rows() == 0);
}

TEST_CASE("more positions than tokens are refused", "[positions]") {
  const Positions positions = list<int>({1, 2, 3, 4});
  CHECK(error(positions, 3) == "M::hook: pos has 4 positions for 3 tokens");
  CHECK(error(positions, 0) == "M::hook: pos has 4 positions for 0 tokens");
}

TEST_CASE("the leading dimensions of positions are those of the tensor", "[positions]") {
  const Positions batch = rows<int>({{7, 9}, {8, 5}});
  CHECK(error<ShapeError>(batch, 2, {3}) == "M::hook: pos has leading dimensions (2); the tensor has (3)");
  CHECK(error<ShapeError>(batch, 2) == "M::hook: pos has leading dimensions (2); the tensor has ()");
  CHECK(error<ShapeError>(batch, 2, {2, 1}) == "M::hook: pos has leading dimensions (2); the tensor has (2, 1)");
  const Positions deep = Tensor<int, 3>(2, 3, 0);
  CHECK(error<ShapeError>(deep, 2, {3, 2}) == "M::hook: pos has leading dimensions (2, 3); the tensor has (3, 2)");
}

TEST_CASE("consecutive rows are recognised however they were given", "[positions]") {
  const auto consecutive = [](const Positions& positions, Index tokens, std::initializer_list<Index> batch = {}) {
    return locate(positions, tokens, batch).consecutive();
  };
  CHECK(consecutive(list<int>({100, 101, 102}), 3));
  CHECK(consecutive(list<float>({100, 101, 102}), 3));
  CHECK(consecutive(list<double>({-1, 0, 1}), 5));
  CHECK(consecutive(list<int>({7}), 1));
  CHECK(consecutive(rows<int>({{4, 5, 6}, {-9, -8, -7}}), 3, {2}));

  CHECK_FALSE(consecutive(list<int>({100, 102, 103}), 3));
  CHECK_FALSE(consecutive(list<int>({102, 101, 100}), 3));
  CHECK_FALSE(consecutive(list<int>({100, 100}), 2));
  CHECK_FALSE(consecutive(list<double>({0.5, 1.5}), 2));
  CHECK_FALSE(consecutive(rows<int>({{4, 5, 6}, {7, 8, 10}}), 3, {2}));
  CHECK_FALSE(consecutive(rows<int>({{4, 6, 7}, {7, 8, 9}}), 3, {2}));
  CHECK_FALSE(consecutive(Tensor<int, 1>(0), 3));
}

TEST_CASE("reals stay reals unless all of them are integers", "[positions]") {
  const Positions halves = list<double>({0.5, 1, 2});
  const auto at = locate(halves, 3);
  CHECK_FALSE(at.integral());
  CHECK(reals(at) == Reals{0.5, 1, 2});

  const Positions floats = list<float>({0.1F, 2});
  CHECK(reals(locate(floats, 2)) == Reals{static_cast<double>(0.1F), 2});
  const Positions negative_zero = list<double>({-0.0, 1});
  CHECK(integers(locate(negative_zero, 2)) == Integers{0, 1});

  const Positions batch = rows<double>({{0.5, 1.5}, {2, 3}});
  const auto rows_at = locate(batch, 4, {2});
  CHECK(rows_at.first() == 2);
  CHECK(reals(rows_at, 0) == Reals{0.5, 1.5});
  CHECK(reals(rows_at, 1) == Reals{2, 3});
}

TEST_CASE("reals may be larger than any integer", "[positions]") {
  for (const double huge : {0x1p62, -0x1p62, 0x1p63, 1e300, 0x1p1022, -0x1p1022}) {
    const Positions positions = list<double>({huge, 1});
    const auto at = locate(positions, 2);
    CHECK_FALSE(at.integral());
    CHECK(reals(at) == Reals{huge, 1});
  }
  // The largest double below 2^62 is an integer like others.
  const Positions below = list<double>({0x1p62 - 512});
  CHECK(integers(locate(below, 1)) == Integers{two_to_62 - 512});
}

TEST_CASE("integers beyond 2^62 are refused, so that differences fit 64 bits", "[positions]") {
  const Positions extremes = list<std::int64_t>({two_to_62 - 1, 1 - two_to_62});
  CHECK(integers(locate(extremes, 2)) == Integers{two_to_62 - 1, 1 - two_to_62});
  CHECK_FALSE(locate(extremes, 2).consecutive());

  for (const std::int64_t beyond :
       {two_to_62, -two_to_62, std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()}) {
    const Positions positions = list<std::int64_t>({0, 1, beyond});
    CHECK(error(positions, 3) == "M::hook: pos at index 2 is " + std::to_string(beyond) +
                                     "; integers must lie strictly between -2^62 and 2^62");
  }
  // Neither end of a row may overflow while consecutive rows are looked for.
  const Positions wrapping =
      list<std::int64_t>({std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()});
  CHECK(error(wrapping, 2).find("pos at index 0 is 9223372036854775807") != std::string::npos);
}

TEST_CASE("positions are finite", "[positions]") {
  const Positions unknown = list<double>({1, not_a_number, 3});
  CHECK(error(unknown, 3) == "M::hook: pos at index 1 is nan; positions must be finite");
  const Positions above = list<double>({1, 2, 3, infinity});
  CHECK(error(above, 4) == "M::hook: pos at index 3 is inf; positions must be finite");
  const Positions below = list<float>({-std::numeric_limits<float>::infinity()});
  CHECK(error(below, 2) == "M::hook: pos at index 0 is -inf; positions must be finite");
  const Positions in_a_batch = rows<double>({{1, 2}, {3, not_a_number}});
  CHECK(error(in_a_batch, 2, {2}) == "M::hook: pos at index 3 is nan; positions must be finite");
}

TEST_CASE("reals beyond 2^1022 are refused, so that differences are finite", "[positions]") {
  const Positions extremes = list<double>({0x1p1022, -0x1p1022});
  CHECK(std::isfinite(reals(locate(extremes, 2))[0] - reals(locate(extremes, 2))[1]));
  const Positions above = list<double>({1.5e308, 1});
  CHECK(error(above, 2) == "M::hook: pos at index 0 is 1.5e+308; reals must lie within ±2^1022");
  const Positions below = rows<double>({{1, 2}, {-1.5e308, 3}});
  CHECK(error(below, 2, {2}) == "M::hook: pos at index 2 is -1.5e+308; reals must lie within ±2^1022");
  const Positions next = list<double>({std::nextafter(0x1p1022, 0x1p1023)});
  CHECK(error(next, 1).find("reals must lie within") != std::string::npos);
  // What is no number is named first, wherever it is.
  const Positions both = list<double>({1.5e308, not_a_number});
  CHECK(error(both, 2) == "M::hook: pos at index 1 is nan; positions must be finite");
}

TEST_CASE("modules may need integers", "[positions]") {
  const auto needs_integers = [](const Positions& positions) {
    return message_of<PositionError>([&] { locate(positions, 3).require_integers({"M", "hook"}, "q"); });
  };
  CHECK(needs_integers(list<double>({1, 2, 2.5})) ==
        "M::hook: q at index 2 is 2.5; integers strictly between -2^62 and 2^62 are needed");
  CHECK(needs_integers(list<float>({-0.5F, 2, 2})) ==
        "M::hook: q at index 0 is -0.5; integers strictly between -2^62 and 2^62 are needed");
  CHECK(needs_integers(list<double>({1, 1e300, 2})) ==
        "M::hook: q at index 1 is 1e+300; integers strictly between -2^62 and 2^62 are needed");
  CHECK(needs_integers(list<double>({1, 0x1p62, 2})) ==
        "M::hook: q at index 1 is 4.61168602e+18; integers strictly between -2^62 and 2^62 are needed");
  CHECK(needs_integers(list<double>({1, 2, 3})) == "<nothing thrown>");
  CHECK(needs_integers(list<int>({1, 2, 3})) == "<nothing thrown>");
  CHECK(needs_integers(Positions()) == "<nothing thrown>");
}

TEST_CASE("modules may need ids below an end", "[positions]") {
  const auto needs_ids = [](const Positions& positions, Index tokens = 4, std::initializer_list<Index> batch = {}) {
    return message_of<PositionError>([&] { locate(positions, tokens, batch).require_ids({"M", "hook"}, "pos", 10); });
  };
  const std::string fine = "<nothing thrown>";
  const auto bad = [](const std::string& at) {
    return "M::hook: pos at index " + at + "; integers in [0, 10) are needed";
  };

  // Ranges: the first bad one is the first of all, or the end.
  CHECK(needs_ids(Positions(), 10) == fine);
  CHECK(needs_ids(Positions(), 11) == bad("10 is 10"));
  CHECK(needs_ids(Positions::range(6)) == fine);
  CHECK(needs_ids(Positions::range(7)) == bad("3 is 10"));
  CHECK(needs_ids(Positions::range(9)) == bad("1 is 10"));
  CHECK(needs_ids(Positions::range(10)) == bad("0 is 10"));
  CHECK(needs_ids(Positions::range(-1)) == bad("0 is -1"));
  CHECK(needs_ids(Positions::range(-20)) == bad("0 is -20"));
  CHECK(needs_ids(Positions::range(two_to_62 - 4)) == bad("0 is 4611686018427387900"));
  CHECK(needs_ids(Positions::range(Index{1} << 40), 0) == fine);
  CHECK(needs_ids(Positions::range(), Index{1} << 40) == bad("10 is 10"));  // at once, not one by one

  CHECK(needs_ids(list<int>({9, 0, 3, 3})) == fine);
  CHECK(needs_ids(list<int>({9, 0, 10, -1})) == bad("2 is 10"));
  CHECK(needs_ids(list<std::int64_t>({-1, 99})) == bad("0 is -1"));
  CHECK(needs_ids(Tensor<int, 1>(0)) == fine);
  CHECK(needs_ids(rows<int>({{1, 2}, {9, 10}}), 4, {2}) == bad("3 is 10"));

  CHECK(needs_ids(list<float>({9, 0, 3})) == fine);
  CHECK(needs_ids(list<float>({-0.0F})) == fine);
  CHECK(needs_ids(list<double>({0, 1, 2.5})) == bad("2 is 2.5"));
  CHECK(needs_ids(list<double>({-0.5, 1})) == bad("0 is -0.5"));
  CHECK(needs_ids(list<double>({9, 10, 0.5})) == bad("1 is 10"));
  CHECK(needs_ids(list<double>({-3, 0.5})) == bad("0 is -3"));
  CHECK(needs_ids(list<double>({0, 1e300})) == bad("1 is 1e+300"));
}

TEST_CASE("positions are regular values", "[positions]") {
  static_assert(std::is_copy_constructible_v<Positions> && std::is_copy_assignable_v<Positions>);
  static_assert(std::is_nothrow_move_constructible_v<Positions>);
  Positions copy;
  {
    const Positions original = list<double>({0.5, 7});
    copy = original;
  }
  CHECK(copy.given());
  CHECK(reals(locate(copy, 2)) == Reals{0.5, 7});
  const Positions moved = std::move(copy);
  CHECK(reals(locate(moved, 2)) == Reals{0.5, 7});
}

TEST_CASE("queries and keys have positions together or apart", "[positions]") {
  const auto pair = [](const PairPositions& at, Index queries, Index keys) {
    return CheckedPairPositions({"M", "hook"}, at, leading({2}), queries, keys);
  };
  SECTION("by default both start at 0") {
    const PairPositions at;
    CHECK(integers(pair(at, 2, 3).q) == Integers{0, 1});
    CHECK(integers(pair(at, 2, 3).k) == Integers{0, 1, 2});
  }
  SECTION("one of them alone leaves the other at its default") {
    const PairPositions only_q{.q = Positions::range(100)};
    CHECK(integers(pair(only_q, 2, 3).q) == Integers{100, 101});
    CHECK(integers(pair(only_q, 2, 3).k) == Integers{0, 1, 2});
    const PairPositions only_k{.k = list<int>({5, 4})};
    CHECK(integers(pair(only_k, 2, 3).q) == Integers{0, 1});
    CHECK(integers(pair(only_k, 2, 3).k) == Integers{5, 4});
    CHECK(pair(only_k, 2, 3).k.first() == 1);
  }
  SECTION("q_k is for both") {
    const PairPositions both{.q_k = list<int>({100, 105, 101})};
    CHECK(integers(pair(both, 3, 3).q) == Integers{100, 105, 101});
    CHECK(integers(pair(both, 3, 3).k) == Integers{100, 105, 101});
  }
  SECTION("q_k goes with neither q nor k") {
    const auto message = [&](const PairPositions& at) {
      return message_of<PositionError>([&] { (void)pair(at, 3, 3); });
    };
    const Positions some = Positions::range(1);
    CHECK(message({.q_k = some, .q = some}) ==
          "M::hook: positions q_k and q are both given; give q_k alone, or q and k");
    CHECK(message({.q_k = some, .k = some}) ==
          "M::hook: positions q_k and k are both given; give q_k alone, or q and k");
    CHECK(message({.q_k = some, .q = some, .k = some}) ==
          "M::hook: positions q_k and q are both given; give q_k alone, or q and k");
  }
  SECTION("q_k needs as many queries as keys") {
    const PairPositions both{.q_k = Positions::range(7)};
    CHECK(message_of<ShapeError>([&] { (void)pair(both, 2, 3); }) ==
          "M::hook: positions q_k need L1 = L2; L1 = 2, L2 = 3; give q and k instead");
  }
  SECTION("errors name the argument") {
    const auto message = [&](const PairPositions& at) {
      return message_of<PositionError>([&] { (void)pair(at, 2, 2); });
    };
    const Positions long_row = list<int>({1, 2, 3});
    CHECK(message({.q_k = long_row}) == "M::hook: q_k has 3 positions for 2 tokens");
    CHECK(message({.q = long_row}) == "M::hook: q has 3 positions for 2 tokens");
    CHECK(message({.k = long_row}) == "M::hook: k has 3 positions for 2 tokens");
  }
}
