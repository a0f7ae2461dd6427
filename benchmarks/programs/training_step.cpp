// SPDX-License-Identifier: MIT
/// \file
/// Gradient descent on an attention layer with rotary positions and a learned T5 table: forward, backward, update. It
/// learns to repeat the token two places back, and checks that the loss falls.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <posbias/posbias.hpp>
#include <string_view>
#include <vector>

#include "layers.hpp"

namespace {

using programs::Index, programs::random;
using Matrix = Eigen::Tensor<float, 2, Eigen::RowMajor>;  // (inputs, outputs)
using Tokens = Eigen::Tensor<float, 3, Eigen::RowMajor>;  // (B, L, dim)
using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;   // (B, L, NH, H): the same memory
constexpr Index batch = 4, length = 24, n_heads = 2, head_dim = 16, dim = n_heads * head_dim;
constexpr float rate = 0.1F;

/// A map of dim features to dim features: y = x · weight.
struct Linear {
  Matrix weight = random(Matrix(dim, dim), std::sqrt(3.0F / dim));

  /// Calls use(x, weight, y) for all values that meet.
  template <class X, class Weight, class Y, class Use>
  static void for_each(X& x, Weight& weight, Y& y, const Use& use) {
    for (Index token = 0; token < batch * length; ++token)
      for (Index i = 0; i < dim; ++i)
        for (Index j = 0; j < dim; ++j) use(x.data()[token * dim + i], weight(i, j), y.data()[token * dim + j]);
  }

  template <class X, class Y>
  void forward(const X& x, Y& y) const {
    std::fill_n(y.data(), y.size(), 0.0F);
    for_each(x, weight, y, [](float from, float w, float& to) { to += from * w; });
  }

  template <class X, class Y>
  void backward(X& grad_x, const Y& grad_y) const {
    std::fill_n(grad_x.data(), grad_x.size(), 0.0F);
    for_each(grad_x, weight, grad_y, [](float& to, float w, float from) { to += from * w; });
  }

  template <class X, class Y>
  void descend(const X& x, const Y& grad_y) {
    for_each(x, weight, grad_y, [](float from, float& w, float grad) { w -= rate * from * grad; });
  }
};

/// parameter -= rate · gradient; parameters and gradients are visited in the same order.
template <class Module>
void descend(Module& module, const typename Module::Gradients& grads) {
  std::vector<float> gradient;
  posbias::for_each_parameter(grads, [&](std::string_view, const auto& tensor) {
    gradient.insert(gradient.end(), tensor.data(), tensor.data() + tensor.size());
  });
  posbias::for_each_parameter(module, [&, next = gradient.begin()](std::string_view, auto& tensor) mutable {
    for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] -= rate * *next++;
  });
}

struct Layer {
  posbias::Compose<posbias::Rotary<float>, posbias::RelativePositionBias<float>> position{
      posbias::Rotary<float>({.head_dim = head_dim}),
      posbias::RelativePositionBias<float>({.bidirectional = false, .n_heads = n_heads}, /*seed=*/1)};
  Linear to_q, to_k, to_v, to_out;

  /// One step towards `target`; returns the mean squared error before it.
  float step(const Tokens& x, const Tokens& target) {
    const posbias::AttentionOptions options{.causal = true};
    Heads q(batch, length, n_heads, head_dim), k(q.dimensions()), v(q.dimensions()), attended(q.dimensions());
    Eigen::Tensor<float, 3, Eigen::RowMajor> log_sum_exp(batch, n_heads, length);
    Tokens y(x.dimensions());
    to_q.forward(x, q), to_k.forward(x, k), to_v.forward(x, v);
    posbias::attention(attended, q, k, v, position, options, log_sum_exp);
    to_out.forward(attended, y);

    float squares = 0;
    Tokens grad_y(y.dimensions());
    for (Index i = 0; i < y.size(); ++i) {
      const float error = y.data()[i] - target.data()[i];
      squares += error * error;
      grad_y.data()[i] = 2 * error / (batch * length);
    }

    Heads grad_attended(q.dimensions()), grad_q(q.dimensions()), grad_k(q.dimensions()), grad_v(q.dimensions());
    auto grads = position.zero_gradients();
    to_out.backward(grad_attended, grad_y);
    posbias::attention_backward(grad_q, grad_k, grad_v, grad_attended, attended, q, k, v, position, options, grads,
                                log_sum_exp);
    descend(position, grads);
    to_q.descend(x, grad_q), to_k.descend(x, grad_k), to_v.descend(x, grad_v), to_out.descend(attended, grad_y);
    return squares / static_cast<float>(y.size());
  }
};

}  // namespace

int main() {
  const Tokens x = random(Tokens(batch, length, dim), 1);
  Tokens target(batch, length, dim);
  for (Index b = 0; b < batch; ++b) {
    std::fill_n(&target(b, 0, 0), 2 * dim, 0.0F);
    std::copy_n(&x(b, 0, 0), (length - 2) * dim, &target(b, 2, 0));
  }

  Layer layer;
  const float first = layer.step(x, target);
  float last = first;
  for (int i = 0; i < 400; ++i) last = layer.step(x, target);
  std::printf("training: mean squared error %.4f before, %.4f after\n", first, last);
  return last < 0.5F * first ? 0 : 1;
}
