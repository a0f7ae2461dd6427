// SPDX-License-Identifier: MIT
/// \file
/// Strided views over Eigen tensors: one way to walk any rank and either layout.
///
/// Hooks take any `Eigen::Tensor` or `Eigen::TensorMap`, RowMajor or ColMajor. The last dimensions have a meaning,
/// the leading ones (B, *) may be any number, none included:
///
///     tokens  (B, *, L, H)         x
///     heads   (B, *, L, NH, H)     q, k, v
///     logits  (B, *, NH, L1, L2)   mask
///
/// A view keeps the meaningful dimensions with their strides and numbers the leading ones 0, 1, ... in row-major
/// order whatever the layout, so that batch n is the same data in both layouts and sums run in the same order.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"

namespace posbias {

namespace detail {

template <class T>
struct TensorTraits {
  static constexpr bool is_tensor = false;
};

template <class S, int Rank_, int Options, class IndexType>
struct TensorTraits<Eigen::Tensor<S, Rank_, Options, IndexType>> {
  static constexpr bool is_tensor = true, is_map = false, is_writable = !std::is_const_v<S>;
  static constexpr int rank = Rank_;
  static constexpr int layout = (Options & Eigen::RowMajor) != 0 ? Eigen::RowMajor : Eigen::ColMajor;
  using Scalar = std::remove_const_t<S>;
};

template <class Plain, int Options, template <class> class MakePointer>
struct TensorTraits<Eigen::TensorMap<Plain, Options, MakePointer>> : TensorTraits<std::remove_const_t<Plain>> {
  static constexpr bool is_map = true;
  static constexpr bool is_writable = !std::is_const_v<Plain> && TensorTraits<std::remove_const_t<Plain>>::is_writable;
};

template <class T>
using Traits = TensorTraits<std::remove_cvref_t<T>>;

template <class T>
using ScalarOf = typename Traits<T>::Scalar;

template <class S>
inline constexpr bool is_float_or_double = std::is_same_v<S, float> || std::is_same_v<S, double>;

/// Named for compilers, which say which name is false: false of other tensors where the module, too, is of one of these.
template <class TensorScalar, class ModuleScalar = float>
inline constexpr bool tensors_are_of_float_or_double =
    is_float_or_double<TensorScalar> || !is_float_or_double<ModuleScalar>;

}  // namespace detail

/// An `Eigen::Tensor` or `Eigen::TensorMap`, of any rank up to 14.
template <class T>
concept TensorLike = detail::Traits<T>::is_tensor && detail::Traits<T>::rank <= 14;

/// A tensor that can be (B, *, L, H).
template <class T>
concept TokensTensor =
    TensorLike<T> && detail::Traits<T>::rank >= 2 && detail::tensors_are_of_float_or_double<detail::ScalarOf<T>>;

/// A tensor that can be (B, *, L, NH, H).
template <class T>
concept HeadsTensor =
    TensorLike<T> && detail::Traits<T>::rank >= 3 && detail::tensors_are_of_float_or_double<detail::ScalarOf<T>>;

/// A tensor that can be (B, *, NH, L1, L2).
template <class T>
concept LogitsTensor = TensorLike<T> && detail::Traits<T>::rank >= 3;

/// A tensor of this scalar, with at least this many dimensions.
template <class T, class Scalar, int MinRank = 0>
concept TensorOf = TensorLike<T> && detail::tensors_are_of_float_or_double<detail::ScalarOf<T>, Scalar> &&
    std::same_as<detail::ScalarOf<T>, Scalar> &&(detail::Traits<T>::rank >= MinRank);

namespace detail {

/// One name for it all, because compilers say which name is false, and not which of several terms.
template <class T>
inline constexpr bool can_be_written_to = Traits<T>::is_writable &&
                                          (Traits<T>::is_map || (std::is_lvalue_reference_v<T> &&
                                                                 !std::is_const_v<std::remove_reference_t<T>>));

}  // namespace detail

/// A tensor that a hook may write to. `T` is deduced from a forwarding reference: an lvalue of non-const
/// `Eigen::Tensor`, or a `TensorMap` (by value too: it only refers to its data) of non-const values.
template <class T, class Scalar, int MinRank = 0>
concept WritableTensorOf = TensorOf<T, Scalar, MinRank> && detail::can_be_written_to<T>;

namespace detail {

/// The leading dimensions (B, *) of a tensor.
struct Leading {
  static constexpr std::size_t max_rank = 14;
  std::array<Index, max_rank> sizes{};
  std::size_t rank = 0;

  Leading() = default;
  explicit Leading(std::span<const Index> shape) : rank(shape.size()) {
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
  friend bool operator==(const Leading&, const Leading&) = default;
};

/// A tensor seen as `batches()` blocks of `Trailing` strided dimensions.
template <class Scalar, int Trailing>
struct TensorView {
  Scalar* data = nullptr;
  Leading leading;
  std::array<Index, Leading::max_rank> leading_strides{};
  std::array<Index, static_cast<std::size_t>(Trailing)> shape{};
  std::array<Index, static_cast<std::size_t>(Trailing)> strides{};

  /// A view to write through serves where one to read is wanted.
  operator TensorView<const Scalar, Trailing>() const requires(!std::is_const_v<Scalar>) {
    return {data, leading, leading_strides, shape, strides};
  }

  [[nodiscard]] Index batches() const { return leading.count(); }

  /// The shape of the tensor.
  [[nodiscard]] Leading whole_shape() const {
    Leading result = leading;
    for (const Index size : shape) result.sizes[result.rank++] = size;
    return result;
  }

  /// Where the tensor is.
  [[nodiscard]] std::span<const std::byte> memory() const {
    return std::as_bytes(std::span(data, static_cast<std::size_t>(whole_shape().count())));
  }

  /// First element of block n, numbered in row-major order of (B, *).
  [[nodiscard]] Scalar* batch(Index n) const { return data + offset(n); }
  [[nodiscard]] Index offset(Index n) const {
    Index first = 0;
    for (std::size_t d = leading.rank; d-- > 0;) {
      first += n % leading.sizes[d] * leading_strides[d];
      n /= leading.sizes[d];
    }
    return first;
  }
};

/// The whole shape of a tensor.
template <TensorLike T>
auto shape_of(const T& tensor) {
  std::array<Index, static_cast<std::size_t>(Traits<T>::rank)> shape{};
  std::copy(tensor.dimensions().begin(), tensor.dimensions().end(), shape.begin());
  return shape;
}

template <int Trailing, TensorLike T>
auto view(T& tensor) {
  using Traits = detail::Traits<T>;
  static_assert(Traits::rank >= Trailing, "posbias: the tensor has too few dimensions");
  constexpr bool writable = Traits::is_writable && (Traits::is_map || !std::is_const_v<T>);
  using Scalar = std::conditional_t<writable, typename Traits::Scalar, const typename Traits::Scalar>;

  TensorView<Scalar, Trailing> result;
  result.data = tensor.data();
  result.leading.rank = static_cast<std::size_t>(Traits::rank - Trailing);
  const auto shape = shape_of(tensor);
  const std::size_t leading = result.leading.rank;
  Index stride = 1;
  for (std::size_t step = 0; step < shape.size(); ++step) {
    const std::size_t d = Traits::layout == Eigen::RowMajor ? shape.size() - 1 - step : step;
    if (d < leading) {
      result.leading.sizes[d] = shape[d];
      result.leading_strides[d] = stride;
    } else {
      result.shape[d - leading] = shape[d];
      result.strides[d - leading] = stride;
    }
    stride *= shape[d];
  }
  return result;
}

/// The row-major tensor's flat index of each element of `tensor`, in order; used to copy either layout.
template <TensorLike T, class Visit>
void for_each_row_major(const T& tensor, const Visit& visit) {
  const auto all_leading = view<0>(tensor);
  const Index count = all_leading.batches();
  for (Index i = 0; i < count; ++i) visit(i, *all_leading.batch(i));
}

/// What q, k and v say about an attention: (B, *), L1, L2 and NH.
struct AttentionShape {
  Leading leading;
  Index heads = 0, queries = 0, keys = 0;
  friend bool operator==(const AttentionShape&, const AttentionShape&) = default;
};

/// Reads and checks q (B, *, L1, NH, H), k (B, *, L2, NHk, H) and v (B, *, L2, NHk, any): same leading dimensions,
/// same L2, and NHk = NH or a divisor of it (grouped queries).
template <HeadsTensor Q, HeadsTensor K, HeadsTensor V>
AttentionShape attention_shape(const Hook& hook, const Q& q, const K& k, const V& v) {
  const auto query = view<3>(q);
  const auto key = view<3>(k);
  const auto value = view<3>(v);
  const auto reject = [&](std::string_view name, const auto& tensor, std::string_view expected) {
    fail<ShapeError>(hook, ": ", name, " has shape ", shape_of(tensor), "; q has ", shape_of(q), " and needs ",
                     expected);
  };
  const Index heads = query.shape[1];
  const Index groups = key.shape[1];
  if (key.leading != query.leading || key.shape[2] != query.shape[2] ||
      !(groups == heads || (groups > 0 && heads % groups == 0)))
    reject("k", k, "(B, *, L2, NH, H) with the same B, *, NH (or a divisor of it) and H");
  if (value.leading != query.leading || value.shape[0] != key.shape[0] || value.shape[1] != groups)
    reject("v", v, "(B, *, L2, NH, any) with the same B, *, and the L2 and NH of k");
  return {query.leading, heads, query.shape[0], key.shape[0]};
}

/// The memory of a tensor, or of what says so itself.
template <class T>
std::span<const std::byte> memory_of(const T& owner) {
  if constexpr (TensorLike<T>)
    return std::as_bytes(std::span(owner.data(), static_cast<std::size_t>(owner.size())));
  else
    return owner.memory();
}

/// Whether two tensors share memory.
template <class A, class B>
bool overlap(const A& a, const B& b) {
  const auto first = [](std::span<const std::byte> memory) { return reinterpret_cast<std::uintptr_t>(memory.data()); };
  const std::span<const std::byte> one = memory_of(a), other = memory_of(b);
  return first(one) < first(other) + other.size() && first(other) < first(one) + one.size();
}

inline void check_apart(const Hook&, std::string_view /*argument*/, const auto& /*written*/) {}

/// Throws ShapeError if a tensor that is written to shares memory with any of the others, each given behind its name:
/// tensors, or what has memory.
template <class Written, class Other, class... Others>
void check_apart(const Hook& hook, std::string_view argument, const Written& written, std::string_view name,
                 const Other& other, const Others&... others) {
  if (overlap(written, other))
    fail<ShapeError>(hook, ": ", argument, " shares memory with ", name, "; it is written to");
  check_apart(hook, argument, written, others...);
}

/// Throws ShapeError unless the gradients of q, k and v have their shapes.
template <HeadsTensor GQ, HeadsTensor GK, HeadsTensor GV, HeadsTensor Q, HeadsTensor K, HeadsTensor V>
void check_gradient_shapes(const Hook& hook, const GQ& grad_q, const GK& grad_k, const GV& grad_v, const Q& q,
                           const K& k, const V& v) {
  const auto check = [&](std::string_view argument, const auto& grad, const auto& value) {
    if (!std::ranges::equal(shape_of(grad), shape_of(value)))
      fail<ShapeError>(hook, ": grad_", argument, " has shape ", shape_of(grad), "; ", argument, " has ",
                       shape_of(value));
  };
  check("q", grad_q, q);
  check("k", grad_k, k);
  check("v", grad_v, v);
}

}  // namespace detail
}  // namespace posbias
