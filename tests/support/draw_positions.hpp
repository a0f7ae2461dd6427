// SPDX-License-Identifier: MIT
/// \file
/// Random positions of every kind that the library tells apart.
#pragma once

#include <cstdint>

#include "posbias/core/positions.hpp"
#include "support/numbers.hpp"

namespace posbias_test {

/// A whole number in [0, count).
inline posbias::Index draw(Numbers& numbers, posbias::Index count) {
  return static_cast<posbias::Index>(numbers.below(static_cast<std::uint64_t>(count)));
}

/// A range, few or many ids, shared or a row per batch entry, some rows consecutive, reals.
inline posbias::Positions draw_positions(Numbers& numbers, posbias::Index batches, posbias::Index tokens, bool reals) {
  using posbias::Index;
  const Index count = draw(numbers, tokens + 1);
  const Index spread = draw(numbers, 2) == 0 ? 4 : 100'000;
  const auto id = [&](Index i, bool consecutive) { return consecutive ? 7 + i : draw(numbers, spread); };
  switch (draw(numbers, 4)) {
    case 0:
      return posbias::Positions::range(draw(numbers, 50) - 25 + (Index{1} << 40) * draw(numbers, 2));
    case 1: {
      Eigen::Tensor<std::int64_t, 1> ids(count);
      const bool consecutive = draw(numbers, 2) == 0;
      for (Index i = 0; i < count; ++i) ids(i) = id(i, consecutive);
      return ids;
    }
    case 2: {
      Eigen::Tensor<std::int64_t, 2> ids(batches, count);
      for (Index n = 0; n < batches; ++n) {
        const bool consecutive = draw(numbers, 2) == 0;
        for (Index i = 0; i < count; ++i) ids(n, i) = id(i, consecutive);
      }
      return ids;
    }
    default: {
      Eigen::Tensor<double, 2> ids(batches, count);
      const Index quarters = reals ? 1 + draw(numbers, 3) : 0;
      for (Index n = 0; n < batches; ++n)
        for (Index i = 0; i < count; ++i)
          ids(n, i) = static_cast<double>(id(i, false)) + 0.25 * static_cast<double>(quarters * (1 + i % 2));
      return ids;
    }
  }
}

}  // namespace posbias_test
