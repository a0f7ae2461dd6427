// SPDX-License-Identifier: MIT
/// \file
/// Dropout whose every choice can be made again.
#pragma once

#include <cstdint>

#include "posbias/core/index.hpp"
#include "posbias/core/parameters.hpp"

namespace posbias::detail {

/// Which weights are dropped: a function of the seed and of where a weight stands, so backward drops the same ones.
class Dropout {
 public:
  /// With seed 0 nothing is dropped.
  Dropout(double probability, std::uint64_t seed)
      : active_(seed != 0 && probability > 0),
        state_(Random(seed).bits()),
        limit_(static_cast<std::uint64_t>(probability * 0x1p64)),
        kept_(1 / (1 - probability)) {}

  [[nodiscard]] bool active() const { return active_; }

  /// What weight number `place` is multiplied by: 0, or what keeps the expectation.
  [[nodiscard]] double operator()(Index place) const {
    constexpr std::uint64_t golden = 0x9e3779b97f4a7c15U;
    return Random(state_ + static_cast<std::uint64_t>(place) * golden).bits() < limit_ ? 0 : kept_;
  }

 private:
  bool active_;
  std::uint64_t state_, limit_;
  double kept_;
};

}  // namespace posbias::detail
