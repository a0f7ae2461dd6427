// SPDX-License-Identifier: MIT
/// \file
/// Adjoint of `ProjectedBias` (tile/projected_bias.hpp, which includes this).
///
///     grad_logit(h, i, j) is summed by entry: g(i, e) = sum of those keys j of query i that read entry e
///     grad_q(i) += scale · sum over e of g(i, e) · r(e)          grad_r(e) += sum over i of g(i, e) · scale · (q(i) + offset)
///     grad_offset += scale · sum over i, e of g(i, e) · r(e)
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <vector>

#include "posbias/kernel/product.hpp"
#include "posbias/kernel/sums.hpp"
#include "posbias/kernel/workspace.hpp"
#include "posbias/tile/projected_bias.hpp"

namespace posbias {

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

template <class Bias>
void ProjectedBias<Bias>::accumulate(const detail::StoredTile<Scalar>& stored, const Block& block, EntrySums& sums,
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

template <class Bias>
void ProjectedBias<Bias>::add_to_content(Index queries, Index entries, const Scalar* gradient, Index width,
                                         const detail::PackedMatrix<Scalar>& r, Scalar* grad_content,
                                         Index features) const {
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

template <class Bias>
void ProjectedBias<Bias>::add_in_double(const Scalar* from, Index count, double* to) {
  for (Index j = 0; j < count; ++j) to[j] += static_cast<double>(from[j]);
}

template <class Bias>
auto ProjectedBias<Bias>::rows_of_r(const Block& block, Index head, Accumulator& to) const
    -> detail::PackedMatrix<Scalar> {
  RowsOfR& r = to.r[static_cast<std::size_t>(head)];
  if (index_.indexed() && r.panels.data != nullptr) return r.panels;
  const auto entries = static_cast<Index>(block.relative.size());
  r.memory.make_room(detail::packed_size<Scalar>(entries, head_dim()));
  const detail::MatrixView<Scalar> by_feature{block.r + head * head_dim() * block.stride, block.stride, 1};
  return r.panels = detail::pack(by_feature.transposed(), entries, head_dim(), r.memory.data());
}

template <class Bias>
auto ProjectedBias<Bias>::with_keys_together(const detail::StoredTile<Scalar>& stored, const Block& block, Index h,
                                             std::vector<Scalar>& rows) -> LogitTile<const Scalar> {
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

template <class Bias>
void ProjectedBias<Bias>::add_to_queries(const LogitTile<const Scalar>& tile, const Block& block, Index h,
                                         const Scalar* grad_content, Index stride, Accumulator& to) const {
  const Scalar scale = bias_->scale();
  for (Index i = 0; i < block.queries; ++i) {
    Scalar* query = to.grad_q.batch(tile.batch).data() + (tile.query + block.first_query + i) * to.grad_q.strides[0] +
                    (tile.head + h) / group_ * to.grad_q.strides[1];
    for (Index d = 0; d < head_dim(); ++d) query[d * to.grad_q.strides[2]] += scale * grad_content[i * stride + d];
  }
}

template <class Bias>
void ProjectedBias<Bias>::add_to_offsets(const Scalar* r, Index stride, const std::vector<double>& logits,
                                         std::vector<double>& offsets) const {
  const auto scale = static_cast<double>(bias_->scale());
  for (Index row = 0; row < dim(); ++row)
    offsets[static_cast<std::size_t>(row)] +=
        scale * (Eigen::Map<const Values>(r + row * stride, stride).template cast<double>() *
                 Eigen::Map<const Eigen::ArrayXd>(logits.data() + row / head_dim() * stride, stride))
                    .sum();
}

}  // namespace posbias
