// SPDX-License-Identifier: MIT
/// \file
/// Whether two strided tensors share an element, exactly: q, k and v narrowed from one buffer do not.
///
/// Two elements share a byte if their addresses differ by less than their size. Addresses are sums of strides times
/// bounded indices, so the question is whether a bounded linear equation has an integer solution. Strides of tensors are
/// nearly always multiples of each other, which leaves one candidate per dimension or none.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// The memory of a strided tensor.
struct MemoryRegion {
  static constexpr std::size_t max_rank = 20;

  struct Dimension {
    std::int64_t stride, last;  // in bytes; the highest index
  };

  /// Of no elements.
  MemoryRegion() = default;

  MemoryRegion(const void* address, std::size_t size_of_element)
      : first(reinterpret_cast<std::uintptr_t>(address)),
        element(static_cast<std::int64_t>(size_of_element)),
        empty(false) {}

  /// Adds a dimension, stride in elements.
  [[gnu::cold]] void add(Index size, Index stride) {
    if (size == 0) empty = true;
    if (size <= 1) return;
    const std::int64_t bytes = stride * element, last = size - 1;
    if (bytes < 0) first -= static_cast<std::uintptr_t>(-bytes * last);
    const Dimension added{bytes < 0 ? -bytes : bytes, last};
    std::size_t place = rank++;
    for (; place > 0 && dimensions[place - 1].stride > added.stride; --place) dimensions[place] = dimensions[place - 1];
    dimensions[place] = added;
  }

  [[nodiscard]] std::span<const Dimension> strides() const { return {dimensions.data(), rank}; }

  /// From the first byte to the last.
  [[nodiscard]] std::int64_t extent() const {
    std::int64_t bytes = element;
    for (const Dimension& d : strides()) bytes += d.stride * d.last;
    return bytes;
  }

  std::uintptr_t first = 0;  // of the lowest element
  std::int64_t element = 1;  // bytes
  bool empty = true;
  std::size_t rank = 0;
  std::array<Dimension, max_rank> dimensions{};  // the smallest stride first
};

/// The sum over k of coefficient[k] · x[k] with 0 <= x[k] <= bound[k].
class BoundedSum {
 public:
  [[gnu::cold]] void add(std::int64_t coefficient, std::int64_t bound) {
    if (coefficient == 0 || bound == 0) return;
    std::size_t place = count_;
    while (place > 0 && terms_[place - 1].coefficient < coefficient) --place;
    if (place > 0 && terms_[place - 1].coefficient == coefficient) {
      terms_[place - 1].bound += bound;
      return;
    }
    for (std::size_t k = count_++; k > place; --k) terms_[k] = terms_[k - 1];
    terms_[place] = {coefficient, bound, 0, 0};
  }

  /// Whether some x make it `target`. Strides that divide nothing may have more candidates than are tried: then true.
  [[nodiscard]] [[gnu::cold]] bool can_be(std::int64_t target) {
    std::int64_t divisor = 0, most = 0;
    for (std::size_t k = count_; k-- > 0;) {
      Term& term = terms_[k];
      term.rest = most;
      most += term.coefficient * term.bound;
      divisor = std::gcd(divisor, term.coefficient);
      term.divisor = divisor;
    }
    if (target < 0 || target > most) return false;
    tries_ = 1 << 20;
    return can_be(0, target);
  }

 private:
  struct Term {
    std::int64_t coefficient, bound;
    std::int64_t rest;     // the most that the terms behind it can be
    std::int64_t divisor;  // of its coefficient and of those behind it
  };

  [[gnu::cold]] bool can_be(std::size_t k, std::int64_t target) {
    if (target == 0 || --tries_ < 0) return true;
    if (k == count_) return false;
    const Term& term = terms_[k];
    if (target % term.divisor != 0) return false;
    const std::int64_t highest = (std::min)(term.bound, target / term.coefficient);
    const std::int64_t left = target - term.rest;  // that at least must come from this term
    const std::int64_t lowest = left > 0 ? (left + term.coefficient - 1) / term.coefficient : 0;
    for (std::int64_t x = highest; x >= lowest; --x)
      if (can_be(k + 1, target - x * term.coefficient)) return true;
    return false;
  }

  std::array<Term, 2 * MemoryRegion::max_rank + 1> terms_{};  // the largest coefficient first
  std::size_t count_ = 0;
  int tries_ = 0;
};

/// Whether two tensors share an element, in whole or in part.
[[gnu::cold]] inline bool share_element(const MemoryRegion& a, const MemoryRegion& b) {
  if (a.empty || b.empty) return false;
  const auto apart = static_cast<std::int64_t>(b.first - a.first);  // negative, if b begins first
  const std::int64_t b_extent = b.extent();
  if (apart >= a.extent() || -apart >= b_extent) return false;
  // a's strides·indices + byte in a's element = apart + b's strides·indices + byte in b's element; b's count downwards.
  BoundedSum sum;
  for (const auto& d : a.strides()) sum.add(d.stride, d.last);
  for (const auto& d : b.strides()) sum.add(d.stride, d.last);
  sum.add(1, a.element - 1 + b.element - 1);
  return sum.can_be(apart + b_extent - 1);
}

/// Whether two elements of a tensor share memory, so that it cannot be written to.
[[gnu::cold]] inline bool overlaps_itself(const MemoryRegion& region) {
  if (region.empty) return false;
  std::int64_t extent = region.element;
  bool nested = true;  // each stride steps over all of the smaller ones
  for (const auto& d : region.strides()) {
    nested = nested && d.stride >= extent;
    extent += d.stride * d.last;
  }
  if (nested) return false;
  // Two indices that differ in dimension i, and in none before it: by 1 or more there, by anything in those behind.
  for (std::size_t i = 0; i < region.rank; ++i) {
    const auto& differs = region.dimensions[i];
    BoundedSum sum;
    std::int64_t target = region.element - 1 - differs.stride;
    sum.add(1, 2 * (region.element - 1));
    sum.add(differs.stride, differs.last - 1);
    for (std::size_t j = i + 1; j < region.rank; ++j) {
      const auto& other = region.dimensions[j];
      sum.add(other.stride, 2 * other.last);
      target += other.stride * other.last;
    }
    if (sum.can_be(target)) return true;
  }
  return false;
}

}  // namespace posbias::detail
