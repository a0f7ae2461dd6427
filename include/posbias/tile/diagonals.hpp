// SPDX-License-Identifier: MIT
/// \file
/// Adds columns to rows of logits, each of which reads what the row above it does, but a little further down.
///
///     columns   a b c d e f        row 0   c d e f
///                                  row 1   b c d e
///                                  row 2   a b c d
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>

#include "posbias/tile/logit_tile.hpp"

namespace posbias::detail {

/// Keys [key, key + count) of the first row read columns [column, column + count), or, each on its own, column +
/// places[0], column + places[1], ...
struct ToeplitzPiece {
  Index key, count, column;
  const std::int64_t* places = nullptr;
};

/// Rows of logits, `row_stride` apart, whose keys have `lanes` logits each, next to each other; so many values has a
/// column, too. The first row reads columns `column` further up than the pieces say, each row one further down.
template <class Scalar>
struct ToeplitzRows {
  const Scalar* values;
  Index column, lanes, rows;
  Scalar* logits;
  Index row_stride;

  [[nodiscard]] ToeplitzRows from(Index row) const {
    return {values, column - row, lanes, rows - row, logits + row * row_stride, row_stride};
  }
  [[nodiscard]] const Scalar* values_of(const ToeplitzPiece& piece) const {
    return values + (column + piece.column) * lanes;
  }
  [[nodiscard]] Scalar* logits_of(const ToeplitzPiece& piece) const { return logits + piece.key * lanes; }
};

/// Adds a piece to the first row.
template <Onto onto, class Scalar>
void add_piece(const ToeplitzRows<Scalar>& to, const ToeplitzPiece& piece) {
  const Scalar* const values = to.values_of(piece);
  Scalar* const logits = to.logits_of(piece);
  if (piece.places == nullptr)
    add_values<onto>(values, piece.count * to.lanes, logits, 1);
  else if (to.lanes == 1)
    add_values_at<onto>(values, piece.places, piece.count, logits);
  else
    for (Index j = 0; j < piece.count; ++j)
      add_values<onto>(values + piece.places[j] * to.lanes, to.lanes, logits + j * to.lanes, 1);
}

/// Adds a piece to four rows, `apart` rows from each other: each value is read once for all of them, as what is read
/// across cache lines takes longer than what is written. Row r is `skew` logits behind row r - 1.
/// `lanes`, and so all that is computed from it, is a constant where a key has one.
template <Onto onto, class Scalar>
void add_piece_to_four(const ToeplitzRows<Scalar>& to, auto lanes, auto apart, const ToeplitzPiece& piece) {
  using Some = SomeValues<Scalar>;
  constexpr Index some = Some::SizeAtCompileTime;
  const Index count = piece.count * lanes, skew = apart * lanes;
  if (piece.places != nullptr || count < 24 * skew) {
    for (Index r = 0; r < 4; ++r) add_piece<onto>(to.from(r * apart), piece);
    return;
  }
  const Scalar* const values = to.values_of(piece);
  Scalar* const row_0 = to.logits_of(piece);
  Scalar* const row_1 = row_0 + apart * to.row_stride + skew;  // where it reads what row_0 does
  Scalar* const row_2 = row_1 + apart * to.row_stride + skew;
  Scalar* const row_3 = row_2 + apart * to.row_stride + skew;
  add_values<onto>(values - skew, skew, row_1 - skew, 1);
  add_values<onto>(values - 2 * skew, 2 * skew, row_2 - 2 * skew, 1);
  add_values<onto>(values - 3 * skew, 3 * skew, row_3 - 3 * skew, 1);
  Index x = 0;
  for (; x + some <= count - 3 * skew; x += some) {
    const Some read = Eigen::Map<const Some>(values + x);
    add_some<onto, Scalar>(read, row_0 + x);
    add_some<onto, Scalar>(read, row_1 + x);
    add_some<onto, Scalar>(read, row_2 + x);
    add_some<onto, Scalar>(read, row_3 + x);
  }
  add_values<onto>(values + x, count - x, row_0 + x, 1);
  add_values<onto>(values + x, count - skew - x, row_1 + x, 1);
  add_values<onto>(values + x, count - 2 * skew - x, row_2 + x, 1);
  add_values<onto>(values + x, count - 3 * skew - x, row_3 + x, 1);
}

/// Adds pieces to all rows.
template <Onto onto, class Scalar>
void add_toeplitz(const ToeplitzRows<Scalar>& to, std::span<const ToeplitzPiece> pieces) {
  constexpr Index some = SomeValues<Scalar>::SizeAtCompileTime;
  Index row = 0;
  const auto four_at_a_time = [&](auto lanes, auto apart) {
    for (; row + 4 * apart <= to.rows; row += 4 * apart)
      for (Index first = row; first < row + apart; ++first)
        for (const ToeplitzPiece& piece : pieces) add_piece_to_four<onto>(to.from(first), lanes, apart, piece);
  };
  // Rows that get values together do so at the same place within a cache line, if their beginnings are.
  if (to.lanes == 1)
    four_at_a_time(std::integral_constant<Index, 1>(), std::integral_constant<Index, some>());
  else
    four_at_a_time(to.lanes, some / std::gcd(some, to.lanes));
  for (; row < to.rows; ++row)
    for (const ToeplitzPiece& piece : pieces) add_piece<onto>(to.from(row), piece);
}

}  // namespace posbias::detail
