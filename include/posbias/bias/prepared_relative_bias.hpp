// SPDX-License-Identifier: MIT
/// \file
/// A relative bias b_h(pos_k(j) - pos_q(i)) at given positions, ready to add itself to tiles of logits.
///
/// Over consecutive positions the bias is a Toeplitz matrix: L1+L2-1 values a head, not L1·L2.
///
///     b( 0)  b( 1)  b( 2)  b( 3)           table   b(-2) b(-1) b(0) b(1) b(2) b(3)
///     b(-1)  b( 0)  b( 1)  b( 2)    <-     row 0               [ 0    1    2    3 ]
///     b(-2)  b(-1)  b( 0)  b( 1)           row 2   [-2   -1     0    1 ]
///
/// So a row is a slice of the table. Other integers (packed rows, caches with holes) are cut into runs of
/// consecutive keys, a slice each; a module is asked once for every relative position in their range. Reals, and
/// integers so far apart that a table would be larger than 4·(L1+L2), or than the pairs there are, are evaluated
/// row by row.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/bias/logit_tile.hpp"
#include "posbias/core/positions.hpp"

namespace posbias {

/// A relative bias at given positions, ready to add itself to tiles of logits in any order and from any thread.
/// Refers to the module, which must outlive it.
template <class Bias>
class PreparedRelativeBias {
 public:
  using Scalar = typename Bias::Scalar;
  using Gradients = typename Bias::Gradients;

  /// What the gradients of tiles add up to, in double, before it becomes gradients of the module's parameters.
  struct Accumulator {
    std::vector<double> sums;  // one for each value of the table; without a table, for each value of the parameters
    Gradients row;             // workspace without a table, zero between rows
  };

  PreparedRelativeBias(const Bias& bias, PairLocations at) : bias_(&bias), at_(std::move(at)) {
    if (at_.q.integral() && at_.k.integral() && at_.q.count() > 0 && at_.k.count() > 0 && at_.q.rows() > 0 &&
        at_.k.rows() > 0)
      tabulate();
  }

  /// One value per head and distinct relative position; tiles of different heads then accumulate independently.
  [[nodiscard]] bool tabulated() const { return width_ > 0; }

  /// Adds the bias to a tile. Queries and keys without a position get none.
  void add_to(const LogitTile<Scalar>& tile) const {
    if (tabulated()) {
      for_each_slice(tile, [&](Scalar* logits, std::size_t begin, Index count) {
        Values(logits, count, Stride(tile.key_stride)) +=
            Eigen::Map<const Eigen::ArrayX<Scalar>>(&table_[begin], count);
      });
    } else {
      std::vector<Scalar> values(static_cast<std::size_t>(tile.heads * tile.keys));
      for_each_row(tile, [&](Index i, Index skip, std::span<const double> relative) {
        bias_->evaluate(relative, tile.head, tile.heads, values.data());
        const auto count = static_cast<Index>(relative.size());
        for (Index h = 0; h < tile.heads; ++h)
          Values(tile.row(h, i) + skip * tile.key_stride, count, Stride(tile.key_stride)) +=
              Eigen::Map<const Eigen::ArrayX<Scalar>>(values.data() + h * count, count);
      });
    }
  }

  [[nodiscard]] Accumulator accumulator() const {
    Accumulator result{std::vector<double>(table_.size()), bias_->zero_gradients()};
    if (!tabulated())
      for_each_parameter(result.row, [&](std::string_view, const auto& tensor) {
        result.sums.resize(result.sums.size() + static_cast<std::size_t>(tensor.size()));
      });
    return result;
  }

  /// Adjoint of `add_to`: adds the gradient of a tile's logits up, along diagonals where there is a table. Tiles
  /// that share a head must come one after another; without a table, all tiles must.
  void accumulate(const LogitTile<const Scalar>& tile, Accumulator& accumulator) const {
    if (tabulated()) {
      for_each_slice(tile, [&](const Scalar* logits, std::size_t begin, Index count) {
        Eigen::Map<Eigen::ArrayXd>(&accumulator.sums[begin], count) +=
            ConstValues(logits, count, Stride(tile.key_stride)).template cast<double>();
      });
    } else {
      std::vector<double> values(static_cast<std::size_t>(tile.heads * tile.keys));
      for_each_row(tile, [&](Index i, Index skip, std::span<const double> relative) {
        const auto count = static_cast<Index>(relative.size());
        for (Index h = 0; h < tile.heads; ++h)
          Eigen::Map<Eigen::ArrayXd>(values.data() + h * count, count) =
              ConstValues(tile.row(h, i) + skip * tile.key_stride, count, Stride(tile.key_stride))
                  .template cast<double>();
        bias_->evaluate_backward(relative, tile.head, tile.heads, values.data(), accumulator.row);
        double* sum = accumulator.sums.data();
        for_each_parameter(accumulator.row, [&](std::string_view, auto& tensor) {
          for (Index p = 0; p < tensor.size(); ++p)
            *sum++ += static_cast<double>(std::exchange(tensor.data()[p], Scalar(0)));
        });
      });
    }
  }

  /// Adds what was accumulated to the parameters' gradients.
  void finish(const Accumulator& accumulator, Gradients& grads) const {
    const double* sum = accumulator.sums.data();
    if (tabulated()) {
      bias_->evaluate_backward(table_positions(), 0, bias_->n_heads(), sum, grads);
    } else {
      for_each_parameter(grads, [&](std::string_view, auto& tensor) {
        for (Index p = 0; p < tensor.size(); ++p) tensor.data()[p] += static_cast<Scalar>(*sum++);
      });
    }
  }

 private:
  using Stride = Eigen::InnerStride<>;
  using Values = Eigen::Map<Eigen::ArrayX<Scalar>, Eigen::Unaligned, Stride>;
  using ConstValues = Eigen::Map<const Eigen::ArrayX<Scalar>, Eigen::Unaligned, Stride>;

  /// Keys [begin, begin + count) of a batch entry at positions first, first + 1, ...
  struct Run {
    Index begin, count;
    std::int64_t first;
  };

  struct Extremes {
    std::int64_t lowest, highest;
  };

  [[nodiscard]] static Extremes extremes(const TokenLocations& at, Index row) {
    if (at.consecutive()) return {at.integer(row, 0), at.integer(row, at.count() - 1)};
    Extremes result{at.integer(row, 0), at.integer(row, 0)};
    for (Index i = 1; i < at.count(); ++i) {
      result.lowest = std::min(result.lowest, at.integer(row, i));
      result.highest = std::max(result.highest, at.integer(row, i));
    }
    return result;
  }

  /// Evaluates every relative position that may occur, if they are not many more than the tokens.
  void tabulate() {
    const Index rows = std::max(at_.q.rows(), at_.k.rows());
    std::int64_t lowest = 0;
    std::int64_t highest = 0;
    for (Index n = 0; n < rows; ++n) {
      const Extremes q = extremes(at_.q, n);
      const Extremes k = extremes(at_.k, n);
      lowest = n == 0 ? k.lowest - q.highest : std::min(lowest, k.lowest - q.highest);
      highest = n == 0 ? k.highest - q.lowest : std::max(highest, k.highest - q.lowest);
    }
    const std::uint64_t beyond_first = static_cast<std::uint64_t>(highest) - static_cast<std::uint64_t>(lowest);
    const Index tokens = at_.q.count() + at_.k.count();
    const Index pairs = rows * at_.q.count() * at_.k.count();
    if (beyond_first >= static_cast<std::uint64_t>(std::min(4 * tokens, pairs))) return;

    lowest_ = lowest;
    width_ = static_cast<Index>(beyond_first) + 1;
    table_.resize(static_cast<std::size_t>(bias_->n_heads() * width_));
    bias_->evaluate(table_positions(), 0, bias_->n_heads(), table_.data());

    for (Index n = 0; n < at_.k.rows(); ++n) {
      first_run_.push_back(runs_.size());
      for (Index j = 0; j < at_.k.count(); ++j) {
        const std::int64_t position = at_.k.integer(n, j);
        const bool continues = j > 0 && position == runs_.back().first + runs_.back().count;
        if (continues)
          ++runs_.back().count;
        else
          runs_.push_back({at_.k.first() + j, 1, position});
      }
    }
    first_run_.push_back(runs_.size());
  }

  [[nodiscard]] std::vector<double> table_positions() const {
    std::vector<double> relative(static_cast<std::size_t>(width_));
    for (std::size_t d = 0; d < relative.size(); ++d)
      relative[d] = static_cast<double>(lowest_ + static_cast<std::int64_t>(d));
    return relative;
  }

  /// Calls `visit(first logit, first entry of table_, count)` for every slice of the table that meets the tile.
  template <class S, class Visit>
  void for_each_slice(const LogitTile<S>& tile, const Visit& visit) const {
    const Index end_key = tile.key + tile.keys;
    const std::size_t row = at_.k.shared() ? 0 : static_cast<std::size_t>(tile.batch);
    const auto last = runs_.begin() + static_cast<std::ptrdiff_t>(first_run_[row + 1]);
    const auto first = std::upper_bound(runs_.begin() + static_cast<std::ptrdiff_t>(first_run_[row]), last, tile.key,
                                        [](Index key, const Run& run) { return key < run.begin + run.count; });
    for (Index h = 0; h < tile.heads; ++h)
      for (Index i = std::max<Index>(at_.q.first() - tile.query, 0); i < tile.queries; ++i) {
        S* logits = tile.row(h, i);
        const std::int64_t origin = at_.q.integer(tile.batch, tile.query + i - at_.q.first()) + lowest_;
        for (auto run = first; run != last && run->begin < end_key; ++run) {
          const Index begin = std::max(run->begin, tile.key);
          const Index end = std::min(run->begin + run->count, end_key);
          const Index entry = static_cast<Index>(run->first - origin) + (begin - run->begin);
          visit(logits + (begin - tile.key) * tile.key_stride,
                static_cast<std::size_t>((tile.head + h) * width_ + entry), end - begin);
        }
      }
  }

  /// Calls `visit(row of the tile, keys without a position, relative positions of the others)`.
  template <class S, class Visit>
  void for_each_row(const LogitTile<S>& tile, const Visit& visit) const {
    const Index skip = std::max<Index>(at_.k.first() - tile.key, 0);
    if (skip >= tile.keys) return;
    std::vector<double> relative(static_cast<std::size_t>(tile.keys - skip));
    const bool exact = at_.q.integral() && at_.k.integral();
    for (Index i = std::max<Index>(at_.q.first() - tile.query, 0); i < tile.queries; ++i) {
      const Index query = tile.query + i - at_.q.first();
      for (std::size_t j = 0; j < relative.size(); ++j) {
        const Index key = tile.key + skip + static_cast<Index>(j) - at_.k.first();
        relative[j] = exact ? static_cast<double>(at_.k.integer(tile.batch, key) - at_.q.integer(tile.batch, query))
                            : at_.k.real(tile.batch, key) - at_.q.real(tile.batch, query);
      }
      visit(i, skip, std::span<const double>(relative));
    }
  }

  const Bias* bias_;
  PairLocations at_;
  std::int64_t lowest_ = 0;             // relative position of the table's first column
  Index width_ = 0;                     // columns of the table; 0: none
  std::vector<Scalar> table_;           // (NH, width)
  std::vector<Run> runs_;               // of keys, batch entry by batch entry
  std::vector<std::size_t> first_run_;  // of each row of key positions, and the end
};

}  // namespace posbias
