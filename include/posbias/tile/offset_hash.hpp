// SPDX-License-Identifier: MIT
/// \file
/// Finds the number of a key-minus-query offset that is any real.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// Finds the entry of a relative position: an open-addressing hash table of as many entries as were promised.
class OffsetHash {
 public:
  OffsetHash() = default;
  explicit OffsetHash(std::size_t most)
      : entries_(std::bit_ceil(2 * most + 2), Entry{0, none}), shift_(64 - std::countr_zero(entries_.size())) {}

  /// True if it was not there.
  bool insert(double relative) {
    Entry& entry = entries_[place(relative)];
    if (entry.entry != none) return false;
    entry = {relative, 0};
    return true;
  }

  /// Numbers all relative positions in ascending order, and returns them.
  std::vector<double> number() {
    std::vector<double> relative;
    for (const Entry& entry : entries_)
      if (entry.entry != none) relative.push_back(entry.relative);
    std::sort(relative.data(), relative.data() + relative.size());
    for (std::size_t c = 0; c < relative.size(); ++c) entries_[place(relative[c])].entry = static_cast<Index>(c);
    return relative;
  }

  /// Only for a relative position that is there.
  [[nodiscard]] Index operator()(double relative) const { return entries_[place(relative)].entry; }

 private:
  static constexpr Index none = -1;
  struct Entry {
    double relative;
    Index entry;
  };

  [[nodiscard]] std::size_t place(double relative) const {
    // Two products, so that no regular differences meet: the high bits of each depend on all bits.
    constexpr std::uint64_t golden = 0x9e3779b97f4a7c15U;
    const std::uint64_t once = std::bit_cast<std::uint64_t>(relative) * golden;
    auto at = static_cast<std::size_t>((once ^ once >> 32) * golden >> shift_);
    while (entries_[at].entry != none && entries_[at].relative != relative) at = (at + 1) & (entries_.size() - 1);
    return at;
  }

  std::vector<Entry> entries_;
  int shift_ = 0;
};

}  // namespace posbias::detail
