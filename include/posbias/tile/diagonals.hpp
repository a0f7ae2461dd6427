// SPDX-License-Identifier: MIT
/// \file
/// Adds entries to rows of logits, each of which reads what the row above it does, but a little further down.
///
///     entries   a b c d e f        row 0   c d e f
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

/// Keys [key, key + count) of the first row read entries [entry, entry + count), or, each on its own, entry +
/// places[0], entry + places[1], ...
struct DiagonalRun {
  Index key, count, entry;
  const std::int64_t* places = nullptr;
};

/// Rows of logits, `row_stride` apart. Each key has `per_key` logits next to each other, and each entry as many values. Row r
/// reads a run from entry `entry` + run.entry - r on.
template <class Scalar>
struct DiagonalRows {
  const Scalar* values;
  Index entry, per_key, rows;
  Scalar* logits;
  Index row_stride;

  [[nodiscard]] DiagonalRows from(Index row) const {
    return {values, entry - row, per_key, rows - row, logits + row * row_stride, row_stride};
  }
  [[nodiscard]] const Scalar* values_of(const DiagonalRun& run) const { return values + (entry + run.entry) * per_key; }
  [[nodiscard]] Scalar* logits_of(const DiagonalRun& run) const { return logits + run.key * per_key; }
};

/// Adds a run to the first row.
template <Write how, class Scalar>
void add_run(const DiagonalRows<Scalar>& to, const DiagonalRun& run) {
  const Scalar* const values = to.values_of(run);
  Scalar* const logits = to.logits_of(run);
  if (run.places == nullptr)
    add_values<how>(values, run.count * to.per_key, logits, 1);
  else if (to.per_key == 1)
    add_values_at<how>(values, run.places, run.count, logits);
  else
    for (Index j = 0; j < run.count; ++j)
      add_values<how>(values + run.places[j] * to.per_key, to.per_key, logits + j * to.per_key, 1);
}

/// Adds a run to four rows, `apart` rows from each other: each value is read once for all of them, as what is read
/// across cache lines takes longer than what is written. Row r is `skew` logits behind row r - 1.
/// `per_key`, and so all that is computed from it, is a constant where a key has one.
template <Write how, class Scalar>
void add_run_to_four(const DiagonalRows<Scalar>& to, auto per_key, auto apart, const DiagonalRun& run) {
  using Some = SomeValues<Scalar>;
  constexpr Index some = Some::SizeAtCompileTime;
  const Index count = run.count * per_key, skew = apart * per_key;
  if (run.places != nullptr || count < 24 * skew) {
    for (Index r = 0; r < 4; ++r) add_run<how>(to.from(r * apart), run);
    return;
  }
  const Scalar* const values = to.values_of(run);
  Scalar* const row_0 = to.logits_of(run);
  Scalar* const row_1 = row_0 + apart * to.row_stride + skew;  // row_1[x] takes the value that row_0[x] does
  Scalar* const row_2 = row_1 + apart * to.row_stride + skew;
  Scalar* const row_3 = row_2 + apart * to.row_stride + skew;
  add_values<how>(values - skew, skew, row_1 - skew, 1);
  add_values<how>(values - 2 * skew, 2 * skew, row_2 - 2 * skew, 1);
  add_values<how>(values - 3 * skew, 3 * skew, row_3 - 3 * skew, 1);
  Index x = 0;
  for (; x + some <= count - 3 * skew; x += some) {
    const Some read = Eigen::Map<const Some>(values + x);
    add_some<how, Scalar>(read, row_0 + x);
    add_some<how, Scalar>(read, row_1 + x);
    add_some<how, Scalar>(read, row_2 + x);
    add_some<how, Scalar>(read, row_3 + x);
  }
  add_values<how>(values + x, count - x, row_0 + x, 1);
  add_values<how>(values + x, count - skew - x, row_1 + x, 1);
  add_values<how>(values + x, count - 2 * skew - x, row_2 + x, 1);
  add_values<how>(values + x, count - 3 * skew - x, row_3 + x, 1);
}

/// Adds runs to all rows.
template <Write how, class Scalar>
void add_diagonals(const DiagonalRows<Scalar>& to, std::span<const DiagonalRun> runs) {
  constexpr Index some = SomeValues<Scalar>::SizeAtCompileTime;
  Index row = 0;
  const auto four_at_a_time = [&](auto per_key, auto apart) {
    for (; row + 4 * apart <= to.rows; row += 4 * apart)
      for (Index first = row; first < row + apart; ++first)
        for (const DiagonalRun& run : runs) add_run_to_four<how>(to.from(first), per_key, apart, run);
  };
  // Rows that get values together do so at the same place within a cache line, if their beginnings are.
  if (to.per_key == 1)
    four_at_a_time(std::integral_constant<Index, 1>(), std::integral_constant<Index, some>());
  else
    four_at_a_time(to.per_key, some / std::gcd(some, to.per_key));
  for (; row < to.rows; ++row)
    for (const DiagonalRun& run : runs) add_run<how>(to.from(row), run);
}

}  // namespace posbias::detail
