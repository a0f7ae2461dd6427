// SPDX-License-Identifier: MIT
/// \file
/// Forward of attention in O(L·H) memory: algorithm 1 of FlashAttention-2 (Dao, 2023, arXiv 2307.08691), in its letters.
///
///     for each block of keys
///       S  = scale·Q·Kᵀ + bias + mask          -inf where a key is hidden
///       m' = max(m, rowmax S)
///       P  = e^(S - m')
///       l  = e^(m - m')·l + rowsum P
///       O  = e^(m - m')·O + P·V
///     O /= l,  lse = m + log l
///
/// A pair that is hidden adds nothing, whatever is in memory: its S is -inf and its P is 0, and tiles that hide a key take
/// products in which 0 times NaN is 0. Others do not pay for that.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "posbias/attention/attention_tiles.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/kernel/annihilating_product.hpp"
#include "posbias/kernel/exponential.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias::detail {

/// Copies a matrix, scaled, row after row; returns where the next row would go.
template <class Scalar>
Scalar* copy_scaled(const StoredMatrix<Scalar>& from, Index rows, Index columns, Scalar scale, Scalar* to) {
  for (Index i = 0; i < rows; ++i, to += columns) {
    from.load_row(i, columns, to);
    for (Index d = 0; d < columns; ++d) to[d] *= scale;
  }
  return to;
}

/// Whether rounding a log_sum_exp to its scalar changed weights by no more than about 1e-5 (float) or 1e-14 (double).
template <class Scalar>
bool is_precise(Scalar log_sum_exp) {
  return is_minus_infinity(log_sum_exp) || !(std::abs(log_sum_exp) > 100);
}

/// What forward writes: out (B, *, L1, NH, Hv), and for each query, (B, *, NH, L1), lse = log_sum_exp, or two numbers that
/// it is the sum of: itself and 0 where it is precise, else m, the largest logit, and log l, the logarithm of the sum of
/// e^(S - m). Only what has memory is written.
template <class Scalar>
struct AttentionResults {
  TensorView<Scalar, 3> out{};
  TensorView<Scalar, 2> log_sum_exp{}, m{}, log_l{};
};

/// Forward over one block of queries: O, m and l of their rows.
template <class Scalar>
class AttentionForward {
  using Tiles = AttentionTiles<Scalar>;
  using Values = Eigen::Map<Lane<Scalar>>;

 public:
  AttentionForward(const Tiles& tiles, const QueryBlock& block, const AttentionResults<Scalar>& results)
      : tiles_(tiles),
        block_(block),
        results_(results),
        rows_(tiles.group() * block.queries),
        width_(results.out.data.given() ? round_up_to_lanes<Scalar>(tiles.value_features()) : 0),
        Q_(rows_ * tiles.features()),
        O_(rows_ * width_),
        S_(tiles.max_queries() * tiles.max_keys()),
        K_(packed_size<Scalar>(tiles.features(), tiles.max_keys())),
        V_(packed_size<Scalar>(tiles.max_keys(), width_)),
        m_(static_cast<std::size_t>(rows_), std::numeric_limits<Scalar>::lowest()),
        l_(static_cast<std::size_t>(rows_)) {}

  /// Writes the results of the block: O is 0, and lse and m are -inf, where a query sees nothing.
  void run() {
    Scalar* next = Q_.data();
    tiles_.for_each_head(block_, [&](Index h) {
      next = copy_scaled(Tiles::rows_of(tiles_.q, block_.batch, block_.query, h), block_.queries, tiles_.features(),
                         tiles_.scale, next);
    });
    for (Index key = 0; key < tiles_.keys(); key += Tiles::keys_per_block) add_keys(key);
    std::size_t row = 0;
    tiles_.for_each_head(block_, [&](Index h) {
      for (Index i = block_.query; i < block_.query + block_.queries; ++i) write(h, i, row++);
    });
  }

 private:
  /// The loop's body, for the block of keys that begins at `key`. Keys that no query of a tile sees are skipped.
  void add_keys(Index key) {
    PackedMatrix<Scalar> k{}, v{};
    std::optional<bool> v_is_finite;  // looked up once a tile hides a key
    tiles_.for_each_tile(block_, key, S_.data(), [&](const LogitTile<Scalar>& tile, Index row) {
      if (k.data == nullptr) {  // the first tile that sees a key of the block
        const Index count = tiles_.block_keys(key);
        k = pack(Tiles::rows_of(tiles_.k, block_.batch, key, block_.key_head).transposed(), tiles_.features(), count,
                 K_.data());
        if (width_ > 0)
          v = pack(Tiles::rows_of(tiles_.v, block_.batch, key, block_.key_head), count, tiles_.value_features(),
                   V_.data());
      }
      // S = scale·Q·Kᵀ + bias + mask, -inf where a key is hidden
      const bool hides = tiles_.fill(tile, Q_.data() + row * tiles_.features(), k.from(0, tile.key - key));
      if (hides && !v_is_finite)
        v_is_finite = all_finite(V_.data(), packed_size<Scalar>(tiles_.block_keys(key), width_));
      const PackedMatrix<Scalar> tile_v = v.from(tile.key - key, 0);
      if (hides && !*v_is_finite) return add_visible(tile, row, tile_v);
      // P = e^(S - m); l and O follow m
      for (Index i = 0; i < tile.queries; ++i)
        softmax_step(tile.row(0, i), round_up_to_lanes<Scalar>(tile.keys), row + i);
      // O += P·V
      if (width_ > 0)
        multiply<Accumulate::add>(tile.queries, width_, tile.keys, MatrixView<Scalar>{tile.data, tile.query_stride, 1},
                                  tile_v, O_.data() + row * width_, width_);
    });
  }

  /// Adds a tile row by row, where a value that is not finite may be hidden from some.
  void add_visible(const LogitTile<Scalar>& tile, Index row, const PackedMatrix<Scalar>& v) {
    const std::vector<Index> odd = non_finite_terms(v, tile.keys, width_);
    std::vector<Index> hidden;
    for (Index i = 0; i < tile.queries; ++i, ++row) {
      Scalar* logits = tile.row(0, i);
      hidden.clear();
      std::ranges::copy_if(odd, std::back_inserter(hidden), [&](Index j) { return is_minus_infinity(logits[j]); });
      softmax_step(logits, round_up_to_lanes<Scalar>(tile.keys), row);
      multiply_row_without<Accumulate::add>(hidden, width_, tile.keys, MatrixView<Scalar>{logits, 0, 1}, v,
                                            O_.data() + row * width_);
    }
  }

  /// One step of a row's online softmax: S becomes P.
  void softmax_step(Scalar* S, Index count, Index row) {
    Scalar& m = m_[static_cast<std::size_t>(row)];
    double& l = l_[static_cast<std::size_t>(row)];
    // m' = max(m, rowmax S)
    Lane<Scalar> highest = Lane<Scalar>::Constant(m);
    for (Index j = 0; j < count; j += lanes<Scalar>) highest = (highest.max)(Values(S + j));
    const Scalar before = std::exchange(m, highest.maxCoeff());
    // l *= e^(m - m'), O *= e^(m - m')
    if (before != m) {
      const Scalar shrunk = std::exp(before - m);
      l *= static_cast<double>(shrunk);
      for (Index d = 0; d < width_; d += lanes<Scalar>) Values(O_.data() + row * width_ + d) *= shrunk;
    }
    // P = e^(S - m'), l += rowsum P
    Lane<Scalar> row_sum = Lane<Scalar>::Zero();
    for (Index j = 0; j < count; j += lanes<Scalar>) {
      const Lane<Scalar> P = exponential_(Values(S + j) - m);
      Values(S + j) = P;
      row_sum += P;
    }
    l += static_cast<double>(row_sum.sum());
  }

  /// O /= l, lse = m + log l
  void write(Index h, Index i, std::size_t row) {
    const bool sees_nothing = l_[row] == 0;  // the largest logit has a weight of 1
    const auto m = static_cast<double>(m_[row]), log_l = sees_nothing ? 0 : std::log(l_[row]);
    const auto put = [&](const TensorView<Scalar, 2>& to, Scalar value) {
      if (to.data.given()) to.batch(block_.batch).data()[h * to.strides[0] + i * to.strides[1]] = value;
    };
    const Scalar lse = visible_or_hidden(!sees_nothing, static_cast<Scalar>(m + log_l));
    const bool precise = is_precise(lse);
    put(results_.log_sum_exp, lse);
    put(results_.m, precise ? lse : m_[row]);
    put(results_.log_l, precise ? 0 : static_cast<Scalar>(log_l));
    if (width_ == 0) return;
    const TensorView<Scalar, 3>& out = results_.out;
    const double part = sees_nothing ? 0 : 1 / l_[row];
    Scalar* values = O_.data() + static_cast<Index>(row) * width_;
    for (Index d = 0; d < tiles_.value_features(); ++d)
      values[d] = static_cast<Scalar>(part * static_cast<double>(values[d]));
    store<Scalar>(values, tiles_.value_features(), out.batch(block_.batch) + i * out.strides[0] + h * out.strides[1],
                  out.strides[2]);
  }

  const Tiles& tiles_;
  QueryBlock block_;
  AttentionResults<Scalar> results_;
  Index rows_, width_;                   // queries of all heads; features of O in whole lanes
  Workspace<Scalar> Q_, O_, S_, K_, V_;  // Q scaled; K and V of a block of keys, packed
  std::vector<Scalar> m_;                // the largest logit of each row so far
  std::vector<double> l_;                // the sum of e^(S - m) of each row so far
  Exponential<Scalar> exponential_;
};

/// Forward over all queries.
template <class Scalar>
void attention_forward(const AttentionTiles<Scalar>& tiles, const AttentionResults<Scalar>& results,
                       const Executor& executor) {
  // Rows of a task: many share the packing of keys, few leave work for all threads. Nothing else depends on it.
  constexpr Index most = 512, least = 64, enough_tasks = 32;
  const Index all = tiles.batches() * tiles.heads() * tiles.queries();
  const Index rows = executor.serial() ? most : std::clamp(all / enough_tasks, least, most);
  const Index per_task =
      std::max<Index>(rows / std::max<Index>(tiles.group(), 1) / 8 * 8, 16);  // as rows are multiplied
  const Index blocks = (tiles.queries() + per_task - 1) / per_task;
  executor.parallel_for(tiles.batches() * tiles.key_heads() * blocks, [&](Index task) {
    const Index query = task % blocks * per_task;
    const QueryBlock block{task / blocks / tiles.key_heads(), task / blocks % tiles.key_heads(), query,
                           (std::min)(per_task, tiles.queries() - query)};
    AttentionForward<Scalar>(tiles, block, results).run();
  });
}

}  // namespace posbias::detail
