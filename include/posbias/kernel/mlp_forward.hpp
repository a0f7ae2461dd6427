// SPDX-License-Identifier: MIT
/// \file
/// The forward pass of an MLP of positions (see kernel/mlp.hpp).
///
/// Cost: O(depth·dim²) per position. Workspace: the weights in double, and O(depth·dim) for each of 64 positions per
/// thread.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/kernel/mlp.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias::detail {

/// Rows of features, one per position.
struct FeatureRows {
  double* first = nullptr;
  Index stride = 0;
  [[nodiscard]] double* row(Index p) const { return first + p * stride; }
};

/// A layer's values at some positions.
struct LayerActivations {
  FeatureRows in;   ///< inputs of the linear map
  FeatureRows out;  ///< outputs of the last layer. Backward: the gradient of the linear map's outputs; until it is
                    ///< known, the slope of the Swish behind the layer
  FeatureRows normalised;                        ///< backward, with a norm: (x - mean) / deviation
  FeatureRows norm_weight_sums, norm_bias_sums;  ///< the norm's gradients, a row per block
  std::vector<double> inverse_deviation{};       ///< of each position
};

/// All layers' values at some positions. One allocation, because malloc returns many to the system and faults them in
/// again in the next call.
struct MlpActivations {
  bool backward;
  std::vector<LayerActivations> layers;
  Workspace<double> memory{};

  template <class Scalar>
  MlpActivations(const PositionMlp<Scalar>& mlp, Index outputs, Index positions, bool for_backward)
      : backward(for_backward), layers(mlp.layers.size()) {
    for (const bool room : {false, true}) {
      Index used = 0;
      // Rows are a cache line longer than whole lanes: a power of two apart, they would share places in the cache.
      const auto take = [&](FeatureRows& rows, Index count, Index features) {
        rows.stride = round_up_to_lanes<double>(features) + lanes<double>;
        if (room) rows.first = memory.data() + used;
        used += count * rows.stride;
      };
      for (std::size_t i = 0; i < layers.size(); ++i) {
        const Index features = mlp.outputs(i, outputs);
        take(layers[i].in, positions, mlp.layers[i].linear.inputs());
        if (mlp.is_last(i) || backward) take(layers[i].out, positions, features);
        if (!mlp.layers[i].norm || !backward) continue;
        take(layers[i].normalised, positions, features);
        take(layers[i].norm_weight_sums, position_blocks(positions), features);
        take(layers[i].norm_bias_sums, position_blocks(positions), features);
        layers[i].inverse_deviation.resize(static_cast<std::size_t>(positions));
      }
      memory.make_room(used);
    }
  }
};

/// Weights (terms, columns) packed as a second factor, in double.
struct PackedWeights {
  Workspace<double> memory;
  PackedMatrix<double> panels;

  template <class Scalar>
  PackedWeights(const MatrixView<Scalar>& weights, Index terms, Index columns)
      : memory(packed_size<double>(terms, columns)), panels(pack(weights, terms, columns, memory.data())) {}
};

/// Half a cache line. Eigen's exponential of 8 doubles makes g++ 12 warn of AVX-512 intrinsics of its own. `Real` is
/// double; as a template it is compiled only where it is used.
template <class Real>
using Quad = Eigen::Array<Real, 4, 1>;

/// Swish(x) = x·s and, unless it is null, its slope s + x·s·(1 - s), with s = 1 / (1 + exp(-x)). Always in fours, so
/// that every value gets the same exponential, vectorised or not.
template <class Real>
void swish(Index features, Real* x, Real* slope) {
  using Values = Eigen::Map<Quad<Real>>;
  for (Index f = 0; f < features; f += 4) {
    Values values(x + f);
    const Quad<Real> s = (1 + (-values).exp()).inverse();
    if (slope != nullptr) Values(slope + f) = s * (1 + values * (1 - s));
    values *= s;
  }
}

/// Evaluates outputs [first, first + count) of an MLP, from any thread; without a last layer all outputs are needed.
/// Refers to the MLP, which must outlive it.
template <class Scalar>
class MlpForward {
 public:
  MlpForward(const PositionMlp<Scalar>& mlp, Index first, Index count)
      : MlpForward(mlp, mlp.layers.size(), first, count) {}

  /// Of the first `layers` layers alone, for `run`.
  MlpForward(const PositionMlp<Scalar>& mlp, std::size_t layers, Index first, Index count)
      : mlp_(&mlp), outputs_(count), divisor_(mlp.divide.divisor()) {
    for (std::size_t i = 0; i < layers; ++i) {
      const Linear<Scalar>& linear = mlp.layers[i].linear;
      const Index begin = mlp.is_last(i) ? first : 0, outputs = mlp.outputs(i, count);
      const Scalar* bias = linear.bias.data() + begin;
      weights_.emplace_back(mlp.weight(i, begin).transposed(), linear.inputs(), outputs);
      biases_.emplace_back(bias, bias + outputs);
      biases_.back().resize(static_cast<std::size_t>(round_up_to_lanes<double>(outputs)));
    }
  }

  /// Calls `write(output, position, value)` for each output at each of at most 64 positions, both counted from 0.
  template <class Write>
  void operator()(std::span<const double> positions, const Write& write) const {
    MlpActivations activations(*mlp_, outputs_, std::ssize(positions), false);
    run(positions, 0, activations);
    for (Index p = 0; p < std::ssize(positions); ++p) {
      const double* out = activations.layers.back().out.row(p);
      for (Index f = 0; f < outputs_; ++f) write(f, p, out[f]);
    }
  }

  /// The layers at some positions, numbered from `begin` in the activations, each with the Swish behind it.
  void run(std::span<const double> positions, Index begin, MlpActivations& activations) const {
    const Index count = std::ssize(positions), end = begin + count;
    for (Index p = begin; p < end; ++p)
      *activations.layers[0].in.row(p) = positions[static_cast<std::size_t>(p - begin)] / divisor_;
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      const auto& layer = mlp_->layers[i];
      LayerActivations& at = activations.layers[i];
      const std::vector<double>& bias = biases_[i];
      const bool last = mlp_->is_last(i);
      FeatureRows& out = last ? at.out : activations.layers[i + 1].in;
      FeatureRows& y = layer.norm && activations.backward ? at.normalised : out;
      for (Index p = begin; p < end; ++p) std::copy(bias.begin(), bias.end(), y.row(p));
      const Index inputs = layer.linear.inputs(), outputs = std::ssize(bias);
      multiply<Accumulate::extend>(count, outputs, inputs, MatrixView<double>{at.in.row(begin), at.in.stride, 1},
                                   weights_[i].panels, y.row(begin), y.stride);
      for (Index p = begin; p < end; ++p) {
        if (layer.norm) {
          const double inverse_deviation = layer.norm->forward(y.row(p), out.row(p));
          if (activations.backward) at.inverse_deviation[static_cast<std::size_t>(p)] = inverse_deviation;
        }
        if (!last && mlp_->layers[i + 1].swish)
          swish(outputs, out.row(p), activations.backward ? at.out.row(p) : nullptr);
      }
    }
  }

 private:
  const PositionMlp<Scalar>* mlp_;
  Index outputs_;
  double divisor_;
  std::vector<PackedWeights> weights_;
  std::vector<std::vector<double>> biases_;  // in whole lanes
};

/// Calls `write(output, position, value)` for outputs [first, first + count) at each position, both counted from 0. Calls
/// come from several threads.
template <class Scalar, class Write>
void evaluate(const PositionMlp<Scalar>& mlp, std::span<const double> positions, Index first, Index count,
              const Executor& executor, const Write& write) {
  const MlpForward<Scalar> forward(mlp, first, count);
  executor.parallel_for(position_blocks(std::ssize(positions)), [&](Index task) {
    const PositionBlock block(task, std::ssize(positions));
    forward(positions.subspan(static_cast<std::size_t>(block.first), static_cast<std::size_t>(block.count)),
            [&](Index f, Index p, double value) { write(f, block.first + p, value); });
  });
}

}  // namespace posbias::detail
