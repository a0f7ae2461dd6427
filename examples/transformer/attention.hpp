// SPDX-License-Identifier: MIT
/// \file
/// Causal self-attention, materialised: weights = softmax(scale · q kᵀ + mask), y = weights · v.
///
/// Two of the three places where a transformer meets position are here, and both are one call to a hook:
/// `mod_qkv` once the queries, keys and values are projected, `mod_mask` once the causal mask is made. On the
/// way back their adjoints run in the opposite order: the mask's first, because a bias that looks at the
/// content adds to the gradient of q and k, then that of q, k and v.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <posbias/posbias.hpp>

#include "transformer/layers.hpp"
#include "transformer/shape.hpp"

namespace demo {

template <class Scalar>
struct Attention {
  Linear<Scalar> query, key, value, output;  ///< all (D, D)

  struct Trace {
    Matrix<Scalar> x;
    Matrix<Scalar> q, k, v;     ///< (B·L, NH·H), as mod_qkv returned them
    Tensor<Scalar, 4> weights;  ///< (B, NH, L, L)
    Matrix<Scalar> mixed;       ///< weights · v, (B·L, NH·H)
  };

  template <class Visitor>
  void visit(const Visitor& visitor) {
    query.visit(visitor);
    key.visit(visitor);
    value.visit(visitor);
    output.visit(visitor);
  }

  template <posbias::PositionalModule<Scalar> Module>
  Matrix<Scalar> forward(const Matrix<Scalar>& x, Index B, Index NH, const Module& position, Trace& trace) const {
    const Index L = x.rows() / B, H = x.cols() / NH;
    const auto scale = 1 / std::sqrt(static_cast<Scalar>(H));
    trace.x = x;
    trace.q = query.forward(x);
    trace.k = key.forward(x);
    trace.v = value.forward(x);
    const auto q = by_head(trace.q, B, NH), k = by_head(trace.k, B, NH), v = by_head(trace.v, B, NH);
    position.mod_qkv(q, k, v);

    trace.weights = causal_mask(B, NH, L);
    position.mod_mask(trace.weights, q, k, v);

    trace.mixed.resize(x.rows(), x.cols());
    const auto mixed = by_head(trace.mixed, B, NH);
    for (Index b = 0; b < B; ++b)
      for (Index h = 0; h < NH; ++h) {
        auto weights = square(trace.weights, b, h);
        weights.noalias() += scale * head(q, b, h) * head(k, b, h).transpose();
        softmax(weights);
        head(mixed, b, h).noalias() = weights * head(v, b, h);
      }
    return output.forward(trace.mixed);
  }

  template <posbias::PositionalModule<Scalar> Module>
  Matrix<Scalar> backward(const Matrix<Scalar>& grad_y, const Trace& trace, Index B, Index NH, const Module& position,
                          Attention& gradient, typename Module::Gradients& position_gradient) const {
    const Index D = grad_y.cols(), L = grad_y.rows() / B, H = D / NH;
    const auto scale = 1 / std::sqrt(static_cast<Scalar>(H));
    const Matrix<Scalar> grad_mixed = output.backward(grad_y, trace.mixed, gradient.output);
    Matrix<Scalar> grad_query(B * L, D), grad_key(B * L, D), grad_value(B * L, D);
    const auto q = by_head(trace.q, B, NH), k = by_head(trace.k, B, NH), v = by_head(trace.v, B, NH);
    const auto grad_q = by_head(grad_query, B, NH), grad_k = by_head(grad_key, B, NH),
               grad_v = by_head(grad_value, B, NH);

    Tensor<Scalar, 4> grad_mask(B, NH, L, L);
    for (Index b = 0; b < B; ++b)
      for (Index h = 0; h < NH; ++h) {
        const auto weights = square(trace.weights, b, h);
        const auto grad_out = head(by_head(grad_mixed, B, NH), b, h);
        auto grad_logits = square(grad_mask, b, h);
        grad_logits.noalias() = grad_out * head(v, b, h).transpose();
        softmax_backward(grad_logits, weights);
        head(grad_q, b, h).noalias() = scale * grad_logits * head(k, b, h);
        head(grad_k, b, h).noalias() = scale * grad_logits.transpose() * head(q, b, h);
        head(grad_v, b, h).noalias() = weights.transpose() * grad_out;
      }

    const posbias::PairPositions at{};
    position.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, v, at, position_gradient);
    position.mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, position_gradient);

    Matrix<Scalar> grad_x = query.backward(grad_query, trace.x, gradient.query);
    grad_x += key.backward(grad_key, trace.x, gradient.key);
    grad_x += value.backward(grad_value, trace.x, gradient.value);
    return grad_x;
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
