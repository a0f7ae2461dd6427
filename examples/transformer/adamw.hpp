// SPDX-License-Identifier: MIT
/// \file
/// AdamW (Loshchilov and Hutter, arXiv 1711.05101), gradient clipping and the learning rate's course.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "transformer/parameters.hpp"
#include "transformer/shape.hpp"

namespace demo {

/// How fast to learn; the same for every scheme.
struct LearningRate {
  double peak = 1e-2;
  double warm_up = 0.1;  ///< share of the steps in which the rate rises to its peak
  double last = 0.02;    ///< where the cosine ends, in units of the peak

  /// The rate at `step` of `steps`: a straight line up, then half a cosine down.
  [[nodiscard]] double at(Index step, Index steps) const {
    const double progress = (static_cast<double>(step) + 1) / static_cast<double>(steps);
    if (progress < warm_up) return peak * progress / warm_up;
    const double cosine = std::cos(std::numbers::pi * (progress - warm_up) / (1 - warm_up));
    return peak * (last + (1 - last) * (1 + cosine) / 2);
  }
};

/// Scales all gradients by one factor, so that their joint Euclidean norm is at most `limit`.
template <class Scalar>
void clip_norm(const std::vector<ParameterView<Scalar>>& gradients, double limit) {
  double squares = 0;
  for (const auto& gradient : gradients)
    for (const Scalar value : gradient.values) squares += static_cast<double>(value) * static_cast<double>(value);
  const double norm = std::sqrt(squares);
  if (!(norm > limit)) return;
  const auto factor = static_cast<Scalar>(limit / norm);
  for (const auto& gradient : gradients)
    for (Scalar& value : gradient.values) value *= factor;
}

template <class Scalar>
class AdamW {
 public:
  explicit AdamW(const std::vector<ParameterView<Scalar>>& parameters) {
    for (const auto& parameter : parameters) moments_.emplace_back(parameter.values.size());
  }

  void step(const std::vector<ParameterView<Scalar>>& parameters, const std::vector<ParameterView<Scalar>>& gradients,
            double learning_rate) {
    constexpr auto beta1 = static_cast<Scalar>(0.9), beta2 = static_cast<Scalar>(0.98);
    constexpr auto epsilon = static_cast<Scalar>(1e-8), weight_decay = static_cast<Scalar>(0.1);
    ++steps_;
    const auto rate = static_cast<Scalar>(learning_rate);
    const auto correction1 = 1 / (1 - std::pow(beta1, static_cast<Scalar>(steps_)));
    const auto correction2 = 1 / (1 - std::pow(beta2, static_cast<Scalar>(steps_)));
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      const auto values = parameters[p].values;
      const auto grad = gradients[p].values;
      auto& [first, second] = moments_[p];
      const Scalar keep = parameters[p].decays ? 1 - rate * weight_decay : Scalar(1);
      for (std::size_t i = 0; i < values.size(); ++i) {
        first[i] = beta1 * first[i] + (1 - beta1) * grad[i];
        second[i] = beta2 * second[i] + (1 - beta2) * grad[i] * grad[i];
        const Scalar direction = correction1 * first[i] / (std::sqrt(correction2 * second[i]) + epsilon);
        values[i] = keep * values[i] - rate * direction;
      }
    }
  }

 private:
  /// Running means of the gradient and of its square.
  struct Moments {
    explicit Moments(std::size_t size) : first(size), second(size) {}
    std::vector<Scalar> first, second;
  };

  std::vector<Moments> moments_;
  Index steps_ = 0;
};

}  // namespace demo
