// SPDX-License-Identifier: MIT
/// \file
/// Matrix products whose every entry is the same bits whatever it is computed with.
///
///     c(i, j) += sum over t of a(i, t) · b(t, j)
///
/// An entry starts from c and takes its terms in order, so it does not depend on the other rows and columns, on where
/// it stands among them, or on how the terms are cut into calls. General matrix products choose their order of
/// summation by the shape, and a query by itself would get other bits than the same query in a batch.
///
/// Cost: about that of Eigen's product at the same shape where rows are many and b fits a cache.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <utility>
#include <vector>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// Columns of b and c come in multiples of this; what is beyond the matrix is computed and ignored.
template <class Scalar>
constexpr Index lanes = 64 / static_cast<Index>(sizeof(Scalar));

template <class Scalar>
using Lane = Eigen::Array<Scalar, static_cast<int>(lanes<Scalar>), 1>;

template <class Scalar>
constexpr Index whole_lanes(Index columns) {
  return (columns + lanes<Scalar> - 1) / lanes<Scalar> * lanes<Scalar>;
}

/// A matrix as the first factor: element (i, t) is data[i·row_stride + t·column_stride].
template <class Scalar>
struct Factor {
  const Scalar* data;
  Index row_stride, column_stride;

  [[nodiscard]] Factor transposed() const { return {data, column_stride, row_stride}; }
};

/// As many rows as there are indices, all columns: b is read once for them all, and c stays in registers. `a` holds
/// the rows of a term side by side.
template <class Scalar, std::size_t... row>
void add_product_of_rows(std::index_sequence<row...>, Index columns, Index terms, const Scalar* a, const Scalar* b,
                         Index b_stride, Scalar* c, Index c_stride) {
  for (Index j = 0; j < columns; j += lanes<Scalar>) {
    Lane<Scalar> sums[] = {Eigen::Map<const Lane<Scalar>>(c + static_cast<Index>(row) * c_stride + j)...};
    for (Index t = 0; t < terms; ++t) {
      const Lane<Scalar> factor = Eigen::Map<const Lane<Scalar>>(b + t * b_stride + j);
      ((sums[row] += a[t * static_cast<Index>(sizeof...(row)) + static_cast<Index>(row)] * factor), ...);
    }
    ((Eigen::Map<Lane<Scalar>>(c + static_cast<Index>(row) * c_stride + j) = sums[row]), ...);
  }
}

/// c (rows, columns) += a (rows, terms) · b (terms, columns). b and c are row-major, and `columns` is a multiple of
/// `lanes<Scalar>`.
template <class A, class Scalar>
void add_product(Index rows, Index columns, Index terms, Factor<A> a, const Scalar* b, Index b_stride, Scalar* c,
                 Index c_stride) {
  constexpr Index together = 8;
  std::vector<Scalar> panel(static_cast<std::size_t>(together * terms));
  const auto add = [&]<std::size_t... row>(std::index_sequence<row...> all, Index i) {
    Scalar* to = panel.data();
    for (Index t = 0; t < terms; ++t)
      for (Index r = i; r < i + static_cast<Index>(sizeof...(row)); ++r)
        *to++ = static_cast<Scalar>(a.data[r * a.row_stride + t * a.column_stride]);
    add_product_of_rows(all, columns, terms, panel.data(), b, b_stride, c + i * c_stride, c_stride);
  };
  Index i = 0;
  for (; i + together <= rows; i += together) add(std::make_index_sequence<together>(), i);
  for (; i < rows; ++i) add(std::make_index_sequence<1>(), i);
}

/// c (rows, columns) += a (rows, terms) · bᵀ, where b is (columns, terms). b and c are row-major, and the rows of c are
/// padded to whole lanes.
template <class A, class Scalar>
void add_product_transposed(Index rows, Index columns, Index terms, Factor<A> a, const Scalar* b, Index b_stride,
                            Scalar* c, Index c_stride) {
  const Index padded = whole_lanes<Scalar>(columns);
  std::vector<Scalar> by_term(static_cast<std::size_t>(terms * padded));
  for (Index j = 0; j < columns; ++j)
    for (Index t = 0; t < terms; ++t) by_term[static_cast<std::size_t>(t * padded + j)] = b[j * b_stride + t];
  add_product(rows, padded, terms, a, by_term.data(), padded, c, c_stride);
}

}  // namespace posbias::detail
