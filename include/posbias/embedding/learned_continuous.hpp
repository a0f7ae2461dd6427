// SPDX-License-Identifier: MIT
/// \file
/// Learned embedding of real positions: an MLP of the position, so that neighbours are alike and any position, between
/// or beyond those trained on, has an embedding (bio-attention's LearnedContinuous).
///
///     x += MLP(p / divide)
///
///     MLP: Linear(1, dim) -> (Norm)  { -> Swish -> Linear(dim, dim) -> (Norm) } x (depth - 1)
///
/// Shapes: x (B, *, L, H = dim). Cost: O(L·depth·dim²) for a batch that shares its positions, and one pass over x.
/// Accuracy: the MLP runs in double and is rounded once (see kernel/mlp.hpp).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "posbias/embedding/additive_embedding.hpp"
#include "posbias/kernel/mlp.hpp"
#include "posbias/kernel/mlp_backward.hpp"
#include "posbias/kernel/mlp_forward.hpp"

namespace posbias {

/// Options of `LearnedContinuous`.
struct LearnedContinuousOptions {
  Index dim = 0;             ///< features per token, H; required
  Index depth = 1;           ///< linear layers; 1: linear in the position
  bool norm = false;         ///< a layer normalisation after each
  double divide = 1;         ///< positions are divided by this; > 0. Choose it so that quotients are of size 1
  bool learned_div = false;  ///< learn the divisor, from `divide` on; at least 1e-8
};

/// Adds an MLP of the position to each token (hook `mod_x`). Parameters: "div" () if learned_div; "mlp.0.0.weight"
/// (dim, 1), "mlp.i.1.weight" (dim, dim) for i from 1 to depth - 1, each with a "bias" (dim); with norm
/// "mlp.0.1.weight", "mlp.i.2.weight" (dim), and their "bias".
template <class Scalar>
class LearnedContinuous : public AdditiveEmbedding<LearnedContinuous<Scalar>, Scalar, PositionMlp<Scalar>> {
  using Base = AdditiveEmbedding<LearnedContinuous, Scalar, PositionMlp<Scalar>>;

 public:
  using Options = LearnedContinuousOptions;  ///< what it is made from
  using typename Base::Gradients;
  static constexpr std::string_view name = "LearnedContinuous";  ///< in messages

  /// Throws OptionError.
  explicit LearnedContinuous(const Options& options, std::uint64_t seed = 0)
      : Base(PositionMlp<Scalar>(name,
                                 {.dim = options.dim,
                                  .depth = options.depth,
                                  .norm = options.norm,
                                  .divide = options.divide,
                                  .learned_div = options.learned_div},
                                 seed)),
        options_(options) {}

  [[nodiscard]] const Options& options() const { return options_; }  ///< with defaults filled in
  [[nodiscard]] Index dim() const { return options_.dim; }           ///< features of a token, H

  /// Computes the rows that are added to tokens at these positions.
  [[nodiscard]] auto rows() const {
    return [dim = dim(), find = detail::MlpForward<Scalar>(this->parameters_, 0, dim())](
               std::span<const double> positions, detail::TokenRows<Scalar>& rows) {
      Scalar* row = rows.compute(positions.size(), dim);
      find(positions,
           [&](Index feature, Index p, double value) { row[p * dim + feature] = static_cast<Scalar>(value); });
    };
  }

  /// Adjoint of `rows`.
  [[nodiscard]] auto rows_backward() const {
    return [dim = dim(), add = detail::MlpBackward<Scalar>(this->parameters_, 0, dim())](
               std::span<const double> positions, const double* grad_rows, Gradients& grads,
               const Executor& executor) mutable {
      add(
          positions, [&](Index feature, Index p) { return grad_rows[p * dim + feature]; }, grads, executor);
    };
  }

 private:
  Options options_;
};

}  // namespace posbias
