// SPDX-License-Identifier: MIT
#include "posbias/core/token_mask.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"

using posbias::CheckedTokenMask;
using posbias::Index;
using posbias::ShapeError;
using posbias::TokenMask;
using posbias_test::message_of;

namespace {

template <class S, int Rank, int Layout = Eigen::RowMajor>
using Tensor = Eigen::Tensor<S, Rank, Layout>;

static_assert(std::is_constructible_v<TokenMask, Tensor<bool, 2>> &&
              !std::is_constructible_v<TokenMask, Tensor<int, 2>>);
static_assert(!std::is_constructible_v<TokenMask, Tensor<bool, 0>>);

posbias::detail::BatchShape leading(std::vector<Index> sizes) {
  return posbias::detail::BatchShape(sizes);
}

template <std::size_t Rank>
auto listed(const std::array<Index, Rank>& sizes, std::initializer_list<bool> values) {
  Tensor<bool, static_cast<int>(Rank)> tensor(sizes);
  std::copy(values.begin(), values.end(), tensor.data());
  return tensor;
}

/// The flags of all tokens of all batch entries.
std::vector<bool> flags_of(const TokenMask& flags, const std::vector<Index>& batch, Index tokens) {
  const CheckedTokenMask at({"M", "hook"}, flags, leading(batch), tokens);
  std::vector<bool> values;
  for (Index n = 0; n < leading(batch).count(); ++n)
    for (Index l = 0; l < tokens; ++l) values.push_back(at(n, l));
  return values;
}

using Bools = std::vector<bool>;

}  // namespace

TEST_CASE("flags are right-aligned and true to the left", "[token_mask]") {
  const TokenMask none;
  CHECK_FALSE(none.given());
  CHECK(flags_of(none, {1}, 3) == Bools{true, true, true});

  const TokenMask shared = listed(std::array<Index, 1>{3}, {false, true, false});
  CHECK(shared.given());
  CHECK(flags_of(shared, {1}, 3) == Bools{false, true, false});
  CHECK(flags_of(shared, {2}, 5) == Bools{true, true, false, true, false, true, true, false, true, false});
  CHECK(flags_of(Tensor<bool, 1>(0), {1}, 2) == Bools{true, true});

  Tensor<bool, 2, Eigen::ColMajor> batch(2, 2);
  batch(0, 0) = batch(1, 1) = false;
  batch(0, 1) = batch(1, 0) = true;
  CHECK(flags_of(batch, {2}, 3) == Bools{true, false, true, true, true, false});
}

TEST_CASE("flags that do not fit are refused", "[token_mask]") {
  const auto message = [](const TokenMask& flags, Index tokens, const std::vector<Index>& batch) {
    return message_of<ShapeError>([&] { CheckedTokenMask({"M", "hook"}, flags, leading(batch), tokens); });
  };
  const TokenMask two_rows = listed(std::array<Index, 2>{2, 1}, {true, true});
  CHECK(message(listed(std::array<Index, 1>{3}, {true, true, true}), 2, {2}) ==
        "M::hook: mask has 3 flags for 2 tokens");
  CHECK(message(two_rows, 2, {3}) == "M::hook: mask has leading dimensions (2); x has (3)");
  CHECK(message(two_rows, 2, {}) == "M::hook: mask has leading dimensions (2); x has ()");
}

TEST_CASE("flags broadcast as positions do", "[token_mask]") {
  const auto flags = [](const TokenMask& mask) { return flags_of(mask, {2, 3}, 2); };
  const bool T = true, F = false;
  CHECK(flags(listed(std::array<Index, 3>{1, 1, 2}, {F, T})) == Bools{F, T, F, T, F, T, F, T, F, T, F, T});
  CHECK(flags(listed(std::array<Index, 2>{1, 1}, {F})) == Bools{T, F, T, F, T, F, T, F, T, F, T, F});
  CHECK(flags(listed(std::array<Index, 3>{2, 1, 2}, {F, T, F, F})) == Bools{F, T, F, T, F, T, F, F, F, F, F, F});
  CHECK(flags(listed(std::array<Index, 2>{3, 2}, {F, T, F, F, T, F})) == Bools{F, T, F, F, T, F, F, T, F, F, T, F});
}
