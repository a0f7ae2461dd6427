// SPDX-License-Identifier: MIT
/// \file
/// A bias that looks at the queries, content·r of the relative position, ready to add itself to tiles of logits.
///
///     logit(h, i, j) += scale · (q(i, h) + offset(h)) · r_h(pos_k(j) - pos_q(i))
///
/// The module projects every distinct relative position (see bias/relative_columns.hpp) to its r, of dim = NH·H
/// features, once. A block of queries is multiplied by the strips of columns that it reads, and each row of the product
/// is shifted to where its keys are:
///
///     columns     -2 -1  0  1  2  3              keys      0  1  2  3
///     query 0      .  . [0  1  2  3]             query 0  [0  1  2  3]
///     query 1      . [-1 0  1  2] .       ->     query 1  [-1 0  1  2]
///     query 2     [-2 -1 0  1] .  .              query 2  [-2 -1 0  1]
///
/// A bias of the keys is the same with keys in the place of queries: positions swapped, tiles transposed.
///
/// Workspace: O(columns·dim) for the projections, O(keys) for a strip. Where relative positions do not repeat, each
/// query projects its own.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "posbias/bias/mask_tiles.hpp"
#include "posbias/bias/relative_columns.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias {

/// A bias of queries at given positions, ready to add itself to tiles of logits in any order and from any thread.
/// Refers to the module and to q, which must outlive it; q may have fewer heads than there are logits of, each for a group
/// of them. `Bias` supplies
///   - `Index n_heads() const`, `Index head_dim() const`;
///   - `Scalar scale() const`, `std::vector<Scalar> offsets() const`: (NH, H);
///   - `void project(std::span<const double> relative, Scalar* r, Index stride) const`: (dim, relative.size()), rows
///     `stride` apart, at key minus query positions;
///   - `ProjectionSums`, a default-constructible type, and `void project_backward(relative, const double* grad_r,
///     Index stride, ProjectionSums&) const`, the adjoint of `project`, in double;
///   - `void finish(const ProjectionSums&, const std::vector<double>& grad_offsets, Gradients&) const`.
template <class Bias>
class PreparedQueryBias {
 public:
  using Scalar = typename Bias::Scalar;
  using Gradients = typename Bias::Gradients;
  static constexpr detail::TileWidth tile_width = detail::TileWidth::whole_rows;

  /// What the gradients of tiles add up to, in double from 32 queries to the next, and where those of the queries go.
  struct Accumulator {
    std::vector<double> projected;  // (dim, columns), rows padded
    std::vector<double> offsets;    // (NH, H)
    typename Bias::ProjectionSums sums;
    detail::TensorView<Scalar, 3> grad_q;
  };

  PreparedQueryBias(const Bias& bias, const detail::TensorView<const Scalar, 3>& q, PairLocations at)
      : bias_(&bias), q_(q), group_(bias.n_heads() / q.shape[1]), columns_(std::move(at)), offsets_(bias.offsets()) {
    if (!columns_.numbered()) return;
    stride_ = stride_of(columns_.relative());
    projected_.make_room(dim() * stride_);
    bias_->project(columns_.relative(), projected_.data(), stride_);
  }

  /// Whether tiles of different heads may be accumulated at the same time.
  [[nodiscard]] bool heads_are_independent() const { return columns_.numbered() && group_ == 1; }
  /// Whether the gradient of tiles comes to anything: to that of the queries, always.
  [[nodiscard]] bool accumulates() const { return true; }

  /// Adds the bias to a tile. Queries and keys without a position get none.
  void add_to(const LogitTile<Scalar>& tile) const {
    std::vector<Scalar> content;
    detail::Workspace<Scalar> product;
    for_each_block(tile, 16, [&](const Block& block) {
      for (Index h = 0; h < tile.heads; ++h) {
        fill_content(tile, block, h, content);
        for (const Strip& strip : block.strips) {
          const Index width = detail::whole_lanes<Scalar>(strip.width());
          product.make_room(block.queries * width);
          detail::multiply<detail::Sum::fresh>(
              block.queries, width, head_dim(), detail::Factor<Scalar>{content.data(), head_dim(), 1},
              detail::Panels<Scalar>::of_rows(block.r + first_row(tile, h) * block.stride + strip.begin, block.stride),
              product.data(), width);
          for (const detail::ColumnSlice& piece : strip.pieces) {
            const Scalar* values = product.data() + (piece.query - block.first_query) * width + piece.column;
            detail::add_values(values, piece.count, tile.row(h, piece.query) + piece.key * tile.key_stride,
                               tile.key_stride);
          }
        }
      }
    });
  }

  /// grad_q (B, *, L1, NH, H) is where `accumulate` adds the gradient of the queries; keys have none.
  template <HeadsTensor GQ, HeadsTensor GK>
  [[nodiscard]] Accumulator accumulator(GQ&& grad_q, GK&& /*grad_k*/) const {
    return {std::vector<double>(static_cast<std::size_t>(dim() * stride_)),
            std::vector<double>(static_cast<std::size_t>(dim())), typename Bias::ProjectionSums(),
            detail::view<3>(grad_q)};
  }

  /// Adjoint of `add_to`: adds to the gradient of the tile's queries, and sums the rest up. Tiles that share a head
  /// must come one after another; without columns, all tiles must.
  void accumulate(const LogitTile<const Scalar>& tile, Accumulator& to) const {
    std::vector<double> grad_r;
    for_each_block(tile, 32, [&](const Block& block) {
      if (columns_.numbered()) {
        accumulate(tile, block, to.projected.data(), to);
      } else {
        grad_r.assign(static_cast<std::size_t>(dim() * block.stride), 0);
        accumulate(tile, block, grad_r.data(), to);
        bias_->project_backward(block.relative, grad_r.data(), block.stride, to.sums);
      }
    });
  }

  /// Adds what was accumulated to the parameters' gradients.
  void finish(Accumulator& from, Gradients& grads) const {
    if (columns_.numbered()) bias_->project_backward(columns_.relative(), from.projected.data(), stride_, from.sums);
    bias_->finish(from.sums, from.offsets, grads);
  }

 private:
  /// Neighbouring columns, and the slices that read them; columns of slices are counted from `begin`.
  struct Strip {
    Index begin, end;
    std::vector<detail::ColumnSlice> pieces;

    [[nodiscard]] Index width() const { return end - begin; }
  };

  /// Some queries of a tile, the strips they read, and the r of the columns.
  struct Block {
    Index first_query, queries;
    std::vector<Strip> strips;
    std::span<const double> relative;
    const Scalar* r;
    Index stride;
  };

  [[nodiscard]] Index head_dim() const { return bias_->head_dim(); }
  [[nodiscard]] Index dim() const { return bias_->n_heads() * head_dim(); }

  /// Products compute whole lanes from any column on.
  [[nodiscard]] static Index stride_of(std::span<const double> relative) {
    return detail::whole_lanes<Scalar>(static_cast<Index>(relative.size())) + detail::lanes<Scalar>;
  }

  /// The first row of r that belongs to a head of a tile.
  template <class S>
  [[nodiscard]] Index first_row(const LogitTile<S>& tile, Index h) const {
    return (tile.head + h) * head_dim();
  }

  /// Fewer queries in a block leave fewer columns that only some of them read, more share what is done once a block.
  template <class S, class Visit>
  void for_each_block(const LogitTile<S>& tile, Index most_queries, const Visit& visit) const {
    std::vector<detail::ColumnSlice> slices;
    const auto hand_out = [&](std::span<const double> relative, const Scalar* r, Index stride) {
      if (slices.empty()) return;
      const Index first = slices.front().query;
      visit(Block{first, slices.back().query + 1 - first, strips_of(slices), relative, r, stride});
      slices.clear();
    };
    if (columns_.numbered()) {
      const auto hand_out_columns = [&] { hand_out(columns_.relative(), projected_.data(), stride_); };
      columns_.for_each_slice(tile, [&](const detail::ColumnSlice& slice) {
        if (!slices.empty() && slice.query >= slices.front().query + most_queries) hand_out_columns();
        slices.push_back(slice);
      });
      hand_out_columns();
    } else {
      // Each row has columns of its own, ascending as if it were alone: sums then run in the same order.
      std::vector<double> own;
      std::vector<Scalar> r;
      columns_.for_each_row(tile, [&](Index i, Index first_key, std::span<const double> relative) {
        own.assign(relative.begin(), relative.end());
        std::sort(own.begin(), own.end());
        own.erase(std::unique(own.begin(), own.end()), own.end());
        for (std::size_t j = 0; j < relative.size(); ++j)
          slices.push_back({i, first_key + static_cast<Index>(j),
                            std::lower_bound(own.begin(), own.end(), relative[j]) - own.begin(), 1});
        const Index stride = stride_of(own);
        r.assign(static_cast<std::size_t>(dim() * stride), 0);
        bias_->project(own, r.data(), stride);
        hand_out(own, r.data(), stride);
      });
    }
  }

  /// The columns that slices read, without those in wide gaps between.
  static std::vector<Strip> strips_of(std::span<const detail::ColumnSlice> slices) {
    constexpr Index most_columns = 1024, wide_gap = 64;
    std::vector<std::pair<Index, Index>> ranges;  // of columns: begin, end
    for (const detail::ColumnSlice& slice : slices) ranges.emplace_back(slice.column, slice.column + slice.count);
    std::sort(ranges.begin(), ranges.end());
    std::vector<Strip> strips;
    for (auto [begin, end] : ranges) {
      if (!strips.empty() && begin <= strips.back().end + wide_gap) {
        const Index room = strips.back().begin + most_columns;
        strips.back().end = std::max(strips.back().end, std::min(end, room));
        begin = strips.back().end;
      }
      for (; begin < end; begin += most_columns) strips.push_back({begin, std::min(begin + most_columns, end), {}});
    }
    for (const detail::ColumnSlice& slice : slices) {
      auto strip = std::upper_bound(strips.begin(), strips.end(), slice.column,
                                    [](Index column, const Strip& s) { return column < s.end; });
      for (Index done = 0; done < slice.count; ++strip) {
        const Index column = slice.column + done;
        const Index count = std::min(slice.count - done, strip->end - column);
        strip->pieces.push_back({slice.query, slice.key + done, column - strip->begin, count});
        done += count;
      }
    }
    return strips;
  }

  /// scale · (q + offset) of the block's queries, (queries, H).
  template <class S>
  void fill_content(const LogitTile<S>& tile, const Block& block, Index h, std::vector<Scalar>& content) const {
    content.resize(static_cast<std::size_t>(block.queries * head_dim()));
    const Scalar scale = bias_->scale();
    const Scalar* offset = offsets_.data() + first_row(tile, h);
    Scalar* to = content.data();
    for (Index i = 0; i < block.queries; ++i) {
      const Scalar* query = q_.batch(tile.batch) + (tile.query + block.first_query + i) * q_.strides[0] +
                            (tile.head + h) / group_ * q_.strides[1];
      for (Index d = 0; d < head_dim(); ++d) *to++ = scale * (query[d * q_.strides[2]] + offset[d]);
    }
  }

  void accumulate(const LogitTile<const Scalar>& tile, const Block& block, double* grad_r, Accumulator& to) const {
    using detail::Factor, detail::Panels, detail::Sum;
    const Index lanes = detail::whole_lanes<double>(block.queries);
    std::vector<Scalar> content, by_query, product;
    std::vector<double> grad_content, by_column;
    for (Index h = 0; h < tile.heads; ++h) {
      fill_content(tile, block, h, content);
      grad_content.assign(static_cast<std::size_t>(head_dim() * lanes), 0);
      for (const Strip& strip : block.strips) {
        const Index width = detail::whole_lanes<Scalar>(strip.width());
        by_query.assign(static_cast<std::size_t>(block.queries * width), 0);
        by_column.assign(static_cast<std::size_t>(strip.width() * lanes), 0);
        for (const detail::ColumnSlice& piece : strip.pieces) {
          const Scalar* logits = tile.row(h, piece.query) + piece.key * tile.key_stride;
          const Index query = piece.query - block.first_query;
          Scalar* row = by_query.data() + query * width + piece.column;
          double* column = by_column.data() + piece.column * lanes + query;
          for (Index j = 0; j < piece.count; ++j) row[j] += logits[j * tile.key_stride];
          for (Index j = 0; j < piece.count; ++j) column[j * lanes] += static_cast<double>(logits[j * tile.key_stride]);
        }
        const Index r = first_row(tile, h) * block.stride + strip.begin;
        // Of the content (H, queries): r (H, columns) times the strip's gradient (columns, queries). In double, because
        // over many queries the offset's cancels.
        detail::add_product(head_dim(), lanes, strip.width(), Factor<Scalar>{block.r + r, block.stride, 1},
                            by_column.data(), lanes, grad_content.data(), lanes);
        // Of r (H, columns): the content (H, queries) times the strip's gradient (queries, columns).
        product.resize(static_cast<std::size_t>(head_dim() * width));
        detail::multiply<Sum::fresh>(head_dim(), width, block.queries, Factor<Scalar>{content.data(), 1, head_dim()},
                                     Panels<Scalar>::of_rows(by_query.data(), width), product.data(), width);
        for (Index d = 0; d < head_dim(); ++d)
          Eigen::Map<Eigen::ArrayXd>(grad_r + r + d * block.stride, width) +=
              Eigen::Map<const Eigen::ArrayX<Scalar>>(product.data() + d * width, width).template cast<double>();
      }
      add_to_queries(tile, block, h, grad_content, lanes, to);
    }
  }

  void add_to_queries(const LogitTile<const Scalar>& tile, const Block& block, Index h,
                      const std::vector<double>& grad_content, Index lanes, Accumulator& to) const {
    const auto scale = static_cast<double>(bias_->scale());
    double* offset = to.offsets.data() + first_row(tile, h);
    for (Index i = 0; i < block.queries; ++i) {
      Scalar* query = to.grad_q.batch(tile.batch) + (tile.query + block.first_query + i) * to.grad_q.strides[0] +
                      (tile.head + h) / group_ * to.grad_q.strides[1];
      for (Index d = 0; d < head_dim(); ++d) {
        const double gradient = scale * grad_content[static_cast<std::size_t>(d * lanes + i)];
        query[d * to.grad_q.strides[2]] += static_cast<Scalar>(gradient);
        offset[d] += gradient;
      }
    }
  }

  const Bias* bias_;
  detail::TensorView<const Scalar, 3> q_;
  Index group_;  // heads of logits for each head of q
  detail::RelativeColumns columns_;
  std::vector<Scalar> offsets_;          // (NH, H)
  Index stride_ = 0;                     // from row to row of the next
  detail::Workspace<Scalar> projected_;  // (dim, columns), rows padded
};

}  // namespace posbias
