// SPDX-License-Identifier: MIT
/// \file
/// Which columns (see tile/offset_index.hpp) a block of queries reads, as few strips of neighbouring ones: what the
/// queries are multiplied by.
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// Keys [key, key + count) of a query read columns [column, column + count), or all of them `column`.
struct ColumnPiece {
  Index query, key, column, count;
  bool same = false;

  /// How many columns it reads.
  [[nodiscard]] Index width() const { return same ? 1 : count; }
};

/// Neighbouring columns, and the pieces that read them; columns of pieces are counted from `begin`.
struct ColumnStrip {
  Index begin, end;
  std::vector<ColumnPiece> pieces;

  [[nodiscard]] Index width() const { return end - begin; }
};

/// The columns that pieces read, ascending, without those in wide gaps between.
inline std::vector<ColumnStrip> strips_of(std::span<const ColumnPiece> pieces) {
  constexpr Index most_columns = 1024, wide_gap = 64;
  std::vector<std::pair<Index, Index>> ranges;  // of columns: begin, end
  for (const ColumnPiece& piece : pieces) ranges.emplace_back(piece.column, piece.column + piece.width());
  std::sort(ranges.begin(), ranges.end());
  std::vector<ColumnStrip> strips;
  for (auto [begin, end] : ranges) {
    if (!strips.empty() && begin <= strips.back().end + wide_gap) {
      const Index room = strips.back().begin + most_columns;
      strips.back().end = (std::max)(strips.back().end, (std::min)(end, room));
      begin = strips.back().end;
    }
    for (; begin < end; begin += most_columns) strips.push_back({begin, (std::min)(begin + most_columns, end), {}});
  }
  for (const ColumnPiece& piece : pieces) {
    auto strip = std::upper_bound(strips.begin(), strips.end(), piece.column,
                                  [](Index column, const ColumnStrip& s) { return column < s.end; });
    for (Index done = 0; done < piece.count; ++strip) {
      const Index column = piece.column + (piece.same ? 0 : done);
      const Index count = piece.same ? piece.count : (std::min)(piece.count - done, strip->end - column);
      strip->pieces.push_back({piece.query, piece.key + done, column - strip->begin, count, piece.same});
      done += count;
    }
  }
  return strips;
}

}  // namespace posbias::detail
