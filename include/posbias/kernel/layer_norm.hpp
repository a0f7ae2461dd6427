// SPDX-License-Identifier: MIT
/// \file
/// Layer normalisation (Ba et al., 2016, arXiv 1607.06450) of a row of features, and its adjoint, in double.
///
///     y = weight · x̂ + bias        x̂ = (x - mean) / deviation        deviation = sqrt(variance + 1e-5)
#pragma once

#include <Eigen/Core>
#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>

#include "posbias/core/parameters.hpp"
#include "posbias/kernel/product.hpp"

namespace posbias {

/// A layer normalisation, as torch.nn.LayerNorm stores it.
template <class Scalar>
struct LayerNorm {
  ParameterTensor<Scalar, 1> weight,  ///< (features), 1 at first
      bias;                           ///< (features), 0 at first

  /// The identity of normalised features.
  explicit LayerNorm(Index features) : weight(features), bias(features) {
    weight.setConstant(Scalar(1));
    bias.setZero();
  }

  /// Replaces the features x of a row by x̂, and writes y, which may be the same memory. Returns 1 / deviation.
  double forward(double* features, double* y) const {
    constexpr double epsilon = 1e-5;
    Row x(features, weight.size());
    const auto count = static_cast<double>(weight.size());
    const double mean = sum(x) / count;
    x -= mean;
    const double inverse_deviation = 1 / std::sqrt(sum(x.square()) / count + epsilon);
    x *= inverse_deviation;
    Row(y, weight.size()) = in_double(weight) * x + in_double(bias);
    return inverse_deviation;
  }

  /// Adjoint of `forward`: replaces the gradient of y by the gradient of x, and adds the gradients of weight and bias to
  /// `weight_sums` and `bias_sums`.
  void backward(double* gradient, const double* normalised, double inverse_deviation, double* weight_sums,
                double* bias_sums) const {
    const Index features = weight.size();
    const auto count = static_cast<double>(features);
    Row grad(gradient, features);
    const Eigen::Map<const Eigen::ArrayXd> x(normalised, features);
    Row(weight_sums, features) += grad * x;
    Row(bias_sums, features) += grad;
    grad *= in_double(weight);
    const double mean = sum(grad) / count, projection = sum(grad * x) / count;
    grad = (grad - mean - x * projection) * inverse_deviation;
  }

  /// Shows the parameters to a visitor, as `name` + ".weight" and `name` + ".bias".
  template <class Self, class Visitor>
  static void visit(const std::string& name, Self& self, Visitor& visitor) {
    visitor(std::string_view(name + ".weight"), self.weight);
    visitor(std::string_view(name + ".bias"), self.bias);
  }

 private:
  using Row = Eigen::Map<Eigen::ArrayXd>;

  static auto in_double(const ParameterTensor<Scalar, 1>& values) {
    return Eigen::Map<const Eigen::ArrayX<Scalar>>(values.data(), values.size()).template cast<double>();
  }

  /// By lanes. Eigen's sum of doubles makes g++ 12 warn of AVX-512 intrinsics of its own.
  template <class Values>
  static double sum(const Values& values) {
    constexpr Index lanes = detail::lanes<double>;
    const Index whole = values.size() / lanes * lanes;
    std::array<double, static_cast<std::size_t>(lanes)> sums{};
    for (Index f = 0; f < whole; f += lanes)
      for (Index lane = 0; lane < lanes; ++lane) sums[static_cast<std::size_t>(lane)] += values[f + lane];
    for (Index f = whole; f < values.size(); ++f) sums[static_cast<std::size_t>(f - whole)] += values[f];
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }
};

}  // namespace posbias
