// SPDX-License-Identifier: MIT
/// \file
/// What the hooks of all biases have in common: a mask is checked against q, k and v, cut into tiles, and a prepared
/// bias adds itself to each; its gradient is cut into heads, whose tiles come one after another.
#pragma once

#include <algorithm>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/core/checks.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/view.hpp"
#include "posbias/tile/logit_tile.hpp"

namespace posbias::detail {

/// Throws ShapeError unless `heads` of `argument` are the module's.
inline void check_heads(const Hook& hook, std::string_view argument, Index heads, Index n_heads) {
  if (heads != n_heads) fail<ShapeError>(hook, ": ", argument, " has ", heads, " heads; n_heads = ", n_heads);
}

/// Throws ShapeError unless the mask, or its gradient, belongs to q, k and v.
inline void check_mask_fits(const Hook& hook, std::string_view argument, const StridedShape<3>& mask,
                            const StridedShape<3>& q, const StridedShape<3>& k, const StridedShape<3>& v) {
  const AttentionShape shape = attention_shape(hook, q, k, v);
  if (!(shape == AttentionShape{mask.leading, mask.shape[0], mask.shape[1], mask.shape[2]}))
    fail<ShapeError>(hook, ": ", argument, " has shape ", mask.whole_shape().shape(), "; q of shape ",
                     q.whole_shape().shape(), " and k of shape ", k.whole_shape().shape(), " need (B, *, NH, L1, L2)");
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
  const Index head_stride = logits.strides[0], query_stride = logits.strides[1], key_stride = logits.strides[2];
  const Index all_keys = logits.shape[2];
  const bool narrow = width == TileWidth::narrow_if_column_major && is_column_major(logits);
  const Index keys_per_tile = narrow ? 8 : std::max<Index>(all_keys, 1);
  const Index begin = logits.offset(n) + head * head_stride + query * query_stride;
  logits.data.visit([&]<class Stored>(Stored* first) {
    for (Index key = 0; key < all_keys; key += keys_per_tile)
      visit(LogitTile<Stored>{first + begin + key * key_stride, head_stride, query_stride, key_stride, n, head, heads,
                              query, queries, key, (std::min)(keys_per_tile, all_keys - key)});
  });
}

/// Copies a tile to rows of another, row by row, or column by column where those lie together.
template <class From, class To>
void copy_tile(const LogitTile<From>& from, const LogitTile<To>& to) {
  const bool by_column = (std::max)(from.key_stride, to.key_stride) > (std::max)(from.query_stride, to.query_stride);
  for (Index h = 0; h < from.heads; ++h)
    if (by_column) {
      for (Index j = 0; j < from.keys; ++j)
        for (Index i = 0; i < from.queries; ++i)
          put(to.row(h, i)[j * to.key_stride], widen(from.row(h, i)[j * from.key_stride]));
    } else {
      for (Index i = 0; i < from.queries; ++i) {
        const From* values = from.row(h, i);
        To* results = to.row(h, i);
        if (from.key_stride == 1 && to.key_stride == 1)
          for (Index j = 0; j < from.keys; ++j) put(results[j], widen(values[j]));
        else
          for (Index j = 0; j < from.keys; ++j) put(results[j * to.key_stride], widen(values[j * from.key_stride]));
      }
    }
}

/// Calls `use` with a tile in `Scalar`: itself, or some queries at a time that are widened, and rounded once when they
/// are written back, unless they are const. Heads come one by one, or all together.
template <class Scalar, class Stored, class Use>
void in_scalar(const LogitTile<Stored>& tile, bool heads_apart, const Use& use) {
  if constexpr (std::is_same_v<Scalar, Stored>) {
    use(tile);
  } else {
    using Value = std::remove_const_t<Scalar>;
    constexpr Index max_queries = 32;
    const Index heads = heads_apart ? 1 : tile.heads;
    std::vector<Value> rows(static_cast<std::size_t>(heads * (std::min)(max_queries, tile.queries) * tile.keys));
    for (Index h = 0; h < tile.heads; h += heads)
      for (Index i = 0; i < tile.queries; i += max_queries) {
        LogitTile<Stored> part = tile;
        part.data = tile.row(h, i);
        part.head += h;
        part.heads = heads;
        part.query += i;
        part.queries = (std::min)(max_queries, tile.queries - i);
        const LogitTile<Value> widened{rows.data(),  part.queries * part.keys,
                                       part.keys,    1,
                                       part.batch,   part.head,
                                       heads,        part.query,
                                       part.queries, part.key,
                                       part.keys};
        copy_tile(part.read_only(), widened);
        if constexpr (std::is_const_v<Scalar>) {
          use(widened.read_only());
        } else {
          use(widened);
          copy_tile(widened.read_only(), part);
        }
      }
  }
}

/// How wide the tiles of a prepared bias are: whole rows unless it says so.
template <class Prepared>
inline constexpr TileWidth tile_width_of = [] {
  if constexpr (requires { Prepared::tile_width; })
    return Prepared::tile_width;
  else
    return TileWidth::whole_rows;
}();

/// Adds a prepared bias to a whole mask; to zeros only what can do that.
template <Write how = Write::add, class Scalar, class Prepared>
void add_to_mask(const TensorView<Scalar, 3>& mask, const Prepared& prepared, const Executor& executor) {
  constexpr Index queries_per_task = 64;
  const Index blocks = (mask.shape[1] + queries_per_task - 1) / queries_per_task;
  executor.parallel_for(mask.batches() * blocks, [&](Index task) {
    const Index query = task % blocks * queries_per_task;
    for_each_tile(mask, tile_width_of<Prepared>, task / blocks, 0, mask.shape[0], query,
                  (std::min)(queries_per_task, mask.shape[1] - query), [&](const auto& tile) {
                    if constexpr (how != Write::add)
                      prepared.template add_to<how>(tile);
                    else if constexpr (requires { prepared.add_to(tile); })
                      prepared.add_to(tile);
                    else
                      in_scalar<Scalar>(tile, prepared.heads_are_independent(),
                                        [&](const auto& widened) { prepared.add_to(widened); });
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
    for_each_tile(grad_mask, TileWidth::whole_rows, n, head, heads, 0, all_queries, [&](const auto& tile) {
      if constexpr (requires { prepared.accumulate(tile, to); })
        prepared.accumulate(tile, to);
      else
        in_scalar<const typename Prepared::Scalar>(tile, false,
                                                   [&](const auto& widened) { prepared.accumulate(widened, to); });
    });
  };
  Index max_heads = by_head ? 1 : std::max<Index>(all_heads, 1);
  const auto for_heads = [&](const auto& accumulate) {
    executor.parallel_for((all_heads + max_heads - 1) / max_heads, [&](Index task) {
      accumulate(task * max_heads, (std::min)(max_heads, all_heads - task * max_heads));
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
    constexpr Index max_queries = 8;
    const Index row = std::max<Index>(max_queries * batches * grad_mask.shape[2], 1);
    if (by_head)
      max_heads = std::clamp<Index>((Index{1} << 18) / row, 1,
                                    executor.serial() ? std::max<Index>(all_heads, 1) : (all_heads + 3) / 4);
    std::vector<typename Prepared::Accumulator> own(static_cast<std::size_t>(batches), prepared.accumulator());
    for_heads([&](Index head, Index heads) {
      GradientRows<typename Prepared::Scalar> rows;
      for (Index query = 0; query < all_queries; query += max_queries) {
        rows.copy(grad_mask, head, heads, query, (std::min)(max_queries, all_queries - query));
        for (Index n = 0; n < batches; ++n)
          prepared.accumulate(rows.tile(grad_mask, n), own[static_cast<std::size_t>(n)]);
      }
      for (Index n = 0; n < batches; ++n) prepared.move_sums(head, heads, own[static_cast<std::size_t>(n)], sums);
    });
  }
}

}  // namespace posbias::detail
