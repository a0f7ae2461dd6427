// SPDX-License-Identifier: MIT
/// \file
/// Attention and its adjoint over tiles of logits, in O(L·H) memory.
///
/// Forward is the running softmax of FlashAttention (Dao et al., 2022, arXiv 2205.14135): where a query meets a larger
/// logit, what it summed so far shrinks to the new scale. Backward finds the weights again from the logarithm of each
/// query's sum (Dao, 2023, arXiv 2307.08691):
///
///     weight = e^(logit - top - log_sum)     grad_logit = weight · (grad_out·v - grad_out·out)
///     grad_v += weight·grad_out              grad_q += scale·grad_logit·k      grad_k += scale·grad_logit·q
///
/// A pair that is hidden adds nothing, whatever is in memory: its logit is -inf, its weight and its grad_logit are 0, and
/// tiles that hide a key take products in which 0 times NaN is 0. Others do not pay for that.
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

/// What forward writes: out (B, *, L1, NH, Hv), and for each query, (B, *, NH, L1), log_sum_exp, or two numbers that it is
/// the sum of: itself and 0 where it is precise, else the largest logit, and the logarithm of the sum of e^(logit - top).
/// Only what has memory is written.
template <class Scalar>
struct AttentionResults {
  TensorView<Scalar, 3> out{};
  TensorView<Scalar, 2> log_sum_exp{}, top{}, log_sum{};
};

/// Forward over one share of the queries.
template <class Scalar>
class AttentionForward {
  using Tiles = AttentionTiles<Scalar>;
  using Values = Eigen::Map<Lane<Scalar>>;

 public:
  AttentionForward(const Tiles& tiles, const QueryShare& share, const AttentionResults<Scalar>& results)
      : tiles_(tiles),
        share_(share),
        results_(results),
        rows_(tiles.group() * share.queries),
        width_(results.out.data.given() ? whole_lanes<Scalar>(tiles.value_features()) : 0),
        q_(rows_ * tiles.features()),
        out_(rows_ * width_),
        logits_(tiles.most_queries() * tiles.most_keys()),
        k_(packed_size<Scalar>(tiles.features(), tiles.most_keys())),
        v_(packed_size<Scalar>(tiles.most_keys(), width_)),
        top_(static_cast<std::size_t>(rows_), std::numeric_limits<Scalar>::lowest()),
        sum_(static_cast<std::size_t>(rows_)) {}

  /// Writes the results of the share: out is 0, and log_sum_exp and top are -inf, where a query sees nothing.
  void run() {
    Scalar* next = q_.data();
    tiles_.for_each_head(share_, [&](Index h) {
      next = copy_scaled(Tiles::rows_of(tiles_.q, share_.batch, share_.query, h), share_.queries, tiles_.features(),
                         tiles_.scale, next);
    });
    for (Index key = 0; key < tiles_.keys(); key += Tiles::keys_per_block) add_keys(key);
    std::size_t row = 0;
    tiles_.for_each_head(share_, [&](Index h) {
      for (Index i = share_.query; i < share_.query + share_.queries; ++i) write(h, i, row++);
    });
  }

 private:
  void add_keys(Index key) {
    Panels<Scalar> k{}, v{};
    std::optional<bool> v_is_finite;  // looked up once a tile hides a key
    tiles_.for_each_tile(share_, key, logits_.data(), [&](const LogitTile<Scalar>& tile, Index row) {
      if (k.data == nullptr) {
        const Index count = tiles_.block_keys(key);
        k = pack(Tiles::rows_of(tiles_.k, share_.batch, key, share_.key_head).transposed(), tiles_.features(), count,
                 k_.data());
        if (width_ > 0)
          v = pack(Tiles::rows_of(tiles_.v, share_.batch, key, share_.key_head), count, tiles_.value_features(),
                   v_.data());
      }
      const bool hides = tiles_.fill(tile, q_.data() + row * tiles_.features(), k.from(0, tile.key - key));
      if (hides && !v_is_finite)
        v_is_finite = all_finite(v_.data(), packed_size<Scalar>(tiles_.block_keys(key), width_));
      const Panels<Scalar> tile_v = v.from(tile.key - key, 0);
      if (hides && !*v_is_finite) return add_visible(tile, row, tile_v);
      for (Index i = 0; i < tile.queries; ++i) weigh(tile.row(0, i), whole_lanes<Scalar>(tile.keys), row + i);
      if (width_ > 0)
        multiply<Sum::added>(tile.queries, width_, tile.keys, Factor<Scalar>{tile.data, tile.query_stride, 1}, tile_v,
                             out_.data() + row * width_, width_);
    });
  }

  /// Adds a tile row by row, where a value that is not finite may be hidden from some.
  void add_visible(const LogitTile<Scalar>& tile, Index row, const Panels<Scalar>& v) {
    const std::vector<Index> odd = non_finite_terms(v, tile.keys, width_);
    std::vector<Index> hidden;
    for (Index i = 0; i < tile.queries; ++i, ++row) {
      Scalar* logits = tile.row(0, i);
      hidden.clear();
      std::ranges::copy_if(odd, std::back_inserter(hidden), [&](Index j) { return is_minus_infinity(logits[j]); });
      weigh(logits, whole_lanes<Scalar>(tile.keys), row);
      multiply_row_without<Sum::added>(hidden, width_, tile.keys, Factor<Scalar>{logits, 0, 1}, v,
                                       out_.data() + row * width_);
    }
  }

  /// Turns the logits of a row into weights e^(logit - top), where top is the row's largest so far. Its sum and its part
  /// of out shrink to the same top.
  void weigh(Scalar* logits, Index count, Index row) {
    Scalar& top = top_[static_cast<std::size_t>(row)];
    double& sum = sum_[static_cast<std::size_t>(row)];
    Lane<Scalar> most = Lane<Scalar>::Constant(top);
    for (Index j = 0; j < count; j += lanes<Scalar>) most = (most.max)(Values(logits + j));
    const Scalar before = std::exchange(top, most.maxCoeff());
    if (before != top) {
      const Scalar shrunk = std::exp(before - top);
      sum *= static_cast<double>(shrunk);
      for (Index d = 0; d < width_; d += lanes<Scalar>) Values(out_.data() + row * width_ + d) *= shrunk;
    }
    Lane<Scalar> weights = Lane<Scalar>::Zero();
    for (Index j = 0; j < count; j += lanes<Scalar>) {
      const Lane<Scalar> weight = exponential_(Values(logits + j) - top);
      Values(logits + j) = weight;
      weights += weight;
    }
    sum += static_cast<double>(weights.sum());
  }

  void write(Index h, Index i, std::size_t row) {
    const bool sees_nothing = sum_[row] == 0;  // the largest logit has a weight of 1
    const auto top = static_cast<double>(top_[row]), log_sum = sees_nothing ? 0 : std::log(sum_[row]);
    const auto put = [&](const TensorView<Scalar, 2>& to, Scalar value) {
      if (to.data.given()) to.batch(share_.batch).data()[h * to.strides[0] + i * to.strides[1]] = value;
    };
    const Scalar log_sum_exp = visible_or_hidden(!sees_nothing, static_cast<Scalar>(top + log_sum));
    const bool precise = is_precise(log_sum_exp);
    put(results_.log_sum_exp, log_sum_exp);
    put(results_.top, precise ? log_sum_exp : top_[row]);
    put(results_.log_sum, precise ? 0 : static_cast<Scalar>(log_sum));
    if (width_ == 0) return;
    const TensorView<Scalar, 3>& out = results_.out;
    const double part = sees_nothing ? 0 : 1 / sum_[row];
    Scalar* values = out_.data() + static_cast<Index>(row) * width_;
    for (Index d = 0; d < tiles_.value_features(); ++d)
      values[d] = static_cast<Scalar>(part * static_cast<double>(values[d]));
    store<Scalar>(values, tiles_.value_features(), out.batch(share_.batch) + i * out.strides[0] + h * out.strides[1],
                  out.strides[2]);
  }

  const Tiles& tiles_;
  QueryShare share_;
  AttentionResults<Scalar> results_;
  Index rows_, width_;                          // queries of all heads; features of out in whole lanes
  Workspace<Scalar> q_, out_, logits_, k_, v_;  // q scaled, k and v of a block of keys packed
  std::vector<Scalar> top_;                     // largest logit of each row so far
  std::vector<double> sum_;                     // of e^(logit - top)
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
  const Index shares = (tiles.queries() + per_task - 1) / per_task;
  executor.parallel_for(tiles.batches() * tiles.key_heads() * shares, [&](Index task) {
    const Index query = task % shares * per_task;
    const QueryShare share{task / shares / tiles.key_heads(), task / shares % tiles.key_heads(), query,
                           (std::min)(per_task, tiles.queries() - query)};
    AttentionForward<Scalar>(tiles, share, results).run();
  });
}

/// What backward reads, and the gradients it makes. Without memory for log_sum, `top` is log_sum_exp, if it is given.
template <class Scalar>
struct AttentionGradients {
  TensorView<Scalar, 3> q{}, k{}, v{};
  TensorView<const Scalar, 3> grad_out{}, out{};
  TensorView<const Scalar, 2> top{}, log_sum{};
};

/// Backward over all queries of the heads that share a head of keys.
template <class Scalar>
class AttentionBackward {
  using Tiles = AttentionTiles<Scalar>;
  using Tile = LogitTile<Scalar>;
  using Values = Eigen::Map<Lane<Scalar>>;

 public:
  AttentionBackward(const Tiles& tiles, const AttentionGradients<Scalar>& gradients)
      : tiles_(tiles),
        gradients_(gradients),
        width_(whole_lanes<Scalar>(tiles.features())),
        v_width_(whole_lanes<Scalar>(tiles.value_features())),
        grad_q_(tiles.group() * tiles.queries() * width_),
        grad_k_(tiles.most_keys() * width_),
        grad_v_(tiles.most_keys() * v_width_),
        logits_(tiles.most_queries() * tiles.most_keys()),
        grad_logits_(tiles.most_queries() * tiles.most_keys()),
        q_rows_(tiles.most_queries() * tiles.features()),
        q_(packed_size<Scalar>(tiles.most_queries(), tiles.features())),
        grad_out_rows_(tiles.most_queries() * tiles.value_features()),
        grad_out_(packed_size<Scalar>(tiles.most_queries(), tiles.value_features())),
        k_(packed_size<Scalar>(tiles.most_keys(), tiles.features())),
        k_by_feature_(packed_size<Scalar>(tiles.features(), tiles.most_keys())),
        v_by_feature_(packed_size<Scalar>(tiles.value_features(), tiles.most_keys())) {}

  /// Writes the gradients of a head of k and v, adds to those of the heads of q that share it, and accumulates the
  /// gradients of logits in `bias`.
  void run(Index batch, Index key_head, LogitAdjoint<Scalar>& bias) {
    const QueryShare share{batch, key_head, 0, tiles_.queries()};
    std::fill_n(grad_q_.data(), tiles_.group() * tiles_.queries() * width_, Scalar(0));
    find_means(share);
    for (Index key = 0; key < tiles_.keys(); key += Tiles::keys_per_block) {
      pack_keys(share, key);
      tiles_.for_each_tile(share, key, logits_.data(), [&](const Tile& tile, Index row) {
        const Tile grad_tile = differentiate(tile, tile.key - key, row);
        add_products(tile, grad_tile, tile.key - key, row);
        if (bias.accumulates()) bias.accumulate(grad_tile.read_only());
      });
      const Index count = tiles_.block_keys(key);
      add_rows(grad_k_.data(), width_, count, 1, gradients_.k, batch, key, key_head);
      add_rows(grad_v_.data(), v_width_, count, 1, gradients_.v, batch, key, key_head);
    }
    const Scalar* from = grad_q_.data();
    tiles_.for_each_head(share, [&](Index h) {
      add_rows(from, width_, tiles_.queries(), tiles_.scale, gradients_.q, batch, 0, h);
      from += tiles_.queries() * width_;
    });
  }

 private:
  /// The mean of grad_out·v of each row, by its weights: grad_out·out.
  void find_means(const QueryShare& share) {
    means_.clear();
    tiles_.for_each_head(share, [&](Index h) {
      const StoredMatrix<Scalar> grad_out = Tiles::rows_of(gradients_.grad_out, share.batch, 0, h);
      const StoredMatrix<Scalar> out = Tiles::rows_of(gradients_.out, share.batch, 0, h);
      const Index Hv = tiles_.value_features();
      std::vector<Scalar> rows(static_cast<std::size_t>(2 * Hv));
      for (Index i = 0; i < share.queries; ++i) {
        grad_out.load_row(i, Hv, rows.data());
        out.load_row(i, Hv, rows.data() + Hv);
        double mean = 0;
        for (auto grad = rows.begin(), value = grad + Hv; value != rows.end(); ++grad, ++value)
          mean += static_cast<double>(*grad) * static_cast<double>(*value);
        means_.push_back(static_cast<Scalar>(mean));
      }
    });
  }

  void pack_keys(const QueryShare& share, Index key) {
    const Index count = tiles_.block_keys(key);
    const StoredMatrix<Scalar> k = Tiles::rows_of(tiles_.k, share.batch, key, share.key_head);
    const StoredMatrix<Scalar> v = Tiles::rows_of(tiles_.v, share.batch, key, share.key_head);
    keys_ = {pack(k, count, tiles_.features(), k_.data()),
             pack(k.transposed(), tiles_.features(), count, k_by_feature_.data()),
             pack(v.transposed(), tiles_.value_features(), count, v_by_feature_.data())};
    std::fill_n(grad_k_.data(), count * width_, Scalar(0));
    std::fill_n(grad_v_.data(), count * v_width_, Scalar(0));
  }

  /// Writes the weights of a tile, whose keys begin at `begin` of their block, and returns the gradients of its logits.
  Tile differentiate(const Tile& tile, Index begin, Index row) {
    const Index H = tiles_.features(), Hv = tiles_.value_features();
    copy_scaled(Tiles::rows_of(tiles_.q, tile.batch, tile.query, tile.head), tile.queries, H, tiles_.scale,
                q_rows_.data());
    copy_scaled(Tiles::rows_of(gradients_.grad_out, tile.batch, tile.query, tile.head), tile.queries, Hv, Scalar(1),
                grad_out_rows_.data());
    hides_ = tiles_.fill(tile, q_rows_.data(), keys_.k_by_feature.from(0, begin));

    Tile grad_tile = tile;
    grad_tile.data = grad_logits_.data();
    multiply<Sum::fresh>(tile.queries, tile.keys, Hv, Factor<Scalar>{grad_out_rows_.data(), Hv, 1},
                         keys_.v_by_feature.from(0, begin), grad_tile.data, tile.query_stride);
    const auto of_row = [&](const TensorView<const Scalar, 2>& values, Index i) {
      return values.batch(tile.batch).data()[tile.head * values.strides[0] + (tile.query + i) * values.strides[1]];
    };
    for (Index i = 0; i < tile.queries; ++i) {
      const Scalar mean = means_[static_cast<std::size_t>(row + i)];
      const Scalar top = of_row(gradients_.top, i);
      const Index count = whole_lanes<Scalar>(tile.keys);
      if (is_minus_infinity(top)) {  // the query sees nothing
        std::fill_n(tile.row(0, i), count, Scalar(0));
        std::fill_n(grad_tile.row(0, i), count, Scalar(0));
        continue;
      }
      const Scalar log_sum = !gradients_.log_sum.data.given() ? 0 : of_row(gradients_.log_sum, i);
      for (Index j = 0; j < count; j += lanes<Scalar>) {
        Values weight(tile.row(0, i) + j), grad(grad_tile.row(0, i) + j);
        const Lane<Scalar> logits = weight;
        weight = exponential_(logits - top - log_sum);
        grad = weight * (grad - mean);
        for (Index lane = 0; hides_ && lane < lanes<Scalar>; ++lane) {
          const bool visible = !is_minus_infinity(logits[lane]);
          weight[lane] = visible ? weight[lane] : 0;
          grad[lane] = visible ? grad[lane] : 0;
        }
      }
    }
    return grad_tile;
  }

  /// Adds to the gradients of v, k and q.
  void add_products(const Tile& tile, const Tile& grad_tile, Index begin, Index row) {
    const Index H = tiles_.features(), Hv = tiles_.value_features();
    const Factor<Scalar> weights{tile.data, tile.query_stride, 1}, grads{grad_tile.data, tile.query_stride, 1};
    const Panels<Scalar> grad_out =
        pack(Factor<Scalar>{grad_out_rows_.data(), Hv, 1}, tile.queries, Hv, grad_out_.data());
    const Panels<Scalar> q = pack(Factor<Scalar>{q_rows_.data(), H, 1}, tile.queries, H, q_.data());
    const auto multiply_all = [&](const auto& add_product) {
      add_product(tile.keys, Hv, tile.queries, weights.transposed(), grad_out, grad_v_.data() + begin * v_width_,
                  v_width_);
      add_product(tile.keys, H, tile.queries, grads.transposed(), q, grad_k_.data() + begin * width_, width_);
      add_product(tile.queries, H, tile.keys, grads, keys_.k.from(begin, 0), grad_q_.data() + row * width_, width_);
    };
    if (hides_)
      multiply_all(multiply_annihilating<Sum::added, Scalar>);
    else
      multiply_all(multiply<Sum::added, Scalar>);
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
    Panels<Scalar> k, k_by_feature, v_by_feature;
  };

  const Tiles& tiles_;
  AttentionGradients<Scalar> gradients_;
  Index width_, v_width_;  // features in whole lanes
  Workspace<Scalar> grad_q_, grad_k_, grad_v_, logits_, grad_logits_;
  Workspace<Scalar> q_rows_, q_, grad_out_rows_, grad_out_;  // of a tile: row after row, and packed
  Workspace<Scalar> k_, k_by_feature_, v_by_feature_;
  Keys keys_{};
  bool hides_ = false;  // whether the tile hides a key
  std::vector<Scalar> means_;
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
void attention_backward(const AttentionTiles<Scalar>& tiles, AttentionGradients<Scalar> gradients,
                        LogitAdjoint<Scalar>& bias, const Executor& executor) {
  if (tiles.batches() == 0 || tiles.key_heads() == 0 || tiles.queries() == 0) return;
  std::vector<Scalar> found;
  if (!gradients.top.data.given() || !all_precise(gradients.top)) {
    const Index rows = tiles.batches() * tiles.heads() * tiles.queries();
    found.resize(static_cast<std::size_t>(2 * rows));
    const auto part = [&](Index i) {
      using Rows = Eigen::TensorMap<Eigen::Tensor<Scalar, 3, Eigen::RowMajor>>;
      return view<2>(Rows(found.data() + i * rows, tiles.batches(), tiles.heads(), tiles.queries()));
    };
    attention_forward(tiles, AttentionResults<Scalar>{.top = part(0), .log_sum = part(1)}, executor);
    gradients.top = part(0);
    gradients.log_sum = part(1);
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
