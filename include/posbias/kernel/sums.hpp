// SPDX-License-Identifier: MIT
/// \file
/// Sums in an order of their own.
#pragma once

#include <Eigen/Core>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// The sum of values in double, in eight sums side by side: the same bits wherever in memory the values are, as Eigen's
/// own sums of neighbours are not.
template <class Scalar>
double sum_in_double(const Scalar* values, Index count) {
  constexpr Index side_by_side = 8;
  using Sums = Eigen::Array<double, side_by_side, 1>;
  Sums sums = Sums::Zero();
  Index i = 0;
  for (; i + side_by_side <= count; i += side_by_side)
    sums += Eigen::Map<const Eigen::Array<Scalar, side_by_side, 1>>(values + i).template cast<double>();
  double sum = 0;
  for (Index s = 0; s < side_by_side; ++s) sum += sums[s];
  for (; i < count; ++i) sum += static_cast<double>(values[i]);
  return sum;
}

}  // namespace posbias::detail
