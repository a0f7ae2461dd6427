// SPDX-License-Identifier: MIT
/// \file
/// The scaling of positions: y = position / divisor, with a constant or a learned divisor.
///
/// A learned divisor is stored as its logarithm, parameter "div" of rank 0: divisor = max(exp(div), 1e-8). From the
/// gradient g of the loss by y follows that by div: dy/d(div) = -y, so it is -sum g·y, and 0 where the divisor is
/// held at 1e-8.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>

#include "posbias/core/parameters.hpp"

namespace posbias {

/// The divisor of a module's positions: a constant, or the parameter "div".
template <class Scalar>
class Divide {
 public:
  /// The constant 1.
  Divide() = default;

  /// Throws OptionError, naming `module`, unless `divide` is positive and finite. A learned divisor that starts
  /// below 1e-8 is held there and never moves.
  Divide(std::string_view module, double divide, bool learned) : constant_(divide) {
    if (!detail::is_finite(divide) || divide <= 0)
      detail::fail<OptionError>(module, ": divide = ", divide, "; it must be positive and finite");
    if (learned) {
      div_.emplace();
      (*div_)() = static_cast<Scalar>(std::log(divide));
    }
  }

  /// The number that positions are divided by, > 0.
  [[nodiscard]] double divisor() const {
    return div_ ? (std::max)(std::exp(static_cast<double>((*div_)())), smallest) : constant_;
  }

  [[nodiscard]] bool learned() const { return div_.has_value(); }  ///< or constant

  /// Adds the gradient of "div" to `gradients`, given the sum of g·y over all positions.
  void backward(double sum_of_gradient_times_scaled, Divide& gradients) const {
    if (div_ && !clamped()) (*gradients.div_)() -= static_cast<Scalar>(sum_of_gradient_times_scaled);
  }

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    if (self.div_) visitor("div", *self.div_);
  }

 private:
  [[nodiscard]] bool clamped() const { return !(std::exp(static_cast<double>((*div_)())) >= smallest); }

  static constexpr double smallest = 1e-8;
  double constant_ = 1;
  std::optional<ParameterTensor<Scalar, 0>> div_;
};

}  // namespace posbias
