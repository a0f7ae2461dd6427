// SPDX-License-Identifier: MIT
/// \file
/// A relative bias that adds itself to column-major masks, whose keys are far apart in memory: next to each other are, for
/// one key and query, the heads of all batch entries, and then the next query.
///
/// So a key is to its queries what a query is to its keys elsewhere: it reads a span of the entries, here those of query
/// minus key position, each of which has the values of all heads and batch entries.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <span>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/core/view.hpp"
#include "posbias/tile/diagonals.hpp"
#include "posbias/tile/logit_tile.hpp"
#include "posbias/tile/offset_index.hpp"

namespace posbias::detail {

/// A relative bias at given positions. Owns all it knows.
template <class Bias>
class ColumnMajorBias {
 public:
  using Scalar = typename Bias::Scalar;

  /// Has a table where all batch entries have the same positions, in runs, and it is no more than a sixteenth of a mask.
  ColumnMajorBias(const Bias& bias, const CheckedPairPositions& at, Index batches, const Executor& executor)
      : index_(CheckedPairPositions(at.k, at.q)), lanes_(bias.n_heads() * batches) {
    const auto count = static_cast<Index>(index_.offsets().size());
    if (!index_.in_runs() || at.q.rows() > 1 || at.k.rows() > 1) return;
    if (16 * count > at.q.count() * at.k.count()) return;
    std::vector<double> relative(index_.offsets().begin(), index_.offsets().end());
    for (double& query_minus_key : relative) query_minus_key = 0 - query_minus_key;
    std::vector<Scalar> values(static_cast<std::size_t>(bias.n_heads() * count));
    bias.evaluate_heads(relative, 0, bias.n_heads(), values.data(), executor);
    table_.reserve(static_cast<std::size_t>(lanes_ * count));
    for (Index c = 0; c < count; ++c)
      for (Index h = 0; h < bias.n_heads(); ++h)
        table_.insert(table_.end(), static_cast<std::size_t>(batches), values[static_cast<std::size_t>(h * count + c)]);
  }

  [[nodiscard]] bool tabulated() const { return !table_.empty(); }
  /// Whether every logit has a value in the table.
  [[nodiscard]] bool covers_all() const { return index_.covers_all(); }

  /// Adds the bias to some queries and keys of all batch entries.
  template <Write how>
  void add_to(Scalar* mask, Index all_queries, Index query, Index queries, Index key, Index keys) const {
    const LogitTile<Scalar> place{mask, 0, 0, 0, 0, 0, 0, key, keys, query, queries};
    const auto runs = index_.runs(place);
    const Index stride = all_queries * lanes_;
    index_.for_each_run_of_queries(place, [&](Index first, Index count, Index entry) {
      add_diagonals<how, Scalar>(
          {table_.data(), entry, lanes_, count, mask + (key + first) * stride + query * lanes_, stride}, runs);
    });
  }

  /// Whether there is an adjoint that adds up in the order that other layouts do.
  [[nodiscard]] bool accumulates() const { return tabulated() && index_.in_single_runs(); }

  /// Adjoint: adds the gradient of a mask up along diagonals, batch entry by batch entry, to `sums` (NH, entries), which
  /// ascend with key minus query. A task takes some entries, whose sums stay in cache, through all keys.
  void accumulate(const TensorView<const Scalar, 3>& gradient, std::span<double> sums, const Executor& executor) const {
    const auto width = static_cast<Index>(index_.offsets().size());
    std::vector<double> of_lanes(table_.size());
    const LogitTile<const Scalar> place{gradient.data.data(), 0, 0, 0, 0, 0, 0, 0, gradient.shape[2], 0,
                                        gradient.shape[1]};
    const DiagonalRun run = index_.runs(place).front();
    const Index band = std::max<Index>(1, 4096 / lanes_);
    index_.for_each_run_of_queries(place, [&](Index first_key, Index keys, Index entry) {
      executor.parallel_for((width + band - 1) / band, [&](Index task) {
        for (Index j = 0; j < keys; ++j) {
          const Index first = run.entry + entry - j;  // that the key reads
          const Index begin = (std::max)(first, task * band), end = (std::min)(first + run.count, (task + 1) * band);
          if (begin >= end) continue;
          const Scalar* logits =
              gradient.data.data() + (first_key + j) * gradient.strides[2] + (run.key + begin - first) * lanes_;
          add_to_sums(Eigen::Map<const Eigen::ArrayX<Scalar>>(logits, (end - begin) * lanes_),
                      of_lanes.data() + begin * lanes_);
        }
      });
    });
    const Index batches = gradient.batches(), heads = gradient.shape[0];
    for (Index n = 0; n < batches; ++n) {
      const double* from = of_lanes.data() + gradient.offset(n);
      for (Index h = 0; h < heads; ++h)
        for (Index c = 0; c < width; ++c)
          sums[static_cast<std::size_t>(h * width + width - 1 - c)] += from[c * lanes_ + h * batches];
    }
  }

  /// How many queries of a key are 32 kB of logits.
  [[nodiscard]] Index queries_in_cache() const {
    return std::max<Index>(1, (Index{1} << 15) / (lanes_ * static_cast<Index>(sizeof(Scalar))));
  }

 private:
  OffsetIndex index_;          // of keys, which read those of their queries
  Index lanes_;                // heads of all batch entries
  std::vector<Scalar> table_;  // (entries, lanes)
};

/// Adds the bias to a whole mask.
template <Write how = Write::add, class Bias>
void add_to_mask(const TensorView<typename Bias::Scalar, 3>& mask, const ColumnMajorBias<Bias>& bias,
                 const Executor& executor) {
  const Index all_queries = mask.shape[1], all_keys = mask.shape[2];
  const Index queries = bias.queries_in_cache(), keys = 64;
  const Index query_blocks = (all_queries + queries - 1) / queries;
  executor.parallel_for((all_keys + keys - 1) / keys * query_blocks, [&](Index task) {
    const Index query = task % query_blocks * queries, key = task / query_blocks * keys;
    bias.template add_to<how>(mask.data.data(), all_queries, query, (std::min)(queries, all_queries - query), key,
                              (std::min)(keys, all_keys - key));
  });
}

}  // namespace posbias::detail
