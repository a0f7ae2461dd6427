// SPDX-License-Identifier: MIT
/// \file
/// Where tokens are. Caches, packed rows, left padding and shards are all only positions.
///
/// Positions are a range (0 .. L-1 unless told otherwise), or explicit integers or reals, either shared by the
/// batch (rank 1) or one row per batch entry (B, *, L), where a leading dimension of 1, or one that is missing from the
/// left, is for all. With fewer positions than tokens, they belong to the
/// rightmost tokens and the left ones have none:
///
///     tokens      [CLS] the  cat  sat
///     positions         100  101  102
///
/// Integers stay integers, so differences are exact at any offset; reals whose values are all integers count as
/// integers. Rows of consecutive integers are recognised, whatever they were given as.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/standard.hpp"
#include "posbias/core/token_mask.hpp"
#include "posbias/core/view.hpp"

namespace posbias {

/// A scalar of positions: any integer but bool, float or double.
template <class S>
concept PositionScalar =
    (std::integral<S> && !std::same_as<S, bool>) || std::same_as<S, float> || std::same_as<S, double>;

/// An Eigen tensor that can hold positions: rank 1 or more.
template <class T>
concept PositionTensor = TensorLike<T> &&(detail::Traits<T>::rank >= 1) && PositionScalar<detail::ScalarOf<T>>;

/// A vector, an array or a span that can hold positions.
template <class T>
concept PositionList = std::ranges::sized_range<T> && PositionScalar<std::ranges::range_value_t<T>>;

/// The positions of the tokens of one tensor. A copyable value that owns its numbers.
class Positions {
 public:
  /// Integers beyond this are refused, so that a difference of two always fits 64 bits.
  static constexpr std::int64_t limit = (std::int64_t{1} << 62) - 1;
  /// Reals beyond this are refused, so that a difference of two is always finite.
  static constexpr double real_limit = 0x1p1022;

  /// "Not given": 0 .. L-1.
  Positions() = default;

  /// start, start + 1, ... for as many tokens as there are.
  [[nodiscard]] static Positions range(Index start = 0) {
    Positions result;
    result.given_ = true;
    result.start_ = start;
    return result;
  }

  /// Explicit positions: rank 1 for the whole batch, or (B, *, L), each of B, * possibly 1 for all. Values are checked by
  /// the hook they are given to.
  template <PositionTensor T>
  Positions(const T& tensor) : given_(true), unlimited_(false) {
    const auto tokens = detail::view<1>(tensor);
    leading_ = tokens.leading;
    count_ = tokens.shape[0];
    std::vector<decltype(number(detail::ScalarOf<T>()))> values(static_cast<std::size_t>(tensor.size()));
    detail::for_each_row_major(tensor,
                               [&](Index i, auto value) { values[static_cast<std::size_t>(i)] = number(value); });
    adopt(std::move(values));
  }

  /// Explicit positions for the whole batch. Copies them.
  template <PositionList List>
  Positions(const List& list) : given_(true), unlimited_(false), count_(static_cast<Index>(std::ranges::size(list))) {
    std::vector<decltype(number(std::ranges::range_value_t<List>()))> values;
    for (const auto value : list) values.push_back(number(value));
    adopt(std::move(values));
  }

  Positions(std::integral auto first) = delete;  // not a list: Positions::range(first)

  /// False for a default-constructed value.
  [[nodiscard]] bool given() const { return given_; }

 private:
  friend class CheckedPositions;

  /// A position as it is kept. Integers beyond 64 signed bits stay out of range.
  static std::int64_t number(std::integral auto value) {
    constexpr auto largest = (std::numeric_limits<std::int64_t>::max)();
    return std::cmp_less(value, largest) ? static_cast<std::int64_t>(value) : largest;
  }
  static double number(std::floating_point auto value) { return value; }

  /// Keeps integers, and notes whether every row is consecutive.
  void adopt(std::vector<std::int64_t> values) {
    integers_ = std::move(values);
    consecutive_ = count_ > 0;
    for (std::size_t i = 0; i < integers_.size() && consecutive_; ++i) {
      const bool starts_row = i % static_cast<std::size_t>(count_) == 0;
      consecutive_ = in_range(integers_[i]) && (starts_row || integers_[i] == integers_[i - 1] + 1);
    }
  }

  /// Keeps reals, as integers if all of them are.
  void adopt(std::vector<double> values) {
    const bool all_integers = std::all_of(values.begin(), values.end(), [](double value) {
      return std::abs(value) < 0x1p62 && value == std::floor(value);
    });
    if (all_integers) {
      std::vector<std::int64_t> integers(values.size());
      std::transform(values.begin(), values.end(), integers.begin(),
                     [](double value) { return static_cast<std::int64_t>(value); });
      adopt(std::move(integers));
    } else {
      reals_ = std::move(values);
    }
  }

  static bool in_range(std::int64_t value) { return value >= -limit && value <= limit; }

  bool given_ = false;
  bool unlimited_ = true;       // a range: as many positions as there are tokens
  std::int64_t start_ = 0;      // of a range
  bool consecutive_ = true;     // every row is first, first + 1, ...
  Index count_ = 0;             // positions per row, unless unlimited
  detail::BatchShape leading_;  // (B, *); rank 0 if shared by the batch
  std::vector<std::int64_t> integers_;
  std::vector<double> reals_;
};

/// What `mod_x` may be told about its tokens.
struct TokenPositions {
  Positions pos{};      ///< position of each token, looked at where it is encoded; default 0 .. L-1
  TokenMask mask{};     ///< true: encode this token; default all
  Executor executor{};  ///< who runs the loops; default the calling thread
};

/// What `mod_qkv` and `mod_mask` may be told about queries and keys.
struct PairPositions {
  Positions q_k{};      ///< of queries and keys alike; not together with q or k
  Positions q{};        ///< of queries; default 0 .. L1-1
  Positions k{};        ///< of keys; default 0 .. L2-1
  Executor executor{};  ///< who runs the loops; default the calling thread
  Caller caller{};      ///< in messages; default the hook
};

namespace detail {

/// The same, for a function that calls hooks in turn, unless another one called it.
inline PairPositions called_by(const Caller& caller, PairPositions at) {
  if (at.caller.function.empty()) at.caller = caller;
  return at;
}

}  // namespace detail

}  // namespace posbias
