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
#include "posbias/tile/offset_index.hpp"

namespace posbias::detail {

/// Neighbouring entries, and the spans that read them; entries of spans are counted from `begin`.
struct OffsetBand {
  Index begin, end;
  std::vector<OffsetSpan> spans;

  [[nodiscard]] Index width() const { return end - begin; }
};

/// The entries that spans read, ascending, without those in wide gaps between.
inline std::vector<OffsetBand> bands_of(std::span<const OffsetSpan> spans) {
  constexpr Index max_entries = 1024, wide_gap = 64;
  std::vector<std::pair<Index, Index>> ranges;  // of entries: begin, end
  for (const OffsetSpan& span : spans) ranges.emplace_back(span.entry, span.entry + span.width());
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
  for (const OffsetSpan& span : spans) {
    auto band = std::upper_bound(bands.begin(), bands.end(), span.entry,
                                 [](Index entry, const OffsetBand& s) { return entry < s.end; });
    for (Index done = 0; done < span.count; ++band) {
      const Index entry = span.entry + (span.same ? 0 : done);
      const Index count = span.same ? span.count : (std::min)(span.count - done, band->end - entry);
      band->spans.push_back({span.query, span.key + done, entry - band->begin, count, span.same});
      done += count;
    }
  }
  return bands;
}

}  // namespace posbias::detail
