// SPDX-License-Identifier: MIT
/// \file
/// RelativeAttention at n 4, 512 queries and keys, size 256, 8 heads: with positional terms beside content alone.
#include <cstdint>
#include <posbias/layers/relative_attention.hpp>
#include <string>

#include "suite.hpp"
#include "tensors.hpp"

namespace posbias_benchmarks {
namespace {

using namespace posbias;

constexpr Index N = 4, L = 512, size = 256, NH = 8;
using RelativePositions = Eigen::Tensor<std::int64_t, 4, Eigen::RowMajor>;

/// Words in the order of reading, or boxes scattered over the columns and lines of a page.
std::shared_ptr<RelativePositions> relative_positions(Index coordinates) {
  const auto result = std::make_shared<RelativePositions>(N, L, L, coordinates);
  const auto place = [](Index n, Index i, Index coordinate) {
    return coordinate == 0 ? i * 37 % 61 : (i + n) * 64 / L;
  };
  for (Index n = 0; n < N; ++n)
    for (Index i = 0; i < L; ++i)
      for (Index j = 0; j < L; ++j)
        for (Index c = 0; c < coordinates; ++c)
          (*result)(n, i, j, c) = coordinates == 1 ? j - i : place(n, j, c) - place(n, i, c);
  return result;
}

/// The layer; its bound is one of content alone.
Subject layer_with_positions(Index coordinates, Index n_positions) {
  const auto relative = relative_positions(coordinates);
  const auto x = shared_tensor(N, L, size), pooled = shared_tensor(N, L, size), grad = shared_tensor(N, L, size);
  const auto logits = shared_tensor(N, L, L, NH);
  using Layer = RelativeAttention<float>;
  const Layer content({.size = size, .n_heads = NH, .mode = {c2c}});
  const Layer layer({.size = size, .n_heads = NH, .n_positions = n_positions, .n_coordinates = coordinates});
  const auto grads = std::make_shared<Layer::Gradients>(layer.zero_gradients());
  const auto call = [relative](const Executor& executor) {
    return RelativeAttentionCall{.relative_positions = *relative, .executor = executor};
  };
  layer.forward(*pooled, *logits, *x, *x, *x, call({}));
  return {[=](const Executor& executor) { layer.forward(*pooled, *logits, *x, *x, *x, call(executor)); },
          [=](const Executor& executor) { content.forward(*pooled, *logits, *x, *x, *x, {.executor = executor}); },
          [=](const Executor& executor) {
            layer.backward(*grad, *grad, *grad, *pooled, *logits, *x, *x, *x, call(executor), *grads);
          }};
}

}  // namespace

void add_relative_attention() {
  for (const Index coordinates : {1, 2})
    for (const Index n_positions : {64, 512, 1024}) {
      const std::string work = std::to_string(n_positions) + " rows, " + std::to_string(coordinates) + "D";
      const std::string shape = shape_text(N, L, L, NH);
      const auto make = [=] { return layer_with_positions(coordinates, n_positions); };
      add_forward({"RelativeAttention", work, shape, "content alone"}, make);
      add_two_threads("RelativeAttention " + work, shape, make, Limit::arithmetic);
      add_backward("RelativeAttention " + work, shape, make, Limit::arithmetic);
    }
}

}  // namespace posbias_benchmarks
