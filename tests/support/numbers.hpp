// SPDX-License-Identifier: MIT
/// \file
/// Numbers for tests: the same on every platform and with every version of Eigen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace posbias_test {

/// A 64-bit linear congruential generator (Knuth's MMIX constants); only its upper bits are handed out.
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : state_(seed) {}

  std::uint32_t bits() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return static_cast<std::uint32_t>(state_ >> 32);
  }

  /// In [0, bound).
  std::size_t below(std::uint64_t bound) { return static_cast<std::size_t>(bits() % bound); }

  /// In [-1, 1), a multiple of 2^-15: exact in float, and so are sums and products of a few.
  double value() { return static_cast<double>(bits() >> 16) * 0x1p-15 - 1; }

 private:
  std::uint64_t state_;
};

/// `count` numbers in [-1, 1), exact in float.
template <class S>
std::vector<S> numbers(std::ptrdiff_t count, std::uint64_t seed) {
  std::vector<S> values(static_cast<std::size_t>(count));
  Numbers from(seed);
  for (S& value : values) value = static_cast<S>(from.value());
  return values;
}

}  // namespace posbias_test
