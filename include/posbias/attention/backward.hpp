// SPDX-License-Identifier: MIT
/// \file
/// Backward of attention in O(L·H) memory: algorithm 2 of FlashAttention-2 (Dao, 2023, arXiv 2307.08691), in its letters.
///
///     D = rowsum(dO ∘ O)
///     for each block of keys, for each tile
///       S  = scale·Q·Kᵀ + bias + mask          P  = e^(S - lse)
///       dP = dO·Vᵀ                             dS = P ∘ (dP - D)
///       dV += Pᵀ·dO        dK += dSᵀ·(scale·Q)        dQ += scale·dS·K        the bias's adjoint is given dS
///
/// What is hidden has S = -inf, P = 0 and dS = 0, whatever is in memory, as in forward.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <vector>

#include "posbias/attention/attention_tiles.hpp"
#include "posbias/attention/forward.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/kernel/annihilating_product.hpp"
#include "posbias/kernel/exponential.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias::detail {

/// What backward reads, and the gradients it makes. Without memory for log_l, `m` is lse, if it is given.
template <class Scalar>
struct BackwardViews {
  TensorView<Scalar, 3> q{}, k{}, v{};
  TensorView<const Scalar, 3> grad_out{}, out{};
  TensorView<const Scalar, 2> m{}, log_l{};
};

/// Backward over all queries of the heads that share a head of keys.
template <class Scalar>
class AttentionBackward {
  using Tiles = AttentionTiles<Scalar>;
  using Tile = LogitTile<Scalar>;
  using Values = Eigen::Map<Lane<Scalar>>;

 public:
  AttentionBackward(const Tiles& tiles, const BackwardViews<Scalar>& gradients)
      : tiles_(tiles),
        gradients_(gradients),
        width_(round_up_to_lanes<Scalar>(tiles.features())),
        v_width_(round_up_to_lanes<Scalar>(tiles.value_features())),
        grad_q_(tiles.group() * tiles.queries() * width_),
        grad_k_(tiles.max_keys() * width_),
        grad_v_(tiles.max_keys() * v_width_),
        logits_(tiles.max_queries() * tiles.max_keys()),
        grad_logits_(tiles.max_queries() * tiles.max_keys()),
        q_rows_(tiles.max_queries() * tiles.features()),
        q_(packed_size<Scalar>(tiles.max_queries(), tiles.features())),
        grad_out_rows_(tiles.max_queries() * tiles.value_features()),
        grad_out_(packed_size<Scalar>(tiles.max_queries(), tiles.value_features())),
        k_(packed_size<Scalar>(tiles.max_keys(), tiles.features())),
        k_by_feature_(packed_size<Scalar>(tiles.features(), tiles.max_keys())),
        v_by_feature_(packed_size<Scalar>(tiles.value_features(), tiles.max_keys())) {}

  /// Writes the gradients of a head of k and v, adds to those of the heads of q that share it, and accumulates the
  /// gradients of logits in `bias`.
  void run(Index batch, Index key_head, LogitAdjoint<Scalar>& bias) {
    const QueryBlock block{batch, key_head, 0, tiles_.queries()};
    std::fill_n(grad_q_.data(), tiles_.group() * tiles_.queries() * width_, Scalar(0));
    find_D(block);
    for (Index key = 0; key < tiles_.keys(); key += Tiles::keys_per_block) {
      pack_keys(block, key);
      tiles_.for_each_tile(block, key, logits_.data(), [&](const Tile& tile, Index row) {
        const Tile grad_tile = recompute_scores(tile, tile.key - key, row);
        add_products(tile, grad_tile, tile.key - key, row);
        if (bias.accumulates()) bias.accumulate(grad_tile.read_only());
      });
      const Index count = tiles_.block_keys(key);
      add_rows(grad_k_.data(), width_, count, 1, gradients_.k, batch, key, key_head);
      add_rows(grad_v_.data(), v_width_, count, 1, gradients_.v, batch, key, key_head);
    }
    const Scalar* from = grad_q_.data();
    tiles_.for_each_head(block, [&](Index h) {
      add_rows(from, width_, tiles_.queries(), tiles_.scale, gradients_.q, batch, 0, h);
      from += tiles_.queries() * width_;
    });
  }

 private:
  /// D = rowsum(dO ∘ O): the mean of dO·v of each row, by its weights.
  void find_D(const QueryBlock& block) {
    D_.clear();
    tiles_.for_each_head(block, [&](Index h) {
      const StoredMatrix<Scalar> grad_out = Tiles::rows_of(gradients_.grad_out, block.batch, 0, h);
      const StoredMatrix<Scalar> out = Tiles::rows_of(gradients_.out, block.batch, 0, h);
      const Index Hv = tiles_.value_features();
      std::vector<Scalar> rows(static_cast<std::size_t>(2 * Hv));
      for (Index i = 0; i < block.queries; ++i) {
        grad_out.load_row(i, Hv, rows.data());
        out.load_row(i, Hv, rows.data() + Hv);
        double D = 0;
        for (auto grad = rows.begin(), value = grad + Hv; value != rows.end(); ++grad, ++value)
          D += static_cast<double>(*grad) * static_cast<double>(*value);
        D_.push_back(static_cast<Scalar>(D));
      }
    });
  }

  void pack_keys(const QueryBlock& block, Index key) {
    const Index count = tiles_.block_keys(key);
    const StoredMatrix<Scalar> k = Tiles::rows_of(tiles_.k, block.batch, key, block.key_head);
    const StoredMatrix<Scalar> v = Tiles::rows_of(tiles_.v, block.batch, key, block.key_head);
    keys_ = {pack(k, count, tiles_.features(), k_.data()),
             pack(k.transposed(), tiles_.features(), count, k_by_feature_.data()),
             pack(v.transposed(), tiles_.value_features(), count, v_by_feature_.data())};
    std::fill_n(grad_k_.data(), count * width_, Scalar(0));
    std::fill_n(grad_v_.data(), count * v_width_, Scalar(0));
  }

  /// S again, then P, which is left in the tile, and dS, which is returned. The tile's keys begin at `begin` of their block.
  Tile recompute_scores(const Tile& tile, Index begin, Index row) {
    const Index H = tiles_.features(), Hv = tiles_.value_features();
    copy_scaled(Tiles::rows_of(tiles_.q, tile.batch, tile.query, tile.head), tile.queries, H, tiles_.scale,
                q_rows_.data());
    copy_scaled(Tiles::rows_of(gradients_.grad_out, tile.batch, tile.query, tile.head), tile.queries, Hv, Scalar(1),
                grad_out_rows_.data());
    hides_ = tiles_.fill(tile, q_rows_.data(), keys_.k_by_feature.from(0, begin));

    Tile grad_tile = tile;
    grad_tile.data = grad_logits_.data();
    multiply<Accumulate::overwrite>(tile.queries, tile.keys, Hv, MatrixView<Scalar>{grad_out_rows_.data(), Hv, 1},
                                    keys_.v_by_feature.from(0, begin), grad_tile.data, tile.query_stride);
    const auto of_row = [&](const TensorView<const Scalar, 2>& values, Index i) {
      return values.batch(tile.batch).data()[tile.head * values.strides[0] + (tile.query + i) * values.strides[1]];
    };
    for (Index i = 0; i < tile.queries; ++i) {
      const Scalar D = D_[static_cast<std::size_t>(row + i)];
      const Scalar m = of_row(gradients_.m, i);
      const Index count = round_up_to_lanes<Scalar>(tile.keys);
      if (is_minus_infinity(m)) {  // the query sees nothing
        std::fill_n(tile.row(0, i), count, Scalar(0));
        std::fill_n(grad_tile.row(0, i), count, Scalar(0));
        continue;
      }
      const Scalar log_l = !gradients_.log_l.data.given() ? 0 : of_row(gradients_.log_l, i);
      for (Index j = 0; j < count; j += lanes<Scalar>) {
        Values P(tile.row(0, i) + j), dS(grad_tile.row(0, i) + j);  // as yet S, and dP
        const Lane<Scalar> S = P;
        P = exponential_(S - m - log_l);
        dS = P * (dS - D);
        for (Index lane = 0; hides_ && lane < lanes<Scalar>; ++lane) {
          const bool visible = !is_minus_infinity(S[lane]);
          P[lane] = visible ? P[lane] : 0;
          dS[lane] = visible ? dS[lane] : 0;
        }
      }
    }
    return grad_tile;
  }

  /// dV += Pᵀ·dO, dK += dSᵀ·Q, dQ += dS·K
  void add_products(const Tile& tile, const Tile& grad_tile, Index begin, Index row) {
    const Index H = tiles_.features(), Hv = tiles_.value_features();
    const MatrixView<Scalar> weights{tile.data, tile.query_stride, 1}, grads{grad_tile.data, tile.query_stride, 1};
    const PackedMatrix<Scalar> grad_out =
        pack(MatrixView<Scalar>{grad_out_rows_.data(), Hv, 1}, tile.queries, Hv, grad_out_.data());
    const PackedMatrix<Scalar> q = pack(MatrixView<Scalar>{q_rows_.data(), H, 1}, tile.queries, H, q_.data());
    const auto multiply_all = [&](const auto& add_product) {
      add_product(tile.keys, Hv, tile.queries, weights.transposed(), grad_out, grad_v_.data() + begin * v_width_,
                  v_width_);
      add_product(tile.keys, H, tile.queries, grads.transposed(), q, grad_k_.data() + begin * width_, width_);
      add_product(tile.queries, H, tile.keys, grads, keys_.k.from(begin, 0), grad_q_.data() + row * width_, width_);
    };
    if (hides_)
      multiply_all(multiply_annihilating<Accumulate::add, Scalar>);
    else
      multiply_all(multiply<Accumulate::add, Scalar>);
  }

  /// Adds rows, scaled, to the tokens of a head.
  static void add_rows(const Scalar* from, Index stride, Index rows, Scalar scale, const TensorView<Scalar, 3>& tensor,
                       Index batch, Index token, Index head) {
    Scalar* to = tensor.batch(batch).data() + token * tensor.strides[0] + head * tensor.strides[1];
    for (Index i = 0; i < rows; ++i)
      for (Index d = 0; d < tensor.shape[2]; ++d)
        to[i * tensor.strides[0] + d * tensor.strides[2]] += scale * from[i * stride + d];
  }

  /// A block of keys, packed.
  struct Keys {
    PackedMatrix<Scalar> k, k_by_feature, v_by_feature;
  };

  const Tiles& tiles_;
  BackwardViews<Scalar> gradients_;
  Index width_, v_width_;  // features in whole lanes
  Workspace<Scalar> grad_q_, grad_k_, grad_v_, logits_, grad_logits_;
  Workspace<Scalar> q_rows_, q_, grad_out_rows_, grad_out_;  // of a tile: row after row, and packed
  Workspace<Scalar> k_, k_by_feature_, v_by_feature_;
  Keys keys_{};
  bool hides_ = false;  // whether the tile hides a key
  std::vector<Scalar> D_;
  Exponential<Scalar> exponential_;
};

template <class Scalar>
bool all_precise(const TensorView<const Scalar, 2>& log_sum_exp) {
  for (Index n = 0; n < log_sum_exp.batches(); ++n)
    for (Index h = 0; h < log_sum_exp.shape[0]; ++h)
      for (Index i = 0; i < log_sum_exp.shape[1]; ++i)
        if (!is_precise(log_sum_exp.batch(n).data()[h * log_sum_exp.strides[0] + i * log_sum_exp.strides[1]]))
          return false;
  return true;
}

/// Adds to the gradients of q, k and v, and accumulates those of logits. Queries of a head come one after another, and
/// so do batch entries where the bias sums over them. Logarithms of sums that are not given, or not precise, are found in
/// a pass of forward.
template <class Scalar>
void attention_backward(const AttentionTiles<Scalar>& tiles, BackwardViews<Scalar> gradients,
                        LogitAdjoint<Scalar>& bias, const Executor& executor) {
  if (tiles.batches() == 0 || tiles.key_heads() == 0 || tiles.queries() == 0) return;
  std::vector<Scalar> found;
  if (!gradients.m.data.given() || !all_precise(gradients.m)) {
    const Index rows = tiles.batches() * tiles.heads() * tiles.queries();
    found.resize(static_cast<std::size_t>(2 * rows));
    const auto part = [&](Index i) {
      using Rows = Eigen::TensorMap<Eigen::Tensor<Scalar, 3, Eigen::RowMajor>>;
      return view<2>(Rows(found.data() + i * rows, tiles.batches(), tiles.heads(), tiles.queries()));
    };
    attention_forward(tiles, AttentionResults<Scalar>{.m = part(0), .log_l = part(1)}, executor);
    gradients.m = part(0);
    gradients.log_l = part(1);
  }
  const bool sums_up = bias.accumulates();
  const Index batches = sums_up ? tiles.batches() : 1;  // of a task
  const Index heads = sums_up && !bias.heads_are_independent() ? tiles.key_heads() : 1;
  const Index tasks_per_batch = tiles.key_heads() / heads;
  executor.parallel_for(tiles.batches() / batches * tasks_per_batch, [&](Index task) {
    AttentionBackward<Scalar> backward(tiles, gradients);
    for (Index n = 0; n < batches; ++n)
      for (Index h = 0; h < heads; ++h)
        backward.run(task / tasks_per_batch * batches + n, task % tasks_per_batch * heads + h, bias);
  });
}

}  // namespace posbias::detail
