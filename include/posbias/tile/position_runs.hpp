// SPDX-License-Identifier: MIT
/// \file
/// Integer positions as runs of consecutive ones.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "posbias/core/checked_positions.hpp"

namespace posbias::detail {

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
  explicit PositionRuns(const CheckedPositions& at) : shared_(at.shared()) {
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

}  // namespace posbias::detail
