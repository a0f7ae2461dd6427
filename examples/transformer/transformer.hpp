// SPDX-License-Identifier: MIT
/// \file
/// A small pre-norm transformer that predicts the next character, written once for any positional module.
///
///     x = embed(characters);  mod_x(x)
///     for each block:  x += attention(norm(x));  x += mlp(norm(x))
///     logits = head(norm(x))
///
/// The module is a member and does its work in three places: `mod_x` here, `mod_qkv` and `mod_mask` in the
/// attention of every layer. All layers share it, and their gradients add up in one object.
#pragma once

#include <posbias/posbias.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "transformer/attention.hpp"
#include "transformer/layers.hpp"
#include "transformer/shape.hpp"

namespace demo {

/// What a transformer looks like; the windows it reads may have any length.
struct Architecture {
  Index symbols = 0;      ///< V
  Index layers = 2;       ///< blocks of attention and MLP
  Index heads = 4;        ///< NH
  Index head_width = 16;  ///< H
  Index mlp_factor = 4;   ///< hidden width of the MLP, in units of D
  AttentionKind attention = AttentionKind::fused;

  [[nodiscard]] Index width() const { return heads * head_width; }
};

/// Windows of a text: window b is the L characters from starts[b], and the target of each is the one after it.
struct Windows {
  std::span<const Symbol> text;
  std::span<const Index> starts;
  Index length = 0;

  [[nodiscard]] Index count() const { return static_cast<Index>(starts.size()); }
  [[nodiscard]] Index characters() const { return count() * length; }
  [[nodiscard]] std::vector<Symbol> inputs() const { return shifted(0); }
  [[nodiscard]] std::vector<Symbol> targets() const { return shifted(1); }

 private:
  [[nodiscard]] std::vector<Symbol> shifted(Index by) const {
    std::vector<Symbol> result;
    result.reserve(static_cast<std::size_t>(characters()));
    for (const Index start : starts) {
      const auto first = text.begin() + start + by;
      result.insert(result.end(), first, first + length);
    }
    return result;
  }
};

/// x += attention(norm(x));  x += mlp(norm(x))
template <class Scalar>
struct Block {
  LayerNorm<Scalar> attention_norm, mlp_norm;
  Attention<Scalar> attention;
  Mlp<Scalar> mlp;

  struct Trace {
    typename LayerNorm<Scalar>::Trace attention_norm, mlp_norm;
    typename Attention<Scalar>::Trace attention;
    typename Mlp<Scalar>::Trace mlp;
  };

  template <class Visitor>
  void visit(const Visitor& visitor) {
    attention_norm.visit(visitor);
    attention.visit(visitor);
    mlp_norm.visit(visitor);
    mlp.visit(visitor);
  }
};

/// Everything that is learned apart from the positional module; gradients are a second value of it.
template <class Scalar>
struct Weights {
  CharacterEmbedding<Scalar> embedding;
  std::vector<Block<Scalar>> blocks;
  LayerNorm<Scalar> norm;
  Linear<Scalar> head;

  /// The branches that add to the residual stream start smaller, the more there are of them.
  static Weights random(const Architecture& shape, Random& random) {
    using Layer = Linear<Scalar>;
    const Index D = shape.width();
    const double branch_gain = 1 / std::sqrt(2 * static_cast<double>(shape.layers));
    const auto norm = LayerNorm<Scalar>::identity(D);
    Weights weights{{random.matrix<Scalar>(shape.symbols, D, 1)}, {}, norm, {}};
    for (Index layer = 0; layer < shape.layers; ++layer) {
      Attention<Scalar> attention{Layer::random(D, D, random), Layer::random(D, D, random), Layer::random(D, D, random),
                                  Layer::random(D, D, random, branch_gain)};
      Mlp<Scalar> mlp{Layer::random(D, shape.mlp_factor * D, random),
                      Layer::random(shape.mlp_factor * D, D, random, branch_gain)};
      weights.blocks.push_back({norm, norm, std::move(attention), std::move(mlp)});
    }
    weights.head = Layer::random(D, shape.symbols, random);
    return weights;
  }

  template <class Visitor>
  void visit(const Visitor& visitor) {
    embedding.visit(visitor);
    for (auto& block : blocks) block.visit(visitor);
    norm.visit(visitor);
    head.visit(visitor);
  }
};

template <class Scalar_, posbias::PositionalModule<Scalar_> Module>
class Transformer {
 public:
  using Scalar = Scalar_;

  struct Gradients {
    using Scalar = Scalar_;
    Weights<Scalar> weights;
    typename Module::Gradients position;
  };

  /// What `backward` needs to know about a `forward`.
  struct Trace {
    Index B = 0;
    std::vector<Symbol> inputs, targets;
    std::vector<typename Block<Scalar>::Trace> blocks;
    typename LayerNorm<Scalar>::Trace norm;
    Matrix<Scalar> last;           ///< what the head read, (B·L, D)
    Matrix<Scalar> probabilities;  ///< of every symbol, (B·L, V)
  };

  Weights<Scalar> weights;
  Module position;

  Transformer(const Architecture& shape, Module module, Random& random)
      : weights(Weights<Scalar>::random(shape, random)),
        position(std::move(module)),
        NH(shape.heads),
        kind(shape.attention) {}

  /// The cross entropy of all targets, summed, in nats.
  double forward(const Windows& windows, Trace& trace) const {
    const Index B = trace.B = windows.count();
    trace.inputs = windows.inputs();
    trace.targets = windows.targets();
    trace.blocks.resize(weights.blocks.size());

    Matrix<Scalar> x = weights.embedding.forward(trace.inputs);
    position.mod_x(by_window(x, B));
    for (std::size_t i = 0; i < weights.blocks.size(); ++i) {
      const auto& block = weights.blocks[i];
      auto& seen = trace.blocks[i];
      x += block.attention.forward(block.attention_norm.forward(x, seen.attention_norm), B, NH, kind, position,
                                   seen.attention);
      x += block.mlp.forward(block.mlp_norm.forward(x, seen.mlp_norm), seen.mlp);
    }
    trace.last = weights.norm.forward(x, trace.norm);
    trace.probabilities = weights.head.forward(trace.last);
    return cross_entropy(trace.probabilities, trace.targets);
  }

  /// Adds the gradient of `loss_weight` · forward(...) to `gradients`. Uses up the trace's probabilities.
  void backward(Trace& trace, double loss_weight, Gradients& gradients) const {
    auto& [into, into_position] = gradients;
    Matrix<Scalar>& grad_logits = trace.probabilities;
    cross_entropy_backward(grad_logits, trace.targets, loss_weight);
    Matrix<Scalar> grad_x =
        weights.norm.backward(weights.head.backward(grad_logits, trace.last, into.head), trace.norm, into.norm);
    for (std::size_t i = weights.blocks.size(); i-- > 0;) {
      const auto& block = weights.blocks[i];
      const auto& seen = trace.blocks[i];
      auto& grad = into.blocks[i];
      grad_x += block.mlp_norm.backward(block.mlp.backward(grad_x, seen.mlp, grad.mlp), seen.mlp_norm, grad.mlp_norm);
      grad_x += block.attention_norm.backward(
          block.attention.backward(grad_x, seen.attention, trace.B, NH, kind, position, grad.attention, into_position),
          seen.attention_norm, grad.attention_norm);
    }
    position.mod_x_backward(by_window(grad_x, trace.B), posbias::TokenPositions{}, into_position);
    weights.embedding.backward(grad_x, trace.inputs, into.embedding);
  }

  [[nodiscard]] Gradients zero_gradients() const {
    Gradients gradients{weights, position.zero_gradients()};
    gradients.weights.visit([](auto& matrix) { matrix.setZero(); });
    return gradients;
  }

 private:
  Index NH;
  AttentionKind kind;
};

}  // namespace demo
