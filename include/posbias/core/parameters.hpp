// SPDX-License-Identifier: MIT
/// \file
/// Named parameters: how a module shows its weights, and how they start.
///
/// A module keeps its weights in one struct with a static `visit(self, visitor)`; gradients are a second value of
/// the same struct, so parameters and gradients always have the same names, shapes and order. Names and shapes are
/// those of the upstream state_dict ("relative_attention_bias.weight", "div"), so checkpoints load by name.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"

namespace posbias {

/// What a parameter is stored in: a row-major tensor that owns its values.
template <class Scalar, int Rank>
using ParameterTensor = Eigen::Tensor<Scalar, Rank, Eigen::RowMajor>;

/// Calls `visit(std::string_view name, tensor&)` for every parameter of a module, or for every entry of its
/// gradients; tensors are `ParameterTensor`s of any rank, const if the owner is. Values may change, shapes may not.
template <class Owner, class Visitor>
void for_each_parameter(Owner&& owner, Visitor&& visit) {
  std::remove_cvref_t<Owner>::visit(owner, visit);
}

namespace detail {

/// Calls `visit(name, tensor of a, tensor of b)` for every entry of two owners whose entries are alike.
template <class A, class B, class Visitor>
void for_each_pair(A& a, B& b, const Visitor& visit) {
  using Erased = std::conditional_t<std::is_const_v<B>, const void*, void*>;
  std::vector<Erased> of_b;
  for_each_parameter(b, [&](std::string_view, auto& tensor) { of_b.push_back(&tensor); });
  std::size_t next = 0;
  for_each_parameter(a, [&]<class Tensor>(std::string_view name, Tensor& tensor) {
    using Other = std::remove_const_t<Tensor>;
    using OtherOfB = std::conditional_t<std::is_const_v<B>, const Other, Other>;
    visit(name, tensor, *static_cast<OtherOfB*>(of_b[next++]));
  });
}

}  // namespace detail

/// Calls `visit(std::string_view name, parameter&, gradient&)` for every parameter of a module or layer and its entry of
/// the gradients, which is a `ParameterTensor` of the same shape: all that an optimiser needs. Throws ShapeError, before
/// the first visit, unless the gradients are the owner's.
template <class Owner, class Gradients, class Visitor>
requires requires(const Owner& owner, const Gradients& grads) {
  owner.check_gradients("", grads);
}
void for_each_parameter(Owner&& owner, Gradients&& grads, Visitor&& visit) {
  owner.check_gradients("for_each_parameter", grads);
  detail::for_each_pair(owner, grads, visit);
}

/// The parameters of a module that has none.
struct NoParameters {
  /// There is nothing to show.
  template <class Self, class Visitor>
  static void visit(Self&, Visitor&) {}
};

namespace detail {

/// Adds gradients that several threads summed up apart.
template <class Gradients>
void add_gradients(const Gradients& part, Gradients& to) {
  for_each_pair(part, to, [](std::string_view, const auto& tensor, auto& sum) {
    std::transform(tensor.data(), tensor.data() + tensor.size(), sum.data(), sum.data(), std::plus<>());
  });
}

/// Pseudo-random numbers that are the same on every platform: SplitMix64 (Steele et al., 2014) for the bits, and
/// only comparisons and single exact roundings from there to the values, never libm.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }

  /// Uniform in [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  /// Uniform in [-bound, bound).
  double uniform(double bound) { return (2 * uniform() - 1) * bound; }

  /// Standard normal, exactly distributed, by Karney's rejection on comparisons of uniforms (arXiv 1303.6257,
  /// algorithm N): no logarithm, no cosine, so no platform's libm shows in the result.
  double normal() {
    for (;;) {
      int k = 0;
      while (half_exponential()) ++k;
      if (!all_half_exponential(k * (k - 1))) continue;
      const double x = uniform();
      if (!accept_fraction(k, x)) continue;
      const double value = k + x;
      return (bits() >> 63) != 0 ? -value : value;
    }
  }

 private:
  /// True with probability exp(-1/2): the length of a falling run of uniforms below 1/2 is even.
  bool half_exponential() {
    bool even = true;
    for (double last = 0.5, next = uniform(); next < last; next = uniform()) {
      last = next;
      even = !even;
    }
    return even;
  }

  bool all_half_exponential(int times) {
    for (; times > 0; --times)
      if (!half_exponential()) return false;
    return true;
  }

  /// True with probability exp(-x (2k + x) / 2), as k + 1 trials of probability exp(-x (2k + x) / (2k + 2)).
  bool accept_fraction(int k, double x) {
    const double limit = (2 * k + x) / (2 * k + 2);
    for (int trial = 0; trial <= k; ++trial) {
      bool even = true;
      for (double last = x, next = uniform(); next < last; next = uniform()) {
        if (!(uniform() < limit)) break;
        last = next;
        even = !even;
      }
      if (!even) return false;
    }
    return true;
  }

  std::uint64_t state_;
};

template <class Tensor>
void fill_uniform(Tensor& tensor, double bound, Random& random) {
  using Scalar = typename Tensor::Scalar;
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<Scalar>(random.uniform(bound));
}

template <class Tensor>
void fill_normal(Tensor& tensor, Random& random) {
  using Scalar = typename Tensor::Scalar;
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<Scalar>(random.normal());
}

}  // namespace detail
}  // namespace posbias
