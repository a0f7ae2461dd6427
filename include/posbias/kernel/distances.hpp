// SPDX-License-Identifier: MIT
/// \file
/// The distinct distances of relative positions, their absolute values, for what is computed once for both signs.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// Relative positions at columns column, column + sign, ..., whose distances are number distance, distance + 1, ... of
/// a block; `sign` is theirs.
struct ColumnRun {
  Index distance, column, count, sign;
};

/// Some distinct distances, ascending, and where the relative positions at them are.
struct DistanceBlock {
  std::span<const double> distances;
  std::span<const ColumnRun> runs;
};

/// Calls `visit(DistanceBlock)` until every relative position was in one. They need not be sorted, and may repeat.
/// Those that ascend by equal steps come as two runs a block, one of either sign.
template <class Visit>
void for_each_distance_block(std::span<const double> relative, const Visit& visit) {
  constexpr std::size_t max_distances = 128;
  std::vector<std::pair<double, Index>> order(relative.size());  // distance, column
  for (std::size_t c = 0; c < order.size(); ++c) order[c] = {std::abs(relative[c]), static_cast<Index>(c)};
  std::sort(order.data(), order.data() + order.size());
  std::vector<double> distances;
  std::vector<ColumnRun> runs;
  std::array<std::size_t, 2> open{};  // one beyond the last run of either sign, or 0
  const auto hand_out = [&] {
    visit(DistanceBlock{{distances.data(), distances.size()}, {runs.data(), runs.size()}});
    distances.clear();
    runs.clear();
    open = {};
  };
  for (const auto& entry : order) {
    const Index column = entry.second;
    const bool is_new = distances.empty() || distances.back() != entry.first;
    if (is_new && distances.size() == max_distances) hand_out();
    if (is_new) distances.push_back(entry.first);
    const ColumnRun start{static_cast<Index>(distances.size()) - 1, column, 1,
                          relative[static_cast<std::size_t>(column)] < 0 ? -1 : 1};
    std::size_t& last = open[start.sign < 0 ? 0 : 1];
    ColumnRun* run = last > 0 ? &runs[last - 1] : nullptr;
    if (run != nullptr && run->distance + run->count == start.distance &&
        run->column + run->sign * run->count == column) {
      ++run->count;
    } else {
      runs.push_back(start);
      last = runs.size();
    }
  }
  if (!distances.empty()) hand_out();
}

}  // namespace posbias::detail
