// SPDX-License-Identifier: MIT
/// \file
/// A multi-layer perceptron of one number, the position: what LearnedContinuous and DynamicPositionBias learn.
///
///     y = position / divisor
///     Linear(1, dim) -> (Norm)  { -> Swish -> Linear(dim, dim) -> (Norm) } x (depth - 1)  ( -> Linear(dim, outputs) )
///
///     Swish(x) = x / (1 + exp(-x))
///     Norm(x)  = weight · (x - mean) / sqrt(variance + 1e-5) + bias, over the dim features (arXiv 1607.06450)
///
/// Everything is computed in double and rounded once, and no position sees the others: a value does not depend on what
/// it is evaluated with. Cost: O(depth·dim²) a position, forward; up to three times that backward. Workspace: the weights
/// in double, and O(depth·dim) for each of 64 positions a thread, backward for each of 256 positions.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/core/parameters.hpp"
#include "posbias/kernel/divide.hpp"
#include "posbias/kernel/linear.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias {

/// What an MLP of positions is made of.
struct PositionMlpOptions {
  Index dim = 0;             ///< features of the hidden layers
  Index depth = 1;           ///< hidden layers
  bool norm = false;         ///< a layer normalisation after each
  Index outputs = 0;         ///< features of a last linear layer; 0: there is none, and dim features come out
  double divide = 1;         ///< positions are divided by this
  bool learned_div = false;  ///< learn the divisor
};

/// An MLP of positions, and its gradients. Parameters have the names of the Python packages' state dicts; weights and
/// biases of a Linear(in, out) start uniform in ±1/sqrt(in), as PyTorch starts them.
template <class Scalar>
class PositionMlp {
 public:
  /// Throws OptionError, naming `module`.
  PositionMlp(std::string_view module, const PositionMlpOptions& options, std::uint64_t seed)
      : divide_(module, options.divide, options.learned_div) {
    if (options.dim < 1)
      detail::fail<OptionError>(module, ": dim = ", options.dim, "; it is required, and must be positive");
    if (options.depth < 1) detail::fail<OptionError>(module, ": depth = ", options.depth, "; it must be positive");
    detail::Random random(seed);
    const auto add_layer = [&](Index inputs, Index outputs, bool norm, bool swish) {
      layers_.push_back({{}, norm ? std::optional<Norm>(outputs) : std::nullopt, swish});
      layers_.back().linear.start(inputs, outputs, random);
    };
    for (Index i = 0; i < options.depth; ++i) add_layer(i == 0 ? 1 : options.dim, options.dim, options.norm, i > 0);
    has_last_ = options.outputs > 0;
    if (has_last_) add_layer(options.dim, options.outputs, false, false);
  }

  /// Features that come out.
  [[nodiscard]] Index outputs() const { return layers_.back().linear.outputs(); }

  class Evaluation;

  /// Ready to find features [first, first + count). Where there is no last layer to choose from, they are all.
  [[nodiscard]] Evaluation evaluation(Index first, Index count) const {
    return Evaluation(*this, layers_.size(), first, count);
  }

  /// Calls `write(feature, position, value)` for features [first, first + count) of every position; the two are counted
  /// from 0. Calls come from several threads.
  template <class Write>
  void evaluate(std::span<const double> positions, Index first, Index count, const Executor& executor,
                const Write& write) const {
    const Evaluation find = evaluation(first, count);
    executor.parallel_for(blocks(std::ssize(positions)), [&](Index task) {
      const Block block(task, std::ssize(positions));
      find(positions.subspan(static_cast<std::size_t>(block.first), static_cast<std::size_t>(block.count)),
           [&](Index f, Index p, double value) { write(f, block.first + p, value); });
    });
  }

  class Adjoint;

  /// Ready for the gradients of features [first, first + count).
  [[nodiscard]] Adjoint adjoint(Index first, Index count) const { return Adjoint(*this, first, count); }

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    Divide<Scalar>::visit(self.divide_, visitor);
    for (std::size_t i = 0; i < self.layers_.size(); ++i) {
      auto& layer = self.layers_[i];
      const std::string name = "mlp." + std::to_string(i);
      if (self.has_last_ && i + 1 == self.layers_.size()) {
        Linear<Scalar>::visit(name, layer.linear, visitor);
        continue;
      }
      // Within a layer Swish is number 0, except in the first, which has none.
      Linear<Scalar>::visit(name + (layer.swish ? ".1" : ".0"), layer.linear, visitor);
      if (!layer.norm) continue;
      const std::string norm = name + (layer.swish ? ".2" : ".1");
      visitor(std::string_view(norm + ".weight"), layer.norm->weight);
      visitor(std::string_view(norm + ".bias"), layer.norm->bias);
    }
  }

 private:
  using Row = Eigen::Map<Eigen::ArrayXd>;
  using Parameters = Eigen::Map<const Eigen::ArrayX<Scalar>>;

  /// Positions that a task takes together.
  struct Block {
    static constexpr Index most = 64;
    Index first, count;
    Block(Index block, Index positions) : first(block * most), count((std::min)(most, positions - first)) {}
  };
  static Index blocks(Index positions) { return (positions + Block::most - 1) / Block::most; }

  [[nodiscard]] bool is_last(std::size_t layer) const { return layer + 1 == layers_.size(); }
  /// Outputs of a layer, if so many of the last one count.
  [[nodiscard]] Index outputs(std::size_t layer, Index of_last) const {
    return is_last(layer) ? of_last : layers_[layer].linear.outputs();
  }
  /// Weights of a layer (outputs, inputs) from an output on.
  [[nodiscard]] detail::MatrixView<Scalar> weight(std::size_t layer, Index output) const {
    const Linear<Scalar>& linear = layers_[layer].linear;
    return {linear.weight.data() + output * linear.inputs(), linear.inputs(), 1};
  }

  /// Weights as products want them, in double.
  struct Packed {
    detail::Workspace<double> memory;
    detail::PackedMatrix<double> panels;

    Packed(const detail::MatrixView<Scalar>& weights, Index terms, Index columns)
        : memory(detail::packed_size<double>(terms, columns)),
          panels(detail::pack(weights, terms, columns, memory.data())) {}
  };

  /// Features of positions.
  struct Rows {
    double* first = nullptr;
    Index stride = 0;
    [[nodiscard]] double* row(Index p) const { return first + p * stride; }
  };

  /// A layer of some positions.
  struct Activation {
    Rows in;                                // of the linear map
    Rows out;                               // of the last layer; backward the gradient of what comes out of the linear
                                            // map, and before it is known the slope of the Swish behind the layer
    Rows normalised;                        // backward, with a norm: (x - mean) / deviation
    Rows norm_weight_sums, norm_bias_sums;  // for each block
    std::vector<double> inverse_deviation;  // of each position
  };

  /// All layers of some positions. It is one allocation, because malloc returns many to the system and faults them in
  /// again in the next call.
  struct Trace {
    bool backward;
    std::vector<Activation> layers;
    detail::Workspace<double> memory{};

    Trace(const PositionMlp& mlp, Index outputs, Index positions, bool for_backward)
        : backward(for_backward), layers(mlp.layers_.size()) {
      for (const bool room : {false, true}) {
        Index used = 0;
        // Rows are a cache line longer than whole lanes: a power of two apart, they would all want the same place in
        // the cache.
        const auto take = [&](Rows& rows, Index count, Index features) {
          rows.stride = detail::round_up_to_lanes<double>(features) + detail::lanes<double>;
          if (room) rows.first = memory.data() + used;
          used += count * rows.stride;
        };
        for (std::size_t i = 0; i < layers.size(); ++i) {
          const bool last = mlp.is_last(i);
          const Index features = mlp.outputs(i, outputs);
          take(layers[i].in, positions, mlp.layers_[i].linear.inputs());
          if (last || backward) take(layers[i].out, positions, features);
          if (!mlp.layers_[i].norm || !backward) continue;
          take(layers[i].normalised, positions, features);
          take(layers[i].norm_weight_sums, blocks(positions), features);
          take(layers[i].norm_bias_sums, blocks(positions), features);
          layers[i].inverse_deviation.resize(static_cast<std::size_t>(positions));
        }
        memory.make_room(used);
      }
    }
  };

  /// Layer normalisation over the features of each position.
  struct Norm {
    ParameterTensor<Scalar, 1> weight, bias;

    explicit Norm(Index features) : weight(features), bias(features) {
      weight.setConstant(Scalar(1));
      bias.setZero();
    }
    [[nodiscard]] auto weights() const { return Parameters(weight.data(), weight.size()).template cast<double>(); }
    [[nodiscard]] auto biases() const { return Parameters(bias.data(), bias.size()).template cast<double>(); }

    /// By lanes. Eigen's sum of doubles makes g++ 12 warn of AVX-512 intrinsics of its own.
    template <class Values>
    static double sum(const Values& values) {
      constexpr Index lanes = detail::lanes<double>;
      const Index whole = values.size() / lanes * lanes;
      std::array<double, static_cast<std::size_t>(lanes)> sums{};
      for (Index f = 0; f < whole; f += lanes)
        for (Index lane = 0; lane < lanes; ++lane) sums[static_cast<std::size_t>(lane)] += values[f + lane];
      for (Index f = whole; f < values.size(); ++f) sums[static_cast<std::size_t>(f - whole)] += values[f];
      return std::accumulate(sums.begin(), sums.end(), 0.0);
    }

    /// Normalises the features of a position in place, and gives them their weights and biases in `y`, which may be the
    /// same place. Returns 1 / deviation.
    double forward(double* features, double* y) const {
      constexpr double epsilon = 1e-5;
      Row x(features, weight.size());
      const auto count = static_cast<double>(weight.size());
      const double mean = sum(x) / count;
      x -= mean;
      const double inverse_deviation = 1 / std::sqrt(sum(x.square()) / count + epsilon);
      x *= inverse_deviation;
      Row(y, weight.size()) = weights() * x + biases();
      return inverse_deviation;
    }

    /// Turns the gradients of a block's normalised features into those of the features.
    void backward(const Block& block, Activation& at) const {
      const Index features = weight.size(), task = block.first / Block::most;
      Row weight_sum(at.norm_weight_sums.row(task), features), bias_sum(at.norm_bias_sums.row(task), features);
      weight_sum.setZero();
      bias_sum.setZero();
      for (Index p = block.first; p < block.first + block.count; ++p) {
        Row grad(at.out.row(p), features);
        const Row normalised(at.normalised.row(p), features);
        weight_sum += grad * normalised;
        bias_sum += grad;
        grad *= weights();
        const auto count = static_cast<double>(features);
        const double mean = sum(grad) / count, projection = sum(grad * normalised) / count;
        grad = (grad - mean - normalised * projection) * at.inverse_deviation[static_cast<std::size_t>(p)];
      }
    }
  };

  struct Layer {
    Linear<Scalar> linear;
    std::optional<Norm> norm;
    bool swish;  // before the linear map
  };

  /// A part of a lane. Eigen's exponential of 8 doubles makes g++ 12 warn of AVX-512 intrinsics of its own. `Real` is
  /// double; a template, what is made of it is compiled where it is used and not where this file is included.
  template <class Real>
  using Quad = Eigen::Array<Real, 4, 1>;

  /// Swish(x) = x·s and, unless it is null, its slope s + x·s·(1 - s), with s = 1 / (1 + exp(-x)). Always in fours, so
  /// that every value gets the same exponential, vectorised or not.
  template <class Real>
  static void swish(Index features, Real* x, Real* slope) {
    using Values = Eigen::Map<Quad<Real>>;
    for (Index f = 0; f < features; f += 4) {
      Values values(x + f);
      const Quad<Real> s = (1 + (-values).exp()).inverse();
      if (slope != nullptr) Values(slope + f) = s * (1 + values * (1 - s));
      values *= s;
    }
  }

  Divide<Scalar> divide_;
  std::vector<Layer> layers_;
  bool has_last_ = false;
};

/// Some features of an MLP, ready to be found from any thread. Refers to the MLP, which must outlive it.
template <class Scalar>
class PositionMlp<Scalar>::Evaluation {
 public:
  /// Calls `write(feature, position, value)` for all positions, at most 64, and features, both counted from 0.
  template <class Write>
  void operator()(std::span<const double> positions, const Write& write) const {
    Trace trace(*mlp_, outputs_, std::ssize(positions), false);
    run(positions, 0, trace);
    for (Index p = 0; p < std::ssize(positions); ++p) {
      const double* out = trace.layers.back().out.row(p);
      for (Index f = 0; f < outputs_; ++f) write(f, p, out[f]);
    }
  }

 private:
  friend PositionMlp;

  /// The first layers; of the last one some outputs.
  Evaluation(const PositionMlp& mlp, std::size_t layers, Index first, Index count)
      : mlp_(&mlp), outputs_(count), divisor_(mlp.divide_.divisor()) {
    for (std::size_t i = 0; i < layers; ++i) {
      const Linear<Scalar>& linear = mlp.layers_[i].linear;
      const Index begin = mlp.is_last(i) ? first : 0, outputs = mlp.outputs(i, count);
      const Scalar* bias = linear.bias.data() + begin;
      weights_.emplace_back(mlp.weight(i, begin).transposed(), linear.inputs(), outputs);
      biases_.emplace_back(bias, bias + outputs);
      biases_.back().resize(static_cast<std::size_t>(detail::round_up_to_lanes<double>(outputs)));
    }
  }

  /// The first layers of some positions, numbered from `begin` in the trace, and the Swish behind them.
  void run(std::span<const double> positions, Index begin, Trace& trace) const {
    const Index count = std::ssize(positions), end = begin + count;
    for (Index p = begin; p < end; ++p)
      *trace.layers[0].in.row(p) = positions[static_cast<std::size_t>(p - begin)] / divisor_;
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      Activation& at = trace.layers[i];
      const std::vector<double>& bias = biases_[i];
      const bool last = mlp_->is_last(i);
      const Norm* norm = mlp_->layers_[i].norm ? &*mlp_->layers_[i].norm : nullptr;
      Rows& out = last ? at.out : trace.layers[i + 1].in;
      Rows& y = norm != nullptr && trace.backward ? at.normalised : out;
      for (Index p = begin; p < end; ++p) std::copy(bias.begin(), bias.end(), y.row(p));
      const Index inputs = mlp_->layers_[i].linear.inputs(), outputs = std::ssize(bias);
      detail::multiply<detail::Accumulate::extend>(count, outputs, inputs,
                                                   detail::MatrixView<double>{at.in.row(begin), at.in.stride, 1},
                                                   weights_[i].panels, y.row(begin), y.stride);
      for (Index p = begin; p < end; ++p) {
        const double inverse_deviation = norm != nullptr ? norm->forward(y.row(p), out.row(p)) : 1;
        if (norm != nullptr && trace.backward) at.inverse_deviation[static_cast<std::size_t>(p)] = inverse_deviation;
        if (!last && mlp_->layers_[i + 1].swish) swish(outputs, out.row(p), trace.backward ? at.out.row(p) : nullptr);
      }
    }
  }

  const PositionMlp* mlp_;
  Index outputs_;
  double divisor_;
  std::vector<Packed> weights_;
  std::vector<std::vector<double>> biases_;  // in whole lanes
};

/// Adjoint of some features of an MLP. Refers to the MLP, which must outlive it; keeps its memory from call to call.
template <class Scalar>
class PositionMlp<Scalar>::Adjoint {
 public:
  /// Given the gradients `gradient(feature, position)` of values, both counted from 0, adds to those of the parameters.
  /// Sums run in double, position by position in order, and are rounded once for every few hundred positions.
  template <class Gradient>
  void operator()(std::span<const double> positions, const Gradient& gradient, PositionMlp& gradients,
                  const Executor& executor) {
    const Index length = std::ssize(positions), dim = mlp_->layers_.front().linear.outputs();
    const Index most = (std::min)(length, std::max<Index>(256, (Index{1} << 15) / dim / Block::most * Block::most));
    if (most > room_) trace_.emplace(*mlp_, outputs_, room_ = most, true);
    for (Index begin = 0; begin < length; begin += most) {
      const Index count = (std::min)(most, length - begin);
      executor.parallel_for(blocks(count), [&](Index task) {
        const Block block(task, count);
        forward_.run(
            positions.subspan(static_cast<std::size_t>(begin + block.first), static_cast<std::size_t>(block.count)),
            block.first, *trace_);
        for (Index p = block.first; p < block.first + block.count; ++p) {
          double* out = trace_->layers.back().out.row(p);
          for (Index f = 0; f < outputs_; ++f) out[f] = gradient(f, begin + p);
        }
        backward_of_block(block);
      });
      add_gradients(count, gradients, executor);
    }
  }

 private:
  friend PositionMlp;

  /// What comes out of the last layer matters to its norm alone.
  Adjoint(const PositionMlp& mlp, Index first, Index count)
      : mlp_(&mlp),
        first_(first),
        outputs_(count),
        forward_(mlp, mlp.layers_.size() - (mlp.layers_.back().norm ? 0 : 1), first, count) {
    for (std::size_t i = 1; i < mlp.layers_.size(); ++i)
      weights_.emplace_back(mlp.weight(i, mlp.is_last(i) ? first : 0), mlp.outputs(i, count),
                            mlp.layers_[i].linear.inputs());
  }

  /// Backward of a block, down to the gradient of what comes out of the first linear map.
  void backward_of_block(const Block& block) {
    for (std::size_t i = trace_->layers.size(); i-- > 0;) {
      const Layer& layer = mlp_->layers_[i];
      Activation& at = trace_->layers[i];
      if (layer.norm) layer.norm->backward(block, at);
      if (i == 0) return;
      const Index inputs = layer.linear.inputs(), outputs = mlp_->outputs(i, outputs_);
      const Index stride = detail::round_up_to_lanes<double>(inputs);
      detail::Workspace<double> grad_in(block.count * stride);
      detail::multiply<detail::Accumulate::overwrite>(
          block.count, inputs, outputs, detail::MatrixView<double>{at.out.row(block.first), at.out.stride, 1},
          weights_[i - 1].panels, grad_in.data(), stride);
      for (Index p = 0; p < block.count; ++p) {
        Row grad_out(trace_->layers[i - 1].out.row(block.first + p), inputs);
        const Row grad(grad_in.data() + p * stride, inputs);
        if (layer.swish)
          grad_out *= grad;
        else
          grad_out = grad;
      }
    }
  }

  /// The gradients of parameters, from what lies in the trace. A task takes a few rows of a layer's weights through all
  /// positions.
  void add_gradients(Index positions, PositionMlp& gradients, const Executor& executor) const {
    constexpr Index most = 16;
    const std::vector<Layer>& layers = mlp_->layers_;
    const Index slices = ((std::max)(layers.front().linear.outputs(), outputs_) + most - 1) / most;
    std::vector<double> first_weight_sums(static_cast<std::size_t>(layers.front().linear.outputs()));
    executor.parallel_for(std::ssize(layers) * slices, [&](Index task) {
      const auto i = static_cast<std::size_t>(task / slices);
      const Activation& at = trace_->layers[i];
      Layer& grads = gradients.layers_[i];
      const Index inputs = grads.linear.inputs(), outputs = mlp_->outputs(i, outputs_);
      const Index output = task % slices * most, rows = (std::min)(most, outputs - output);
      if (rows <= 0) return;
      const Index stride = detail::round_up_to_lanes<double>(inputs);
      detail::Workspace<double> sums(rows * stride);
      const double* grad = at.out.row(0) + output;
      // Rows of positions are in a page each: a block of them at a time, processors know where the pages are.
      for (Index p = 0; p < positions; p += Block::most)
        detail::multiply<detail::Accumulate::extend>(
            rows, inputs, (std::min)(Block::most, positions - p),
            detail::MatrixView<double>{grad + p * at.out.stride, 1, at.out.stride},
            detail::PackedMatrix<double>::of_rows(at.in.row(p), at.in.stride), sums.data(), stride);
      Eigen::ArrayXd bias_sums = Eigen::ArrayXd::Zero(rows);
      for (Index p = 0; p < positions; ++p)
        bias_sums += Eigen::Map<const Eigen::ArrayXd>(grad + p * at.out.stride, rows);
      for (Index f = 0; f < rows; ++f) {
        const Index to = (mlp_->is_last(i) ? first_ : 0) + output + f;
        const Row sum(sums.data() + f * stride, inputs);
        Eigen::Map<Eigen::ArrayX<Scalar>>(grads.linear.weight.data() + to * inputs, inputs) +=
            sum.template cast<Scalar>();
        grads.linear.bias.data()[to] += static_cast<Scalar>(bias_sums[f]);
        if (i == 0) first_weight_sums[static_cast<std::size_t>(output + f)] = sum[0];
      }
    });

    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (!layers[i].norm) continue;
      Norm& grads = *gradients.layers_[i].norm;
      const auto add = [&](const Rows& of_blocks, ParameterTensor<Scalar, 1>& to) {
        Eigen::ArrayXd sum = Eigen::ArrayXd::Zero(to.size());
        for (Index task = 0; task < blocks(positions); ++task)
          sum += Eigen::Map<const Eigen::ArrayXd>(of_blocks.row(task), to.size());
        Eigen::Map<Eigen::ArrayX<Scalar>>(to.data(), to.size()) += sum.template cast<Scalar>();
      };
      add(trace_->layers[i].norm_weight_sums, grads.weight);
      add(trace_->layers[i].norm_bias_sums, grads.bias);
    }

    // The first layer's weight w meets an input y only as w·y, so that the sums of gradient·y are the same.
    double sum_of_gradient_times_input = 0;
    for (std::size_t f = 0; f < first_weight_sums.size(); ++f)
      sum_of_gradient_times_input += static_cast<double>(layers.front().linear.weight.data()[f]) * first_weight_sums[f];
    mlp_->divide_.backward(sum_of_gradient_times_input, gradients.divide_);
  }

  const PositionMlp* mlp_;
  Index first_, outputs_;
  Evaluation forward_;
  std::vector<Packed> weights_;  // of layers 1, 2, ...
  std::optional<Trace> trace_;
  Index room_ = 0;  // positions in the trace
};

}  // namespace posbias
