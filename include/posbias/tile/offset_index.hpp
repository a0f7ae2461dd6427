// SPDX-License-Identifier: MIT
/// \file
/// The distinct relative positions of an attention, as numbered entries, and which entries a row of logits reads.
///
/// Over consecutive positions a relative bias is a Toeplitz matrix: L1+L2-1 entries, not L1·L2 values.
///
///     b( 0)  b( 1)  b( 2)  b( 3)         entries   b(-2) b(-1) b(0) b(1) b(2) b(3)
///     b(-1)  b( 0)  b( 1)  b( 2)    <-     row 0               [b(0) b(1) b(2) b(3)]
///     b(-2)  b(-1)  b( 0)  b( 1)           row 2   [b(-2) b(-1) b(0) b(1)]
///
/// So a row is a span of the entries. Integers within a narrow range (packed rows, caches with small holes) have an
/// entry for every integer in it, and keys are cut into runs of consecutive ones, a span each. Other integers (wide
/// gaps) and reals have an entry for every difference that occurs. Where those are more than 4·(L1+L2), which takes
/// reals or scattered integers that hardly repeat, there are no entries, and rows are read difference by difference.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "posbias/core/checked_positions.hpp"
#include "posbias/tile/diagonals.hpp"
#include "posbias/tile/logit_tile.hpp"
#include "posbias/tile/offset_hash.hpp"
#include "posbias/tile/position_runs.hpp"

namespace posbias::detail {

/// Keys [key, key + count) of a query read entries [entry, entry + count), or all of them `entry`, where offsets are clamped.
/// Query and key are counted within a tile.
struct OffsetSpan {
  Index query, key, entry, count;
  bool same;

  /// How many entries it reads.
  [[nodiscard]] Index width() const { return same ? 1 : count; }
};

/// The entries of an attention. Owns all it knows.
class OffsetIndex {
 public:
  explicit OffsetIndex(CheckedPairPositions at) : at_(std::move(at)) {
    if (at_.q.count() == 0 || at_.k.count() == 0 || at_.q.rows() == 0 || at_.k.rows() == 0) return;
    if (at_.q.integral() && at_.k.integral()) index_range();
    if (!indexed()) index_differences();
  }

  /// False where there are no entries: read rows with `for_each_row`.
  [[nodiscard]] bool indexed() const { return !offsets_.empty(); }

  /// Whether every query and every key has a position.
  [[nodiscard]] bool covers_all() const { return at_.q.first() == 0 && at_.k.first() == 0; }

  /// Key minus query position of every entry, ascending.
  [[nodiscard]] std::span<const double> offsets() const { return {offsets_.data(), offsets_.size()}; }

  /// Calls `visit(OffsetSpan)` for the spans of a tile, query by query and key by key, if indexed. Queries and keys
  /// without a position have none.
  template <class S, class Visit>
  void for_each_span(const LogitTile<S>& tile, const Visit& visit) const {
    const Index first_key = (std::max)(tile.key, at_.k.first());
    for (Index i = first_query(tile); i < tile.queries; ++i) {
      if (keys_.empty()) {
        spans_of_differences(tile, i, first_key, visit);
      } else {
        const std::int64_t origin = at_.q.integer(tile.batch, tile.query + i - at_.q.first()) + lowest_;
        keys_.for_each(tile.batch, tile.key, tile.key + tile.keys, [&](const PositionRun& run) {
          visit(OffsetSpan{i, run.begin - tile.key, static_cast<Index>(run.first - origin), run.count, false});
        });
      }
    }
  }

  /// Whether the queries and keys of a tile come in runs.
  [[nodiscard]] bool in_runs() const { return !keys_.empty(); }
  /// Whether there is one run of each. Then along a diagonal keys ascend with queries, whichever are walked first.
  [[nodiscard]] bool in_single_runs() const { return queries_.single() && keys_.single(); }

  /// The runs of keys of a tile, if in runs, with the entries that the first of all queries reads. Keys that are (nearly)
  /// on their own are in one run.
  template <class S>
  [[nodiscard]] std::vector<DiagonalRun> runs(const LogitTile<S>& tile) const {
    std::vector<DiagonalRun> result;
    const Index row = at_.k.shared() ? 0 : tile.batch, first_place = row * at_.k.count() - at_.k.first();
    const std::int64_t origin = at_.q.integer(0, 0) + lowest_;
    joined_keys_.for_each(tile.batch, tile.key, tile.key + tile.keys, [&](const PositionRun& run) {
      if (run.consecutive)
        result.push_back({run.begin - tile.key, run.count, static_cast<Index>(run.first - origin)});
      else
        result.push_back({run.begin - tile.key, run.count, static_cast<Index>(at_.k.integer(row, 0) - origin),
                          places_.data() + (first_place + run.begin)});
    });
    return result;
  }

  /// Calls `visit(query of the tile, queries, entry)` for the runs of queries of a tile. The first of a run reads entries
  /// `entry` further up than the runs say, each further one an entry further down.
  template <class S, class Visit>
  void for_each_run_of_queries(const LogitTile<S>& tile, const Visit& visit) const {
    queries_.for_each(tile.batch, tile.query, tile.query + tile.queries, [&](const PositionRun& run) {
      visit(run.begin - tile.query, run.count, static_cast<Index>(at_.q.integer(0, 0) - run.first));
    });
  }

  /// Calls `visit(query of the tile, first key of the tile with a position, relative positions from there on)`.
  template <class S, class Visit>
  void for_each_row(const LogitTile<S>& tile, const Visit& visit) const {
    const Index skip = std::max<Index>(at_.k.first() - tile.key, 0);
    if (skip >= tile.keys) return;
    std::vector<double> row(static_cast<std::size_t>(tile.keys - skip));
    for (Index i = first_query(tile); i < tile.queries; ++i) {
      for (std::size_t j = 0; j < row.size(); ++j)
        row[j] = difference(tile.batch, tile.query + i - at_.q.first(),
                            tile.key + skip + static_cast<Index>(j) - at_.k.first());
      visit(i, skip, std::span<const double>(row.data(), row.size()));
    }
  }

 private:
  struct Extremes {
    std::int64_t lowest, highest;
  };

  [[nodiscard]] static Extremes extremes(const CheckedPositions& at, Index row) {
    if (at.consecutive()) return {at.integer(row, 0), at.integer(row, at.count() - 1)};
    Extremes result{at.integer(row, 0), at.integer(row, 0)};
    for (Index i = 1; i < at.count(); ++i) {
      result.lowest = (std::min)(result.lowest, at.integer(row, i));
      result.highest = (std::max)(result.highest, at.integer(row, i));
    }
    return result;
  }

  [[nodiscard]] Index rows() const { return (std::max)(at_.q.rows(), at_.k.rows()); }
  [[nodiscard]] Index max_entries() const { return 4 * (at_.q.count() + at_.k.count()); }

  /// The first query of a tile that has a position.
  template <class S>
  [[nodiscard]] Index first_query(const LogitTile<S>& tile) const {
    return std::max<Index>(at_.q.first() - tile.query, 0);
  }

  /// Position of the key minus that of the query, both counted among those with a position: exact if it can be.
  [[nodiscard]] double difference(Index n, Index query, Index key) const {
    if (at_.q.integral() && at_.k.integral())
      return static_cast<double>(at_.k.integer(n, key) - at_.q.integer(n, query));
    return at_.k.real(n, key) - at_.q.real(n, query);
  }

  /// An entry for every integer from the lowest to the highest difference, if they are not many more than the tokens.
  void index_range() {
    std::int64_t highest = 0;
    for (Index n = 0; n < rows(); ++n) {
      const Extremes q = extremes(at_.q, n);
      const Extremes k = extremes(at_.k, n);
      lowest_ = n == 0 ? k.lowest - q.highest : (std::min)(lowest_, k.lowest - q.highest);
      highest = n == 0 ? k.highest - q.lowest : (std::max)(highest, k.highest - q.lowest);
    }
    const std::uint64_t beyond_first = static_cast<std::uint64_t>(highest) - static_cast<std::uint64_t>(lowest_);
    const Index pairs = rows() * at_.q.count() * at_.k.count();
    if (beyond_first >= static_cast<std::uint64_t>((std::min)(max_entries(), pairs))) return;

    offsets_.resize(static_cast<std::size_t>(beyond_first) + 1);
    for (std::size_t c = 0; c < offsets_.size(); ++c)
      offsets_[c] = static_cast<double>(lowest_ + static_cast<std::int64_t>(c));
    queries_ = PositionRuns(at_.q);
    keys_ = PositionRuns(at_.k);
    constexpr Index shortest_span = 12;
    joined_keys_ = keys_.joined(shortest_span);
    if (joined_keys_.all_consecutive()) return;
    for (Index n = 0; n < at_.k.rows(); ++n)
      for (Index j = 0; j < at_.k.count(); ++j) places_.push_back(at_.k.integer(n, j) - at_.k.integer(n, 0));
  }

  /// An entry for every difference that occurs, if they are not many more than the tokens. A pass over all pairs,
  /// which ends early where they do not repeat.
  void index_differences() {
    const Index most = max_entries();
    OffsetHash entry_of(static_cast<std::size_t>(most));
    Index entries = 0;
    for (Index n = 0; n < rows(); ++n)
      for (Index i = 0; i < at_.q.count(); ++i)
        for (Index j = 0; j < at_.k.count(); ++j)
          if (entry_of.insert(difference(n, i, j)) && ++entries > most) return;
    offsets_ = entry_of.number();
    entry_of_ = std::move(entry_of);
  }

  /// Neighbouring keys often read neighbouring entries here too: half-integers, every tenth token.
  template <class S, class Visit>
  void spans_of_differences(const LogitTile<S>& tile, Index i, Index first_key, const Visit& visit) const {
    const Index query = tile.query + i - at_.q.first();
    const auto relative = [&](Index key) { return difference(tile.batch, query, key - at_.k.first()); };
    const Index end_key = tile.key + tile.keys;
    const auto entries = static_cast<Index>(offsets_.size());
    for (Index key = first_key; key < end_key;) {
      OffsetSpan span{i, key - tile.key, entry_of_(relative(key)), 1, false};
      Index next = span.entry + 1;
      while (++key < end_key && next < entries && offsets_[static_cast<std::size_t>(next)] == relative(key)) ++next;
      span.count = next - span.entry;
      visit(span);
    }
  }

  CheckedPairPositions at_;
  std::vector<double> offsets_;
  // A range of entries:
  std::int64_t lowest_ = 0;  // relative position of the first
  PositionRuns queries_, keys_, joined_keys_;
  std::vector<std::int64_t> places_;  // of all keys, counted from the first of their row, if some are not in runs
  // Entries of differences:
  OffsetHash entry_of_;
};

}  // namespace posbias::detail
