// SPDX-License-Identifier: MIT
/// \file
/// Memory to compute in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// Values from the start of a cache line on, 0 at first: what is read there some `lanes` at a time crosses no line.
template <class Scalar>
class Workspace {
 public:
  explicit Workspace(Index size = 0) { make_room(size); }
  Workspace(Workspace&&) = default;
  Workspace& operator=(Workspace&&) = default;

  /// Makes room for so many values. What was there may be lost.
  void make_room(Index size) {
    const std::size_t needed = static_cast<std::size_t>(size) + line / sizeof(Scalar);
    if (memory_.size() >= needed) return;
    memory_ = std::vector<Scalar>(needed);
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory_.data()) % line;
    data_ = memory_.data() + (line - past) % line / sizeof(Scalar);
  }

  [[nodiscard]] Scalar* data() { return data_; }
  [[nodiscard]] const Scalar* data() const { return data_; }

 private:
  static constexpr std::size_t line = 64;

  std::vector<Scalar> memory_;
  Scalar* data_ = nullptr;  // moves with the memory
};

}  // namespace posbias::detail
