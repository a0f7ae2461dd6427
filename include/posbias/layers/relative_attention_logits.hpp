// SPDX-License-Identifier: MIT
/// \file
/// What forward and backward of RelativeAttention have in common, on checked views.
///
///     q, k, v = projected content          K, Q = projected table of relative positions, for each coordinate
///     logit(i, j) = scale · ( q_i·k_j  +  q_i·K[index(i, j)]  +  k_j·Q[index(i, j)] ) + base + bias
///     weights = softmax over keys, -10000 where a key is masked          pooled = weights · v
///
/// Content is multiplied by each row of a table that is read, once; what a pair adds to its logit is one of these products.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/core/view.hpp"
#include "posbias/kernel/annihilating_product.hpp"
#include "posbias/kernel/exponential.hpp"
#include "posbias/kernel/linear.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/relative_position_table.hpp"
#include "posbias/kernel/workspace.hpp"
#include "posbias/layers/relative_attention_call.hpp"

namespace posbias::detail {

/// The part of a table that some tokens read, in whole lanes: scores of a token are `width` values, from position `begin`
/// on.
template <class Scalar>
struct ScoreWindow {
  Index begin = 0, width = 0;

  ScoreWindow() = default;
  explicit ScoreWindow(const TableRange& range) {
    if (range.empty()) return;
    begin = range.begin / lanes<Scalar> * lanes<Scalar>;
    width = round_up_to_lanes<Scalar>(range.end) - begin;
  }
};

/// The table projected to keys or to queries, ready for products with content of a head and coordinate: features
/// [x·H/C, (x+1)·H/C) of a head belong to coordinate x of C.
template <class Scalar>
class PositionScores {
 public:
  using Window = ScoreWindow<Scalar>;
  enum class For { forward, backward };

  /// Of the rows that are `read`.
  PositionScores(const RelativePositionTable<Scalar>& table, bool to_queries, Index heads, const TableRange& read,
                 Scalar scale, For what, const Executor& executor)
      : all_(read),
        positions_((std::min)(all_.width, table.positions() - all_.begin)),
        outputs_(table.outputs()),
        heads_(heads),
        features_(outputs_ / (table.key.groups() * heads)),
        scale_(scale) {
    Workspace<Scalar> projected(positions_ * outputs_);
    table.project(to_queries, all_.begin, positions_, projected.data(), executor);
    const Index size =
        (std::max)(packed_size<Scalar>(features_, positions_), packed_size<Scalar>(positions_, features_));
    const Index matrices = outputs_ / features_;
    memory_.make_room(matrices * size);
    packed_.resize(static_cast<std::size_t>(matrices));
    executor.parallel_for(matrices, [&](Index m) {
      const MatrixView<Scalar> matrix{projected.data() + m * features_, outputs_, 1};  // (positions, features)
      Scalar* to = memory_.data() + m * size;
      packed_[static_cast<std::size_t>(m)] = what == For::forward ? pack(matrix.transposed(), features_, positions_, to)
                                                                  : pack(matrix, positions_, features_, to);
      std::for_each_n(to, size, [&](Scalar& value) { value *= scale; });
    });
  }

  /// The rows of the table that there are.
  [[nodiscard]] Index first() const { return all_.begin; }
  [[nodiscard]] Index positions() const { return positions_; }

  /// scores (tokens, window's width) = of content (tokens, H) of a head, its rows `stride` apart, for one coordinate.
  void score(Index head, Index coordinate, const Scalar* content, Index stride, Index tokens, const Window& window,
             Scalar* scores) const {
    multiply<Accumulate::overwrite>(tokens, window.width, features_, features_of(content, stride, coordinate),
                                    packed_[number(head, coordinate)].from(0, window.begin - first()), scores,
                                    window.width);
  }

  /// Adjoint of `score`: adds to grad_content, and to grad_table (positions(), outputs), of which no other head or
  /// coordinate touches the same entries.
  void score_backward(Index head, Index coordinate, const Scalar* content, Index stride, Index tokens,
                      const Window& window, const Scalar* grad_scores, Scalar* grad_content, double* grad_table) const {
    const Index first_row = window.begin - first(), positions = (std::min)(window.width, positions_ - first_row);
    if (positions <= 0) return;  // no row is read, and there may be no table
    const Index columns = round_up_to_lanes<Scalar>(features_);
    Workspace<Scalar> product((std::max)(tokens, positions) * columns), packed(packed_size<Scalar>(tokens, features_));
    multiply<Accumulate::overwrite>(tokens, features_, positions, MatrixView<Scalar>{grad_scores, window.width, 1},
                                    packed_[number(head, coordinate)].from(first_row, 0), product.data(), columns);
    for (Index i = 0; i < tokens; ++i)
      for (Index d = 0; d < features_; ++d)
        grad_content[i * stride + coordinate * features_ + d] += product.data()[i * columns + d];

    multiply_annihilating<Accumulate::overwrite>(
        positions, features_, tokens, MatrixView<Scalar>{grad_scores, 1, window.width},
        pack(features_of(content, stride, coordinate), tokens, features_, packed.data()), product.data(), columns);
    double* to = grad_table + first_row * outputs_ + static_cast<Index>(number(head, coordinate)) * features_;
    for (Index p = 0; p < positions; ++p)
      for (Index d = 0; d < features_; ++d)
        to[p * outputs_ + d] += static_cast<double>(scale_ * product.data()[p * columns + d]);
  }

 private:
  [[nodiscard]] std::size_t number(Index head, Index coordinate) const {
    return static_cast<std::size_t>(coordinate * heads_ + head);
  }
  [[nodiscard]] MatrixView<Scalar> features_of(const Scalar* content, Index stride, Index coordinate) const {
    return {content + coordinate * features_, stride, 1};
  }

  Window all_;                                    // what is read by any token
  Index positions_, outputs_, heads_, features_;  // features of a head and coordinate
  Scalar scale_;
  Workspace<Scalar> memory_;
  std::vector<PackedMatrix<Scalar>> packed_;  // forward: (features, positions), backward: (positions, features)
};

/// Scores that a query and some keys read: those of key j start at data[j · stride], at position `begin`. With stride 0
/// they are the query's.
template <class Scalar>
struct ScoreRows {
  Scalar* data;
  Index stride, begin;

  /// Adds what each key reads to its term.
  void gather(const std::int32_t* index, Index keys, Scalar* terms) const {
    const Scalar* row = data;
    for (Index j = 0; j < keys; ++j, row += stride) terms[j] += row[index[j] - begin];
  }

  /// Adjoint of `gather`.
  void scatter(const std::int32_t* index, Index keys, const Scalar* grad_terms) const {
    Scalar* row = data;
    for (Index j = 0; j < keys; ++j, row += stride) row[index[j] - begin] += grad_terms[j];
  }

  /// Asks for what is read soon, by queries that read from one index to another: each key's is far from the next one's.
  [[gnu::always_inline]] void prefetch(const std::int32_t* one, const std::int32_t* other, Index keys) const {
    constexpr Index most = 2 * RelativeIndex::together;
    for (Index j = 0; j < keys; ++j) {
      const Index first = (std::min)(one[j], other[j]), last = (std::max)(one[j], other[j]);
      detail::prefetch(data + j * stride + first - begin, (std::min)(last + 1 - first, most));
    }
  }
};

/// Scores of all keys of a head, or their gradients. Blocks of keys have a window in common: `RelativeIndex::together`
/// keys, or each key one of its own, where it is read by few queries that are far apart.
template <class Scalar>
class KeyScores {
 public:
  /// Where scores go, for ranges (coordinates, keys).
  void lay_out(const std::vector<TableRange>& ranges, Index keys) {
    constexpr Index worth = 4;  // a token by itself is multiplied so much slower
    const Index apart = find_windows(ranges, keys, 1);
    if (find_windows(ranges, keys, RelativeIndex::together) > worth * apart) find_windows(ranges, keys, 1);
    Index size = 0;
    for (const Window& window : windows_) size += together_ * window.width;
    memory_.make_room(size);
    rows_.clear();
    Scalar* next = memory_.data();
    for (const Window& window : windows_) {
      rows_.push_back({next, window.width, window.begin});
      next += together_ * window.width;
    }
    size_ = size;
  }

  void set_zero() { std::fill_n(memory_.data(), size_, Scalar(0)); }

  /// How many keys have a window in common.
  [[nodiscard]] Index together() const { return together_; }

  /// Of each coordinate and block of keys; none, if no scores of keys are read.
  [[nodiscard]] const std::vector<ScoreRows<Scalar>>& rows() const { return rows_; }

  /// Finds the scores of keys (keys, H) of a head, rows `stride` apart.
  void score(const PositionScores<Scalar>& table, Index head, const Scalar* k, Index stride, Index keys) {
    for_each_block(keys, [&](Index coordinate, Index key, Index count, const Window& window, Scalar* scores) {
      table.score(head, coordinate, k + key * stride, stride, count, window, scores);
    });
  }

  /// Adjoint of `score`: see `PositionScores::score_backward`.
  void score_backward(const PositionScores<Scalar>& table, Index head, const Scalar* k, Index stride, Index keys,
                      Scalar* grad_k, double* grad_table) const {
    for_each_block(keys, [&](Index coordinate, Index key, Index count, const Window& window, const Scalar* grad) {
      table.score_backward(head, coordinate, k + key * stride, stride, count, window, grad, grad_k + key * stride,
                           grad_table);
    });
  }

 private:
  using Window = ScoreWindow<Scalar>;

  /// Finds the windows of so many keys together; returns how many scores they have.
  Index find_windows(const std::vector<TableRange>& ranges, Index keys, Index together) {
    together_ = together;
    windows_.clear();
    Index scores = 0;
    for (Index first = 0; first < std::ssize(ranges); first += keys)  // of a coordinate
      for (Index key = 0; key < keys; key += together) {
        TableRange range;
        for (Index j = key; j < (std::min)(key + together, keys); ++j)
          range.add(ranges[static_cast<std::size_t>(first + j)]);
        scores += together * windows_.emplace_back(range).width;
      }
    return scores;
  }

  template <class Visit>
  void for_each_block(Index keys, const Visit& visit) const {
    const Index together = together_, blocks = (keys + together - 1) / together;
    for (std::size_t b = 0; b < windows_.size(); ++b) {
      const Index coordinate = static_cast<Index>(b) / blocks, key = static_cast<Index>(b) % blocks * together;
      visit(coordinate, key, (std::min)(together, keys - key), windows_[b], rows_[b].data);
    }
  }

  Index together_ = RelativeIndex::together, size_ = 0;
  std::vector<Window> windows_;  // (coordinates, blocks of keys)
  std::vector<ScoreRows<Scalar>> rows_;
  Workspace<Scalar> memory_;
};

/// What forward and backward of one call have in common. Refers to it.
template <class Scalar>
class RelativeAttentionPass {
 public:
  using Views = RelativeAttentionViews<Scalar>;
  using Scores = PositionScores<Scalar>;
  using GatherIndices = RelativeIndex::GatherIndices;
  static constexpr Index together = RelativeIndex::together;

  RelativeAttentionPass(const Views& views, typename Scores::For what)
      : call(views),
        queries(views.queries.shape[0]),
        keys(views.keys.shape[0]),
        H(views.head_size()),
        Hv(views.value_size()),
        width(round_up_to_lanes<Scalar>(H)),
        value_width(round_up_to_lanes<Scalar>(Hv)),
        key_width(round_up_to_lanes<Scalar>(keys)),
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
      for (Index j = first; j < first + round_up_to_lanes<Scalar>(count); j += lanes<Scalar>) {
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
  void multiply_by_keys(Index rows, Index features, const Scalar* a, const PackedMatrix<Scalar>& b, bool b_is_finite,
                        Scalar* product) const {
    const Index product_width = round_up_to_lanes<Scalar>(features);
    std::fill_n(product, rows * product_width, Scalar(0));
    for_each_key_block([&](Index first, Index count) {
      const auto add_product =
          b_is_finite ? multiply<Accumulate::add, Scalar> : multiply_annihilating<Accumulate::add, Scalar>;
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
  [[nodiscard]] GatherIndices reads_of_queries(Index n, Index first, Index count) const {
    return call.index ? call.index->reads_of_queries(n, first, count) : GatherIndices();
  }

  /// Calls `visit(block of keys, query, first key, keys, index)` for each block of keys and each of some queries, for one
  /// coordinate: a block by all queries, which read neighbouring scores, then the next.
  template <class Visit>
  void for_each_block(const GatherIndices& reads, Index coordinate, Index count, const KeyScores<Scalar>& scores,
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
  void hide(const GatherIndices& reads, Index i, Index key, Index count, Scalar* terms) const {
    if (reads.masked.empty()) return;
    const char* masked = reads.masked.data() + i * keys + key;
    for (Index j = 0; j < count; ++j) terms[j] = masked[j] != 0 ? Scalar(0) : terms[j];
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
