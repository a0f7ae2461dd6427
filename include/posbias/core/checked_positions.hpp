// SPDX-License-Identifier: MIT
/// \file
/// Positions checked against the tensors they belong to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/optional_tensor.hpp"
#include "posbias/core/positions.hpp"
#include "posbias/core/token_mask.hpp"
#include "posbias/core/view.hpp"

namespace posbias {

/// Positions checked against the tensor they belong to: `tokens` tokens in each batch entry of shape `leading`.
/// Owns a copy of them.
class CheckedPositions {
 public:
  /// Positions of tokens that are left out by `flags` in all batch entries that share them are not looked at. Throws
  /// ShapeError or PositionError, naming `hook` and the argument.
  CheckedPositions(const detail::Hook& hook, std::string_view argument, Positions positions,
                   const detail::BatchShape& leading, Index tokens, const CheckedTokenMask* flags = nullptr)
      : positions_(std::move(positions)), tokens_(tokens), count_(positions_.unlimited_ ? tokens : positions_.count_) {
    const auto reject = [&]<class Exception>(std::type_identity<Exception>, const auto&... parts) {
      detail::fail<Exception>(hook, ": ", argument, " ", parts...);
    };
    constexpr std::type_identity<ShapeError> shape;
    constexpr std::type_identity<PositionError> position;
    if (!broadcast(leading))
      reject(shape, "has leading dimensions ", positions_.leading_.shape(), "; the tensor has ", leading.shape());
    if (count_ > tokens) reject(position, "has ", count_, " positions for ", tokens, " tokens");
    if (flags != nullptr && !flags->all()) forget_unused(*flags, leading.count());

    const auto out_of_range = [&](std::size_t i, std::int64_t value) {
      reject(position, "at index ", given(i), " is ", value, "; integers must lie strictly between -2^62 and 2^62");
    };
    if (positions_.unlimited_) {
      const std::int64_t start = positions_.start_;
      if (start < -Positions::limit || start > Positions::limit - std::max<Index>(tokens - 1, 0))
        out_of_range(0, start);
    }
    for (std::size_t i = 0; i < positions_.integers_.size(); ++i)
      if (!Positions::in_range(positions_.integers_[i])) out_of_range(i, positions_.integers_[i]);
    for (std::size_t i = 0; i < positions_.reals_.size(); ++i)
      if (!detail::is_finite(positions_.reals_[i]))
        reject(position, "at index ", given(i), " is ", positions_.reals_[i], "; positions must be finite");
    for (std::size_t i = 0; i < positions_.reals_.size(); ++i)
      if (std::abs(positions_.reals_[i]) > Positions::real_limit)
        reject(position, "at index ", given(i), " is ", positions_.reals_[i], "; reals must lie within ±2^1022");
  }

  /// The tokens [first(), tokens) have a position.
  [[nodiscard]] Index first() const { return tokens_ - count_; }
  /// How many tokens have a position.
  [[nodiscard]] Index count() const { return count_; }
  /// One row of positions for the whole batch.
  [[nodiscard]] bool shared() const { return positions_.leading_.rank == 0; }
  /// Rows of positions: one, or one a batch entry.
  [[nodiscard]] Index rows() const { return shared() ? 1 : positions_.leading_.count(); }
  /// All positions are integers.
  [[nodiscard]] bool integral() const { return positions_.reals_.empty(); }
  /// Every row is first, first + 1, ...
  [[nodiscard]] bool consecutive() const { return positions_.consecutive_ && integral(); }

  /// The i-th position of batch entry n; only if integral().
  [[nodiscard]] std::int64_t integer(Index n, Index i) const {
    if (positions_.unlimited_) return positions_.start_ + i;
    return positions_.integers_[flat(n, i)];
  }

  /// The i-th position of batch entry n.
  [[nodiscard]] double real(Index n, Index i) const {
    return integral() ? static_cast<double>(integer(n, i)) : positions_.reals_[flat(n, i)];
  }

  /// Throws PositionError unless all positions are integers.
  void require_integers(const detail::Hook& hook, std::string_view argument) const {
    for (std::size_t i = 0; i < positions_.reals_.size(); ++i) {
      const double value = positions_.reals_[i];
      if (value != std::floor(value) || std::abs(value) >= 0x1p62)
        detail::fail<PositionError>(hook, ": ", argument, " at index ", given(i), " is ", value,
                                    "; integers strictly between -2^62 and 2^62 are needed");
    }
  }

  /// Throws PositionError unless all positions are integers in [0, end), the rows of a table. A range is checked by
  /// its ends.
  void require_ids(const detail::Hook& hook, std::string_view argument, Index end) const {
    const auto reject = [&](auto i, auto value) {
      detail::fail<PositionError>(hook, ": ", argument, " at index ", given(i), " is ", value, "; integers in [0, ",
                                  end, ") are needed");
    };
    if (positions_.unlimited_ && count_ > 0) {
      const std::int64_t start = positions_.start_;
      if (start < 0 || start >= end) reject(0, start);
      if (count_ > end - start) reject(end - start, end);
    }
    for (std::size_t i = 0; i < positions_.integers_.size(); ++i)
      if (positions_.integers_[i] < 0 || positions_.integers_[i] >= end) reject(i, positions_.integers_[i]);
    for (std::size_t i = 0; i < positions_.reals_.size(); ++i) {
      const double value = positions_.reals_[i];
      if (value != std::floor(value) || value < 0 || value >= static_cast<double>(end)) reject(i, value);
    }
  }

 private:
  [[nodiscard]] std::size_t flat(Index n, Index i) const {
    return static_cast<std::size_t>((shared() ? 0 : n * count_) + i);
  }

  /// Where position i of those that are here stood among those that were given.
  [[nodiscard]] Index given(auto i) const {
    const auto place = static_cast<Index>(i);
    return rows_.empty() ? place : rows_[static_cast<std::size_t>(place / count_)] * count_ + place % count_;
  }

  /// One row of positions is for all batch entries, many become a row for each of them. False if shapes do not fit.
  [[gnu::cold]] bool broadcast(const detail::BatchShape& leading) {
    detail::BatchShape& rows = positions_.leading_;
    if (rows.rank == 0 || (rows == leading && rows.count() != 1)) return true;
    std::optional<std::vector<Index>> read = detail::broadcast_rows(rows, leading);
    if (!read) return false;
    if (rows.count() == 1) {
      rows = {};
      return true;
    }
    const auto copy_rows = [&](auto& values) {
      if (values.empty()) return;
      const auto given = std::exchange(values, {});
      for (const Index row : *read)
        values.insert(values.end(), given.begin() + row * count_, given.begin() + (row + 1) * count_);
    };
    copy_rows(positions_.integers_);
    copy_rows(positions_.reals_);
    rows = leading;
    rows_ = std::move(*read);
    return true;
  }

  /// Positions of tokens that are nowhere encoded become 0, which every module can embed.
  [[gnu::cold]] void forget_unused(const CheckedTokenMask& flags, Index batches) {
    std::vector<char> used(static_cast<std::size_t>(rows() * count_));
    for (Index n = 0; n < batches; ++n)
      for (Index i = 0; i < count_; ++i) used[flat(n, i)] |= static_cast<char>(flags(n, first() + i));
    if (std::find(used.begin(), used.end(), 0) == used.end()) return;
    const auto forget = [&](auto& values) {
      for (std::size_t i = 0; i < values.size(); ++i)
        if (!used[i]) values[i] = 0;
    };
    forget(positions_.reals_);
    if (!integral()) return;
    std::vector<std::int64_t> integers = std::move(positions_.integers_);
    if (positions_.unlimited_) {
      for (std::size_t i = 0; i < used.size(); ++i)  // what wraps around is out of range, too
        integers.push_back(static_cast<std::int64_t>(static_cast<std::uint64_t>(positions_.start_) + i));
      positions_.unlimited_ = false;
      positions_.count_ = count_;
    }
    forget(integers);
    positions_.adopt(std::move(integers));
  }

  Positions positions_;
  Index tokens_, count_;
  std::vector<Index> rows_;  // which given row each row was; empty if they are those that were given
};

/// Positions of the queries and of the keys of one attention, checked.
struct CheckedPairPositions {
  /// Throws ShapeError, PositionError.
  CheckedPairPositions(const detail::Hook& hook, const PairPositions& at, const detail::BatchShape& leading,
                       Index queries, Index keys)
      : q(hook, at.q_k.given() ? "q_k" : "q", at.q_k.given() ? at.q_k : at.q, leading, queries),
        k(hook, at.q_k.given() ? "q_k" : "k", at.q_k.given() ? at.q_k : at.k, leading, keys) {
    if (at.q_k.given() && (at.q.given() || at.k.given()))
      detail::fail<PositionError>(hook, ": positions q_k and ", at.q.given() ? "q" : "k",
                                  " are both given; give q_k alone, or q and k");
    if (at.q_k.given() && queries != keys)
      detail::fail<ShapeError>(hook, ": positions q_k need L1 = L2; L1 = ", queries, ", L2 = ", keys,
                               "; give q and k instead");
  }

  /// Of queries and keys that were checked apart.
  CheckedPairPositions(CheckedPositions of_queries, CheckedPositions of_keys)
      : q(std::move(of_queries)), k(std::move(of_keys)) {}

  /// Throws PositionError unless all positions, which are those of `at`, are integers.
  void require_integers(const detail::Hook& hook, const PairPositions& at) const {
    q.require_integers(hook, at.q_k.given() ? "q_k" : "q");
    k.require_integers(hook, at.q_k.given() ? "q_k" : "k");
  }

  CheckedPositions q,  ///< of the queries
      k;               ///< of the keys
};

}  // namespace posbias
