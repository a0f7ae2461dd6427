// SPDX-License-Identifier: MIT
/// \file
/// A relative bias b_h(pos_k(j) - pos_q(i)) at given positions, ready to add itself to tiles of logits.
///
/// The module is asked once for every entry (see tile/offset_index.hpp), L1+L2-1 of them at consecutive
/// positions; rows of logits then read spans of the answer. Without entries it is asked row by row.
#pragma once

#include <Eigen/Core>
#include <array>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/core/parameters.hpp"
#include "posbias/tile/diagonals.hpp"
#include "posbias/tile/mask_loop.hpp"
#include "posbias/tile/offset_index.hpp"

namespace posbias {

/// A relative bias at given positions, ready to add itself to tiles of logits in any order and from any thread.
/// Refers to the module and to who runs its executor's tasks, which must outlive it.
template <class Bias>
class TabulatedBias {
 public:
  using Scalar = typename Bias::Scalar;        ///< of its tensors and parameters
  using Gradients = typename Bias::Gradients;  ///< of the parameters

  /// What the gradients of tiles add up to, in double, before it becomes gradients of the module's parameters.
  struct Accumulator {
    std::vector<double> sums;  ///< one for each value of the table; without a table, for each value of the parameters
    Gradients row;             ///< workspace without a table, zero between rows
  };

  /// Evaluates the module once for each entry, in tasks of the executor.
  TabulatedBias(const Bias& bias, CheckedPairPositions at, const Executor& executor);

  static constexpr detail::TileWidth tile_width =
      detail::TileWidth::narrow_if_column_major;  ///< which tiles it is quick on

  /// One value per head and entry.
  [[nodiscard]] bool tabulated() const { return index_.indexed(); }
  /// Whether tiles of different heads may be accumulated at the same time.
  [[nodiscard]] bool heads_are_independent() const { return tabulated(); }
  /// Whether the gradient of tiles comes to anything.
  [[nodiscard]] bool accumulates() const { return bias_->has_parameters(); }

  /// Whether every logit has a value in the table. If so, `add_to` writes all of a tile.
  [[nodiscard]] bool covers_all() const { return tabulated() && index_.covers_all(); }

  /// Adds the bias to a tile. Queries and keys without a position get none.
  template <Write how = Write::add, class S = Scalar>
  requires detail::StoredFor<S, Scalar>
  void add_to(const LogitTile<S>& tile) const { add<how>(tile); }

  /// Whether the bias may be -inf.
  [[nodiscard]] bool hides() const { return bias_->hides(); }

  /// The gradients of q and k do not matter here: the bias does not look at them.
  [[nodiscard]] Accumulator accumulator(const auto&... /*grad_q, grad_k*/) const { return accumulator(); }
  /// Sums of zero, for the gradients of tiles.
  [[nodiscard]] Accumulator accumulator() const;

  /// Adjoint of `add_to`: adds the gradient of a tile's logits up, along diagonals where there is a table. Tiles
  /// that share a head must come one after another; without a table, all tiles must.
  void accumulate(const LogitTile<const Scalar>& tile, Accumulator& accumulator) const;

  /// Moves the sums of some heads to where they are added up.
  void move_sums(Index head, Index heads, Accumulator& from, Accumulator& to) const {
    const auto begin = tabulated() ? static_cast<std::size_t>(head * width()) : 0;
    const auto end = tabulated() ? static_cast<std::size_t>((head + heads) * width()) : to.sums.size();
    for (std::size_t s = begin; s < end; ++s) to.sums[s] += std::exchange(from.sums[s], 0);
  }

  /// Adds what was accumulated to the parameters' gradients.
  void finish(const Accumulator& accumulator, Gradients& grads) const;

 private:
  using Stride = Eigen::InnerStride<>;
  using ConstValues = Eigen::Map<const Eigen::ArrayX<Scalar>, Eigen::Unaligned, Stride>;

  template <Write how, class S>
  void add(const LogitTile<S>& tile) const;

  [[nodiscard]] Index width() const { return static_cast<Index>(index_.offsets().size()); }

  /// Where the table has the values of a head.
  template <class S>
  [[nodiscard]] Index first_value(const LogitTile<S>& tile, Index h) const {
    return (tile.head + h) * width();
  }

  /// Calls `visit(values of the bias, count, first logit)` for all logits of a tile that have one.
  template <class S, class Visit>
  void for_each_value(const LogitTile<S>& tile, const Visit& visit) const {
    if (tabulated())
      return for_each_span(tile,
                           [&](S* logits, Index begin, Index count) { visit(table_.data() + begin, count, logits); });
    std::vector<Scalar> values(static_cast<std::size_t>(tile.heads * tile.keys));
    index_.for_each_row(tile, [&](Index i, Index skip, std::span<const double> relative) {
      bias_->evaluate_heads(relative, tile.head, tile.heads, values.data());
      const auto count = static_cast<Index>(relative.size());
      for (Index h = 0; h < tile.heads; ++h)
        visit(values.data() + h * count, count, tile.row(h, i) + skip * tile.key_stride);
    });
  }

  /// Calls `visit(first logit, first value of the table, count)` for every span of the table that meets the tile: found
  /// once for all heads, and handed out head by head, some hundred at a time.
  template <class S, class Visit>
  void for_each_span(const LogitTile<S>& tile, const Visit& visit) const {
    std::array<detail::OffsetSpan, 256> spans;
    std::size_t found = 0;
    const auto hand_out = [&] {
      for (Index h = 0; h < tile.heads; ++h)
        for (std::size_t s = 0; s < found; ++s) {
          const detail::OffsetSpan& span = spans[s];
          visit(tile.row(h, span.query) + span.key * tile.key_stride, first_value(tile, h) + span.entry, span.count);
        }
      found = 0;
    };
    index_.for_each_span(tile, [&](const detail::OffsetSpan& span) {
      if (found == spans.size()) hand_out();
      spans[found++] = span;
    });
    hand_out();
  }

  const Bias* bias_;
  Executor executor_;
  detail::OffsetIndex index_;
  std::vector<Scalar> table_;  // (NH, entries)
};

template <class Bias>
TabulatedBias<Bias>::TabulatedBias(const Bias& bias, CheckedPairPositions at, const Executor& executor)
    : bias_(&bias), executor_(executor), index_(std::move(at)) {
  if (!tabulated()) return;
  table_.resize(static_cast<std::size_t>(bias_->n_heads() * width()));
  bias_->evaluate_heads(index_.offsets(), 0, bias_->n_heads(), table_.data(), executor_);
}

template <class Bias>
template <Write how, class S>
void TabulatedBias<Bias>::add(const LogitTile<S>& tile) const {
  // The usual case: integers, most of them next to each other, and keys side by side.
  if constexpr (std::is_same_v<S, Scalar>)
    if (tabulated() && index_.in_runs() && tile.key_stride == 1) {
      const auto runs = index_.runs(tile);
      for (Index h = 0; h < tile.heads; ++h)
        index_.for_each_run_of_queries(tile, [&](Index query, Index queries, Index entry) {
          detail::add_diagonals<how, Scalar>(
              {table_.data() + first_value(tile, h), entry, 1, queries, tile.row(h, query), tile.query_stride}, runs);
        });
      return;
    }
  for_each_value(tile, [&](const Scalar* values, Index count, S* logits) {
    detail::add_values<how>(values, count, logits, tile.key_stride);
  });
}

template <class Bias>
void TabulatedBias<Bias>::accumulate(const LogitTile<const Scalar>& tile, Accumulator& accumulator) const {
  if (tabulated()) {
    for_each_span(tile, [&](const Scalar* logits, Index begin, Index count) {
      detail::add_to_sums(ConstValues(logits, count, Stride(tile.key_stride)), accumulator.sums.data() + begin);
    });
  } else {
    std::vector<double> values(static_cast<std::size_t>(tile.heads * tile.keys));
    index_.for_each_row(tile, [&](Index i, Index skip, std::span<const double> relative) {
      const auto count = static_cast<Index>(relative.size());
      for (Index h = 0; h < tile.heads; ++h) {
        const Scalar* row = tile.row(h, i) + skip * tile.key_stride;
        for (Index j = 0; j < count; ++j)
          values[static_cast<std::size_t>(h * count + j)] = static_cast<double>(row[j * tile.key_stride]);
      }
      bias_->evaluate_heads_backward(relative, tile.head, tile.heads, values.data(), accumulator.row);
      double* sum = accumulator.sums.data();
      for_each_parameter(accumulator.row, [&](std::string_view, auto& tensor) {
        for (Index p = 0; p < tensor.size(); ++p)
          *sum++ += static_cast<double>(std::exchange(tensor.data()[p], Scalar(0)));
      });
    });
  }
}

template <class Bias>
void TabulatedBias<Bias>::finish(const Accumulator& accumulator, Gradients& grads) const {
  const double* sum = accumulator.sums.data();
  if (tabulated()) {
    bias_->evaluate_heads_backward(index_.offsets(), 0, bias_->n_heads(), sum, grads, executor_);
  } else {
    for_each_parameter(grads, [&](std::string_view, auto& tensor) {
      for (Index p = 0; p < tensor.size(); ++p) tensor.data()[p] += static_cast<Scalar>(*sum++);
    });
  }
}

template <class Bias>
auto TabulatedBias<Bias>::accumulator() const -> Accumulator {
  Accumulator result{std::vector<double>(table_.size()), bias_->zero_gradients()};
  if (!tabulated())
    for_each_parameter(result.row, [&](std::string_view, const auto& tensor) {
      result.sums.resize(result.sums.size() + static_cast<std::size_t>(tensor.size()));
    });
  return result;
}

}  // namespace posbias
