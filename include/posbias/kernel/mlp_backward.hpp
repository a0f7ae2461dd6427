// SPDX-License-Identifier: MIT
/// \file
/// The adjoint of an MLP of positions (see kernel/mlp.hpp and its forward pass, kernel/mlp_forward.hpp).
///
/// Cost: up to three times the forward pass, which it runs again. Workspace: the weights in double, and O(depth·dim) for
/// each of 256 positions or more.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/core/parameters.hpp"
#include "posbias/kernel/mlp_forward.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias::detail {

/// Adjoint of `MlpForward` of the same outputs. Refers to the MLP, which must outlive it; keeps its memory from call to
/// call.
template <class Scalar>
class MlpBackward {
 public:
  MlpBackward(const PositionMlp<Scalar>& mlp, Index first, Index count)
      : mlp_(&mlp),
        first_(first),
        outputs_(count),
        // Only a norm reads the outputs of the last layer.
        forward_(mlp, mlp.layers.size() - (mlp.layers.back().norm ? 0 : 1), first, count) {
    for (std::size_t i = 1; i < mlp.layers.size(); ++i)
      weights_.emplace_back(mlp.weight(i, mlp.is_last(i) ? first : 0), mlp.outputs(i, count),
                            mlp.layers[i].linear.inputs());
  }

  /// Given the gradients `gradient(output, position)` of values, both counted from 0, adds to the parameters' gradients.
  /// Sums run in double, position by position in order, and are rounded once for every few hundred positions.
  template <class Gradient>
  void operator()(std::span<const double> positions, const Gradient& gradient, PositionMlp<Scalar>& gradients,
                  const Executor& executor) {
    constexpr Index block_size = PositionBlock::max_size;
    const Index length = std::ssize(positions), dim = mlp_->layers.front().linear.outputs();
    const Index max_count = (std::min)(length, std::max<Index>(256, (Index{1} << 15) / dim / block_size * block_size));
    if (max_count > room_) activations_.emplace(*mlp_, outputs_, room_ = max_count, true);
    for (Index begin = 0; begin < length; begin += max_count) {
      const Index count = (std::min)(max_count, length - begin);
      executor.parallel_for(position_blocks(count), [&](Index task) {
        const PositionBlock block(task, count);
        forward_.run(
            positions.subspan(static_cast<std::size_t>(begin + block.first), static_cast<std::size_t>(block.count)),
            block.first, *activations_);
        for (Index p = block.first; p < block.first + block.count; ++p) {
          double* out = activations_->layers.back().out.row(p);
          for (Index f = 0; f < outputs_; ++f) out[f] = gradient(f, begin + p);
        }
        backward_of_block(block);
      });
      add_gradients(count, gradients, executor);
    }
  }

 private:
  /// Backward of a block, down to the gradient of the first linear map's outputs.
  void backward_of_block(const PositionBlock& block) {
    for (std::size_t i = activations_->layers.size(); i-- > 0;) {
      const auto& layer = mlp_->layers[i];
      LayerActivations& at = activations_->layers[i];
      const Index inputs = layer.linear.inputs(), outputs = mlp_->outputs(i, outputs_);
      if (layer.norm) {
        double *weight_sums = at.norm_weight_sums.row(block.index), *bias_sums = at.norm_bias_sums.row(block.index);
        std::fill_n(weight_sums, outputs, 0.0);
        std::fill_n(bias_sums, outputs, 0.0);
        for (Index p = block.first; p < block.first + block.count; ++p)
          layer.norm->backward(at.out.row(p), at.normalised.row(p), at.inverse_deviation[static_cast<std::size_t>(p)],
                               weight_sums, bias_sums);
      }
      if (i == 0) return;
      const Index stride = round_up_to_lanes<double>(inputs);
      Workspace<double> grad_in(block.count * stride);
      multiply<Accumulate::overwrite>(block.count, inputs, outputs,
                                      MatrixView<double>{at.out.row(block.first), at.out.stride, 1},
                                      weights_[i - 1].panels, grad_in.data(), stride);
      for (Index p = 0; p < block.count; ++p) {
        Eigen::Map<Eigen::ArrayXd> grad_out(activations_->layers[i - 1].out.row(block.first + p), inputs);
        const Eigen::Map<const Eigen::ArrayXd> grad(grad_in.data() + p * stride, inputs);
        if (layer.swish)
          grad_out *= grad;
        else
          grad_out = grad;
      }
    }
  }

  /// The gradients of parameters, from the activations and their gradients. A task takes a few rows of a layer's weights
  /// through all positions.
  void add_gradients(Index positions, PositionMlp<Scalar>& gradients, const Executor& executor) const {
    constexpr Index max_rows = 16, block_size = PositionBlock::max_size;
    const auto& layers = mlp_->layers;
    const Index slices = ((std::max)(layers.front().linear.outputs(), outputs_) + max_rows - 1) / max_rows;
    std::vector<double> first_weight_sums(static_cast<std::size_t>(layers.front().linear.outputs()));
    executor.parallel_for(std::ssize(layers) * slices, [&](Index task) {
      const auto i = static_cast<std::size_t>(task / slices);
      const LayerActivations& at = activations_->layers[i];
      Linear<Scalar>& grads = gradients.layers[i].linear;
      const Index inputs = grads.inputs(), outputs = mlp_->outputs(i, outputs_);
      const Index output = task % slices * max_rows, rows = (std::min)(max_rows, outputs - output);
      if (rows <= 0) return;
      const Index stride = round_up_to_lanes<double>(inputs);
      Workspace<double> sums(rows * stride);
      const double* grad = at.out.row(0) + output;
      // Rows of positions are in a page each: with a block of them at a time, processors know where the pages are.
      for (Index p = 0; p < positions; p += block_size)
        multiply<Accumulate::extend>(rows, inputs, (std::min)(block_size, positions - p),
                                     MatrixView<double>{grad + p * at.out.stride, 1, at.out.stride},
                                     PackedMatrix<double>::of_rows(at.in.row(p), at.in.stride), sums.data(), stride);
      Eigen::ArrayXd bias_sums = Eigen::ArrayXd::Zero(rows);
      for (Index p = 0; p < positions; ++p)
        bias_sums += Eigen::Map<const Eigen::ArrayXd>(grad + p * at.out.stride, rows);
      for (Index f = 0; f < rows; ++f) {
        const Index to = (mlp_->is_last(i) ? first_ : 0) + output + f;
        const Eigen::Map<const Eigen::ArrayXd> sum(sums.data() + f * stride, inputs);
        Eigen::Map<Eigen::ArrayX<Scalar>>(grads.weight.data() + to * inputs, inputs) += sum.template cast<Scalar>();
        grads.bias.data()[to] += static_cast<Scalar>(bias_sums[f]);
        if (i == 0) first_weight_sums[static_cast<std::size_t>(output + f)] = sum[0];
      }
    });

    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (!layers[i].norm) continue;
      LayerNorm<Scalar>& grads = *gradients.layers[i].norm;
      const auto add = [&](const FeatureRows& of_blocks, ParameterTensor<Scalar, 1>& to) {
        Eigen::ArrayXd sum = Eigen::ArrayXd::Zero(to.size());
        for (Index block = 0; block < position_blocks(positions); ++block)
          sum += Eigen::Map<const Eigen::ArrayXd>(of_blocks.row(block), to.size());
        Eigen::Map<Eigen::ArrayX<Scalar>>(to.data(), to.size()) += sum.template cast<Scalar>();
      };
      add(activations_->layers[i].norm_weight_sums, grads.weight);
      add(activations_->layers[i].norm_bias_sums, grads.bias);
    }

    // The first layer's weight w meets an input y only as w·y, so that the sums of gradient·y are the same.
    double sum_of_gradient_times_input = 0;
    for (std::size_t f = 0; f < first_weight_sums.size(); ++f)
      sum_of_gradient_times_input += static_cast<double>(layers.front().linear.weight.data()[f]) * first_weight_sums[f];
    mlp_->divide.backward(sum_of_gradient_times_input, gradients.divide);
  }

  const PositionMlp<Scalar>* mlp_;
  Index first_, outputs_;
  MlpForward<Scalar> forward_;
  std::vector<PackedWeights> weights_;  // of layers 1, 2, ...
  std::optional<MlpActivations> activations_;
  Index room_ = 0;  // positions in the activations
};

}  // namespace posbias::detail
