// SPDX-License-Identifier: MIT
/// \file
/// The tensors that the library takes, and views of them.
///
/// Every hook takes `Eigen::Tensor`, `Eigen::TensorMap` and `Eigen::TensorFixedSize` in either layout, `StridedMap`, and
/// every type with `data_handle()`, `extent(r)`, `stride(r)` and `rank()`: `std::mdspan`, Kokkos' mdspan.
///
/// `narrow`, `permute`, `unflatten` and `heads_first` make views of any of them, and of views. A view copies nothing; it
/// is as const as its tensor, whose memory must outlive it.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"
#include "posbias/core/storage.hpp"
#include "posbias/core/strided_map.hpp"

namespace posbias {

namespace detail {

template <class T>
concept MdspanLike = requires(const T& t) {
  {*t.data_handle()};
  { t.extent(0) } -> std::convertible_to<Index>;
  { t.stride(0) } -> std::convertible_to<Index>;
  {std::integral_constant<int, static_cast<int>(T::rank())>()};
}
&&std::is_pointer_v<decltype(std::declval<const T&>().data_handle())>;

/// `is_reference`: a const object of the type still writes to its elements.
template <class T>
struct TensorTraits {
  static constexpr bool is_tensor = false;
};

template <class S, int Rank, bool of_reference, int Layout = Eigen::RowMajor>
struct TraitsOf {
  static constexpr bool is_tensor = true, is_reference = of_reference, is_writable = !std::is_const_v<S>;
  static constexpr int rank = Rank, layout = Layout;
  using Scalar = std::remove_const_t<S>;
};

template <int Options>
inline constexpr int layout_of = (Options & Eigen::RowMajor) != 0 ? Eigen::RowMajor : Eigen::ColMajor;

template <class S, int Rank, int Options, class I>
struct TensorTraits<Eigen::Tensor<S, Rank, Options, I>> : TraitsOf<S, Rank, false, layout_of<Options>> {};

template <class S, class Sizes, int Options, class I>
struct TensorTraits<Eigen::TensorFixedSize<S, Sizes, Options, I>>
    : TraitsOf<S, static_cast<int>(Sizes::count), false, layout_of<Options>> {};

template <class Plain, int Options, template <class> class MakePointer>
struct TensorTraits<Eigen::TensorMap<Plain, Options, MakePointer>> : TensorTraits<std::remove_const_t<Plain>> {
  static constexpr bool is_reference = true;
  static constexpr bool is_writable = !std::is_const_v<Plain> && TensorTraits<std::remove_const_t<Plain>>::is_writable;
};

template <class S, int Rank>
struct TensorTraits<StridedMap<S, Rank>> : TraitsOf<S, Rank, true> {};

template <MdspanLike T>
struct TensorTraits<T> : TraitsOf<std::remove_pointer_t<decltype(std::declval<const T&>().data_handle())>,
                                  static_cast<int>(T::rank()), true> {};

template <class T>
using Traits = TensorTraits<std::remove_cvref_t<T>>;

template <class T>
using ScalarOf = typename Traits<T>::Scalar;

template <class S>
inline constexpr bool is_float_or_double = std::same_as<S, float> || std::same_as<S, double>;

/// Named for compilers, which say which name is false.
template <class S>
inline constexpr bool tensors_are_of_float_double_bfloat16_or_half = is_float_or_double<S> || Storage16<S>;
template <class TensorScalar, class ModuleScalar>
inline constexpr bool float_takes_float_bfloat16_half_and_double_takes_double =
    StoredFor<TensorScalar, ModuleScalar> || !is_float_or_double<ModuleScalar>;

/// The most dimensions of a tensor.
inline constexpr std::size_t max_rank = 14;

}  // namespace detail

/// A tensor that the library reads, of any rank up to 14.
template <class T>
concept TensorLike = detail::Traits<T>::is_tensor && detail::Traits<T>::rank <= static_cast<int>(detail::max_rank);

/// A tensor that can be (B, *, L, H).
template <class T>
concept TokensTensor = TensorLike<T> && detail::Traits<T>::rank >= 2 &&
                       detail::tensors_are_of_float_double_bfloat16_or_half<detail::ScalarOf<T>>;

/// A tensor that can be (B, *, L, NH, H).
template <class T>
concept HeadsTensor = TensorLike<T> && detail::Traits<T>::rank >= 3 &&
                      detail::tensors_are_of_float_double_bfloat16_or_half<detail::ScalarOf<T>>;

/// A tensor that can be (B, *, NH, L1, L2).
template <class T>
concept LogitsTensor = TensorLike<T> && detail::Traits<T>::rank >= 3;

/// A tensor of this type, with at least this many dimensions.
template <class T, class Scalar, int MinRank = 0>
concept TensorOf = TensorLike<T> && std::same_as<typename detail::Traits<T>::Scalar, Scalar> &&
    (detail::Traits<T>::rank >= MinRank);

/// A tensor that a module of `Scalar` reads: of double for double; of float, `Eigen::bfloat16` or `Eigen::half` for float.
template <class T, class Scalar, int MinRank = 0>
concept StoredTensorOf = TensorLike<T> &&
    detail::float_takes_float_bfloat16_half_and_double_takes_double<detail::ScalarOf<T>, Scalar> &&
    (detail::Traits<T>::rank >= MinRank);

namespace detail {

/// One name for it all, because compilers say which name is false, and not which of several terms.
template <class T>
inline constexpr bool can_be_written_to = Traits<T>::is_writable &&
                                          (Traits<T>::is_reference || (std::is_lvalue_reference_v<T> &&
                                                                       !std::is_const_v<std::remove_reference_t<T>>));

}  // namespace detail

/// A tensor of this type that a hook may write to. `T` is deduced from a forwarding reference: an lvalue of a non-const
/// tensor that owns its values, or a map of non-const values, by value too.
template <class T, class Scalar, int MinRank = 0>
concept WritableTensorOf = TensorOf<T, Scalar, MinRank> && detail::can_be_written_to<T>;

/// A tensor that a module of `Scalar` may write to.
template <class T, class Scalar, int MinRank = 0>
concept WritableStoredTensorOf = StoredTensorOf<T, Scalar, MinRank> && detail::can_be_written_to<T>;

namespace detail {

/// The sizes of a tensor.
template <TensorLike T>
auto shape_of(const T& tensor) {
  constexpr auto rank = static_cast<std::size_t>(Traits<T>::rank);
  const auto size = [&](auto d) {  // a constant, which converts to the type of an index that the tensor has
    if constexpr (MdspanLike<T>)
      return static_cast<Index>(tensor.extent(d()));
    else
      return static_cast<Index>(tensor.dimension(d()));
  };
  return [&]<std::size_t... D>(std::index_sequence<D...>) {
    return std::array<Index, rank>{size(std::integral_constant<std::size_t, D>())...};
  }
  (std::make_index_sequence<rank>());
}

/// The strides of a tensor, in elements.
template <TensorLike T>
auto strides_of(const T& tensor) {
  std::array<Index, static_cast<std::size_t>(Traits<T>::rank)> strides{};
  if constexpr (MdspanLike<T>) {
    for (std::size_t d = 0; d < strides.size(); ++d) strides[d] = static_cast<Index>(tensor.stride(d));
  } else if constexpr (requires { tensor.strides(); }) {
    strides = tensor.strides();
  } else {
    const auto shape = shape_of(tensor);
    Index stride = 1;
    for (std::size_t step = 0; step < strides.size(); ++step) {
      const std::size_t d = Traits<T>::layout == Eigen::RowMajor ? strides.size() - 1 - step : step;
      strides[d] = stride;
      stride *= shape[d];
    }
  }
  return strides;
}

/// The first element of a tensor, const unless it may be written to.
template <TensorLike T>
auto* first_element(T& tensor) {
  using S = typename Traits<T>::Scalar;
  constexpr bool writable = Traits<T>::is_writable && (Traits<T>::is_reference || !std::is_const_v<T>);
  using Element = std::conditional_t<writable, S, const S>;
  if constexpr (MdspanLike<T>)
    return static_cast<Element*>(tensor.data_handle());
  else
    return static_cast<Element*>(tensor.data());
}

/// A tensor as a `StridedMap`.
template <TensorLike T>
auto strided_map(T& tensor) {
  auto* first = first_element(tensor);
  return StridedMap<std::remove_pointer_t<decltype(first)>, Traits<T>::rank>(first, shape_of(tensor),
                                                                             strides_of(tensor));
}

/// A dimension as PyTorch counts them: -1 is the last. Throws ShapeError.
inline std::size_t resolve_dimension(std::string_view function, Index dimension, std::span<const Index> shape) {
  const Index rank = std::ssize(shape);
  if (dimension < -rank || dimension >= rank)
    fail<ShapeError>("posbias::", function, ": dimension = ", dimension, "; the tensor has shape ", shape);
  return static_cast<std::size_t>(dimension < 0 ? dimension + rank : dimension);
}

/// A tensor that a view may refer to: no temporary that owns its values.
template <class T>
concept Viewable = TensorLike<T> &&(detail::Traits<T>::is_reference || std::is_lvalue_reference_v<T>);

}  // namespace detail

/// Elements [start, start + length) of a dimension, as torch.narrow: a negative dimension or start counts from the end.
/// Throws ShapeError if they are not all there.
template <detail::Viewable T>
[[nodiscard]] auto narrow(T&& tensor, Index dimension, Index start, Index length) {
  auto view = detail::strided_map(tensor);
  auto shape = view.dimensions();
  const std::size_t d = detail::resolve_dimension("narrow", dimension, shape);
  const Index first = start < 0 ? start + shape[d] : start;
  if (first < 0 || length < 0 || first > shape[d] || length > shape[d] - first)
    detail::fail<ShapeError>("posbias::narrow: start = ", start, ", length = ", length, "; dimension ", d,
                             " of a tensor of shape ", shape, " has ", shape[d], " elements");
  shape[d] = length;
  auto* data = view.data();
  if (view.size() > 0) data += first * view.strides()[d];
  return decltype(view)(data, shape, view.strides());
}

/// Dimensions in another order, as torch.permute: dimension i of the result is dimension order[i] of the tensor. Throws
/// ShapeError unless each dimension is named once.
template <detail::Viewable T>
[[nodiscard]] auto permute(T&& tensor,
                           const std::array<Index, static_cast<std::size_t>(detail::Traits<T>::rank)>& order) {
  const auto view = detail::strided_map(tensor);
  auto shape = view.dimensions(), strides = view.strides();
  std::array<bool, static_cast<std::size_t>(detail::Traits<T>::rank)> named{};
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t d = detail::resolve_dimension("permute", order[i], view.dimensions());
    if (named[d])
      detail::fail<ShapeError>("posbias::permute: order = ", order, "; it must name each of ", order.size(),
                               " dimensions once");
    named[d] = true;
    shape[i] = view.dimensions()[d];
    strides[i] = view.strides()[d];
  }
  return std::remove_const_t<decltype(view)>(view.data(), shape, strides);
}

/// A dimension as several, as torch.unflatten: `unflatten(t, 2, {NH, H})`; one size may be -1, the one that fits. Throws
/// ShapeError unless their product is the dimension's size.
template <detail::Viewable T, std::size_t Parts>
[[nodiscard]] auto unflatten(T&& tensor, Index dimension, const std::array<Index, Parts>& sizes) {
  static_assert(Parts > 0, "posbias: unflatten needs a size");
  const auto view = detail::strided_map(tensor);
  constexpr std::size_t rank = static_cast<std::size_t>(detail::Traits<T>::rank) + Parts - 1;
  const std::size_t d = detail::resolve_dimension("unflatten", dimension, view.dimensions());
  const Index size = view.dimensions()[d];
  const auto reject = [&] {
    detail::fail<ShapeError>("posbias::unflatten: sizes = ", sizes, "; dimension ", d, " of a tensor of shape ",
                             view.dimensions(), " has ", size, " elements");
  };
  std::array<Index, Parts> parts = sizes;
  Index product = 1, unknown = 0;
  for (Index& part : parts) {
    if (part < -1) reject();
    if (part == -1)
      ++unknown;
    else
      product *= part;
  }
  if (unknown > 1 || (unknown == 1 && (product == 0 || size % product != 0))) reject();
  for (Index& part : parts)
    if (part == -1) part = size / product;
  if (unknown == 0 && product != size) reject();

  std::array<Index, rank> shape{}, strides{};
  for (std::size_t i = 0; i < view.dimensions().size(); ++i) {
    const std::size_t to = i < d ? i : i + Parts - 1;
    shape[to] = view.dimensions()[i];
    strides[to] = view.strides()[i];
  }
  Index stride = view.strides()[d];
  for (std::size_t part = Parts; part-- > 0;) {
    shape[d + part] = parts[part];
    strides[d + part] = stride;
    stride *= parts[part];
  }
  return StridedMap<std::remove_pointer_t<decltype(view.data())>, static_cast<int>(rank)>(view.data(), shape, strides);
}

/// The same, of a list: `unflatten(t, 2, {NH, H})`.
template <detail::Viewable T, std::size_t Parts>
[[nodiscard]] auto unflatten(T&& tensor, Index dimension, const Index (&sizes)[Parts]) {
  std::array<Index, Parts> parts{};
  for (std::size_t i = 0; i < Parts; ++i) parts[i] = sizes[i];
  return unflatten(tensor, dimension, parts);
}

/// Memory with heads before tokens, (B, *, NH, L, H), as the (B, *, L, NH, H) that hooks and attention take. It is its own
/// inverse.
template <detail::Viewable T>
requires HeadsTensor<T>
[[nodiscard]] auto heads_first(T&& tensor) {
  constexpr auto rank = static_cast<std::size_t>(detail::Traits<T>::rank);
  std::array<Index, rank> order{};
  for (std::size_t d = 0; d < rank; ++d) order[d] = static_cast<Index>(d);
  order[rank - 3] = static_cast<Index>(rank - 2);
  order[rank - 2] = static_cast<Index>(rank - 3);
  return permute(tensor, order);
}

}  // namespace posbias
