// SPDX-License-Identifier: MIT
/// \file
/// The parts of the programs that know nothing of positions, in plain loops: they cost little to compile.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <unsupported/Eigen/CXX11/Tensor>

namespace programs {

using Index = Eigen::Index;
using Tokens = Eigen::Tensor<float, 2, Eigen::RowMajor>;  // (L, dim)
using Heads = Eigen::Tensor<float, 3, Eigen::RowMajor>;   // (L, NH, H)

/// Fills a tensor with numbers between -bound and bound.
template <class Tensor>
Tensor random(Tensor tensor, float bound) {
  static std::mt19937 bits(1);
  std::generate_n(tensor.data(), tensor.size(), [&] { return std::uniform_real_distribution(-bound, bound)(bits); });
  return tensor;
}

/// Weights (inputs, outputs) that keep the variance of their inputs.
inline Tokens weight(Index inputs, Index outputs) {
  return random(Tokens(inputs, outputs), std::sqrt(3 / static_cast<float>(inputs)));
}

/// x · weights, in the shape of `result`: tokens come first in both.
template <class X, class Result>
Result linear(const X& x, const Tokens& weights, Result result) {
  const Index inputs = weights.dimension(0), outputs = weights.dimension(1);
  std::fill_n(result.data(), result.size(), 0.0F);
  for (Index token = 0; token < x.dimension(0); ++token)
    for (Index in = 0; in < inputs; ++in)
      for (Index out = 0; out < outputs; ++out)
        result.data()[token * outputs + out] += x.data()[token * inputs + in] * weights(in, out);
  return result;
}

inline Tokens rms_norm(Tokens x) {
  const Index dim = x.dimension(1);
  for (Index token = 0; token < x.dimension(0); ++token) {
    float squares = 0;
    for (Index i = 0; i < dim; ++i) squares += x(token, i) * x(token, i);
    for (Index i = 0; i < dim; ++i) x(token, i) /= std::sqrt(squares / static_cast<float>(dim) + 1e-6F);
  }
  return x;
}

inline void add(Tokens& x, const Tokens& more) {
  for (Index i = 0; i < x.size(); ++i) x.data()[i] += more.data()[i];
}

}  // namespace programs
