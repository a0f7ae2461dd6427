// SPDX-License-Identifier: MIT
/// \file
/// Dynamic position bias (CrossFormer, Wang et al., 2021, arXiv 2108.00154; Swin v2, arXiv 2111.09883): an MLP of the
/// relative position gives every head its bias.
///
///     mask(h, i, j) -= MLP((pos_q(i) - pos_k(j)) / divide)_h
///
///     MLP: Linear(1, dim) -> (Norm)  { -> Swish -> Linear(dim, dim) -> (Norm) } x (depth - 1)  -> Linear(dim, NH)
///
/// The sign is bio-attention's, for its checkpoints. x-transformers adds the MLP, and has a Swish before the last layer:
/// its MLP of depth d is this one of depth d + 1 whose last hidden layer is the identity and whose last is negated.
///
/// Shapes: mask (B, *, NH, L1, L2). Cost: the MLP runs once for each distinct relative position, L1+L2-1 of them at
/// consecutive positions, O(depth·dim²) each; then one pass over the mask. Reals that do not repeat cost an MLP a pair.
/// Accuracy: the MLP runs in double and is rounded once (see kernel/mlp.hpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "posbias/bias/relative_bias.hpp"
#include "posbias/kernel/mlp.hpp"
#include "posbias/kernel/mlp_backward.hpp"
#include "posbias/kernel/mlp_forward.hpp"

namespace posbias {

/// Options of `DynamicPositionBias`.
struct DynamicPositionBiasOptions {
  Index dim = 0;             ///< features of the MLP's hidden layers; required
  Index n_heads = 0;         ///< heads, NH; required
  Index depth = 1;           ///< hidden layers; 1: linear in the relative position
  bool norm = false;         ///< a layer normalisation after each
  double divide = 1;         ///< differences of positions are divided by this; > 0
  bool learned_div = false;  ///< learn the divisor, from `divide` on; at least 1e-8
};

/// Subtracts an MLP of the relative position (hook `mod_mask`). Parameters: "div" () if learned_div; "mlp.0.0.weight"
/// (dim, 1), "mlp.i.1.weight" (dim, dim) for i from 1 to depth - 1, "mlp.depth.weight" (NH, dim), each with a "bias";
/// with norm "mlp.0.1.weight", "mlp.i.2.weight" (dim), and their "bias".
template <class Scalar>
class DynamicPositionBias : public RelativeBias<DynamicPositionBias<Scalar>, Scalar, PositionMlp<Scalar>> {
  using Base = RelativeBias<DynamicPositionBias, Scalar, PositionMlp<Scalar>>;

 public:
  using Options = DynamicPositionBiasOptions;  ///< what it is made from
  using typename Base::Gradients;
  static constexpr std::string_view name = "DynamicPositionBias";  ///< in messages

  /// Throws OptionError.
  explicit DynamicPositionBias(const Options& options, std::uint64_t seed = 0);

  [[nodiscard]] const Options& options() const { return options_; }  ///< with defaults filled in
  [[nodiscard]] Index n_heads() const { return options_.n_heads; }   ///< NH

  /// The bias (heads, relative.size()) of some heads at key minus query positions.
  void evaluate(std::span<const double> relative, Index head, Index heads, Scalar* values,
                const Executor& executor = {}) const {
    const Index count = std::ssize(relative);
    detail::evaluate(this->parameters_, query_minus_key(relative), head, heads, executor,
                     [&](Index h, Index p, double value) { values[h * count + p] = static_cast<Scalar>(-value); });
  }

  /// Adjoint of `evaluate`.
  void evaluate_backward(std::span<const double> relative, Index head, Index heads, const double* grad_values,
                         Gradients& grads, const Executor& executor = {}) const {
    const Index count = std::ssize(relative);
    const auto gradient = [&](Index h, Index p) { return -grad_values[h * count + p]; };
    detail::MlpBackward<Scalar>(this->parameters_, head, heads)(query_minus_key(relative), gradient, grads, executor);
  }

 private:
  static PositionMlpOptions checked(const Options& options) {
    if (options.n_heads < 1)
      detail::fail<OptionError>(name, ": n_heads = ", options.n_heads, "; it is required, and must be positive");
    return {.dim = options.dim,
            .depth = options.depth,
            .norm = options.norm,
            .outputs = options.n_heads,
            .divide = options.divide,
            .learned_div = options.learned_div};
  }

  static std::vector<double> query_minus_key(std::span<const double> relative) {
    std::vector<double> result(relative.size());
    std::transform(relative.begin(), relative.end(), result.begin(), std::negate<>());
    return result;
  }

  Options options_;
};

template <class Scalar>
DynamicPositionBias<Scalar>::DynamicPositionBias(const Options& options, std::uint64_t seed)
    : Base(PositionMlp<Scalar>(name, checked(options), seed)), options_(options) {}

}  // namespace posbias
