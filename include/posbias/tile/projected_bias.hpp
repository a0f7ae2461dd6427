// SPDX-License-Identifier: MIT
/// \file
/// A bias that looks at the queries, content·r of the relative position, ready to add itself to tiles of logits.
///
///     logit(h, i, j) += scale · (q(i, h) + offset(h)) · r_h(pos_k(j) - pos_q(i))
///
/// The module projects every distinct relative position (see tile/offset_index.hpp) to its r, of dim = NH·H
/// features, once. A block of queries is multiplied by the bands of entries that it reads, and each row of the product
/// is shifted to where its keys are:
///
///     entries     -2 -1  0  1  2  3              keys      0  1  2  3
///     query 0      .  . [0  1  2  3]             query 0  [0  1  2  3]
///     query 1      . [-1 0  1  2] .       ->     query 1  [-1 0  1  2]
///     query 2     [-2 -1 0  1] .  .              query 2  [-2 -1 0  1]
///
/// Where neighbouring entries have the same r, as beyond the ends of a table, they are one entry, which many keys read.
///
/// A bias of the keys is the same with keys in the place of queries: positions swapped, tiles transposed.
///
/// Workspace: O(entries·dim) for the projections, O(keys) for a band. Where relative positions do not repeat, each
/// query projects its own.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/sums.hpp"
#include "posbias/kernel/workspace.hpp"
#include "posbias/tile/mask_loop.hpp"
#include "posbias/tile/offset_bands.hpp"
#include "posbias/tile/offset_index.hpp"

namespace posbias {

/// A bias of queries at given positions, ready to add itself to tiles of logits in any order and from any thread.
/// Refers to the module, to q and to who runs its executor's tasks, which must outlive it; q may have fewer heads than
/// there are logits of, each for a group of them. `Bias` supplies
///   - `Index n_heads() const`, `Index head_dim() const`;
///   - `Scalar scale() const`, `std::vector<Scalar> offsets() const`: (NH, H);
///   - `std::pair<double, double> clamp_range() const`: relative positions beyond an end have the r of that end;
///   - `void project(std::span<const double> relative, Scalar* r, Index stride, const Executor&) const`: (dim,
///     relative.size()), rows `stride` apart, at key minus query positions;
///   - `ProjectionSums`, a default-constructible type, and `void project_backward(relative, const double* grad_r,
///     Index stride, ProjectionSums&, const Executor&) const`, the adjoint of `project`, in double;
///   - `void finish(const ProjectionSums&, const std::vector<double>& grad_offsets, Gradients&, const Executor&) const`.
template <class Bias>
class ProjectedBias {
  /// What logits gradients add up to, entry by entry.
  struct EntrySums {
    std::vector<double> r;       // gradient of r: (dim, entries), rows padded
    std::vector<double> logits;  // of the logits that read an entry: (NH, entries), rows padded
  };

  /// r of a head by entry, packed: (entries, H).
  struct RowsOfR {
    detail::Workspace<typename Bias::Scalar> memory{};
    detail::PackedMatrix<typename Bias::Scalar> panels{};
  };

 public:
  using Scalar = typename Bias::Scalar;                                           ///< of its tensors and parameters
  using Gradients = typename Bias::Gradients;                                     ///< of the parameters
  static constexpr detail::TileWidth tile_width = detail::TileWidth::whole_rows;  ///< which tiles it is quick on

  /// What the gradients of tiles add up to, in double from 32 queries to the next, and where those of the queries go.
  struct Accumulator {
    /// The gradient of each entry, of r as it was projected.
    EntrySums entries;
    std::vector<double> offsets;  ///< (NH, H)
    std::vector<RowsOfR> r;       ///< of each head, from its first tile on
    /// Gradients of what the projection reads.
    typename Bias::ProjectionSums sums;
    /// Where gradients of the queries are added.
    detail::TensorView<Scalar, 3> grad_q;
  };

  /// The executor is for projections, here and in `finish`.
  ProjectedBias(const Bias& bias, const detail::TensorView<const Scalar, 3>& q, CheckedPairPositions at,
                const Executor& executor);

  /// Whether tiles of different heads may be accumulated at the same time.
  [[nodiscard]] bool heads_are_independent() const { return index_.indexed() && group_ == 1; }
  /// Whether the gradient of tiles comes to anything: to that of the queries, always.
  [[nodiscard]] bool accumulates() const { return true; }

  /// Adds the bias to a tile. Queries and keys without a position get none.
  void add_to(const LogitTile<Scalar>& tile) const;

  /// grad_q (B, *, L1, NH, H) is where `accumulate` adds the gradient of the queries; keys have none.
  template <WritableTensorOf<Scalar, 3> GQ, HeadsTensor GK>
  [[nodiscard]] Accumulator accumulator(GQ&& grad_q, GK&& grad_k) const {
    return accumulator(detail::view<3>(grad_q), detail::view<3>(grad_k));
  }
  /// The same, of views.
  [[nodiscard]] Accumulator accumulator(const detail::TensorView<Scalar, 3>& grad_q,
                                        const detail::StridedShape<3>& grad_k) const;

  /// Adjoint of `add_to`: adds to the gradient of the tile's queries, and sums the rest up. Tiles that share a head
  /// must come one after another; without entries, all tiles must. A tile of 16 bits is summed in the order of one of
  /// Scalar: its rows are widened block by block.
  void accumulate(const detail::StoredTile<Scalar>& tile, Accumulator& to) const;

  /// Adds what was accumulated to the parameters' gradients.
  void finish(Accumulator& from, Gradients& grads) const;

 private:
  using Values = Eigen::ArrayX<Scalar>;

  /// Some queries of a tile, the bands they read, and the r of the entries.
  struct Block {
    Index first_query, queries, first_key;  // keys before it have no position
    std::vector<detail::OffsetBand> bands;
    std::span<const double> relative;
    const Scalar* r;
    Index stride;
  };

  [[nodiscard]] Index head_dim() const { return bias_->head_dim(); }
  [[nodiscard]] Index dim() const { return bias_->n_heads() * head_dim(); }

  /// Of the entries that differ.
  [[nodiscard]] std::span<const double> relative() const {
    return index_.offsets().subspan(static_cast<std::size_t>(first_entry_),
                                    static_cast<std::size_t>(last_entry_ + 1 - first_entry_));
  }

  /// Products compute whole lanes from any entry on.
  [[nodiscard]] static Index stride_of(std::span<const double> relative) {
    return detail::round_up_to_lanes<Scalar>(static_cast<Index>(relative.size())) + detail::lanes<Scalar>;
  }

  [[nodiscard]] EntrySums zero_sums(Index stride) const {
    const auto zeros = [&](Index rows) { return std::vector<double>(static_cast<std::size_t>(rows * stride)); };
    return {zeros(dim()), zeros(bias_->n_heads())};
  }

  /// The first row of r that belongs to a head of a tile.
  template <class S>
  [[nodiscard]] Index first_row(const LogitTile<S>& tile, Index h) const {
    return (tile.head + h) * head_dim();
  }

  /// Fewer queries in a block leave fewer entries that only some of them read, more share what is done once a block.
  template <class S, class Visit>
  void for_each_block(const LogitTile<S>& tile, Index max_queries, const Visit& visit) const {
    std::vector<detail::OffsetSpan> spans;
    const auto hand_out = [&](std::span<const double> relative, const Scalar* r, Index stride) {
      if (spans.empty()) return;
      const Index first = spans.front().query;
      visit(Block{first, spans.back().query + 1 - first, spans.front().key, detail::bands_of(spans), relative, r,
                  stride});
      spans.clear();
    };
    if (index_.indexed()) {
      const auto hand_out_entries = [&] { hand_out(relative(), projected_.data(), stride_); };
      index_.for_each_span(tile, [&](const detail::OffsetSpan& span) {
        if (!spans.empty() && span.query >= spans.front().query + max_queries) hand_out_entries();
        add_clamped(span, spans);
      });
      hand_out_entries();
    } else {
      // Each row has entries of its own, ascending as if it were alone: sums then run in the same order.
      std::vector<double> own;
      std::vector<Scalar> r;
      index_.for_each_row(tile, [&](Index i, Index first_key, std::span<const double> relative) {
        own.assign(relative.begin(), relative.end());
        std::sort(own.begin(), own.end());
        own.erase(std::unique(own.begin(), own.end()), own.end());
        for (std::size_t j = 0; j < relative.size(); ++j)
          spans.push_back({i, first_key + static_cast<Index>(j),
                           std::lower_bound(own.begin(), own.end(), relative[j]) - own.begin(), 1, false});
        const Index stride = stride_of(own);
        r.assign(static_cast<std::size_t>(dim() * stride), 0);
        bias_->project(own, r.data(), stride, Executor());
        hand_out(own, r.data(), stride);
      });
    }
  }

  /// Entries before the first that differs are read as the first, those behind the last as the last.
  void add_clamped(const detail::OffsetSpan& span, std::vector<detail::OffsetSpan>& spans) const {
    const Index before = std::clamp<Index>(first_entry_ - span.entry, 0, span.count);
    const Index behind = std::clamp<Index>(span.entry + span.count - 1 - last_entry_, 0, span.count - before);
    const Index between = span.count - before - behind;
    if (before > 0) spans.push_back({span.query, span.key, 0, before, true});
    if (between > 0)
      spans.push_back({span.query, span.key + before, span.entry + before - first_entry_, between, false});
    if (behind > 0)
      spans.push_back({span.query, span.key + before + between, last_entry_ - first_entry_, behind, true});
  }

  static void write(const detail::OffsetSpan& span, const Scalar* values, Scalar* row) {
    if (span.same)
      std::fill_n(row, span.count, *values);
    else
      std::copy_n(values, span.count, row);
  }
  static void add(const detail::OffsetSpan& span, const Scalar* values, Scalar* row) {
    if (span.same)
      Eigen::Map<Values>(row, span.count) += *values;
    else
      detail::add_values(values, span.count, row, 1);
  }

  /// Adds the rows of a block, `tile.keys` apart, where keys lie apart: query by query in memory.
  static void add_aside(const LogitTile<Scalar>& tile, const Block& block, Index h, const Scalar* rows) {
    for (Index j = block.first_key; j < tile.keys; ++j) {
      Scalar* logits = tile.row(h, block.first_query) + j * tile.key_stride;
      for (Index i = 0; i < block.queries; ++i) logits[i * tile.query_stride] += rows[i * tile.keys + j];
    }
  }

  /// scale · (q + offset) of the block's queries, (queries, H).
  template <class S>
  void fill_content(const LogitTile<S>& tile, const Block& block, Index h, std::vector<Scalar>& content) const {
    content.resize(static_cast<std::size_t>(block.queries * head_dim()));
    const Scalar scale = bias_->scale();
    const Scalar* offset = offsets_.data() + first_row(tile, h);
    Scalar* to = content.data();
    for (Index i = 0; i < block.queries; ++i) {
      const detail::Elements<const Scalar> query = q_.batch(tile.batch) +
                                                   (tile.query + block.first_query + i) * q_.strides[0] +
                                                   (tile.head + h) / group_ * q_.strides[1];
      detail::load<Scalar>(query, q_.strides[2], head_dim(), to);
      for (Index d = 0; d < head_dim(); ++d, ++to) *to = scale * (*to + offset[d]);
    }
  }

  void accumulate(const detail::StoredTile<Scalar>& stored, const Block& block, EntrySums& sums,
                  Accumulator& to) const {
    using detail::MatrixView, detail::PackedMatrix, detail::Accumulate;
    constexpr Index together = 4 * detail::lanes<Scalar>;  // entries whose product stays in cache
    const LogitTile<const Scalar>& tile = stored.at;
    const Index features = detail::round_up_to_lanes<Scalar>(head_dim());
    std::vector<Scalar> content, rows;
    detail::Workspace<Scalar> gradient, grad_content(block.queries * features), product(head_dim() * together);
    for (Index h = 0; h < tile.heads; ++h) {
      fill_content(tile, block, h, content);
      const PackedMatrix<Scalar> r_by_column = rows_of_r(block, tile.head + h, to);
      std::fill_n(grad_content.data(), block.queries * features, Scalar(0));
      const LogitTile<const Scalar> side_by_side = with_keys_together(stored, block, h, rows);
      for (Index i = 0; i < block.queries; ++i)  // hidden from all keys, it may be NaN
        if (detail::all_zero(side_by_side.row(0, i), tile.keys, 1))
          std::fill_n(content.data() + i * head_dim(), head_dim(), Scalar(0));
      for (const detail::OffsetBand& band : block.bands) {
        const Index width = detail::round_up_to_lanes<Scalar>(band.width());
        gradient.make_room(block.queries * width);
        std::fill_n(gradient.data(), block.queries * width, Scalar(0));
        for (const detail::OffsetSpan& span : band.spans) {
          const Index query = span.query - block.first_query;
          const Scalar* logits = side_by_side.row(0, query) + span.key;
          Scalar* row = gradient.data() + query * width + span.entry;
          if (span.same)
            *row += static_cast<Scalar>(detail::sum_in_double(logits, span.count));
          else
            for (Index j = 0; j < span.count; ++j) row[j] += logits[j];
        }
        add_to_content(block.queries, band.width(), gradient.data(), width, r_by_column.from(band.begin, 0),
                       grad_content.data(), features);
        double* logits = sums.logits.data() + (tile.head + h) * block.stride + band.begin;
        double* r = sums.r.data() + first_row(tile, h) * block.stride + band.begin;
        for (Index j = 0; j < width; j += together) {
          const Index count = (std::min)(together, width - j);
          for (Index i = 0; i < block.queries; ++i) add_in_double(gradient.data() + i * width + j, count, logits + j);
          // Of r (H, entries): the content (H, queries) times the band's gradient (queries, entries).
          detail::multiply<Accumulate::overwrite>(
              head_dim(), count, block.queries, MatrixView<Scalar>{content.data(), 1, head_dim()},
              PackedMatrix<Scalar>::of_rows(gradient.data() + j, width), product.data(), together);
          for (Index d = 0; d < head_dim(); ++d)
            add_in_double(product.data() + d * together, count, r + d * block.stride + j);
        }
      }
      add_to_queries(tile, block, h, grad_content.data(), features, to);
    }
  }

  /// grad_content (queries, H) += the band's gradient (queries, entries) · r (entries, H). Few terms are summed in double,
  /// because that costs next to nothing.
  void add_to_content(Index queries, Index entries, const Scalar* gradient, Index width,
                      const detail::PackedMatrix<Scalar>& r, Scalar* grad_content, Index features) const {
    constexpr Index few = 32, lanes = detail::lanes<Scalar>;
    if (entries > few) {
      detail::multiply<detail::Accumulate::extend>(
          queries, features, entries, detail::MatrixView<Scalar>{gradient, width, 1}, r, grad_content, features);
      return;
    }
    for (Index i = 0; i < queries; ++i)
      for (Index d = 0; d < features; d += lanes) {
        Eigen::Map<detail::Lane<Scalar>> to(grad_content + i * features + d);
        Eigen::Array<double, lanes, 1> sum = to.template cast<double>();
        for (Index c = 0; c < entries; ++c)
          sum += static_cast<double>(gradient[i * width + c]) *
                 Eigen::Map<const detail::Lane<Scalar>>(r.from(c, d).data).template cast<double>();
        to = sum.template cast<Scalar>();
      }
  }

  static void add_in_double(const Scalar* from, Index count, double* to) {
    for (Index j = 0; j < count; ++j) to[j] += static_cast<double>(from[j]);
  }

  /// r of a head by entry, packed: once where entries are indexed.
  [[nodiscard]] detail::PackedMatrix<Scalar> rows_of_r(const Block& block, Index head, Accumulator& to) const {
    RowsOfR& r = to.r[static_cast<std::size_t>(head)];
    if (index_.indexed() && r.panels.data != nullptr) return r.panels;
    const auto entries = static_cast<Index>(block.relative.size());
    r.memory.make_room(detail::packed_size<Scalar>(entries, head_dim()));
    const detail::MatrixView<Scalar> by_feature{block.r + head * head_dim() * block.stride, block.stride, 1};
    return r.panels = detail::pack(by_feature.transposed(), entries, head_dim(), r.memory.data());
  }

  /// The logits of a block for one head in Scalar, with keys next to each other: as they are, or copied.
  static LogitTile<const Scalar> with_keys_together(const detail::StoredTile<Scalar>& stored, const Block& block,
                                                    Index h, std::vector<Scalar>& rows) {
    LogitTile<const Scalar> tile = stored.at;
    const detail::Elements<const Scalar> first =
        stored.data + (h * tile.head_stride + block.first_query * tile.query_stride);
    if (tile.key_stride == 1 && first.native()) {
      tile.data = first.data();
      return tile;
    }
    rows.resize(static_cast<std::size_t>(block.queries * tile.keys));
    first.visit([&](const auto* from) {
      const auto copy = [&](Index i, Index j) {
        rows[static_cast<std::size_t>(i * tile.keys + j)] =
            detail::widen(from[i * tile.query_stride + j * tile.key_stride]);
      };
      if (tile.key_stride == 1)
        for (Index i = 0; i < block.queries; ++i)
          for (Index j = 0; j < tile.keys; ++j) copy(i, j);
      else
        for (Index j = 0; j < tile.keys; ++j)
          for (Index i = 0; i < block.queries; ++i) copy(i, j);
    });
    tile.data = rows.data();
    tile.query_stride = tile.keys;
    tile.key_stride = 1;
    return tile;
  }

  void add_to_queries(const LogitTile<const Scalar>& tile, const Block& block, Index h, const Scalar* grad_content,
                      Index stride, Accumulator& to) const {
    const Scalar scale = bias_->scale();
    for (Index i = 0; i < block.queries; ++i) {
      Scalar* query = to.grad_q.batch(tile.batch).data() + (tile.query + block.first_query + i) * to.grad_q.strides[0] +
                      (tile.head + h) / group_ * to.grad_q.strides[1];
      for (Index d = 0; d < head_dim(); ++d) query[d * to.grad_q.strides[2]] += scale * grad_content[i * stride + d];
    }
  }

  /// The offsets' gradient is that of all queries, where most of it cancels: in double, so by entry.
  void add_to_offsets(const Scalar* r, Index stride, const std::vector<double>& logits,
                      std::vector<double>& offsets) const {
    const auto scale = static_cast<double>(bias_->scale());
    for (Index row = 0; row < dim(); ++row)
      offsets[static_cast<std::size_t>(row)] +=
          scale * (Eigen::Map<const Values>(r + row * stride, stride).template cast<double>() *
                   Eigen::Map<const Eigen::ArrayXd>(logits.data() + row / head_dim() * stride, stride))
                      .sum();
  }

  const Bias* bias_;
  detail::TensorView<const Scalar, 3> q_;
  Executor executor_;
  Index group_;  // heads of logits for each head of q
  detail::OffsetIndex index_;
  Index first_entry_ = 0, last_entry_ = 0;  // between them entries differ
  std::vector<Scalar> offsets_;             // (NH, H)
  Index stride_ = 0;                        // from row to row of the next
  detail::Workspace<Scalar> projected_;     // (dim, entries), rows padded
};

template <class Bias>
ProjectedBias<Bias>::ProjectedBias(const Bias& bias, const detail::TensorView<const Scalar, 3>& q,
                                   CheckedPairPositions at, const Executor& executor)
    : bias_(&bias),
      q_(q),
      executor_(executor),
      group_(bias.n_heads() / q.shape[1]),
      index_(std::move(at)),
      offsets_(bias.offsets()) {
  if (!index_.indexed()) return;
  const auto [lowest, highest] = bias.clamp_range();
  const std::span<const double> relatives = index_.offsets();
  first_entry_ =
      std::max<Index>(std::upper_bound(relatives.begin(), relatives.end(), lowest) - relatives.begin(), 1) - 1;
  last_entry_ =
      std::min<Index>(std::lower_bound(relatives.begin() + first_entry_, relatives.end(), highest) - relatives.begin(),
                      std::ssize(relatives) - 1);
  stride_ = stride_of(relative());
  projected_.make_room(dim() * stride_);
  bias_->project(relative(), projected_.data(), stride_, executor_);
}

template <class Bias>
void ProjectedBias<Bias>::add_to(const LogitTile<Scalar>& tile) const {
  const bool aside = tile.key_stride != 1;  // rows are made aside where their keys lie apart
  std::vector<Scalar> content;
  detail::Workspace<Scalar> product, rows(aside ? 16 * tile.keys : 0);
  for_each_block(tile, 16, [&](const Block& block) {
    for (Index h = 0; h < tile.heads; ++h) {
      fill_content(tile, block, h, content);
      for (const detail::OffsetBand& band : block.bands) {
        const Index width = detail::round_up_to_lanes<Scalar>(band.width());
        product.make_room(block.queries * width);
        detail::multiply<detail::Accumulate::overwrite>(
            block.queries, width, head_dim(), detail::MatrixView<Scalar>{content.data(), head_dim(), 1},
            detail::PackedMatrix<Scalar>::of_rows(block.r + first_row(tile, h) * block.stride + band.begin,
                                                  block.stride),
            product.data(), width);
        for (const detail::OffsetSpan& span : band.spans) {
          const Index query = span.query - block.first_query;
          const Scalar* values = product.data() + query * width + span.entry;
          if (aside)
            write(span, values, rows.data() + query * tile.keys + span.key);
          else
            add(span, values, tile.row(h, span.query) + span.key);
        }
      }
      if (aside) add_aside(tile, block, h, rows.data());
    }
  });
}

template <class Bias>
auto ProjectedBias<Bias>::accumulator(const detail::TensorView<Scalar, 3>& grad_q,
                                      const detail::StridedShape<3>& /*grad_k*/) const -> Accumulator {
  return {zero_sums(stride_), std::vector<double>(static_cast<std::size_t>(dim())),
          std::vector<RowsOfR>(static_cast<std::size_t>(bias_->n_heads())), typename Bias::ProjectionSums(), grad_q};
}

template <class Bias>
void ProjectedBias<Bias>::accumulate(const detail::StoredTile<Scalar>& tile, Accumulator& to) const {
  constexpr Index max_queries = 32, max_keys = 512;  // long sums lose less in parts
  const Index last = tile.at.key + tile.at.keys;
  for (Index key = tile.at.key, end = 0; key < last; key = end) {
    end = (std::min)(last, (key / max_keys + 1) * max_keys);
    detail::StoredTile<Scalar> part(tile.data + (key - tile.at.key) * tile.at.key_stride, tile.at);
    part.at.key = key;
    part.at.keys = end - key;
    for_each_block(part.at, max_queries, [&](const Block& block) {
      if (index_.indexed()) {
        accumulate(part, block, to.entries, to);
      } else {
        EntrySums own = zero_sums(block.stride);
        accumulate(part, block, own, to);
        add_to_offsets(block.r, block.stride, own.logits, to.offsets);
        bias_->project_backward(block.relative, own.r.data(), block.stride, to.sums, Executor());
      }
    });
  }
}

template <class Bias>
void ProjectedBias<Bias>::finish(Accumulator& from, Gradients& grads) const {
  if (index_.indexed()) {
    add_to_offsets(projected_.data(), stride_, from.entries.logits, from.offsets);
    bias_->project_backward(relative(), from.entries.r.data(), stride_, from.sums, executor_);
  }
  bias_->finish(from.sums, from.offsets, grads, executor_);
}

}  // namespace posbias
