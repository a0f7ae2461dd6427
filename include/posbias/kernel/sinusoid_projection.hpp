// SPDX-License-Identifier: MIT
/// \file
/// Projected sinusoids of relative positions, r(y) = W·sinusoid(y / divisor) + b with y = query minus key, and their
/// adjoint.
///
/// The sinusoids of a distance |y| give both signs: r(±|y|) = (W·cosines + b) ± W·sines. Cost: dim² multiplications for
/// each distinct distance, backward twice that, and twice more with a learned divisor.
/// Accuracy: sines and cosines are rounded once from double. Sums of dim products run in `Scalar`; the gradients of W
/// and b in `Scalar` over 128 distances at most, and in double from there on.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/core/parameters.hpp"
#include "posbias/kernel/distances.hpp"
#include "posbias/kernel/divide.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/sin_cos.hpp"
#include "posbias/kernel/sums.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias::detail {

/// Refers to the frequencies and to the parameters, which must outlive it.
template <class Scalar>
class SinusoidProjection {
 public:
  using Weight = ParameterTensor<Scalar, 2>;               ///< W: (dim, dim)
  using Bias = std::optional<ParameterTensor<Scalar, 1>>;  ///< b: (dim), or none

  SinusoidProjection(std::span<const double> frequencies, SinusoidLayout layout, const Divide<Scalar>& divide,
                     const Weight& weight, const Bias& bias)
      : frequencies_(frequencies),
        dim_(weight.dimension(0)),
        pairs_(pair_layout(layout, dim_)),
        divide_(divide),
        weight_(weight),
        bias_(bias) {}

  /// The projections r(-relative) (dim, relative.size()) of key minus query positions, rows `stride` apart.
  void project(std::span<const double> relative, Scalar* r, Index stride, const Executor& executor) const;

  /// Gradients of what `project` reads, in double.
  struct Sums {
    std::vector<double> sine_weights,  ///< (dim, frequencies), rows padded
        cosine_weights;                ///< the same
    std::vector<double> bias;          ///< (dim)
    std::vector<double> scaled;        ///< (dim), gradient times angle, for the divisor
  };

  /// Adjoint of `project`, given the gradient of r.
  void backward(std::span<const double> relative, const double* grad_r, Index stride, Sums& sums,
                const Executor& executor) const;

  /// Adds the sums, if there are any, to the gradients of the parameters.
  void finish(const Sums& sums, Divide<Scalar>& grad_divide, Weight& grad_weight, Bias& grad_bias) const;

 private:
  [[nodiscard]] MatrixView<Scalar> sine_weights() const { return {weight_.data(), dim_, pairs_.step}; }
  [[nodiscard]] MatrixView<Scalar> cosine_weights() const {
    return {weight_.data() + pairs_.cosine, dim_, pairs_.step};
  }

  /// Calls `visit(first, rows)` for blocks of the features of r.
  template <class Visit>
  void for_each_row_block(const Executor& executor, const Visit& visit) const {
    constexpr Index max_rows = 64;
    executor.parallel_for((dim_ + max_rows - 1) / max_rows,
                          [&](Index block) { visit(block * max_rows, (std::min)(max_rows, dim_ - block * max_rows)); });
  }

  std::span<const double> frequencies_;
  Index dim_;
  PairLayout pairs_;
  const Divide<Scalar>& divide_;
  const Weight& weight_;
  const Bias& bias_;
};

template <class Scalar>
void SinusoidProjection<Scalar>::project(std::span<const double> relative, Scalar* r, Index stride,
                                         const Executor& executor) const {
  const Index frequencies = std::ssize(frequencies_);
  SinCos maker(frequencies_, divide_.divisor());
  Workspace<Scalar> memory;
  for_each_distance_block(relative, [&](const DistanceBlock& block) {
    const auto sinusoids = maker.template make<Scalar>(block.distances);
    const Index columns = sinusoids.stride, size = frequencies * columns;
    memory.make_room(2 * size);
    const auto packed = [&](const std::vector<Scalar>& values, Scalar* to) {
      return pack(MatrixView<Scalar>{values.data(), columns, 1}, frequencies, columns, to);
    };
    const auto sines = packed(sinusoids.sines, memory.data());
    const auto cosines = packed(sinusoids.cosines, memory.data() + size);
    for_each_row_block(executor, [&](Index first, Index rows) {
      Workspace<Scalar> odd(rows * columns), even(rows * columns);
      for (Index o = 0; bias_ && o < rows; ++o) std::fill_n(even.data() + o * columns, columns, (*bias_)(first + o));
      multiply<Accumulate::overwrite>(rows, columns, frequencies, sine_weights().from_row(first), sines, odd.data(),
                                      columns);
      multiply<Accumulate::extend>(rows, columns, frequencies, cosine_weights().from_row(first), cosines, even.data(),
                                   columns);
      for (Index o = 0; o < rows; ++o)
        for (const ColumnRun& run : block.runs) {
          const Scalar* plus = even.data() + o * columns + run.distance;
          const Scalar* minus = odd.data() + o * columns + run.distance;
          Scalar* to = r + (first + o) * stride + run.column;
          if (run.sign > 0)
            for (Index i = 0; i < run.count; ++i) to[i] = plus[i] - minus[i];
          else
            for (Index i = 0; i < run.count; ++i) to[-i] = plus[i] + minus[i];
        }
    });
  });
}

template <class Scalar>
void SinusoidProjection<Scalar>::backward(std::span<const double> relative, const double* grad_r, Index stride,
                                          Sums& sums, const Executor& executor) const {
  const Index frequencies = std::ssize(frequencies_), width = round_up_to_lanes<Scalar>(frequencies);
  sums.sine_weights.resize(static_cast<std::size_t>(dim_ * width));
  sums.cosine_weights.resize(sums.sine_weights.size());
  sums.bias.resize(static_cast<std::size_t>(dim_));
  sums.scaled.resize(sums.bias.size());
  for (Index o = 0; o < dim_; ++o)
    sums.bias[static_cast<std::size_t>(o)] += sum_in_double(grad_r + o * stride, std::ssize(relative));
  const double divisor = divide_.divisor();
  SinCos maker(frequencies_, divisor);
  Workspace<Scalar> memory;
  for_each_distance_block(relative, [&](const DistanceBlock& block) {
    const auto sinusoids = maker.template make<Scalar>(block.distances);
    const Index distances = std::ssize(block.distances), size = packed_size<Scalar>(distances, frequencies);
    memory.make_room(2 * size);
    const auto packed = [&](const std::vector<Scalar>& values, Scalar* to) {
      return pack(MatrixView<Scalar>{values.data(), 1, sinusoids.stride}, distances, frequencies, to);
    };
    const auto sines = packed(sinusoids.sines, memory.data());
    const auto cosines = packed(sinusoids.cosines, memory.data() + size);
    for_each_row_block(executor, [&](Index first, Index rows) {
      Workspace<Scalar> odd(rows * distances), even(rows * distances), product(rows * width);
      for (Index o = 0; o < rows; ++o)
        for (const ColumnRun& run : block.runs) {
          const double* from = grad_r + (first + o) * stride + run.column;
          Scalar* plus = even.data() + o * distances + run.distance;
          Scalar* minus = odd.data() + o * distances + run.distance;
          if (run.sign > 0) {
            for (Index i = 0; i < run.count; ++i) plus[i] += static_cast<Scalar>(from[i]);
            for (Index i = 0; i < run.count; ++i) minus[i] -= static_cast<Scalar>(from[i]);
          } else {
            for (Index i = 0; i < run.count; ++i) plus[i] += static_cast<Scalar>(from[-i]);
            for (Index i = 0; i < run.count; ++i) minus[i] += static_cast<Scalar>(from[-i]);
          }
        }
      const auto multiply_by = [&](const Workspace<Scalar>& gradient, const PackedMatrix<Scalar>& sinusoid) {
        multiply<Accumulate::overwrite>(rows, frequencies, distances, MatrixView<Scalar>{gradient.data(), distances, 1},
                                        sinusoid, product.data(), width);
      };
      const auto add_weights = [&](std::vector<double>& to) {
        for (Index i = 0; i < rows * width; ++i)
          to[static_cast<std::size_t>(first * width + i)] += static_cast<double>(product.data()[i]);
      };
      multiply_by(odd, sines);
      add_weights(sums.sine_weights);
      multiply_by(even, cosines);
      add_weights(sums.cosine_weights);
      if (!divide_.learned()) return;

      // An angle is y / divisor · frequency; a sine changes with it by the cosine, a cosine by minus the sine.
      for (Index i = 0; i < rows * distances; ++i) {
        const auto scaled = static_cast<Scalar>(block.distances[static_cast<std::size_t>(i % distances)] / divisor);
        odd.data()[i] *= scaled;
        even.data()[i] *= scaled;
      }
      const auto add_angles = [&](double sign, const MatrixView<Scalar>& weights) {
        for (Index o = 0; o < rows; ++o)
          for (Index f = 0; f < frequencies; ++f)
            sums.scaled[static_cast<std::size_t>(first + o)] +=
                sign * static_cast<double>(product.data()[o * width + f]) * frequencies_[static_cast<std::size_t>(f)] *
                static_cast<double>(weights.data[(first + o) * weights.row_stride + f * weights.column_stride]);
      };
      multiply_by(odd, cosines);
      add_angles(+1, sine_weights());
      multiply_by(even, sines);
      add_angles(-1, cosine_weights());
    });
  });
}

template <class Scalar>
void SinusoidProjection<Scalar>::finish(const Sums& sums, Divide<Scalar>& grad_divide, Weight& grad_weight,
                                        Bias& grad_bias) const {
  if (sums.bias.empty()) return;
  const Index frequencies = std::ssize(frequencies_), width = round_up_to_lanes<Scalar>(frequencies);
  for (Index o = 0; o < dim_; ++o)
    for (Index f = 0; f < frequencies; ++f) {
      const auto from = static_cast<std::size_t>(o * width + f);
      grad_weight(o, f * pairs_.step) += static_cast<Scalar>(sums.sine_weights[from]);
      grad_weight(o, f * pairs_.step + pairs_.cosine) += static_cast<Scalar>(sums.cosine_weights[from]);
    }
  for (Index o = 0; grad_bias && o < dim_; ++o)
    (*grad_bias)(o) += static_cast<Scalar>(sums.bias[static_cast<std::size_t>(o)]);
  divide_.backward(std::accumulate(sums.scaled.begin(), sums.scaled.end(), 0.0), grad_divide);
}

}  // namespace posbias::detail
