// SPDX-License-Identifier: MIT
/// \file
/// Which row of a table of relative positions each pair of a query and a key reads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/optional_tensor.hpp"
#include "posbias/core/token_locations.hpp"
#include "posbias/kernel/bucketing.hpp"

namespace posbias {

/// Relative positions, key minus query: integers (B, *, L1, L2, n_coordinates), or none. B, * and L1 may be 1 for all.
using RelativePositions = OptionalTensor<int, long, long long>;

/// Flags (B, *, L1, L2), or none. B, * and L1 may be 1 for all.
using PairFlags = OptionalTensor<bool>;

namespace detail {

/// Flags of pairs, if there are any, as (L1, L2). Throws ShapeError.
inline OptionalView<2, bool> fit_pairs(const Hook& hook, const PairFlags& flags, const Leading& leading, Index queries,
                                       Index keys) {
  OptionalView<2, bool> result;
  result.entries.leading = leading;
  result.entries.shape = {queries, keys};
  if (!broadcast(flags.view(), {true, false}, result))
    fail<ShapeError>(hook, ": no_position_mask has shape ", flags.view().entries.leading.shape(),
                     "; (B, *, L1, L2) is needed, with B, * = ", leading.shape(), ", L1 = ", queries, ", L2 = ", keys);
  return result;
}

/// Rows [begin, end) of a table.
struct TableRange {
  Index begin = (std::numeric_limits<Index>::max)(), end = 0;

  [[nodiscard]] bool empty() const { return begin >= end; }

  /// Grows to have a row, or a range.
  void add(Index row) { add(TableRange{row, row + 1}); }
  void add(const TableRange& other) {
    begin = (std::min)(begin, other.begin);
    end = (std::max)(end, other.end);
  }
};

/// The rows of a table of clamped relative positions that the pairs of an attention read, coordinate by coordinate, and the
/// pairs that do not. Owns positions, refers to tensors.
class RelativeIndex {
 public:
  using Row = std::int32_t;
  /// Queries, and mostly keys, are taken so many at a time: neighbours read much the same rows.
  static constexpr Index together = 32;

  using Pairs = OptionalView<2, bool>;

  struct Sizes {
    Leading leading;
    Index queries, keys, coordinates, positions;
  };

  /// From relative positions if they are given, or else from the positions of queries and keys, for each coordinate;
  /// `disabled` pairs have none. Throws ShapeError, PositionError.
  RelativeIndex(const Hook& hook, const RelativePositions& relative, const std::vector<PairPositions>& positions,
                const Pairs& disabled, const Sizes& sizes)
      : sizes_(sizes), buckets_(hook.module, sizes.positions), disabled_(disabled) {
    if (relative.given())
      adopt(hook, relative);
    else
      locate(hook, positions);
  }

  /// What up to `together` queries read.
  struct Reads {
    std::vector<Row> rows;           // (coordinates, count, keys)
    std::vector<TableRange> ranges;  // (coordinates)
    std::vector<char> hidden;        // (count, keys): pairs that read nothing; none, if all read
  };

  [[nodiscard]] Reads reads_of_queries(Index n, Index first, Index count) const {
    Reads reads{std::vector<Row>(size(sizes_.coordinates * count * sizes_.keys)),
                std::vector<TableRange>(size(sizes_.coordinates)),
                {}};
    Row* row = reads.rows.data();
    for (TableRange& range : reads.ranges)
      for (Index i = first; i < first + count; ++i, row += sizes_.keys) {
        rows(n, i, &range - reads.ranges.data(), row);
        for (Index j = 0; j < sizes_.keys; ++j) range.add(row[j]);
      }
    if (disabled_.given() || first_key_ > 0 || first < first_query_) {
      reads.hidden.resize(size(count * sizes_.keys));
      for (Index i = 0; i < count; ++i) hide(n, first + i, reads.hidden.data() + i * sizes_.keys);
    }
    return reads;
  }

  /// What any query reads of each key of a batch entry: (coordinates, keys).
  [[nodiscard]] std::vector<TableRange> ranges_of_keys(Index n) const {
    std::vector<TableRange> ranges(size(sizes_.coordinates * sizes_.keys));
    std::vector<Row> row(size(sizes_.keys)), least, most;
    for (Index x = 0; x < sizes_.coordinates; ++x) {
      least.assign(row.size(), (std::numeric_limits<Row>::max)());
      most.assign(row.size(), -1);
      for (Index i = 0; i < sizes_.queries; ++i) {
        rows(n, i, x, row.data());
        for (std::size_t j = 0; j < row.size(); ++j) least[j] = (std::min)(least[j], row[j]);
        for (std::size_t j = 0; j < row.size(); ++j) most[j] = (std::max)(most[j], row[j]);
      }
      for (std::size_t j = 0; j < row.size(); ++j) ranges[size(x * sizes_.keys) + j] = {least[j], Index{most[j]} + 1};
    }
    return ranges;
  }

 private:
  [[nodiscard]] static std::size_t size(Index count) { return static_cast<std::size_t>(count); }

  void adopt(const Hook& hook, const RelativePositions& relative) {
    given_.entries.leading = sizes_.leading;
    given_.entries.shape = {sizes_.queries, sizes_.keys, sizes_.coordinates};
    if (!broadcast(relative.view(), {true, false, false}, given_))
      fail<ShapeError>(hook, ": relative_positions has shape ", relative.view().entries.leading.shape(),
                       "; (B, *, L1, L2, n_coordinates) is needed, with B, * = ", sizes_.leading.shape(),
                       ", L1 = ", sizes_.queries, ", L2 = ", sizes_.keys, ", n_coordinates = ", sizes_.coordinates);
  }

  void locate(const Hook& hook, const std::vector<PairPositions>& positions) {
    if (static_cast<Index>(positions.size()) != sizes_.coordinates)
      fail<ShapeError>(hook, ": positions has ", positions.size(),
                       " coordinates; n_coordinates = ", sizes_.coordinates);
    for (const PairPositions& at : positions) {
      const std::string where = std::string(hook.function) + ": positions[" + std::to_string(located_.size()) + "]";
      const Hook of_coordinate{hook.module, where};
      const PairLocations& found =
          located_.emplace_back(of_coordinate, at, sizes_.leading, sizes_.queries, sizes_.keys);
      found.require_integers(of_coordinate, at);
      first_query_ = (std::max)(first_query_, found.q.first());
      first_key_ = (std::max)(first_key_, found.k.first());
    }
  }

  /// Writes what query i of batch entry n reads for each key, something where it reads nothing.
  void rows(Index n, Index i, Index coordinate, Row* to) const {
    if (!given_.given()) return locate_row(located_[size(coordinate)], n, i, to);
    const auto strides = given_.entries.strides;
    given_.visit_batch(n, [&](const auto* first) {
      const auto* from = first + i * strides[0] + coordinate * strides[2];
      for (Index j = 0; j < sizes_.keys; ++j) to[j] = static_cast<Row>(buckets_(from[j * strides[1]]));
    });
  }

  void locate_row(const PairLocations& at, Index n, Index i, Row* to) const {
    const Index first = i < at.q.first() ? sizes_.keys : at.k.first();
    std::fill_n(to, first, static_cast<Row>(buckets_(0)));
    if (first == sizes_.keys) return;
    const std::int64_t origin = at.q.integer(n, i - at.q.first());
    for (Index j = first; j < sizes_.keys; ++j) to[j] = static_cast<Row>(buckets_(at.k.integer(n, j - first) - origin));
  }

  void hide(Index n, Index i, char* hidden) const {
    std::fill_n(hidden, i < first_query_ ? sizes_.keys : first_key_, char{1});
    const auto strides = disabled_.entries.strides;
    disabled_.visit_batch(n, [&](const bool* first) {
      const bool* flags = first + i * strides[0];
      for (Index j = 0; j < sizes_.keys; ++j)
        if (flags[j * strides[1]]) hidden[j] = 1;
    });
  }

  Sizes sizes_;
  ClampedBuckets buckets_;
  OptionalView<3, int, long, long long> given_;  // (L1, L2, coordinates), or else
  std::vector<PairLocations> located_;           // one a coordinate
  Index first_query_ = 0, first_key_ = 0;        // with a position in every coordinate
  Pairs disabled_;
};

}  // namespace detail
}  // namespace posbias
