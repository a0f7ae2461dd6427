// SPDX-License-Identifier: MIT
/// \file
/// Exponentials of numbers that are not positive, as a softmax takes them, some at a time.
#pragma once

#include <Eigen/Core>
#include <type_traits>

#include "posbias/kernel/product.hpp"

namespace posbias::detail {

/// e^x for x <= 0, or a rounding above. Within 4 units in the last place where the result is at least 1e-27 for float
/// and 1e-287 for double, and within 4 units in the last place of that number below; exactly 1 at 0, exactly 0 from
/// `lowest` down and at -inf, NaN at NaN.
template <class Scalar>
class Exponential {
 public:
  /// About where results stop being normal numbers.
  static constexpr Scalar lowest = std::is_same_v<Scalar, float> ? Scalar(-80) : Scalar(-700);

  Exponential() : least_(clamped(Lane<Scalar>::Constant(lowest))) {}

  [[nodiscard]] Lane<Scalar> operator()(const Lane<Scalar>& x) const { return clamped(x) - least_; }

 private:
  /// Eigen's exponential of -inf is small, but not 0: so everything from `lowest` down gets one value, which is then
  /// subtracted, and is nothing beside the others.
  static Lane<Scalar> clamped(const Lane<Scalar>& x) {
    // g++ 12 warns of uninitialised values in Eigen's exponential of eight doubles.
    constexpr Index width = std::is_same_v<Scalar, float> ? 16 : 4;
    Lane<Scalar> result;
    for (Index i = 0; i < lanes<Scalar>; i += width)
      result.template segment<width>(i) = (x.template segment<width>(i).max)(lowest).exp();
    return result;
  }

  Lane<Scalar> least_;
};

}  // namespace posbias::detail
