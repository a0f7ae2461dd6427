// SPDX-License-Identifier: MIT
/// \file
/// Causal self-attention: q, k and v are projected, attention mixes them, the mixture is projected.
///
/// Two of the three places where a transformer meets position are in the middle step. The library's fused attention
/// takes the module and calls both hooks itself; the materialised one, its oracle, calls them in the open.
#pragma once

#include <posbias/posbias.hpp>

#include "transformer/layers.hpp"
#include "transformer/materialised_attention.hpp"
#include "transformer/shape.hpp"

namespace demo {

/// Two ways to the same numbers, up to rounding.
enum class AttentionKind {
  fused,        ///< tile by tile, O(L) memory; modules without a `prepare` get `materialised`
  materialised  ///< all L×L weights in memory
};

template <class Scalar>
struct FusedAttention {
  struct Trace {
    Tensor<Scalar, 3> log_sum_exp;  ///< (B, NH, L), of the logits
  };

  /// Leaves q, k and v (B, L, NH, H) as they are.
  template <class Heads, posbias::AttentionModule<Scalar> Module>
  static void forward(const Heads& out, const Heads& q, const Heads& k, const Heads& v, const Module& position,
                      Trace& trace) {
    trace.log_sum_exp.resize(q.dimension(0), q.dimension(2), q.dimension(1));
    posbias::attention(out, q, k, v, position, {.causal = true}, trace.log_sum_exp);
  }

  template <class Heads, class ConstHeads, posbias::AttentionModule<Scalar> Module>
  static void backward(const Heads& grad_q, const Heads& grad_k, const Heads& grad_v, const ConstHeads& grad_out,
                       const ConstHeads& out, const ConstHeads& q, const ConstHeads& k, const ConstHeads& v,
                       const Module& position, const Trace& trace, typename Module::Gradients& position_gradient) {
    posbias::attention_backward(grad_q, grad_k, grad_v, grad_out, out, q, k, v, position, {.causal = true},
                                position_gradient, trace.log_sum_exp);
  }
};

template <class Scalar>
struct Attention {
  Linear<Scalar> query, key, value, output;  ///< all (D, D)

  struct Trace {
    Matrix<Scalar> x;
    Matrix<Scalar> q, k, v;  ///< (B·L, NH·H), as projected if fused, as mod_qkv made them if materialised
    Matrix<Scalar> mixed;    ///< weights · v, (B·L, NH·H)
    typename FusedAttention<Scalar>::Trace fused;
    typename MaterialisedAttention<Scalar>::Trace materialised;
  };

  template <class Visitor>
  void visit(const Visitor& visitor) {
    query.visit(visitor);
    key.visit(visitor);
    value.visit(visitor);
    output.visit(visitor);
  }

  template <posbias::PositionalModule<Scalar> Module>
  Matrix<Scalar> forward(const Matrix<Scalar>& x, Index B, Index NH, AttentionKind kind, const Module& position,
                         Trace& trace) const {
    trace.x = x;
    trace.q = query.forward(x);
    trace.k = key.forward(x);
    trace.v = value.forward(x);
    trace.mixed.resize(x.rows(), x.cols());
    const auto q = by_head(trace.q, B, NH), k = by_head(trace.k, B, NH), v = by_head(trace.v, B, NH),
               mixed = by_head(trace.mixed, B, NH);
    if constexpr (posbias::AttentionModule<Module, Scalar>)
      if (kind == AttentionKind::fused) FusedAttention<Scalar>::forward(mixed, q, k, v, position, trace.fused);
    if (materialises<Module>(kind))
      MaterialisedAttention<Scalar>::forward(mixed, q, k, v, position, trace.materialised);
    return output.forward(trace.mixed);
  }

  template <posbias::PositionalModule<Scalar> Module>
  Matrix<Scalar> backward(const Matrix<Scalar>& grad_y, const Trace& trace, Index B, Index NH, AttentionKind kind,
                          const Module& position, Attention& gradient,
                          typename Module::Gradients& position_gradient) const {
    const Matrix<Scalar> grad_mixed = output.backward(grad_y, trace.mixed, gradient.output);
    Matrix<Scalar> grad_query(grad_y.rows(), grad_y.cols()), grad_key = grad_query, grad_value = grad_query;
    const auto q = by_head(trace.q, B, NH), k = by_head(trace.k, B, NH), v = by_head(trace.v, B, NH),
               mixed = by_head(trace.mixed, B, NH), grad_out = by_head(grad_mixed, B, NH);
    const auto grad_q = by_head(grad_query, B, NH), grad_k = by_head(grad_key, B, NH),
               grad_v = by_head(grad_value, B, NH);
    if constexpr (posbias::AttentionModule<Module, Scalar>)
      if (kind == AttentionKind::fused)
        FusedAttention<Scalar>::backward(grad_q, grad_k, grad_v, grad_out, mixed, q, k, v, position, trace.fused,
                                         position_gradient);
    if (materialises<Module>(kind))
      MaterialisedAttention<Scalar>::backward(grad_q, grad_k, grad_v, grad_out, q, k, v, position, trace.materialised,
                                              position_gradient);

    Matrix<Scalar> grad_x = query.backward(grad_query, trace.x, gradient.query);
    grad_x += key.backward(grad_key, trace.x, gradient.key);
    grad_x += value.backward(grad_value, trace.x, gradient.value);
    return grad_x;
  }

 private:
  template <class Module>
  static bool materialises(AttentionKind kind) {
    return kind == AttentionKind::materialised || !posbias::AttentionModule<Module, Scalar>;
  }
};

}  // namespace demo
