// SPDX-License-Identifier: MIT
/// \file
/// What the hooks of all biases have in common: a mask is checked against q, k and v, cut into tiles, and a prepared
/// bias adds itself to each; its gradient is cut into heads, whose tiles come one after another.
#pragma once

#include <algorithm>
#include <string_view>

#include "posbias/bias/logit_tile.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/tensor_view.hpp"

namespace posbias::detail {

/// Throws ShapeError unless `heads` of `argument` are the module's.
inline void check_heads(std::string_view module, std::string_view hook, std::string_view argument, Index heads,
                        Index n_heads) {
  if (heads != n_heads)
    fail<ShapeError>(module, "::", hook, ": ", argument, " has ", heads, " heads; n_heads = ", n_heads);
}

/// Throws ShapeError unless the mask, or its gradient, belongs to q, k and v.
template <class M, class Q, class K, class V>
void check_mask_fits(std::string_view module, std::string_view hook, std::string_view argument, const M& mask,
                     const Q& q, const K& k, const V& v) {
  const AttentionShape shape = attention_shape(module, hook, q, k, v);
  const auto logits = view<3>(mask);
  if (!(shape == AttentionShape{logits.leading, logits.shape[0], logits.shape[1], logits.shape[2]}))
    fail<ShapeError>(module, "::", hook, ": ", argument, " has shape ", shape_of(mask), "; q of shape ", shape_of(q),
                     " and k of shape ", shape_of(k), " need (B, *, NH, L1, L2)");
}

/// Whether tiles are as wide as the mask, or a few columns where keys are far apart in memory. Narrow tiles of a
/// column-major mask stay in cache; whole rows suit a bias whose work for a tile does not shrink with its width.
enum class TileWidth { narrow_if_column_major, whole_rows };

/// Cuts some heads and queries of a batch entry into tiles.
template <class S, class Visit>
void for_each_tile(const TensorView<S, 3>& logits, TileWidth width, Index n, Index head, Index heads, Index query,
                   Index queries, const Visit& visit) {
  const auto [head_stride, query_stride, key_stride] = logits.strides;
  const Index all_keys = logits.shape[2];
  const bool narrow = width == TileWidth::narrow_if_column_major && key_stride > query_stride;
  const Index keys_per_tile = narrow ? 8 : std::max<Index>(all_keys, 1);
  for (Index key = 0; key < all_keys; key += keys_per_tile)
    visit(LogitTile<S>{logits.batch(n) + head * head_stride + query * query_stride + key * key_stride, head_stride,
                       query_stride, key_stride, n, head, heads, query, queries, key,
                       std::min(keys_per_tile, all_keys - key)});
}

/// Adds a prepared bias to a whole mask; to zeros only what can do that.
template <Onto onto = Onto::logits, class Prepared>
void add_to_mask(const TensorView<typename Prepared::Scalar, 3>& mask, const Prepared& prepared,
                 const Executor& executor) {
  constexpr Index queries_per_task = 64;
  const Index blocks = (mask.shape[1] + queries_per_task - 1) / queries_per_task;
  executor.parallel_for(mask.batches() * blocks, [&](Index task) {
    const Index query = task % blocks * queries_per_task;
    for_each_tile(mask, Prepared::tile_width, task / blocks, 0, mask.shape[0], query,
                  std::min(queries_per_task, mask.shape[1] - query), [&](const auto& tile) {
                    if constexpr (onto == Onto::logits)
                      prepared.add_to(tile);
                    else
                      prepared.template add_to<onto>(tile);
                  });
  });
}

/// Accumulates the gradient of a whole mask. Each sum runs over the batch in order, on one thread, in whole rows: its
/// order must not depend on the layout.
template <class Prepared>
void accumulate_mask(const TensorView<const typename Prepared::Scalar, 3>& grad_mask, const Prepared& prepared,
                     typename Prepared::Accumulator& sums, const Executor& executor) {
  const Index heads_per_task = prepared.heads_are_independent() ? 1 : grad_mask.shape[0];
  executor.parallel_for(grad_mask.shape[0] / std::max<Index>(heads_per_task, 1), [&](Index task) {
    for (Index n = 0; n < grad_mask.batches(); ++n)
      for_each_tile(grad_mask, TileWidth::whole_rows, n, task * heads_per_task, heads_per_task, 0, grad_mask.shape[1],
                    [&](const auto& tile) { prepared.accumulate(tile, sums); });
  });
}

}  // namespace posbias::detail
