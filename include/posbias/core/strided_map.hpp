// SPDX-License-Identifier: MIT
/// \file
/// A tensor in memory that somebody else owns, with any strides: like `Eigen::TensorMap`, which has none.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <type_traits>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"

namespace posbias {

/// Refers to elements of type `S` (const if they are only read), `Rank` dimensions of them. Strides count elements: 0
/// repeats an element, which is then only read; a negative one runs backwards. A value of a few words; the memory must
/// outlive it.
template <class S, int Rank>
class StridedMap {
  static_assert(Rank >= 0, "posbias: a tensor has no negative rank");

 public:
  using Scalar = std::remove_const_t<S>;                                 ///< the type of an element
  using Dimensions = std::array<Index, static_cast<std::size_t>(Rank)>;  ///< a number per dimension

  /// Element (i, j, ...) is data[i·strides[0] + j·strides[1] + ...]. Throws ShapeError if a dimension is negative.
  StridedMap(S* data, const Dimensions& dimensions, const Dimensions& strides)
      : data_(data), dimensions_(dimensions), strides_(strides) {
    for (const Index size : dimensions)
      if (size < 0)
        detail::fail<ShapeError>("posbias::StridedMap: dimensions are ", dimensions, "; none may be negative");
  }

  /// A map to read the same elements.
  operator StridedMap<const S, Rank>() const requires(!std::is_const_v<S>) { return {data_, dimensions_, strides_}; }

  [[nodiscard]] S* data() const { return data_; }                             ///< element (0, 0, ...)
  [[nodiscard]] const Dimensions& dimensions() const { return dimensions_; }  ///< sizes
  [[nodiscard]] const Dimensions& strides() const { return strides_; }        ///< in elements
  [[nodiscard]] Index dimension(Index i) const { return dimensions_[static_cast<std::size_t>(i)]; }  ///< a size
  [[nodiscard]] Index stride(Index i) const { return strides_[static_cast<std::size_t>(i)]; }        ///< in elements

  /// How many elements it has.
  [[nodiscard]] Index size() const {
    Index product = 1;
    for (const Index size : dimensions_) product *= size;
    return product;
  }

  /// An element. Indices are not checked, as in Eigen with NDEBUG.
  template <std::convertible_to<Index>... Indices>
  requires(sizeof...(Indices) == static_cast<std::size_t>(Rank)) [[nodiscard]] S& operator()(Indices... indices) const {
    Index offset = 0;
    std::size_t d = 0;
    ((offset += static_cast<Index>(indices) * strides_[d++]), ...);
    return data_[offset];
  }

 private:
  S* data_;
  Dimensions dimensions_, strides_;
};

/// Maps memory: `strided(pointer, std::array{B, L, NH, H}, std::array{sB, sL, sNH, 1})`, strides in elements. Throws
/// ShapeError if a dimension is negative.
template <class S, std::integral Size, std::integral Stride, std::size_t Rank>
[[nodiscard]] StridedMap<S, static_cast<int>(Rank)> strided(S* data, const std::array<Size, Rank>& dimensions,
                                                            const std::array<Stride, Rank>& strides) {
  std::array<Index, Rank> sizes{}, steps{};
  for (std::size_t d = 0; d < Rank; ++d) {
    sizes[d] = static_cast<Index>(dimensions[d]);
    steps[d] = static_cast<Index>(strides[d]);
  }
  return {data, sizes, steps};
}

}  // namespace posbias
