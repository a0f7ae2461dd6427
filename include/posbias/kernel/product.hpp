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
#include <algorithm>
#include <cstddef>
#include <utility>

#include "posbias/core/index.hpp"
#include "posbias/core/storage.hpp"

namespace posbias::detail {

/// Columns of b and c come in multiples of this; what is beyond the matrix is computed and ignored.
template <class Scalar>
constexpr Index lanes = 64 / static_cast<Index>(sizeof(Scalar));

template <class Scalar>
using Lane = Eigen::Array<Scalar, static_cast<int>(lanes<Scalar>), 1>;

template <class Scalar>
constexpr Index round_up_to_lanes(Index columns) {
  return (columns + lanes<Scalar> - 1) / lanes<Scalar> * lanes<Scalar>;
}

/// How many rows are multiplied together: as many as x86's registers hold the sums of.
constexpr Index micro_rows = EIGEN_MAX_STATIC_ALIGN_BYTES >= 64 ? 8 : EIGEN_MAX_STATIC_ALIGN_BYTES == 32 ? 4 : 2;

/// A matrix as the first factor: element (i, t) is data[i·row_stride + t·column_stride].
template <class Scalar>
struct MatrixView {
  const Scalar* data;
  Index row_stride, column_stride;

  [[nodiscard]] MatrixView transposed() const { return {data, column_stride, row_stride}; }
  [[nodiscard]] MatrixView from_row(Index i) const { return {data + i * row_stride, row_stride, column_stride}; }
};

/// A matrix in a caller's tensor, as it is stored there: element (i, t) is data[i·row_stride + t·column_stride].
template <class Scalar>
struct StoredMatrix {
  Elements<const Scalar> data;
  Index row_stride, column_stride;

  [[nodiscard]] StoredMatrix transposed() const { return {data, column_stride, row_stride}; }

  /// Reads row i.
  void load_row(Index i, Index columns, Scalar* to) const {
    load<Scalar>(data + i * row_stride, column_stride, columns, to);
  }
};

/// A matrix (terms, columns) as the second factor: columns j to j + lanes of term t start at
/// data[j / lanes · panel_stride + t·term_stride]. Whole lanes are read, also beyond the last column.
template <class Scalar>
struct PackedMatrix {
  const Scalar* data;
  Index panel_stride, term_stride;

  /// A row-major matrix, as it is.
  [[nodiscard]] static PackedMatrix of_rows(const Scalar* data, Index row_stride) {
    return {data, lanes<Scalar>, row_stride};
  }

  /// The same from a term and a column on, a multiple of `lanes`.
  [[nodiscard]] PackedMatrix from(Index term, Index column) const {
    return {data + column / lanes<Scalar> * panel_stride + term * term_stride, panel_stride, term_stride};
  }
};

/// What becomes of c.
enum class Accumulate {
  extend,     ///< it is the first term: cutting the terms into calls changes nothing
  overwrite,  ///< it is written
  add,        ///< terms are summed by themselves, then added to it: long sums lose less
};

/// As many rows of c as there are indices, and one panel: c stays in registers.
template <Accumulate how, class Scalar, std::size_t... row>
void multiply_rows(std::index_sequence<row...>, Index terms, MatrixView<Scalar> a, PackedMatrix<Scalar> b, Scalar* c,
                   Index c_stride) {
  using Values = Eigen::Map<Lane<Scalar>>;
  const auto start = [](Scalar* at) -> Lane<Scalar> {
    if constexpr (how == Accumulate::extend) return Values(at);
    return Lane<Scalar>::Zero();
  };
  Lane<Scalar> sums[] = {start(c + static_cast<Index>(row) * c_stride)...};
  for (Index t = 0; t < terms; ++t) {
    const Lane<Scalar> factor = Eigen::Map<const Lane<Scalar>>(b.data + t * b.term_stride);
    ((sums[row] += a.data[static_cast<Index>(row) * a.row_stride + t * a.column_stride] * factor), ...);
  }
  if constexpr (how == Accumulate::add) ((sums[row] += Values(c + static_cast<Index>(row) * c_stride)), ...);
  ((Values(c + static_cast<Index>(row) * c_stride) = sums[row]), ...);
}

/// c (rows, columns) = or += a (rows, terms) · b (terms, columns). c is row-major and computed in whole lanes.
template <Accumulate how, class Scalar>
void multiply(Index rows, Index columns, Index terms, MatrixView<Scalar> a, PackedMatrix<Scalar> b, Scalar* c,
              Index c_stride) {
  for (Index j = 0; j < columns; j += lanes<Scalar>, b = b.from(0, lanes<Scalar>)) {
    const auto some = [&]<std::size_t... row>(std::index_sequence<row...> all, Index i) {
      multiply_rows<how>(all, terms, a.from_row(i), b, c + i * c_stride + j, c_stride);
    };
    Index i = 0;
    for (; i + micro_rows <= rows; i += micro_rows) some(std::make_index_sequence<micro_rows>(), i);
    for (; i < rows; ++i) some(std::make_index_sequence<1>(), i);
  }
}

/// How many values a packed matrix takes.
template <class Scalar>
constexpr Index packed_size(Index terms, Index columns) {
  return terms * round_up_to_lanes<Scalar>(columns);
}

/// Asks for memory that is read soon. Rows far apart are in a page each, where processors do not look ahead. Always
/// inline, because g++ takes a function that only asks for one without effect, and leaves calls of it out.
template <class Scalar>
[[gnu::always_inline]] inline void prefetch(const Scalar* from, Index count) {
#if defined(__GNUC__)
  for (Index i = 0; i < count; i += lanes<Scalar>) __builtin_prefetch(from + i);
#endif
}

/// Copies values, converted to those that are multiplied.
template <class From, class Scalar>
void convert(const From* __restrict from, Index count, Scalar* __restrict to) {
  for (Index i = 0; i < count; ++i) to[i] = static_cast<Scalar>(widen(from[i]));
}

/// Packs a matrix (terms, columns), panel after panel, 0 beyond the last column: what is read together lies together.
/// Its values are converted to those that are multiplied.
template <class From, class Scalar>
PackedMatrix<Scalar> pack(MatrixView<From> matrix, Index terms, Index columns, Scalar* to) {
  constexpr Index ahead = 32;
  const PackedMatrix<Scalar> panels{to, terms * lanes<Scalar>, lanes<Scalar>};
  const Index whole = columns / lanes<Scalar> * lanes<Scalar>;
  if (whole < columns) std::fill_n(to + terms * whole, terms * lanes<Scalar>, Scalar(0));
  if (matrix.column_stride == 1) {
    for (Index t = 0; t < terms; ++t, to += lanes<Scalar>) {
      const From* from = matrix.data + t * matrix.row_stride;
      if (t + ahead < terms) prefetch(from + ahead * matrix.row_stride, columns);
      for (Index j = 0; j < whole; j += lanes<Scalar>) convert(from + j, lanes<Scalar>, to + terms * j);
      convert(from + whole, columns - whole, to + terms * whole);
    }
  } else {  // transposed, so that a column is what lies together
    Scalar values[64];
    for (Index j = 0; j < columns; ++j) {
      const From* from = matrix.data + j * matrix.column_stride;
      if (j + ahead < columns) prefetch(from + ahead * matrix.column_stride, terms);
      Scalar* column = to + j / lanes<Scalar> * panels.panel_stride + j % lanes<Scalar>;
      if constexpr (Storage16<From>) {
        if (matrix.row_stride == 1) {  // conversions of neighbours vectorise
          for (Index t = 0; t < terms; t += std::ssize(values)) {
            const Index count = std::min<Index>(std::ssize(values), terms - t);
            convert(from + t, count, values);
            for (Index i = 0; i < count; ++i) column[(t + i) * lanes<Scalar>] = values[i];
          }
          continue;
        }
      }
      for (Index t = 0; t < terms; ++t)
        column[t * lanes<Scalar>] = static_cast<Scalar>(widen(from[t * matrix.row_stride]));
    }
  }
  return panels;
}

template <class Scalar>
PackedMatrix<Scalar> pack(const StoredMatrix<Scalar>& matrix, Index terms, Index columns, Scalar* to) {
  return matrix.data.visit([&](const auto* first) {
    return pack(MatrixView<std::remove_const_t<std::remove_pointer_t<decltype(first)>>>{first, matrix.row_stride,
                                                                                        matrix.column_stride},
                terms, columns, to);
  });
}

}  // namespace posbias::detail
