// SPDX-License-Identifier: MIT
/// \file
/// What the hooks of all biases have in common: a mask is checked against q, k and v, cut into tiles, and a prepared
/// bias adds itself to each; its gradient is cut into heads, whose tiles come one after another.
#pragma once

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/bias/logit_tile.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/tensor_view.hpp"

namespace posbias::detail {

/// Throws ShapeError unless `heads` of `argument` are the module's.
inline void check_heads(const Hook& hook, std::string_view argument, Index heads, Index n_heads) {
  if (heads != n_heads) fail<ShapeError>(hook, ": ", argument, " has ", heads, " heads; n_heads = ", n_heads);
}

/// Throws ShapeError unless the mask, or its gradient, belongs to q, k and v.
template <class M, class Q, class K, class V>
void check_mask_fits(const Hook& hook, std::string_view argument, const M& mask, const Q& q, const K& k, const V& v) {
  const AttentionShape shape = attention_shape(hook, q, k, v);
  const auto logits = view<3>(mask);
  if (!(shape == AttentionShape{logits.leading, logits.shape[0], logits.shape[1], logits.shape[2]}))
    fail<ShapeError>(hook, ": ", argument, " has shape ", shape_of(mask), "; q of shape ", shape_of(q),
                     " and k of shape ", shape_of(k), " need (B, *, NH, L1, L2)");
}

/// Whether the keys of a mask are further apart in memory than its queries.
template <class S>
bool is_column_major(const TensorView<S, 3>& logits) {
  return logits.strides[2] > logits.strides[1];
}

/// Whether a mask is a whole column-major tensor: batch entries lie next to each other, then heads, queries, keys.
template <class S>
bool is_whole_column_major(const TensorView<S, 3>& logits) {
  Index next = 1;
  const auto follows = [&](Index size, Index stride) {
    return std::exchange(next, next * size) == stride || size == 1;
  };
  bool whole = logits.native() && is_column_major(logits);
  for (std::size_t d = 0; d < logits.leading.rank; ++d)
    whole = whole && follows(logits.leading.sizes[d], logits.leading_strides[d]);
  for (std::size_t d = 0; d < 3; ++d) whole = whole && follows(logits.shape[d], logits.strides[d]);
  return whole;
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
  const bool narrow = width == TileWidth::narrow_if_column_major && is_column_major(logits);
  const Index keys_per_tile = narrow ? 8 : std::max<Index>(all_keys, 1);
  for (Index key = 0; key < all_keys; key += keys_per_tile)
    visit(LogitTile<S>{logits.batch(n).data() + head * head_stride + query * query_stride + key * key_stride,
                       head_stride, query_stride, key_stride, n, head, heads, query, queries, key,
                       (std::min)(keys_per_tile, all_keys - key)});
}

/// A part of a mask whose elements are not the scalar: widened to rows, and rounded when it is written back.
template <class Scalar>
class WidenedTile {
 public:
  /// The logits of some heads, queries and keys, read if `read`.
  LogitTile<Scalar> widen(const TensorView<const Scalar, 3>& mask, bool read, Index n, Index head, Index heads,
                          Index query, Index queries, Index key, Index keys) {
    rows_.resize(static_cast<std::size_t>(heads * queries * keys));
    const LogitTile<Scalar> tile{rows_.data(), queries * keys, keys, 1, n, head, heads, query, queries, key, keys};
    if (read) {
      const Elements<const Scalar> from = first(mask, tile);
      for_each_line(mask, tile, [&](Index place, Index offset, Index count, Index step, Index stride) {
        if (step == 1) return load<Scalar>(from + offset, stride, count, tile.data + place);
        column_.resize(static_cast<std::size_t>(count));
        load<Scalar>(from + offset, stride, count, column_.data());
        for (Index i = 0; i < count; ++i) tile.data[place + i * step] = column_[static_cast<std::size_t>(i)];
      });
    }
    return tile;
  }

  void write_back(const LogitTile<Scalar>& tile, const TensorView<Scalar, 3>& mask) {
    const Elements<Scalar> to = first(mask, tile);
    for_each_line(mask, tile, [&](Index place, Index offset, Index count, Index step, Index stride) {
      if (step == 1) return store<Scalar>(tile.data + place, count, to + offset, stride);
      column_.resize(static_cast<std::size_t>(count));
      for (Index i = 0; i < count; ++i) column_[static_cast<std::size_t>(i)] = tile.data[place + i * step];
      store<Scalar>(column_.data(), count, to + offset, stride);
    });
  }

 private:
  template <class S>
  static Elements<S> first(const TensorView<S, 3>& mask, const LogitTile<Scalar>& tile) {
    return mask.batch(tile.batch) + tile.head * mask.strides[0] + tile.query * mask.strides[1] +
           tile.key * mask.strides[2];
  }

  /// Calls `visit(place in the tile, offset in the mask, count, step in the tile, stride in the mask)` for rows, or for
  /// columns where those lie together.
  template <class S, class Visit>
  static void for_each_line(const TensorView<S, 3>& mask, const LogitTile<Scalar>& tile, const Visit& visit) {
    const auto [head_stride, query_stride, key_stride] = mask.strides;
    for (Index h = 0; h < tile.heads; ++h)
      if (is_column_major(mask))
        for (Index j = 0; j < tile.keys; ++j)
          visit(h * tile.head_stride + j, h * head_stride + j * key_stride, tile.queries, tile.keys, query_stride);
      else
        for (Index i = 0; i < tile.queries; ++i)
          visit(h * tile.head_stride + i * tile.keys, h * head_stride + i * query_stride, tile.keys, Index{1},
                key_stride);
  }

  std::vector<Scalar> rows_, column_;
};

/// The most keys of a widened tile: rows of a bias that is quick on any tile stay in cache.
inline Index keys_of_widened(TileWidth width, Index keys) {
  return width == TileWidth::whole_rows ? keys : std::min<Index>(keys, 512);
}

/// Adds a prepared bias to some queries of a batch entry of a mask whose elements are not the scalar.
template <Onto onto, class Prepared>
void add_widened(const TensorView<typename Prepared::Scalar, 3>& mask, const Prepared& prepared, Index n, Index query,
                 Index queries) {
  constexpr Index most_queries = Prepared::tile_width == TileWidth::whole_rows ? 64 : 32;
  const Index all_keys = mask.shape[2], most_keys = keys_of_widened(Prepared::tile_width, all_keys);
  const Index heads = prepared.heads_are_independent() ? 1 : std::max<Index>(mask.shape[0], 1);
  WidenedTile<typename Prepared::Scalar> widened;
  for (Index h = 0; h < mask.shape[0]; h += heads)
    for (Index i = query; i < query + queries; i += most_queries)
      for (Index key = 0; key < all_keys; key += most_keys) {
        const auto tile =
            widened.widen(mask, onto == Onto::logits, n, h, heads, i, (std::min)(most_queries, query + queries - i),
                          key, (std::min)(most_keys, all_keys - key));
        if constexpr (onto == Onto::logits)
          prepared.add_to(tile);
        else
          prepared.template add_to<onto>(tile);
        widened.write_back(tile, mask);
      }
}

/// Adds a prepared bias to a whole mask; to zeros only what can do that.
template <Onto onto = Onto::logits, class Prepared>
void add_to_mask(const TensorView<typename Prepared::Scalar, 3>& mask, const Prepared& prepared,
                 const Executor& executor) {
  constexpr Index queries_per_task = 64;
  const Index blocks = (mask.shape[1] + queries_per_task - 1) / queries_per_task;
  executor.parallel_for(mask.batches() * blocks, [&](Index task) {
    const Index n = task / blocks, query = task % blocks * queries_per_task;
    const Index queries = (std::min)(queries_per_task, mask.shape[1] - query);
    if (!mask.native()) return add_widened<onto>(mask, prepared, n, query, queries);
    for_each_tile(mask, Prepared::tile_width, n, 0, mask.shape[0], query, queries, [&](const auto& tile) {
      if constexpr (onto == Onto::logits)
        prepared.add_to(tile);
      else
        prepared.template add_to<onto>(tile);
    });
  });
}

/// Some queries of a column-major gradient, all keys, copied to rows.
template <class Scalar>
class GradientRows {
 public:
  using View = TensorView<const Scalar, 3>;

  /// Copies heads [head, head + heads) of queries [query, query + queries) of all batch entries, which are next to each
  /// other in memory.
  void copy(const View& gradient, Index head, Index heads, Index query, Index queries) {
    const Index keys = gradient.shape[2], lanes = heads * gradient.strides[0];
    stride_ = keys + 64 / static_cast<Index>(sizeof(Scalar));  // or rows would share places in the cache
    rows_.resize(static_cast<std::size_t>(lanes * queries * stride_));
    for (Index j = 0; j < keys; ++j)
      for (Index i = 0; i < queries; ++i) {
        const Scalar* from = gradient.data.data() + head * gradient.strides[0] + (query + i) * gradient.strides[1] +
                             j * gradient.strides[2];
        Scalar* to = rows_.data() + i * stride_ + j;
        for (Index lane = 0; lane < lanes; ++lane) to[lane * queries * stride_] = from[lane];
      }
    head_ = head;
    heads_ = heads;
    query_ = query;
    queries_ = queries;
  }

  /// What was copied of a batch entry.
  [[nodiscard]] LogitTile<const Scalar> tile(const View& gradient, Index n) const {
    const Index row = queries_ * stride_, first = gradient.offset(n);
    return {rows_.data() + first * row, gradient.strides[0] * row, stride_, 1, n, head_, heads_, query_, queries_, 0,
            gradient.shape[2]};
  }

 private:
  Index head_ = 0, heads_ = 0, query_ = 0, queries_ = 0, stride_ = 0;
  std::vector<Scalar> rows_;  // (heads, batch entries, queries, keys), keys padded
};

/// Accumulates the gradient of a whole mask: each sum on one thread, in whole rows, query after query, whatever the
/// layout. With a bias that takes any tiles, batch entries have sums of their own, which are then added up in order.
template <class Prepared>
void accumulate_mask(const TensorView<const typename Prepared::Scalar, 3>& grad_mask, const Prepared& prepared,
                     typename Prepared::Accumulator& sums, const Executor& executor) {
  const Index all_heads = grad_mask.shape[0], all_queries = grad_mask.shape[1], batches = grad_mask.batches();
  const bool by_head = prepared.heads_are_independent();
  const auto in_rows = [&](Index n, Index head, Index heads, typename Prepared::Accumulator& to) {
    if (!grad_mask.native()) {
      constexpr Index most_queries = 32;
      WidenedTile<typename Prepared::Scalar> widened;
      for (Index query = 0; query < all_queries; query += most_queries)
        prepared.accumulate(widened
                                .widen(grad_mask, true, n, head, heads, query,
                                       (std::min)(most_queries, all_queries - query), 0, grad_mask.shape[2])
                                .read_only(),
                            to);
      return;
    }
    for_each_tile(grad_mask, TileWidth::whole_rows, n, head, heads, 0, all_queries,
                  [&](const auto& tile) { prepared.accumulate(tile, to); });
  };
  Index most_heads = by_head ? 1 : std::max<Index>(all_heads, 1);
  const auto for_heads = [&](const auto& accumulate) {
    executor.parallel_for((all_heads + most_heads - 1) / most_heads, [&](Index task) {
      accumulate(task * most_heads, (std::min)(most_heads, all_heads - task * most_heads));
    });
  };
  if constexpr (Prepared::tile_width == TileWidth::whole_rows) {
    for_heads([&](Index head, Index heads) {
      for (Index n = 0; n < batches; ++n) in_rows(n, head, heads, sums);
    });
  } else if (!is_whole_column_major(grad_mask)) {
    auto own = prepared.accumulator();
    for_heads([&](Index head, Index heads) {
      for (Index n = 0; n < batches; ++n) {
        in_rows(n, head, heads, own);
        prepared.move_sums(head, heads, own, sums);
      }
    });
  } else {
    // Heads lie next to each other, so as many as stay in cache are copied together, but some for each of a few threads.
    constexpr Index most_queries = 8;
    const Index row = std::max<Index>(most_queries * batches * grad_mask.shape[2], 1);
    if (by_head)
      most_heads = std::clamp<Index>((Index{1} << 18) / row, 1,
                                     executor.serial() ? std::max<Index>(all_heads, 1) : (all_heads + 3) / 4);
    std::vector<typename Prepared::Accumulator> own(static_cast<std::size_t>(batches), prepared.accumulator());
    for_heads([&](Index head, Index heads) {
      GradientRows<typename Prepared::Scalar> rows;
      for (Index query = 0; query < all_queries; query += most_queries) {
        rows.copy(grad_mask, head, heads, query, (std::min)(most_queries, all_queries - query));
        for (Index n = 0; n < batches; ++n)
          prepared.accumulate(rows.tile(grad_mask, n), own[static_cast<std::size_t>(n)]);
      }
      for (Index n = 0; n < batches; ++n) prepared.move_sums(head, heads, own[static_cast<std::size_t>(n)], sums);
    });
  }
}

}  // namespace posbias::detail
