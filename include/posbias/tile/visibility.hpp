// SPDX-License-Identifier: MIT
/// \file
/// Which keys a query sees when attention is causal: those at its position or before, whatever their order in memory.
///
/// Tokens without a position see all and are seen by all.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "posbias/core/checked_positions.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/tile/logit_tile.hpp"

namespace posbias::detail {

/// Keys [begin, end).
struct KeyRange {
  Index begin, end;

  [[nodiscard]] bool empty() const { return begin >= end; }
};

/// The positions of all queries and keys, as integers of the same order: reals by their bits. O(L1+L2) memory.
class CausalVisibility {
 public:
  CausalVisibility(const CheckedPairPositions& at, Index queries, Index keys)
      : queries_(at.q, queries, at.q.integral() && at.k.integral(), (std::numeric_limits<std::int64_t>::max)()),
        keys_(at.k, keys, at.q.integral() && at.k.integral(), (std::numeric_limits<std::int64_t>::min)()) {}

  /// The keys of a tile from the first to the last that any of its queries sees, counted from `tile.key`.
  template <class S>
  [[nodiscard]] KeyRange visible(const LogitTile<S>& tile) const {
    const std::int64_t* query = queries_.row(tile.batch) + tile.query;
    const std::int64_t* key = keys_.row(tile.batch) + tile.key;
    const std::int64_t latest = *std::max_element(query, query + tile.queries);
    KeyRange range{0, tile.keys};
    while (!range.empty() && key[range.end - 1] > latest) --range.end;
    while (!range.empty() && key[range.begin] > latest) ++range.begin;
    return range;
  }

  /// Makes the logits of keys that a query does not see -inf; returns whether there are any.
  template <class S>
  bool apply(const LogitTile<S>& tile) const {
    const std::int64_t* query = queries_.row(tile.batch) + tile.query;
    const std::int64_t* key = keys_.row(tile.batch) + tile.key;
    const std::int64_t earliest = *std::min_element(query, query + tile.queries);
    const Index first = std::find_if(key, key + tile.keys, [&](std::int64_t k) { return k > earliest; }) - key;
    for (Index h = 0; h < tile.heads; ++h)
      for (Index i = 0; i < tile.queries; ++i) {
        S* logits = tile.row(h, i);
        for (Index j = first; j < tile.keys; ++j)
          if (key[j] > query[i]) logits[j * tile.key_stride] = minus_infinity<S>();
      }
    return first < tile.keys;
  }

 private:
  struct Side {
    Index tokens;
    bool shared;
    std::vector<std::int64_t> order;

    Side(const CheckedPositions& at, Index count, bool integral, std::int64_t without)
        : tokens(count), shared(at.shared()), order(static_cast<std::size_t>(at.rows() * count), without) {
      for (Index n = 0; n < at.rows(); ++n)
        for (Index i = 0; i < at.count(); ++i)
          order[static_cast<std::size_t>(n * count + at.first() + i)] =
              integral ? at.integer(n, i) : ascending(at.real(n, i));
    }

    [[nodiscard]] const std::int64_t* row(Index n) const { return order.data() + (shared ? 0 : n * tokens); }
  };

  /// The bits of positive reals ascend with them, those of negative ones descend; both zeros become 0.
  static std::int64_t ascending(double position) {
    const auto bits = std::bit_cast<std::int64_t>(position);
    return bits >= 0 ? bits : (std::numeric_limits<std::int64_t>::min)() - bits;
  }

  Side queries_, keys_;
};

}  // namespace posbias::detail
