// SPDX-License-Identifier: MIT
/// \file
/// Causal attention as it is written on paper: weights = softmax(scale · q kᵀ + mask), y = weights · v, with all L×L
/// weights of a head in memory.
///
/// It shows where the hooks go, takes any module, and is what the fused attention is compared with: `mod_qkv` comes
/// first, `mod_mask` once the causal mask is made. On the way back their adjoints run in the opposite order: the mask's
/// first, because a bias that looks at the content adds to the gradient of q and k, then that of q, k and v.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <posbias/posbias.hpp>

#include "transformer/shape.hpp"

namespace demo {

template <class Scalar>
struct MaterialisedAttention {
  struct Trace {
    Tensor<Scalar, 4> weights;  ///< (B, NH, L, L)
  };

  /// Leaves q, k and v (B, L, NH, H) as mod_qkv makes them, for `backward`.
  template <class Heads, posbias::PositionalModule<Scalar> Module>
  static void forward(const Heads& out, const Heads& q, const Heads& k, const Heads& v, const Module& position,
                      Trace& trace) {
    const Index B = q.dimension(0), L = q.dimension(1), NH = q.dimension(2), H = q.dimension(3);
    const auto scale = 1 / std::sqrt(static_cast<Scalar>(H));
    position.mod_qkv(q, k, v);
    trace.weights = causal_mask(B, NH, L);
    position.mod_mask(trace.weights, q, k, v);
    for (Index b = 0; b < B; ++b)
      for (Index h = 0; h < NH; ++h) {
        auto weights = square(trace.weights, b, h);
        weights.noalias() += scale * head(q, b, h) * head(k, b, h).transpose();
        softmax(weights);
        head(out, b, h).noalias() = weights * head(v, b, h);
      }
  }

  template <class Heads, class ConstHeads, posbias::PositionalModule<Scalar> Module>
  static void backward(const Heads& grad_q, const Heads& grad_k, const Heads& grad_v, const ConstHeads& grad_out,
                       const ConstHeads& q, const ConstHeads& k, const ConstHeads& v, const Module& position,
                       const Trace& trace, typename Module::Gradients& position_gradient) {
    const Index B = q.dimension(0), L = q.dimension(1), NH = q.dimension(2), H = q.dimension(3);
    const auto scale = 1 / std::sqrt(static_cast<Scalar>(H));
    Tensor<Scalar, 4> grad_mask(B, NH, L, L);
    for (Index b = 0; b < B; ++b)
      for (Index h = 0; h < NH; ++h) {
        const auto weights = square(trace.weights, b, h);
        auto grad_logits = square(grad_mask, b, h);
        grad_logits.noalias() = head(grad_out, b, h) * head(v, b, h).transpose();
        softmax_backward(grad_logits, weights);
        head(grad_q, b, h).noalias() = scale * grad_logits * head(k, b, h);
        head(grad_k, b, h).noalias() = scale * grad_logits.transpose() * head(q, b, h);
        head(grad_v, b, h).noalias() = weights.transpose() * head(grad_out, b, h);
      }
    const posbias::PairPositions at{};
    position.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, v, at, position_gradient);
    position.mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, position_gradient);
  }

 private:
  /// -inf where a query may not look, which is ahead; 0 elsewhere.
  static Tensor<Scalar, 4> causal_mask(Index B, Index NH, Index L) {
    Tensor<Scalar, 4> mask(B, NH, L, L);
    mask.setZero();
    for (Index row = 0; row < B * NH * L; ++row) {
      Scalar* keys = mask.data() + row * L;
      std::fill(keys + row % L + 1, keys + L, -std::numeric_limits<Scalar>::infinity());
    }
    return mask;
  }

  /// Over each row. Weights too small to matter become 0: Eigen's vectorised exp(-inf) is tiny, but not 0.
  template <class Logits>
  static void softmax(Logits& logits) {
    constexpr Scalar lowest = -80, negligible = Scalar(1e-30);  // exp(-80) is 2e-35
    for (Index i = 0; i < logits.rows(); ++i) {
      auto row = logits.row(i).array();
      row = (row - row.maxCoeff()).max(lowest).exp();
      row = (row > negligible).select(row, Scalar(0));
      row /= row.sum();
    }
  }

  /// grad <- weights · (grad - <weights, grad>), over each row.
  template <class Gradient, class Weights>
  static void softmax_backward(Gradient& grad, const Weights& weights) {
    for (Index i = 0; i < grad.rows(); ++i) {
      const Scalar mean = grad.row(i).dot(weights.row(i));
      grad.row(i) = weights.row(i).array() * (grad.row(i).array() - mean);
    }
  }
};

}  // namespace demo
