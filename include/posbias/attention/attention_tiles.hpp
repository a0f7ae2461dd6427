// SPDX-License-Identifier: MIT
/// \file
/// The logits of an attention, tile by tile: some queries of a head and some keys at a time, never all of them.
///
///     for each block of keys
///       for each block of queries that may see one of them
///         logits = scale·q·kᵀ + bias + mask, -inf where a key is hidden
///
/// A query's logits are the same bits whatever other queries it comes with: products do not depend on their shape, and
/// blocks of keys start at multiples of `keys_per_block`.
#pragma once

#include <algorithm>
#include <optional>

#include "posbias/core/infinity.hpp"
#include "posbias/core/view.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/tile/logit_term.hpp"
#include "posbias/tile/logit_tile.hpp"
#include "posbias/tile/mask_term.hpp"
#include "posbias/tile/visibility.hpp"

namespace posbias::detail {

/// Some queries of all heads that share a head of keys. Its rows are its queries, head by head.
struct QueryBlock {
  Index batch, key_head, query, queries;
};

/// q (B, *, L1, NH, H), k and v (B, *, L2, NHk, H or Hv) as `mod_qkv` left them, and all that makes logits of them.
/// Refers to the term, which must outlive it.
template <class Scalar>
class AttentionTiles {
 public:
  static constexpr Index queries_per_block = 64, keys_per_block = 256;
  using View = TensorView<const Scalar, 3>;
  using Tile = LogitTile<Scalar>;

  const View q, k, v;
  const Scalar scale;
  const LogitTerm<Scalar>& term;
  const MaskTerm mask;
  const std::optional<CausalVisibility> causal;

  [[nodiscard]] Index batches() const { return q.batches(); }
  [[nodiscard]] Index queries() const { return q.shape[0]; }
  [[nodiscard]] Index keys() const { return k.shape[0]; }
  [[nodiscard]] Index heads() const { return q.shape[1]; }
  [[nodiscard]] Index key_heads() const { return k.shape[1]; }
  /// Heads of queries for each head of keys.
  [[nodiscard]] Index group() const { return key_heads() > 0 ? heads() / key_heads() : 0; }
  [[nodiscard]] Index features() const { return q.shape[2]; }
  [[nodiscard]] Index value_features() const { return v.shape[2]; }

  /// The most queries and keys in a tile; keys in whole lanes.
  [[nodiscard]] Index max_queries() const { return (std::min)(queries(), queries_per_block); }
  [[nodiscard]] Index max_keys() const { return (std::min)(round_up_to_lanes<Scalar>(keys()), keys_per_block); }
  /// How many keys the block from `key` on has.
  [[nodiscard]] Index block_keys(Index key) const { return (std::min)(keys_per_block, keys() - key); }

  /// Tokens of a head as a matrix (tokens, features).
  static StoredMatrix<Scalar> rows_of(const View& tensor, Index batch, Index token, Index head) {
    return {tensor.batch(batch) + token * tensor.strides[0] + head * tensor.strides[1], tensor.strides[0],
            tensor.strides[2]};
  }

  /// Calls `visit(head)` for the heads of a block.
  template <class Visit>
  void for_each_head(const QueryBlock& block, const Visit& visit) const {
    for (Index h = block.key_head * group(); h < (block.key_head + 1) * group(); ++h) visit(h);
  }

  /// Calls `visit(tile, row of its first query)` for the tiles of a block of keys. Keys that none of a tile's queries
  /// sees are cut off in whole lanes, and where nothing is left there is no tile. `memory` is for `max_queries()` by
  /// `max_keys()` logits.
  template <class Visit>
  void for_each_tile(const QueryBlock& block, Index key, Scalar* memory, const Visit& visit) const {
    Index row = 0;
    for_each_head(block, [&](Index h) {
      for (Index i = 0; i < block.queries; i += queries_per_block) {
        const Index count = (std::min)(queries_per_block, block.queries - i);
        Tile tile{memory, 0, max_keys(), 1, block.batch, h, 1, block.query + i, count, key, block_keys(key)};
        if (causal) {
          const KeyRange seen = causal->visible(tile);
          const Index begin = seen.begin / lanes<Scalar> * lanes<Scalar>;
          tile.key += begin;
          tile.keys = seen.empty() ? 0 : seen.end - begin;
        }
        if (tile.keys > 0) visit(tile, row);
        row += count;
      }
    });
  }

  /// Writes the logits of a tile, and -inf behind its last key up to whole lanes. `scaled_q` are its queries, (queries,
  /// H), `k_by_feature` its keys. Returns whether any key is hidden from a query.
  bool fill(Tile tile, const Scalar* scaled_q, const PackedMatrix<Scalar>& k_by_feature) const {
    tile.key_stride = 1;  // as in all tiles here, but so that compilers see it
    multiply<Accumulate::overwrite>(tile.queries, tile.keys, features(), MatrixView<Scalar>{scaled_q, features(), 1},
                                    k_by_feature, tile.data, tile.query_stride);
    term.add_to(tile);  // virtual: of a TabulatedBias, a ProjectedBias, ...
    bool hides = term.hides();
    if (hides) term.hide(tile);
    hides |= mask.add_to(tile);
    if (causal) hides |= causal->apply(tile);
    for (Index i = 0; i < tile.queries; ++i)
      std::fill(tile.row(0, i) + tile.keys, tile.row(0, i) + round_up_to_lanes<Scalar>(tile.keys),
                minus_infinity<Scalar>());
    return hides;
  }
};

}  // namespace posbias::detail
