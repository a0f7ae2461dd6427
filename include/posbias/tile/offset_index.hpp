// SPDX-License-Identifier: MIT
/// \file
/// The distinct relative positions of an attention, as numbered columns, and which columns a row of logits reads.
///
/// Over consecutive positions a relative bias is a Toeplitz matrix: L1+L2-1 columns, not L1·L2 values.
///
///     b( 0)  b( 1)  b( 2)  b( 3)         columns   b(-2) b(-1) b(0) b(1) b(2) b(3)
///     b(-1)  b( 0)  b( 1)  b( 2)    <-     row 0               [ 0    1    2    3 ]
///     b(-2)  b(-1)  b( 0)  b( 1)           row 2   [-2   -1     0    1 ]
///
/// So a row is a slice of the columns. Integers within a narrow range (packed rows, caches with small holes) have a
/// column for every integer in it, and keys are cut into runs of consecutive ones, a slice each. Other integers (wide
/// gaps) and reals have a column for every difference that occurs. Where those are more than 4·(L1+L2), which takes
/// reals or scattered integers that hardly repeat, there are no columns, and rows are read difference by difference.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "posbias/core/token_locations.hpp"
#include "posbias/tile/diagonals.hpp"
#include "posbias/tile/logit_tile.hpp"

namespace posbias::detail {

/// Finds the column of a relative position: an open-addressing hash table of as many entries as were promised.
class ColumnOf {
 public:
  ColumnOf() = default;
  explicit ColumnOf(std::size_t most)
      : entries_(std::bit_ceil(2 * most + 2), Entry{0, none}), shift_(64 - std::countr_zero(entries_.size())) {}

  /// True if it was not there.
  bool insert(double relative) {
    Entry& entry = entries_[place(relative)];
    if (entry.column != none) return false;
    entry = {relative, 0};
    return true;
  }

  /// Numbers all relative positions in ascending order, and returns them.
  std::vector<double> number() {
    std::vector<double> relative;
    for (const Entry& entry : entries_)
      if (entry.column != none) relative.push_back(entry.relative);
    std::sort(relative.data(), relative.data() + relative.size());
    for (std::size_t c = 0; c < relative.size(); ++c) entries_[place(relative[c])].column = static_cast<Index>(c);
    return relative;
  }

  /// Only for a relative position that is there.
  [[nodiscard]] Index operator()(double relative) const { return entries_[place(relative)].column; }

 private:
  static constexpr Index none = -1;
  struct Entry {
    double relative;
    Index column;
  };

  [[nodiscard]] std::size_t place(double relative) const {
    // Two products, so that no regular differences meet: the high bits of each depend on all bits.
    constexpr std::uint64_t golden = 0x9e3779b97f4a7c15U;
    const std::uint64_t once = std::bit_cast<std::uint64_t>(relative) * golden;
    auto at = static_cast<std::size_t>((once ^ once >> 32) * golden >> shift_);
    while (entries_[at].column != none && entries_[at].relative != relative) at = (at + 1) & (entries_.size() - 1);
    return at;
  }

  std::vector<Entry> entries_;
  int shift_ = 0;
};

/// Tokens [begin, begin + count) of a row of positions, which are first, first + 1, ... if consecutive.
struct PositionRun {
  Index begin, count;
  std::int64_t first;
  bool consecutive = true;
};

/// Rows of integer positions as runs.
class PositionRuns {
 public:
  PositionRuns() = default;
  explicit PositionRuns(const TokenLocations& at) : shared_(at.shared()) {
    for (Index n = 0; n < at.rows(); ++n) {
      first_.push_back(runs_.size());
      const Index step = at.consecutive() ? at.count() : 1;
      for (Index i = 0; i < at.count(); i += step) {
        const std::int64_t position = at.integer(n, i);
        const bool continues = i > 0 && position == runs_.back().first + runs_.back().count;
        if (continues)
          ++runs_.back().count;
        else
          runs_.push_back({at.first() + i, step, position});
      }
    }
    first_.push_back(runs_.size());
  }

  [[nodiscard]] bool empty() const { return runs_.empty(); }
  [[nodiscard]] bool single() const { return runs_.size() == 1; }

  /// The same with neighbours in place of runs that are shorter than `shortest`: each as long as can be, of tokens whose
  /// positions are not consecutive.
  [[nodiscard]] PositionRuns joined(Index shortest) const {
    PositionRuns result;
    result.shared_ = shared_;
    for (std::size_t row = 0; row + 1 < first_.size(); ++row) {
      result.first_.push_back(result.runs_.size());
      for (std::size_t r = first_[row]; r < first_[row + 1]; ++r) {
        const bool short_one = runs_[r].count < shortest;
        const bool joins = short_one && r > first_[row] && !result.runs_.back().consecutive;
        if (joins) {
          result.runs_.back().count += runs_[r].count;
        } else {
          result.runs_.push_back(runs_[r]);
          result.runs_.back().consecutive = !short_one;
        }
      }
    }
    result.first_.push_back(result.runs_.size());
    return result;
  }

  [[nodiscard]] bool all_consecutive() const {
    for (const PositionRun& run : runs_)
      if (!run.consecutive) return false;
    return true;
  }

  /// Calls `visit(PositionRun)` for what lies within tokens [begin, end) of a batch entry.
  template <class Visit>
  void for_each(Index batch, Index begin, Index end, const Visit& visit) const {
    const std::size_t row = shared_ ? 0 : static_cast<std::size_t>(batch);
    const PositionRun* const last = runs_.data() + first_[row + 1];
    const PositionRun* run =
        std::upper_bound(runs_.data() + first_[row], last, begin,
                         [](Index token, const PositionRun& r) { return token < r.begin + r.count; });
    for (; run != last && run->begin < end; ++run) {
      const Index from = (std::max)(run->begin, begin);
      visit(PositionRun{from, (std::min)(run->begin + run->count, end) - from, run->first + (from - run->begin),
                        run->consecutive});
    }
  }

 private:
  bool shared_ = true;
  std::vector<PositionRun> runs_;
  std::vector<std::size_t> first_;  // run of each row, and the end
};

/// Keys [key, key + count) of a query read columns [column, column + count); query and key are counted within a tile.
struct ColumnSlice {
  Index query, key, column, count;
};

/// The columns of an attention. Owns all it knows.
class RelativeColumns {
 public:
  explicit RelativeColumns(PairLocations at) : at_(std::move(at)) {
    if (at_.q.count() == 0 || at_.k.count() == 0 || at_.q.rows() == 0 || at_.k.rows() == 0) return;
    if (at_.q.integral() && at_.k.integral()) number_range();
    if (!numbered()) number_differences();
  }

  /// False where there are no columns: read rows with `for_each_row`.
  [[nodiscard]] bool numbered() const { return !relative_.empty(); }

  /// Whether every query and every key has a position.
  [[nodiscard]] bool covers_all() const { return at_.q.first() == 0 && at_.k.first() == 0; }

  /// Key minus query position of every column, ascending.
  [[nodiscard]] std::span<const double> relative() const { return {relative_.data(), relative_.size()}; }

  /// Calls `visit(ColumnSlice)` for the slices of a tile, query by query and key by key, if numbered. Queries and keys
  /// without a position have none.
  template <class S, class Visit>
  void for_each_slice(const LogitTile<S>& tile, const Visit& visit) const {
    const Index first_key = (std::max)(tile.key, at_.k.first());
    for (Index i = first_query(tile); i < tile.queries; ++i) {
      if (keys_.empty()) {
        slices_of_differences(tile, i, first_key, visit);
      } else {
        const std::int64_t origin = at_.q.integer(tile.batch, tile.query + i - at_.q.first()) + lowest_;
        keys_.for_each(tile.batch, tile.key, tile.key + tile.keys, [&](const PositionRun& run) {
          visit(ColumnSlice{i, run.begin - tile.key, static_cast<Index>(run.first - origin), run.count});
        });
      }
    }
  }

  /// Whether the queries and keys of a tile come in runs.
  [[nodiscard]] bool in_runs() const { return !keys_.empty(); }
  /// Whether there is one run of each. Then along a diagonal keys ascend with queries, whichever are walked first.
  [[nodiscard]] bool in_single_runs() const { return queries_.single() && keys_.single(); }

  /// The runs of keys of a tile, if in runs, with the columns that the first of all queries reads. Keys that are (nearly)
  /// on their own are in one piece.
  template <class S>
  [[nodiscard]] std::vector<ToeplitzPiece> pieces(const LogitTile<S>& tile) const {
    std::vector<ToeplitzPiece> result;
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

  /// Calls `visit(query of the tile, queries, column)` for the runs of queries of a tile. The first of a run reads columns
  /// `column` further up than the pieces say, each further one a column further down.
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

  [[nodiscard]] static Extremes extremes(const TokenLocations& at, Index row) {
    if (at.consecutive()) return {at.integer(row, 0), at.integer(row, at.count() - 1)};
    Extremes result{at.integer(row, 0), at.integer(row, 0)};
    for (Index i = 1; i < at.count(); ++i) {
      result.lowest = (std::min)(result.lowest, at.integer(row, i));
      result.highest = (std::max)(result.highest, at.integer(row, i));
    }
    return result;
  }

  [[nodiscard]] Index rows() const { return (std::max)(at_.q.rows(), at_.k.rows()); }
  [[nodiscard]] Index most_columns() const { return 4 * (at_.q.count() + at_.k.count()); }

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

  /// A column for every integer from the lowest to the highest difference, if they are not many more than the tokens.
  void number_range() {
    std::int64_t highest = 0;
    for (Index n = 0; n < rows(); ++n) {
      const Extremes q = extremes(at_.q, n);
      const Extremes k = extremes(at_.k, n);
      lowest_ = n == 0 ? k.lowest - q.highest : (std::min)(lowest_, k.lowest - q.highest);
      highest = n == 0 ? k.highest - q.lowest : (std::max)(highest, k.highest - q.lowest);
    }
    const std::uint64_t beyond_first = static_cast<std::uint64_t>(highest) - static_cast<std::uint64_t>(lowest_);
    const Index pairs = rows() * at_.q.count() * at_.k.count();
    if (beyond_first >= static_cast<std::uint64_t>((std::min)(most_columns(), pairs))) return;

    relative_.resize(static_cast<std::size_t>(beyond_first) + 1);
    for (std::size_t c = 0; c < relative_.size(); ++c)
      relative_[c] = static_cast<double>(lowest_ + static_cast<std::int64_t>(c));
    queries_ = PositionRuns(at_.q);
    keys_ = PositionRuns(at_.k);
    constexpr Index worth_a_slice = 12;
    joined_keys_ = keys_.joined(worth_a_slice);
    if (joined_keys_.all_consecutive()) return;
    for (Index n = 0; n < at_.k.rows(); ++n)
      for (Index j = 0; j < at_.k.count(); ++j) places_.push_back(at_.k.integer(n, j) - at_.k.integer(n, 0));
  }

  /// A column for every difference that occurs, if they are not many more than the tokens. A pass over all pairs,
  /// which ends early where they do not repeat.
  void number_differences() {
    const Index most = most_columns();
    ColumnOf column_of(static_cast<std::size_t>(most));
    Index columns = 0;
    for (Index n = 0; n < rows(); ++n)
      for (Index i = 0; i < at_.q.count(); ++i)
        for (Index j = 0; j < at_.k.count(); ++j)
          if (column_of.insert(difference(n, i, j)) && ++columns > most) return;
    relative_ = column_of.number();
    column_of_ = std::move(column_of);
  }

  /// Neighbouring keys often read neighbouring columns here too: half-integers, every tenth token.
  template <class S, class Visit>
  void slices_of_differences(const LogitTile<S>& tile, Index i, Index first_key, const Visit& visit) const {
    const Index query = tile.query + i - at_.q.first();
    const auto relative = [&](Index key) { return difference(tile.batch, query, key - at_.k.first()); };
    const Index end_key = tile.key + tile.keys;
    const auto columns = static_cast<Index>(relative_.size());
    for (Index key = first_key; key < end_key;) {
      ColumnSlice slice{i, key - tile.key, column_of_(relative(key)), 1};
      Index next = slice.column + 1;
      while (++key < end_key && next < columns && relative_[static_cast<std::size_t>(next)] == relative(key)) ++next;
      slice.count = next - slice.column;
      visit(slice);
    }
  }

  PairLocations at_;
  std::vector<double> relative_;
  // A range of columns:
  std::int64_t lowest_ = 0;  // relative position of the first
  PositionRuns queries_, keys_, joined_keys_;
  std::vector<std::int64_t> places_;  // of all keys, counted from the first of their row, if some are not in runs
  // Columns of differences:
  ColumnOf column_of_;
};

}  // namespace posbias::detail
