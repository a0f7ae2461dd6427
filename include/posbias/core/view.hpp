// SPDX-License-Identifier: MIT
/// \file
/// The one view that kernels take, of any tensor: any rank, any strides, any storage type.
///
/// The last dimensions of a tensor have a meaning, the leading ones (B, *) may be any number, none included:
///
///     tokens  (B, *, L, H)         x
///     heads   (B, *, L, NH, H)     q, k, v
///     logits  (B, *, NH, L1, L2)   mask
///
/// A view keeps the meaningful dimensions with their strides and numbers the leading ones 0, 1, ... in row-major
/// order whatever the layout, so that batch n is the same data in every layout and sums run in the same order.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"
#include "posbias/core/overlap.hpp"
#include "posbias/core/storage.hpp"
#include "posbias/core/tensor.hpp"

namespace posbias::detail {

/// The leading dimensions (B, *) of a tensor.
struct BatchShape {
  static constexpr std::size_t max_rank = detail::max_rank;
  std::array<Index, max_rank> sizes{};
  std::size_t rank = 0;

  BatchShape() = default;
  explicit BatchShape(std::span<const Index> shape) : rank(shape.size()) {
    if (rank > max_rank)
      fail<ShapeError>("posbias: ", rank, " leading dimensions; at most ", max_rank, " are possible");
    std::copy_n(shape.data(), rank, sizes.data());
  }

  [[nodiscard]] std::span<const Index> shape() const { return {sizes.data(), rank}; }
  [[nodiscard]] Index count() const {
    Index product = 1;
    for (Index size : shape()) product *= size;
    return product;
  }
  friend bool operator==(const BatchShape&, const BatchShape&) = default;
};

/// The sizes and strides of a tensor, in elements: `batches()` blocks of `Trailing` dimensions.
template <int Trailing>
struct StridedShape {
  BatchShape leading{};
  std::array<Index, BatchShape::max_rank> leading_strides{};
  std::array<Index, static_cast<std::size_t>(Trailing)> shape{};
  std::array<Index, static_cast<std::size_t>(Trailing)> strides{};

  [[nodiscard]] Index batches() const { return leading.count(); }

  /// The shape of the tensor.
  [[nodiscard]] BatchShape whole_shape() const {
    BatchShape result = leading;
    for (const Index size : shape) result.sizes[result.rank++] = size;
    return result;
  }

  /// Where block n begins, blocks numbered in row-major order of (B, *).
  [[nodiscard]] Index offset(Index n) const {
    Index first = 0;
    for (std::size_t d = leading.rank; d-- > 0;) {
      first += n % leading.sizes[d] * leading_strides[d];
      n /= leading.sizes[d];
    }
    return first;
  }

  /// The memory of elements of this shape.
  [[nodiscard]] [[gnu::cold]] MemoryRegion region(const void* address, Index element_size) const {
    if (address == nullptr) return {};
    MemoryRegion result(address, static_cast<std::size_t>(element_size));
    for (std::size_t d = 0; d < leading.rank; ++d) result.add(leading.sizes[d], leading_strides[d]);
    for (std::size_t d = 0; d < shape.size(); ++d) result.add(shape[d], strides[d]);
    return result;
  }
};

template <int Trailing>
bool same_shape(const StridedShape<Trailing>& a, const StridedShape<Trailing>& b) {
  return a.leading == b.leading && a.leading_strides == b.leading_strides && a.shape == b.shape &&
         a.strides == b.strides;
}

/// A tensor of `Scalar`, or stored for it (see core/storage.hpp).
template <class Scalar_, int Trailing>
struct TensorView : StridedShape<Trailing> {
  using Scalar = Scalar_;
  Elements<Scalar> data{};

  TensorView() = default;
  TensorView(Elements<Scalar> elements, const StridedShape<Trailing>& sizes)
      : StridedShape<Trailing>(sizes), data(elements) {}

  /// A view to write through serves where one to read is wanted.
  operator TensorView<const Scalar, Trailing>() const requires(!std::is_const_v<Scalar>) { return {data, *this}; }

  [[nodiscard]] bool native() const { return data.native(); }
  /// First element of block n.
  [[nodiscard]] Elements<Scalar> batch(Index n) const { return data + this->offset(n); }
  /// Where the tensor is.
  [[nodiscard]] MemoryRegion region() const {
    return StridedShape<Trailing>::region(data.address(), data.element_size());
  }
};

/// Whether two views are of the same elements in the same order.
template <class S, int Trailing>
bool same_tensor(const TensorView<S, Trailing>& a, const TensorView<S, Trailing>& b) {
  return a.data == b.data && same_shape(a, b);
}

/// The scalar that computes with stored elements: float for 16 bits.
template <class S>
using Computed = std::conditional_t<Storage16<S>, float, S>;

template <int Trailing, TensorLike T>
auto view(T&& tensor) {
  static_assert(Traits<T>::rank >= Trailing, "posbias: the tensor has too few dimensions");
  auto* first = first_element(tensor);
  using Element = std::remove_pointer_t<decltype(first)>;
  using Value = Computed<std::remove_const_t<Element>>;
  using Scalar = std::conditional_t<std::is_const_v<Element>, const Value, Value>;

  TensorView<Scalar, Trailing> result;
  result.data = Elements<Scalar>(first);
  result.leading.rank = static_cast<std::size_t>(Traits<T>::rank - Trailing);
  const auto shape = shape_of(tensor);
  const auto strides = strides_of(tensor);
  const std::size_t leading = result.leading.rank;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    (d < leading ? result.leading.sizes[d] : result.shape[d - leading]) = shape[d];
    (d < leading ? result.leading_strides[d] : result.strides[d - leading]) = strides[d];
  }
  return result;
}

/// The row-major tensor's flat index of each element of `tensor`, in order, and its value.
template <TensorLike T, class Visit>
void for_each_row_major(const T& tensor, const Visit& visit) {
  const auto elements = view<0>(tensor);
  const Index count = elements.batches();
  elements.data.visit([&](const auto* first) {
    for (Index i = 0; i < count; ++i) visit(i, widen(first[elements.offset(i)]));
  });
}

/// Sets all elements to 0.
template <class Scalar, int Trailing>
void fill_zero(const TensorView<Scalar, Trailing>& tensor) {
  const MemoryRegion region = tensor.region();
  if (region.empty) return;
  tensor.data.visit([&]<class S>(S* first) {
    const S stored = round_to<S>(Scalar(0));
    const Index count = tensor.whole_shape().count();
    const bool gapless = region.extent() == count * static_cast<Index>(sizeof(S));
    if (gapless && region.first == reinterpret_cast<std::uintptr_t>(first)) {
      std::fill_n(first, count, stored);
      return;
    }
    const auto fill_rows = [&](S* row, const auto& self, std::size_t d) -> void {
      if (d == tensor.shape.size()) {
        *row = stored;
        return;
      }
      for (Index i = 0; i < tensor.shape[d]; ++i) self(row + i * tensor.strides[d], self, d + 1);
    };
    for (Index n = 0; n < tensor.batches(); ++n) fill_rows(first + tensor.offset(n), fill_rows, 0);
  });
}

/// q (B, *, L1, NH, H), k (B, *, L2, NHk, H) and v (B, *, L2, NHk, Hv), or their gradients.
template <class Scalar>
struct AttentionInputs {
  TensorView<Scalar, 3> q, k, v;
};

}  // namespace posbias::detail
