// SPDX-License-Identifier: MIT
/// \file
/// What forward and backward of RelativeAttention have in common, on checked views.
///
///     q, k, v = projected content          K, Q = projected table of relative positions, for each coordinate
///     logit(i, j) = scale · ( q_i·k_j  +  q_i·K[index(i, j)]  +  k_j·Q[index(i, j)] ) + base + bias
///     weights = softmax over keys, -10000 where a key is masked          pooled = weights · v
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "posbias/attention/position_scores.hpp"
#include "posbias/attention/relative_attention_call.hpp"
#include "posbias/attention/relative_index.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/core/tensor_view.hpp"
#include "posbias/kernel/annihilating_product.hpp"
#include "posbias/kernel/exponential.hpp"
#include "posbias/kernel/linear.hpp"
#include "posbias/kernel/product.hpp"

namespace posbias::detail {

/// What forward and backward of one call have in common. Refers to it.
template <class Scalar>
class RelativeAttentionPass {
 public:
  using Views = RelativeAttentionViews<Scalar>;
  using Scores = PositionScores<Scalar>;
  using Reads = RelativeIndex::Reads;
  static constexpr Index together = RelativeIndex::together;

  RelativeAttentionPass(const Views& views, typename Scores::For what)
      : call(views),
        queries(views.queries.shape[0]),
        keys(views.keys.shape[0]),
        H(views.head_size()),
        Hv(views.value_size()),
        width(whole_lanes<Scalar>(H)),
        value_width(whole_lanes<Scalar>(Hv)),
        key_width(whole_lanes<Scalar>(keys)),
        scale(static_cast<Scalar>(1 / std::sqrt(static_cast<double>(H * (views.c2c + views.c2p + views.p2c))))),
        query_heads(views.parameters.query_projection(), views.heads),
        key_heads(views.parameters.key, views.heads),
        ranges_of_keys(views.index ? static_cast<std::size_t>(views.queries.batches()) : 0) {
    const auto& parameters = call.parameters;
    if (call.values) value_heads.emplace(*parameters.value, call.pooled_heads());
    if (!call.index) return;
    call.executor.parallel_for(call.queries.batches(), [&](Index n) {
      ranges_of_keys[static_cast<std::size_t>(n)] = call.index->ranges_of_keys(n);
    });
    TableRange read;
    for (const auto& ranges : ranges_of_keys)
      for (const TableRange& range : ranges) read.add(range);
    const auto scores = [&](bool to_queries, Scalar factor) {
      return Scores(*parameters.table, to_queries, call.heads, read, factor, what, call.executor);
    };
    if (call.c2p) of_queries.emplace(scores(false, 1));  // queries are scaled
    if (call.p2c) of_keys.emplace(scores(true, scale));
  }

  /// Queries of a head, scaled: (count, width).
  void project_queries(Index n, Index first, Index count, Index h, Scalar* q) const {
    query_heads.apply(h, token_rows(call.queries, n, first), count, q);
    std::for_each_n(q, count * width, [&](Scalar& value) { value *= scale; });
  }
  /// Keys of a head: (keys, width).
  void project_keys(Index n, Index h, Scalar* k) const { key_heads.apply(h, token_rows(call.keys, n, 0), keys, k); }
  /// Values of a head that is pooled: (keys, value_width).
  void project_values(Index n, Index h, Scalar* v) const {
    value_heads->apply(h - call.additional_heads, token_rows(*call.values, n, 0), keys, v);
  }

  /// Turns the logits of a query, for a head that is pooled, into e^(logit - largest), and 0 behind the last key. Returns
  /// 1 / their sum, or 0.
  Scalar weigh(Index n, Index i, Index h, Scalar* row) const {
    using Values = Eigen::Map<Lane<Scalar>>;
    constexpr Scalar masked = -10000;
    for_each_masked(n, i, h, [&](Index j) { row[j] = masked; });
    std::fill(row + keys, row + key_width, minus_infinity<Scalar>());
    Lane<Scalar> most = Lane<Scalar>::Constant(std::numeric_limits<Scalar>::lowest());
    for (Index j = 0; j < key_width; j += lanes<Scalar>) most = (most.max)(Values(row + j));
    const Scalar top = most.maxCoeff();
    double sum = 0;
    for_each_key_block([&](Index first, Index count) {
      Lane<Scalar> sums = Lane<Scalar>::Zero();
      for (Index j = first; j < first + whole_lanes<Scalar>(count); j += lanes<Scalar>) {
        const Lane<Scalar> weight = exponential_(Values(row + j) - top);
        Values(row + j) = weight;
        sums += weight;
      }
      sum += static_cast<double>(sums.sum());
    });
    return sum == 0 ? Scalar(0) : static_cast<Scalar>(1 / sum);
  }

  /// Calls `visit(first key, keys)` for the blocks of keys that are summed by themselves: long sums lose less.
  template <class Visit>
  void for_each_key_block(const Visit& visit) const {
    constexpr Index most = 256;
    for (Index first = 0; first < keys; first += most) visit(first, (std::min)(most, keys - first));
  }

  /// product (rows, features in whole lanes) = a (rows, keys), its rows `key_width` apart, · b (keys, features). Keys whose
  /// factor is 0 have no influence, even if b is not finite.
  void multiply_by_keys(Index rows, Index features, const Scalar* a, const Panels<Scalar>& b, bool b_is_finite,
                        Scalar* product) const {
    const Index product_width = whole_lanes<Scalar>(features);
    std::fill_n(product, rows * product_width, Scalar(0));
    for_each_key_block([&](Index first, Index count) {
      const auto add_product = b_is_finite ? multiply<Sum::added, Scalar> : multiply_annihilating<Sum::added, Scalar>;
      add_product(rows, features, count, {a + first, key_width, 1}, b.from(first, 0), product, product_width);
    });
  }

  /// Calls `visit(j)` for the keys that a query may not attend to.
  template <class Visit>
  void for_each_masked(Index n, Index i, Index h, const Visit& visit) const {
    const auto& strides = call.mask.entries.strides;
    call.mask.visit_batch(n, [&](const bool* first) {
      const bool* flags = first + i * strides[0] + (h - call.additional_heads) * strides[2];
      for (Index j = 0; j < keys; ++j)
        if (!flags[j * strides[1]]) visit(j);
    });
  }

  /// What some queries read. Nothing, without positional terms.
  [[nodiscard]] Reads reads_of_queries(Index n, Index first, Index count) const {
    return call.index ? call.index->reads_of_queries(n, first, count) : Reads();
  }

  /// Calls `visit(block of keys, query, first key, keys, index)` for each block of keys and each of some queries, for one
  /// coordinate: a block by all queries, which read neighbouring scores, then the next.
  template <class Visit>
  void for_each_block(const Reads& reads, Index coordinate, Index count, const KeyScores<Scalar>& scores,
                      const Visit& visit) const {
    const Index of_block = scores.together();
    const auto* index = reads.rows.data() + coordinate * count * keys;
    auto block = static_cast<std::size_t>(coordinate * ((keys + of_block - 1) / of_block));
    for (Index key = 0; key < keys; key += of_block, ++block, index += of_block) {
      const Index next = (std::min)(of_block, keys - key - of_block);
      if (next > 0 && call.p2c)
        scores.rows()[block + 1].prefetch(index + of_block, index + of_block + (count - 1) * keys, next);
      for (Index i = 0; i < count; ++i) visit(block, i, key, (std::min)(of_block, keys - key), index + i * keys);
    }
  }

  /// Makes 0 of what belongs to pairs without a relative position.
  void hide(const Reads& reads, Index i, Index key, Index count, Scalar* terms) const {
    if (reads.hidden.empty()) return;
    const char* hidden = reads.hidden.data() + i * keys + key;
    for (Index j = 0; j < count; ++j) terms[j] = hidden[j] != 0 ? Scalar(0) : terms[j];
  }

  /// Multiplies each weight of a query by what dropout makes of it.
  void drop(Index n, Index i, Index h, Scalar* row) const {
    if (!call.dropout.active()) return;
    const Index first = (n * queries + i) * keys;
    for (Index j = 0; j < keys; ++j)
      row[j] *= static_cast<Scalar>(call.dropout((first + j) * call.pooled_heads() + h - call.additional_heads));
  }

  const Views& call;
  const Index queries, keys, H, Hv;           // L1, L2, features of a head, of its values
  const Index width, value_width, key_width;  // H, Hv and L2 in whole lanes
  const Scalar scale;                         // of each term
  const LinearHeads<Scalar> query_heads, key_heads;
  std::optional<LinearHeads<Scalar>> value_heads;
  std::vector<std::vector<TableRange>> ranges_of_keys;  // of each batch entry: (coordinates, keys)
  std::optional<Scores> of_queries, of_keys;            // c2p, p2c

 private:
  Exponential<Scalar> exponential_;
};

}  // namespace posbias::detail
