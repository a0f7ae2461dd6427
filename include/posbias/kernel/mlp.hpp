// SPDX-License-Identifier: MIT
/// \file
/// A multi-layer perceptron of one number, the position: the parameters that LearnedContinuous and DynamicPositionBias
/// learn.
///
///     y = position / divisor
///     Linear(1, dim) -> (Norm)  { -> Swish -> Linear(dim, dim) -> (Norm) } x (depth - 1)  ( -> Linear(dim, outputs) )
///
///     Swish(x) = x / (1 + exp(-x))
///     Norm: see kernel/layer_norm.hpp
///
/// kernel/mlp_forward.hpp evaluates it, kernel/mlp_backward.hpp is the adjoint. Both compute in double and round once,
/// and no position sees the others: a value does not depend on the positions it is evaluated with.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/parameters.hpp"
#include "posbias/kernel/divide.hpp"
#include "posbias/kernel/layer_norm.hpp"
#include "posbias/kernel/linear.hpp"
#include "posbias/kernel/product.hpp"

namespace posbias {

/// Options of an MLP of positions.
struct PositionMlpOptions {
  Index dim = 0;             ///< features of the hidden layers
  Index depth = 1;           ///< hidden layers
  bool norm = false;         ///< a layer normalisation after each
  Index outputs = 0;         ///< features of a last linear layer; 0: there is none, and dim features come out
  double divide = 1;         ///< positions are divided by this
  bool learned_div = false;  ///< learn the divisor
};

/// An MLP of positions, or its gradients. Parameters have the names of the Python packages' state dicts; weights and
/// biases of a Linear(in, out) start uniform in ±1/sqrt(in), as PyTorch starts them.
template <class Scalar>
struct PositionMlp {
  /// (Swish ->) Linear (-> Norm).
  struct Layer {
    Linear<Scalar> linear;                  ///< its linear map
    std::optional<LayerNorm<Scalar>> norm;  ///< behind it, if there is one
    bool swish;                             ///< before it
  };

  Divide<Scalar> divide;        ///< the divisor of positions
  std::vector<Layer> layers{};  ///< in order
  bool has_last = false;        ///< a linear layer after the hidden ones

  /// Throws OptionError, naming `module`.
  PositionMlp(std::string_view module, const PositionMlpOptions& options, std::uint64_t seed)
      : divide(module, options.divide, options.learned_div), has_last(options.outputs > 0) {
    if (options.dim < 1)
      detail::fail<OptionError>(module, ": dim = ", options.dim, "; it is required, and must be positive");
    if (options.depth < 1) detail::fail<OptionError>(module, ": depth = ", options.depth, "; it must be positive");
    detail::Random random(seed);
    const auto add_layer = [&](Index inputs, Index outputs, bool norm, bool swish) {
      layers.push_back({{}, norm ? std::optional<LayerNorm<Scalar>>(outputs) : std::nullopt, swish});
      layers.back().linear.start(inputs, outputs, random);
    };
    for (Index i = 0; i < options.depth; ++i) add_layer(i == 0 ? 1 : options.dim, options.dim, options.norm, i > 0);
    if (has_last) add_layer(options.dim, options.outputs, false, false);
  }

  /// Whether a layer is the last one.
  [[nodiscard]] bool is_last(std::size_t layer) const { return layer + 1 == layers.size(); }
  /// Outputs of a layer, where only `of_last` outputs of the last one are wanted.
  [[nodiscard]] Index outputs(std::size_t layer, Index of_last) const {
    return is_last(layer) ? of_last : layers[layer].linear.outputs();
  }
  /// Weights of a layer (outputs, inputs) from an output on.
  [[nodiscard]] detail::MatrixView<Scalar> weight(std::size_t layer, Index output) const {
    const Linear<Scalar>& linear = layers[layer].linear;
    return {linear.weight.data() + output * linear.inputs(), linear.inputs(), 1};
  }

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    Divide<Scalar>::visit(self.divide, visitor);
    for (std::size_t i = 0; i < self.layers.size(); ++i) {
      auto& layer = self.layers[i];
      const std::string name = "mlp." + std::to_string(i);
      if (self.has_last && self.is_last(i)) {
        Linear<Scalar>::visit(name, layer.linear, visitor);
        continue;
      }
      // Within a layer Swish is number 0, except in the first, which has none.
      Linear<Scalar>::visit(name + (layer.swish ? ".1" : ".0"), layer.linear, visitor);
      if (layer.norm) LayerNorm<Scalar>::visit(name + (layer.swish ? ".2" : ".1"), *layer.norm, visitor);
    }
  }
};

namespace detail {

/// Positions [first, first + count) of some, which a task computes together.
struct PositionBlock {
  static constexpr Index max_size = 64;
  Index index, first, count;

  PositionBlock(Index number, Index positions)
      : index(number), first(number * max_size), count((std::min)(max_size, positions - first)) {}
};

/// How many blocks positions come in.
constexpr Index position_blocks(Index positions) {
  return (positions + PositionBlock::max_size - 1) / PositionBlock::max_size;
}

}  // namespace detail
}  // namespace posbias
