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
/// Positions are taken in blocks, features by positions, so a layer is one matrix product a block. Everything is
/// computed in double and rounded once, and no position sees the others: a value does not depend on what it is
/// evaluated with. Cost: O(depth·dim²) a position, forward; three times that backward. Workspace: O(depth·dim) and,
/// backward, the size of the parameters.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "posbias/core/parameters.hpp"
#include "posbias/kernel/divide.hpp"
#include "posbias/kernel/product.hpp"

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
    for (Index i = 0; i < options.depth; ++i)
      hidden_.push_back({Linear(i == 0 ? 1 : options.dim, options.dim, random),
                         options.norm ? std::optional<Norm>(options.dim) : std::nullopt});
    if (options.outputs > 0) last_.emplace(options.dim, options.outputs, random);
  }

  /// Features that come out.
  [[nodiscard]] Index outputs() const { return last_ ? last_->outputs() : hidden_.front().linear.outputs(); }

  /// Calls `write(feature, position, value)` for features [first, first + count) of every position; the two are counted
  /// from 0. Where there is no last layer to choose from, first is 0 and count is outputs().
  template <class Write>
  void evaluate(std::span<const double> positions, Index first, Index count, const Write& write) const {
    Trace trace;
    for_each_block(positions, [&](Index begin, std::span<const double> inputs) {
      const Block& out = forward(inputs, first, count, trace);
      for (Index f = 0; f < count; ++f)
        for (Index p = 0; p < static_cast<Index>(inputs.size()); ++p) write(f, begin + p, out.row(f)[p]);
    });
  }

  /// Adjoint of `evaluate`: `gradient(feature, position)` is the gradient of a value. Sums run in double, position
  /// by position in order, and are rounded once.
  template <class Gradient>
  void backward(std::span<const double> positions, Index first, Index count, const Gradient& gradient,
                PositionMlp& gradients) const {
    std::vector<LayerSums> sums;
    for (const Hidden& layer : hidden_) sums.emplace_back(layer.linear);
    LayerSums last_sums = last_ ? LayerSums(*last_) : LayerSums();
    double sum_of_gradient_times_input = 0;

    Trace trace;
    for_each_block(positions, [&](Index begin, std::span<const double> inputs) {
      run_hidden(inputs, trace, last_ || hidden_.back().norm ? hidden_.size() : hidden_.size() - 1);
      Block grad(count, static_cast<Index>(inputs.size()));
      for (Index f = 0; f < count; ++f)
        for (Index p = 0; p < static_cast<Index>(inputs.size()); ++p) grad.row(f)[p] = gradient(f, begin + p);
      if (last_) grad = last_->backward(grad, trace.hidden.back().out, first, last_sums);
      for (std::size_t i = hidden_.size(); i-- > 0;) {
        const Activation& at = trace.hidden[i];
        if (hidden_[i].norm) hidden_[i].norm->backward(at, grad, sums[i]);
        grad = hidden_[i].linear.backward(grad, at.in, 0, sums[i]);
        if (i > 0) swish_backward(trace.hidden[i - 1].out.values, grad.values);
      }
      for (std::size_t p = 0; p < inputs.size(); ++p) sum_of_gradient_times_input += grad.row(0)[p] * inputs[p];
    });

    for (std::size_t i = 0; i < hidden_.size(); ++i) {
      sums[i].linear_to(gradients.hidden_[i].linear);
      if (hidden_[i].norm) sums[i].norm_to(*gradients.hidden_[i].norm);
    }
    if (last_) last_sums.linear_to(*gradients.last_);
    divide_.backward(sum_of_gradient_times_input, gradients.divide_);
  }

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    Divide<Scalar>::visit(self.divide_, visitor);
    const auto visit_both = [&](const std::string& name, auto& layer) {
      visitor(std::string_view(name + ".weight"), layer.weight);
      visitor(std::string_view(name + ".bias"), layer.bias);
    };
    for (std::size_t i = 0; i < self.hidden_.size(); ++i) {
      // Within a layer Swish is number 0, except in the first, which has none.
      const std::string layer = "mlp." + std::to_string(i) + ".";
      visit_both(layer + (i == 0 ? "0" : "1"), self.hidden_[i].linear);
      if (self.hidden_[i].norm) visit_both(layer + (i == 0 ? "1" : "2"), *self.hidden_[i].norm);
    }
    if (self.last_) visit_both("mlp." + std::to_string(self.hidden_.size()), *self.last_);
  }

 private:
  /// Features by positions, row-major; rows are padded to whole lanes of positions.
  struct Block {
    Index features = 0, columns = 0;
    std::vector<double> values{};

    Block() = default;
    Block(Index rows, Index positions) { reshape(rows, positions); }

    /// Keeps the memory; values are what they were, or 0.
    void reshape(Index rows, Index positions) {
      features = rows;
      columns = detail::whole_lanes<double>(positions);
      values.resize(static_cast<std::size_t>(features * columns));
    }
    [[nodiscard]] double* row(Index f) { return values.data() + f * columns; }
    [[nodiscard]] const double* row(Index f) const { return values.data() + f * columns; }
  };

  /// What lies between forward and backward of a hidden layer.
  struct Activation {
    Block in, out;
    Block normalised;                       // with a norm: (x - mean) / deviation
    std::vector<double> inverse_deviation;  // with a norm: of each position
  };

  /// What lies between forward and backward of a block of positions.
  struct Trace {
    std::vector<Activation> hidden;
    Block out;  // of the last layer
  };

  struct LayerSums;

  /// y = W x + b.
  struct Linear {
    ParameterTensor<Scalar, 2> weight;  // (outputs, inputs)
    ParameterTensor<Scalar, 1> bias;    // (outputs)

    Linear(Index inputs, Index outputs, detail::Random& random) : weight(outputs, inputs), bias(outputs) {
      const double bound = 1 / std::sqrt(static_cast<double>(inputs));
      detail::fill_uniform(weight, bound, random);
      detail::fill_uniform(bias, bound, random);
    }
    [[nodiscard]] Index inputs() const { return weight.dimension(1); }
    [[nodiscard]] Index outputs() const { return weight.dimension(0); }

    /// Outputs [first, first + count).
    void forward(const Block& x, Index first, Index count, Block& y) const {
      y.reshape(count, x.columns);
      for (Index f = 0; f < count; ++f) std::fill_n(y.row(f), y.columns, static_cast<double>(bias(first + f)));
      const std::vector<double> rows = in_double(first, count);
      detail::add_product(count, y.columns, inputs(), detail::Factor<double>{rows.data(), inputs(), 1}, x.row(0),
                          x.columns, y.row(0), y.columns);
    }

    /// The gradient of x, from that of outputs first, first + 1, ...
    [[nodiscard]] Block backward(const Block& grad_y, const Block& x, Index first, LayerSums& sums) const {
      for (Index f = 0; f < grad_y.features; ++f)
        for (Index p = 0; p < grad_y.columns; ++p) sums.bias[static_cast<std::size_t>(first + f)] += grad_y.row(f)[p];
      detail::add_product_transposed(grad_y.features, inputs(), grad_y.columns,
                                     detail::Factor<double>{grad_y.row(0), grad_y.columns, 1}, x.row(0), x.columns,
                                     sums.weight.row(first), sums.weight.columns);
      Block grad_x(inputs(), grad_y.columns);
      const std::vector<double> rows = in_double(first, grad_y.features);
      detail::add_product(inputs(), grad_y.columns, grad_y.features, detail::Factor<double>{rows.data(), 1, inputs()},
                          grad_y.row(0), grad_y.columns, grad_x.row(0), grad_x.columns);
      return grad_x;
    }

    /// Rows [first, first + count) of the weights.
    [[nodiscard]] std::vector<double> in_double(Index first, Index count) const {
      const Scalar* rows = weight.data() + first * inputs();
      return std::vector<double>(rows, rows + count * inputs());
    }
  };

  /// Layer normalisation over the features of each position.
  struct Norm {
    ParameterTensor<Scalar, 1> weight, bias;

    explicit Norm(Index features) : weight(features), bias(features) {
      weight.setConstant(Scalar(1));
      bias.setZero();
    }

    /// Normalises `at.out` in place.
    void forward(Activation& at) const {
      Block& x = at.out;
      const auto features = static_cast<double>(x.features);
      std::vector<double> mean(static_cast<std::size_t>(x.columns)), variance(mean.size());
      for_each_entry(x, [&](Index f, std::size_t p) { mean[p] += x.row(f)[p]; });
      for (double& sum : mean) sum /= features;
      for_each_entry(x, [&](Index f, std::size_t p) {
        const double deviation = x.row(f)[p] - mean[p];
        variance[p] += deviation * deviation;
      });
      constexpr double epsilon = 1e-5;
      at.inverse_deviation.resize(mean.size());
      for (std::size_t p = 0; p < mean.size(); ++p)
        at.inverse_deviation[p] = 1 / std::sqrt(variance[p] / features + epsilon);
      at.normalised.reshape(x.features, x.columns);
      for_each_entry(x, [&](Index f, std::size_t p) {
        const double value = (x.row(f)[p] - mean[p]) * at.inverse_deviation[p];
        at.normalised.row(f)[p] = value;
        x.row(f)[p] = static_cast<double>(weight(f)) * value + static_cast<double>(bias(f));
      });
    }

    /// Turns the gradient of the normalised features into that of the features.
    void backward(const Activation& at, Block& grad, LayerSums& sums) const {
      const Block& normalised = at.normalised;
      std::vector<double> mean(static_cast<std::size_t>(grad.columns)), projection(mean.size());
      for_each_entry(grad, [&](Index f, std::size_t p) {
        sums.norm_weight[static_cast<std::size_t>(f)] += grad.row(f)[p] * normalised.row(f)[p];
        sums.norm_bias[static_cast<std::size_t>(f)] += grad.row(f)[p];
        grad.row(f)[p] *= static_cast<double>(weight(f));
        mean[p] += grad.row(f)[p];
        projection[p] += grad.row(f)[p] * normalised.row(f)[p];
      });
      const auto features = static_cast<double>(grad.features);
      for_each_entry(grad, [&](Index f, std::size_t p) {
        grad.row(f)[p] =
            (grad.row(f)[p] - (mean[p] + normalised.row(f)[p] * projection[p]) / features) * at.inverse_deviation[p];
      });
    }

    template <class Visit>
    static void for_each_entry(const Block& block, const Visit& visit) {
      for (Index f = 0; f < block.features; ++f)
        for (std::size_t p = 0; p < static_cast<std::size_t>(block.columns); ++p) visit(f, p);
    }
  };

  struct Hidden {
    Linear linear;
    std::optional<Norm> norm;
  };

  /// Gradients of a layer's parameters, in double.
  struct LayerSums {
    Block weight;  // (outputs, inputs), rows padded
    std::vector<double> bias, norm_weight, norm_bias;

    LayerSums() = default;
    explicit LayerSums(const Linear& of)
        : weight(of.outputs(), of.inputs()),
          bias(static_cast<std::size_t>(of.outputs())),
          norm_weight(bias.size()),
          norm_bias(bias.size()) {}

    void linear_to(Linear& gradients) const {
      for (Index f = 0; f < gradients.outputs(); ++f)
        for (Index i = 0; i < gradients.inputs(); ++i) gradients.weight(f, i) += static_cast<Scalar>(weight.row(f)[i]);
      add(bias, gradients.bias);
    }
    void norm_to(Norm& gradients) const {
      add(norm_weight, gradients.weight);
      add(norm_bias, gradients.bias);
    }

   private:
    static void add(const std::vector<double>& sums, ParameterTensor<Scalar, 1>& gradient) {
      for (std::size_t f = 0; f < sums.size(); ++f) gradient.data()[f] += static_cast<Scalar>(sums[f]);
    }
  };

  /// Calls `visit(index of the first, positions / divisor)` for blocks of positions.
  template <class Visit>
  void for_each_block(std::span<const double> positions, const Visit& visit) const {
    constexpr std::size_t most = 64;
    const double divisor = divide_.divisor();
    std::array<double, most> inputs;
    for (std::size_t begin = 0; begin < positions.size(); begin += most) {
      const std::size_t count = std::min(most, positions.size() - begin);
      for (std::size_t p = 0; p < count; ++p) inputs[p] = positions[begin + p] / divisor;
      visit(static_cast<Index>(begin), std::span<const double>(inputs).first(count));
    }
  }

  /// The first layers of a block of inputs, keeping what `backward` needs; of the layer behind them only what goes in.
  void run_hidden(std::span<const double> inputs, Trace& trace, std::size_t layers) const {
    trace.hidden.resize(hidden_.size());
    Block& x = trace.hidden.front().in;
    x.reshape(1, static_cast<Index>(inputs.size()));
    std::fill(std::copy(inputs.begin(), inputs.end(), x.row(0)), x.row(1), 0.0);
    for (std::size_t i = 0; i < hidden_.size(); ++i) {
      Activation& at = trace.hidden[i];
      if (i > 0) {
        const Block& before = trace.hidden[i - 1].out;
        at.in.reshape(before.features, before.columns);
        swish(before.values, at.in.values);
      }
      if (i == layers) return;
      hidden_[i].linear.forward(at.in, 0, hidden_[i].linear.outputs(), at.out);
      if (hidden_[i].norm) hidden_[i].norm->forward(at);
    }
  }

  /// Outputs [first, first + count) of a block of inputs.
  const Block& forward(std::span<const double> inputs, Index first, Index count, Trace& trace) const {
    run_hidden(inputs, trace, hidden_.size());
    const Block& features = trace.hidden.back().out;
    if (!last_) return features;
    last_->forward(features, first, count, trace.out);
    return trace.out;
  }

  /// A part of a lane. Eigen's exponential of 8 doubles makes g++ 12 warn of AVX-512 intrinsics of its own. `Real` is
  /// double; a template, what is made of it is compiled where it is used and not where this file is included.
  template <class Real>
  using Quad = Eigen::Array<Real, 4, 1>;

  /// 1 / (1 + exp(-x)). Always in fours, so that every position gets the same exponential, vectorised or not.
  template <class Real>
  static Quad<Real> logistic(const Quad<Real>& x) {
    return (1 + (-x).exp()).inverse();
  }

  template <class Real>
  static void swish(const std::vector<Real>& x, std::vector<Real>& y) {
    for (std::size_t i = 0; i < x.size(); i += 4) {
      const Eigen::Map<const Quad<Real>> values(&x[i]);
      Eigen::Map<Quad<Real>> result(&y[i]);
      result = values * logistic<Real>(values);
    }
  }

  /// d Swish(x) / dx = s + x·s·(1 - s) with s = logistic(x); turns the gradient of Swish(x) into that of x.
  template <class Real>
  static void swish_backward(const std::vector<Real>& x, std::vector<Real>& grad) {
    for (std::size_t i = 0; i < x.size(); i += 4) {
      const Eigen::Map<const Quad<Real>> values(&x[i]);
      const Quad<Real> s = logistic<Real>(values);
      Eigen::Map<Quad<Real>> gradient(&grad[i]);
      gradient *= s * (1 + values * (1 - s));
    }
  }

  Divide<Scalar> divide_;
  std::vector<Hidden> hidden_;
  std::optional<Linear> last_;
};

}  // namespace posbias
