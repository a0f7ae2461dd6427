// SPDX-License-Identifier: MIT
/// \file
/// Matrix products in which 0 times anything is 0, NaN and infinity included: a hidden token, whose factors are 0, has
/// no influence whatever its memory holds.
///
/// An entry is the same bits as in kernel/product.hpp where its terms are finite, because 0 times a finite number adds
/// nothing to a sum that starts from 0.
#pragma once

#include <algorithm>
#include <iterator>
#include <span>
#include <vector>

#include "posbias/core/infinity.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias::detail {

/// The terms of a matrix (terms, columns) with a value that is not finite, in ascending order.
template <class Scalar>
std::vector<Index> non_finite_terms(const PackedMatrix<Scalar>& b, Index terms, Index columns) {
  std::vector<Index> found;
  for (Index j = 0; j < columns; j += lanes<Scalar>) {
    const PackedMatrix<Scalar> panel = b.from(0, j);
    if (panel.term_stride == lanes<Scalar> && all_finite(panel.data, terms * lanes<Scalar>)) continue;
    for (Index t = 0; t < terms; ++t)
      if (!all_finite(panel.from(t, 0).data, lanes<Scalar>)) found.push_back(t);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

/// A row of c (columns) = or += a · b without some terms, which ascend.
template <Accumulate how, class Scalar>
void multiply_row_without(std::span<const Index> left_out, Index columns, Index terms, const MatrixView<Scalar>& a,
                          const PackedMatrix<Scalar>& b, Scalar* c) {
  static_assert(how != Accumulate::extend);
  const Index width = round_up_to_lanes<Scalar>(columns);
  Workspace<Scalar> row(width);
  Index begin = 0;
  const auto multiply_until = [&](Index end) {
    const MatrixView<Scalar> some{a.data + begin * a.column_stride, a.row_stride, a.column_stride};
    multiply<Accumulate::extend>(1, columns, end - begin, some, b.from(begin, 0), row.data(), width);
    begin = end + 1;
  };
  for (const Index term : left_out) multiply_until(term);
  multiply_until(terms);
  for (Index j = 0; j < width; ++j) c[j] = how == Accumulate::add ? c[j] + row.data()[j] : row.data()[j];
}

/// As `multiply`, where 0 times anything is 0. Cost: that of `multiply` and a look at b; where b is not finite, some times
/// as much.
template <Accumulate how, class Scalar>
void multiply_annihilating(Index rows, Index columns, Index terms, MatrixView<Scalar> a, PackedMatrix<Scalar> b,
                           Scalar* c, Index c_stride) {
  const std::vector<Index> odd = non_finite_terms(b, terms, columns);
  if (odd.empty()) return multiply<how>(rows, columns, terms, a, b, c, c_stride);
  std::vector<Index> left_out;
  for (Index i = 0; i < rows; ++i) {
    const MatrixView<Scalar> row = a.from_row(i);
    left_out.clear();
    std::ranges::copy_if(odd, std::back_inserter(left_out),
                         [&](Index t) { return row.data[t * row.column_stride] == 0; });
    multiply_row_without<how>(left_out, columns, terms, row, b, c + i * c_stride);
  }
}

}  // namespace posbias::detail
