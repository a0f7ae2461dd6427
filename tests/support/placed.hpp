// SPDX-License-Identifier: MIT
/// \file
/// Tensors anywhere in memory, of any storage type: strides are chosen at run time, so that all of it is one type.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "posbias/core/strided_map.hpp"

namespace posbias_test {

using posbias::Index;

/// Sizes (B, *) and those behind them.
inline std::vector<Index> joined(std::vector<Index> sizes, std::initializer_list<Index> trailing) {
  sizes.insert(sizes.end(), trailing);
  return sizes;
}

/// Where a tensor lies in a larger one.
struct Placement {
  /// A dimension: `before` of the larger one's indices, then one of the tensor's in every |step|, then `after`. A negative
  /// step runs backwards, 0 repeats one index.
  struct Dimension {
    Index size = 0, before = 0, after = 0, step = 1;
    [[nodiscard]] Index whole() const { return before + (step == 0 ? 1 : size * (step < 0 ? -step : step)) + after; }
    [[nodiscard]] Index first() const { return before - (step < 0 && size > 0 ? step * (size - 1) : 0); }
    friend bool operator==(const Dimension&, const Dimension&) = default;
  };
  std::vector<Dimension> dimensions;
  std::vector<std::size_t> order;  ///< of the larger tensor's dimensions in memory, the outermost first

  /// Whole and row-major.
  explicit Placement(const std::vector<Index>& sizes) : order(sizes.size()) {
    for (const Index size : sizes) dimensions.push_back({size});
    std::iota(order.begin(), order.end(), std::size_t{0});
  }

  /// How many elements the larger tensor has.
  [[nodiscard]] Index count() const {
    Index product = 1;
    for (const Dimension& dimension : dimensions) product *= dimension.whole();
    return product;
  }

  friend bool operator==(const Placement&, const Placement&) = default;
};

/// Memory that holds NaN wherever no tensor was placed, and must stay so.
template <class E>
class Memory {
 public:
  explicit Memory(Index count) : elements_(static_cast<std::size_t>(count) + 1, nothing()), taken_(elements_.size()) {}

  [[nodiscard]] E* data() { return elements_.data(); }
  void take(const E& element) { taken_[static_cast<std::size_t>(&element - elements_.data())] = 1; }

  /// Whether only elements of tensors were written to.
  [[nodiscard]] bool rest_is_untouched() const {
    const E untouched = nothing();
    for (std::size_t i = 0; i < elements_.size(); ++i)
      if (taken_[i] == 0 && std::memcmp(&elements_[i], &untouched, sizeof(E)) != 0) return false;
    return true;
  }

 private:
  static E nothing() { return std::numeric_limits<E>::quiet_NaN(); }

  std::vector<E> elements_;
  std::vector<char> taken_;
};

/// A tensor of elements `E` at a place; copies are of the same elements.
template <class E, int Rank>
class Placed {
 public:
  /// `values` in row-major order, rounded to E; in `memory`, which is as large as the place says, or in new memory.
  template <class S>
  Placed(const std::vector<S>& values, const Placement& placement, std::shared_ptr<Memory<E>> memory = nullptr)
      : memory_(memory != nullptr ? std::move(memory) : std::make_shared<Memory<E>>(placement.count())),
        map_(map_at(placement)) {
    for_each([&, i = std::size_t{0}](E& element) mutable {
      element = static_cast<E>(values[i++]);
      memory_->take(element);
    });
  }

  [[nodiscard]] const auto& tensor() { return map_; }
  [[nodiscard]] posbias::StridedMap<const E, Rank> tensor() const { return map_; }
  [[nodiscard]] const std::shared_ptr<Memory<E>>& memory() const { return memory_; }

  /// In row-major order.
  template <class S>
  [[nodiscard]] std::vector<S> values() const {
    std::vector<S> result;
    for_each([&](const E& element) { result.push_back(static_cast<S>(element)); });
    return result;
  }

 private:
  using Map = posbias::StridedMap<E, Rank>;

  [[nodiscard]] Map map_at(const Placement& placement) const {
    typename Map::Dimensions sizes{}, strides{};
    Index stride = 1, first = 0;
    for (std::size_t i = placement.order.size(); i-- > 0;) {
      const std::size_t d = placement.order[i];
      const Placement::Dimension& dimension = placement.dimensions[d];
      sizes[d] = dimension.size;
      strides[d] = stride * dimension.step;
      first += stride * dimension.first();
      stride *= dimension.whole();
    }
    return {memory_->data() + first, sizes, strides};
  }

  template <class Visit>
  void for_each(Visit visit) const {
    std::array<Index, static_cast<std::size_t>(Rank)> index{};
    Index offset = 0;
    for (Index count = map_.size(); count > 0; --count) {
      visit(map_.data()[offset]);
      for (std::size_t d = index.size(); d-- > 0;) {
        offset += map_.strides()[d];
        if (++index[d] < map_.dimensions()[d]) break;
        offset -= index[d] * map_.strides()[d];
        index[d] = 0;
      }
    }
  }

  std::shared_ptr<Memory<E>> memory_;
  Map map_;
};

}  // namespace posbias_test
