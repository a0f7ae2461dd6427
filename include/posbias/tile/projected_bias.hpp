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

  void accumulate(const detail::StoredTile<Scalar>& stored, const Block& block, EntrySums& sums, Accumulator& to) const;

  /// grad_content (queries, H) += the band's gradient (queries, entries) · r (entries, H). Few terms are summed in double,
  /// because that costs next to nothing.
  void add_to_content(Index queries, Index entries, const Scalar* gradient, Index width,
                      const detail::PackedMatrix<Scalar>& r, Scalar* grad_content, Index features) const;

  static void add_in_double(const Scalar* from, Index count, double* to);

  /// r of a head by entry, packed: once where entries are indexed.
  [[nodiscard]] detail::PackedMatrix<Scalar> rows_of_r(const Block& block, Index head, Accumulator& to) const;

  /// The logits of a block for one head in Scalar, with keys next to each other: as they are, or copied.
  static LogitTile<const Scalar> with_keys_together(const detail::StoredTile<Scalar>& stored, const Block& block,
                                                    Index h, std::vector<Scalar>& rows);

  void add_to_queries(const LogitTile<const Scalar>& tile, const Block& block, Index h, const Scalar* grad_content,
                      Index stride, Accumulator& to) const;

  /// The offsets' gradient is that of all queries, where most of it cancels: in double, so by entry.
  void add_to_offsets(const Scalar* r, Index stride, const std::vector<double>& logits,
                      std::vector<double>& offsets) const;

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

}  // namespace posbias

#include "posbias/tile/projected_bias_backward.hpp"
