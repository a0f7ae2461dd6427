// SPDX-License-Identifier: MIT
/// \file
/// Products of content and a table of relative positions, one for each position that is read: what a pair of tokens adds
/// to its logit is then one of them, found by index.
///
///     score(i, p) = scale · content(i) · table(p)            logit(i, j) += score(i, index(i, j))
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "posbias/attention/relative_index.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/kernel/annihilating_product.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/relative_position_table.hpp"
#include "posbias/kernel/workspace.hpp"

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
    width = whole_lanes<Scalar>(range.end) - begin;
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
      const Factor<Scalar> matrix{projected.data() + m * features_, outputs_, 1};  // (positions, features)
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
    multiply<Sum::fresh>(tokens, window.width, features_, features_of(content, stride, coordinate),
                         packed_[number(head, coordinate)].from(0, window.begin - first()), scores, window.width);
  }

  /// Adjoint of `score`: adds to grad_content, and to grad_table (positions(), outputs), of which no other head or
  /// coordinate touches the same entries.
  void score_backward(Index head, Index coordinate, const Scalar* content, Index stride, Index tokens,
                      const Window& window, const Scalar* grad_scores, Scalar* grad_content, double* grad_table) const {
    const Index first_row = window.begin - first(), positions = (std::min)(window.width, positions_ - first_row);
    if (positions <= 0) return;  // no row is read, and there may be no table
    const Index columns = whole_lanes<Scalar>(features_);
    Workspace<Scalar> product((std::max)(tokens, positions) * columns), packed(packed_size<Scalar>(tokens, features_));
    multiply<Sum::fresh>(tokens, features_, positions, Factor<Scalar>{grad_scores, window.width, 1},
                         packed_[number(head, coordinate)].from(first_row, 0), product.data(), columns);
    for (Index i = 0; i < tokens; ++i)
      for (Index d = 0; d < features_; ++d)
        grad_content[i * stride + coordinate * features_ + d] += product.data()[i * columns + d];

    multiply_annihilating<Sum::fresh>(positions, features_, tokens, Factor<Scalar>{grad_scores, 1, window.width},
                                      pack(features_of(content, stride, coordinate), tokens, features_, packed.data()),
                                      product.data(), columns);
    double* to = grad_table + first_row * outputs_ + static_cast<Index>(number(head, coordinate)) * features_;
    for (Index p = 0; p < positions; ++p)
      for (Index d = 0; d < features_; ++d)
        to[p * outputs_ + d] += static_cast<double>(scale_ * product.data()[p * columns + d]);
  }

 private:
  [[nodiscard]] std::size_t number(Index head, Index coordinate) const {
    return static_cast<std::size_t>(coordinate * heads_ + head);
  }
  [[nodiscard]] Factor<Scalar> features_of(const Scalar* content, Index stride, Index coordinate) const {
    return {content + coordinate * features_, stride, 1};
  }

  Window all_;                                    // what is read by any token
  Index positions_, outputs_, heads_, features_;  // features of a head and coordinate
  Scalar scale_;
  Workspace<Scalar> memory_;
  std::vector<Panels<Scalar>> packed_;  // forward: (features, positions), backward: (positions, features)
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

}  // namespace posbias::detail
