// SPDX-License-Identifier: MIT
/// \file
/// Which entries (see tile/offset_index.hpp) a block of queries reads, as few bands of neighbouring ones: what the
/// queries are multiplied by.
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// Keys [key, key + count) of a query read entries [entry, entry + count), or all of them `entry`.
struct OffsetRun {
  Index query, key, entry, count;
  bool same = false;

  /// How many entries it reads.
  [[nodiscard]] Index width() const { return same ? 1 : count; }
};

/// Neighbouring entries, and the runs that read them; entries of runs are counted from `begin`.
struct OffsetBand {
  Index begin, end;
  std::vector<OffsetRun> runs;

  [[nodiscard]] Index width() const { return end - begin; }
};

/// The entries that runs read, ascending, without those in wide gaps between.
inline std::vector<OffsetBand> bands_of(std::span<const OffsetRun> runs) {
  constexpr Index max_entries = 1024, wide_gap = 64;
  std::vector<std::pair<Index, Index>> ranges;  // of entries: begin, end
  for (const OffsetRun& run : runs) ranges.emplace_back(run.entry, run.entry + run.width());
  std::sort(ranges.begin(), ranges.end());
  std::vector<OffsetBand> bands;
  for (auto [begin, end] : ranges) {
    if (!bands.empty() && begin <= bands.back().end + wide_gap) {
      const Index room = bands.back().begin + max_entries;
      bands.back().end = (std::max)(bands.back().end, (std::min)(end, room));
      begin = bands.back().end;
    }
    for (; begin < end; begin += max_entries) bands.push_back({begin, (std::min)(begin + max_entries, end), {}});
  }
  for (const OffsetRun& run : runs) {
    auto band = std::upper_bound(bands.begin(), bands.end(), run.entry,
                                 [](Index entry, const OffsetBand& s) { return entry < s.end; });
    for (Index done = 0; done < run.count; ++band) {
      const Index entry = run.entry + (run.same ? 0 : done);
      const Index count = run.same ? run.count : (std::min)(run.count - done, band->end - entry);
      band->runs.push_back({run.query, run.key + done, entry - band->begin, count, run.same});
      done += count;
    }
  }
  return bands;
}

}  // namespace posbias::detail
