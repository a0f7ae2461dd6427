// SPDX-License-Identifier: MIT
/// \file
/// A stand-in for std::mdspan, which C++20 lacks.
#pragma once

#include <array>
#include <cstddef>

namespace posbias_test {

/// The members of std::mdspan with layout_stride that posbias reads.
template <class S, std::size_t Rank>
struct Mdspan {
  S* first;
  std::array<std::size_t, Rank> sizes, steps;
  static constexpr std::size_t rank() { return Rank; }
  [[nodiscard]] S* data_handle() const { return first; }
  [[nodiscard]] std::size_t extent(std::size_t r) const { return sizes[r]; }
  [[nodiscard]] std::size_t stride(std::size_t r) const { return steps[r]; }
};

}  // namespace posbias_test
