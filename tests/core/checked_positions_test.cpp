// SPDX-License-Identifier: MIT
#include "posbias/core/checked_positions.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "posbias/posbias.hpp"
#include "support/catch.hpp"

using namespace posbias;
using posbias_test::message_of;

namespace {

template <class S, int Rank>
using Tensor = Eigen::Tensor<S, Rank, Eigen::RowMajor>;

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

detail::BatchShape leading(std::vector<Index> sizes) {
  return detail::BatchShape(sizes);
}

template <class S, int Rank>
std::vector<S> values_of(const Tensor<S, Rank>& tensor) {
  return {tensor.data(), tensor.data() + tensor.size()};
}

/// All positions, row by row.
std::vector<double> values_of(const CheckedPositions& at) {
  std::vector<double> values;
  for (Index n = 0; n < at.rows(); ++n)
    for (Index i = 0; i < at.count(); ++i) values.push_back(at.real(n, i));
  return values;
}

/// 100 · row + place + 0.5 · `halves` for the rows of any leading dimensions.
template <int Rank>
Tensor<double, Rank> numbered(std::array<Index, static_cast<std::size_t>(Rank)> sizes, double halves = 0) {
  Tensor<double, Rank> tensor(sizes);
  const Index length = sizes.back();
  for (Index i = 0; i < tensor.size(); ++i)
    tensor.data()[i] = static_cast<double>(100 * (i / length) + i % length) + 0.5 * halves;
  return tensor;
}

template <class S>
Tensor<S, 4> ramp(std::array<Index, 4> sizes, double start) {
  Tensor<S, 4> tensor(sizes);
  for (Index i = 0; i < tensor.size(); ++i)
    tensor.data()[i] = static_cast<S>(start + 0.01 * static_cast<double>(i % 97));
  return tensor;
}

}  // namespace

TEST_CASE("positions with leading dimensions of 1 are shared by the batch", "[positions]") {
  const auto check_shared = [](const Positions& positions, const std::vector<Index>& batch) {
    const CheckedPositions at({"M", "hook"}, "pos", positions, leading(batch), 4);
    CHECK(at.shared());
    CHECK(at.rows() == 1);
    CHECK(at.first() == 1);
    CHECK(values_of(at) == std::vector<double>{0.5, 1.5, 2.5});
  };
  const Tensor<double, 2> one = numbered<2>({1, 3}, 1);
  const Tensor<double, 3> one_by_one = numbered<3>({1, 1, 3}, 1);
  check_shared(one, {2});
  check_shared(one, {1});
  check_shared(one, {0});
  check_shared(one, {2, 5});
  check_shared(one_by_one, {2, 5});
}

TEST_CASE("each leading dimension of positions may be 1, or missing from the left", "[positions]") {
  const auto rows = [](const Positions& positions) {
    return values_of(CheckedPositions({"M", "hook"}, "pos", positions, leading({2, 3}), 2));
  };
  for (const double halves : {0, 1}) {
    const double h = 0.5 * halves;
    const std::vector<double> of_last{h, 1 + h, 100 + h, 101 + h, 200 + h, 201 + h,
                                      h, 1 + h, 100 + h, 101 + h, 200 + h, 201 + h};
    CHECK(rows(numbered<3>({1, 3, 2}, halves)) == of_last);
    CHECK(rows(numbered<2>({3, 2}, halves)) == of_last);
    CHECK(rows(numbered<3>({2, 1, 2}, halves)) == std::vector<double>{h, 1 + h, h, 1 + h, h, 1 + h,  //
                                                                      100 + h, 101 + h, 100 + h, 101 + h, 100 + h,
                                                                      101 + h});
  }
  const CheckedPositions at({"M", "hook"}, "pos", numbered<3>({2, 1, 2}), leading({2, 3}), 2);
  CHECK(at.consecutive());

  const auto message = [](const Positions& positions, const std::vector<Index>& batch) {
    return message_of<ShapeError>([&] { (void)CheckedPositions({"M", "hook"}, "pos", positions, leading(batch), 2); });
  };
  CHECK(message(numbered<3>({2, 1, 2}), {2}) == "M::hook: pos has leading dimensions (2, 1); the tensor has (2)");
  CHECK(message(numbered<3>({2, 1, 2}), {3, 3}) == "M::hook: pos has leading dimensions (2, 1); the tensor has (3, 3)");
  CHECK(message(numbered<2>({2, 2}), {2, 3}) == "M::hook: pos has leading dimensions (2); the tensor has (2, 3)");
  CHECK(message(numbered<2>({1, 2}), {}) == "M::hook: pos has leading dimensions (1); the tensor has ()");
}

TEST_CASE("a position that cannot be is named by its place among those given", "[positions]") {
  Tensor<double, 3> positions = numbered<3>({2, 1, 2}, 1);
  const auto message = [&](const auto& use) {
    return message_of<PositionError>([&] {
      use(CheckedPositions({"M", "hook"}, "pos", positions, leading({2, 3}), 2));
    });
  };
  CHECK(message([](const CheckedPositions& at) {
          at.require_integers({"M", "hook"}, "pos");
        }).find("at index 0 is 0.5") != std::string::npos);
  positions.setValues({{{0, 0.0}}, {{0, 0.5}}});
  CHECK(message([](const CheckedPositions& at) {
          at.require_integers({"M", "hook"}, "pos");
        }).find("at index 3 is 0.5") != std::string::npos);
  CHECK(message([](const CheckedPositions& at) {
          at.require_ids({"M", "hook"}, "pos", 9);
        }).find("at index 3 is 0.5") != std::string::npos);
  positions(1, 0, 1) = not_a_number;
  CHECK(message([](const CheckedPositions&) {}) == "M::hook: pos at index 3 is nan; positions must be finite");
}

TEST_CASE("positions of tokens that flags leave out are not looked at", "[positions]") {
  Tensor<bool, 2> encode(2, 3);
  encode.setValues({{false, true, false}, {false, true, true}});
  const TokenMask given = encode;
  const CheckedTokenMask flags({"M", "hook"}, given, leading({2}), 3);
  const auto locate = [&](const Positions& positions) {
    return CheckedPositions({"M", "hook"}, "pos", positions, leading({2}), 3, &flags);
  };
  SECTION("shared: where no entry encodes the token") {
    Tensor<double, 1> reals(3);
    reals.setValues({not_a_number, 1, 2});
    CHECK(values_of(locate(reals)) == std::vector<double>{0, 1, 2});
    reals.setValues({7, 1, 2});
    CHECK(values_of(locate(reals)) == std::vector<double>{0, 1, 2});
    reals.setValues({0, 1, not_a_number});  // the second entry encodes it
    CHECK(message_of<PositionError>([&] { (void)locate(reals); }) ==
          "M::hook: pos at index 2 is nan; positions must be finite");
  }
  SECTION("a row for each entry") {
    Tensor<std::int64_t, 2> ids(2, 3);
    constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min();
    ids.setValues({{least, 5, least}, {least, 6, 9}});
    const CheckedPositions at = locate(ids);
    CHECK(values_of(at) == std::vector<double>{0, 5, 0, 0, 6, 9});
    CHECK_FALSE(at.consecutive());
    at.require_ids({"M", "hook"}, "pos", 10);
    CHECK(message_of<PositionError>([&] {
            at.require_ids({"M", "hook"}, "pos", 9);
          }) == "M::hook: pos at index 5 is 9; integers in [0, 9) are needed");
  }
  SECTION("a range") {
    const CheckedPositions at = locate(Positions::range(-1));
    CHECK(values_of(at) == std::vector<double>{0, 0, 1});
    at.require_ids({"M", "hook"}, "pos", 2);
    CHECK_FALSE(at.consecutive());
    CHECK(values_of(locate({})) == std::vector<double>{0, 1, 2});
    CHECK(message_of<PositionError>([&] {
            (void)locate(Positions::range(std::numeric_limits<Index>::max() - 1));
          }).find("M::hook: pos at index 1 is") == 0);
  }
  SECTION("none are left out") {
    encode.setConstant(true);
    const TokenMask all_true = encode;
    const CheckedTokenMask none_left_out({"M", "hook"}, all_true, leading({2}), 3);
    const CheckedPositions at({"M", "hook"}, "pos", Positions::range(7), leading({2}), 3, &none_left_out);
    CHECK(at.consecutive());
    CHECK(values_of(at) == std::vector<double>{7, 8, 9});
  }
}

TEST_CASE("attention gives the same bits at positions that broadcast and at those of each entry", "[positions]") {
  constexpr Index B = 2, L = 5, NH = 2, H = 4;
  const auto q = ramp<float>({B, L, NH, H}, 0.1), k = ramp<float>({B, L, NH, H}, -0.4),
             v = ramp<float>({B, L, NH, H}, 0.3);
  Tensor<std::int64_t, 2> one(1, L), both(B, L);
  one.setValues({{100, 101, 103, 109, 110}});
  both.setValues({{100, 101, 103, 109, 110}, {100, 101, 103, 109, 110}});
  const Compose module(Rotary<float>({.head_dim = H}), ALiBi<float>({.n_heads = NH}));
  const auto attend = [&](const Positions& at) {
    Tensor<float, 4> out(B, L, NH, H);
    attention(out, q, k, v, module, {.causal = true, .at = {.q_k = at}});
    return values_of(out);
  };
  CHECK(attend(one) == attend(both));
  CHECK(attend(one) != attend({}));

  const RelativeAttention<float> layer({.size = 8, .n_heads = 2, .n_positions = 9});
  Tensor<float, 3> x(B, L, 8);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i % 13) / 8;
  const auto pool = [&](const Positions& at) { return values_of(layer(x, x, x, {.positions = {{.q_k = at}}}).pooled); };
  CHECK(pool(one) == pool(both));
  CHECK(pool(one) != pool({}));
}
