// SPDX-License-Identifier: MIT
/// \file
/// Dimension letters, matrices and random numbers of the example transformer.
///
///     B   windows in a batch          D   width of the residual stream
///     L   characters in a window      NH  attention heads
///     V   symbols of the vocabulary   H   width of one head, D / NH
///
/// Everything is row-major. A batch of tokens is a matrix of B·L rows; the same memory, seen as a tensor, is
/// (B, L, D) or (B, L, NH, H), so nothing is copied on the way to a hook.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>

namespace demo {

using Index = Eigen::Index;

template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class Scalar, int Rank>
using Tensor = Eigen::Tensor<Scalar, Rank, Eigen::RowMajor>;

namespace detail {
template <class Scalar, class Object>
using SameConst = std::conditional_t<std::is_const_v<Scalar>, const Object, Object>;
}

/// A matrix of B·L rows seen as (B, L, D).
template <class Scalar>
Eigen::TensorMap<Tensor<Scalar, 3>> by_window(Matrix<Scalar>& x, Index B) {
  return {x.data(), B, x.rows() / B, x.cols()};
}

/// A matrix of B·L rows seen as (B, L, NH, H); const if the matrix is.
template <class Scalar>
Eigen::TensorMap<Tensor<Scalar, 4>> by_head(Matrix<Scalar>& x, Index B, Index NH) {
  return {x.data(), B, x.rows() / B, NH, x.cols() / NH};
}
template <class Scalar>
Eigen::TensorMap<const Tensor<Scalar, 4>> by_head(const Matrix<Scalar>& x, Index B, Index NH) {
  return {x.data(), B, x.rows() / B, NH, x.cols() / NH};
}

/// One head of one window of a (B, L, NH, H) tensor, as a matrix of L rows.
template <class Tensor>
auto head(Tensor&& x, Index b, Index h) {
  using Scalar = std::remove_pointer_t<decltype(x.data())>;
  using Rows = detail::SameConst<Scalar, Matrix<std::remove_const_t<Scalar>>>;
  const Index L = x.dimension(1), NH = x.dimension(2), H = x.dimension(3);
  return Eigen::Map<Rows, Eigen::Unaligned, Eigen::OuterStride<>>(x.data() + (b * L * NH + h) * H, L, H,
                                                                  Eigen::OuterStride<>(NH * H));
}

/// One head of one window of a (B, NH, L, L) tensor.
template <class Tensor>
auto square(Tensor&& x, Index b, Index h) {
  using Scalar = std::remove_pointer_t<decltype(x.data())>;
  using Rows = detail::SameConst<Scalar, Matrix<std::remove_const_t<Scalar>>>;
  const Index NH = x.dimension(1), L = x.dimension(2);
  return Eigen::Map<Rows>(x.data() + (b * NH + h) * L * L, L, L);
}

/// Seeded numbers that are the same on every platform: the standard fixes this engine's bits, and the steps
/// from bits to values are exact.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  /// Uniform in {0, ..., count - 1}.
  Index below(Index count) { return static_cast<Index>(engine_() % static_cast<std::uint64_t>(count)); }

  /// Uniform in [-1, 1).
  double symmetric() { return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1; }

  /// A matrix of uniform values with mean 0 and the given standard deviation.
  template <class Scalar>
  Matrix<Scalar> matrix(Index rows, Index columns, double deviation) {
    Matrix<Scalar> result(rows, columns);
    const double bound = deviation * std::sqrt(3.0);
    for (Index i = 0; i < result.size(); ++i) result.data()[i] = static_cast<Scalar>(bound * symmetric());
    return result;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace demo
