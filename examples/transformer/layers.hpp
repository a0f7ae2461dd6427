// SPDX-License-Identifier: MIT
/// \file
/// The layers that know nothing about position: linear, layer norm, MLP, character embedding, cross entropy.
///
/// A layer is its weights. `forward` is const and puts what `backward` will need into a trace; `backward`
/// takes the gradient of the output, adds the weights' gradients to a second object of the layer's own type,
/// and returns the gradient of the input. Rows are tokens.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "transformer/shape.hpp"

namespace demo {

/// y = x W + b
template <class Scalar>
struct Linear {
  Matrix<Scalar> weight;  ///< (in, out)
  Matrix<Scalar> bias;    ///< (1, out)

  /// `gain` scales the usual initial deviation 1 / sqrt(in).
  static Linear random(Index in, Index out, Random& random, double gain = 1) {
    const double deviation = gain / std::sqrt(static_cast<double>(in));
    return {random.matrix<Scalar>(in, out, deviation), Matrix<Scalar>::Zero(1, out)};
  }

  template <class Visitor>
  void visit(const Visitor& visitor) {
    visitor(weight);
    visitor(bias);
  }

  [[nodiscard]] Matrix<Scalar> forward(const Matrix<Scalar>& x) const {
    Matrix<Scalar> y = x * weight;
    y.rowwise() += bias.row(0);
    return y;
  }

  Matrix<Scalar> backward(const Matrix<Scalar>& grad_y, const Matrix<Scalar>& x, Linear& gradient) const {
    gradient.weight.noalias() += x.transpose() * grad_y;
    gradient.bias += grad_y.colwise().sum();
    return grad_y * weight.transpose();
  }
};

/// y = gain · (x - mean) / deviation + bias, over each row
template <class Scalar>
struct LayerNorm {
  Matrix<Scalar> gain;  ///< (1, D)
  Matrix<Scalar> bias;  ///< (1, D)

  struct Trace {
    Matrix<Scalar> normalised;         ///< (x - mean) / deviation
    Matrix<Scalar> inverse_deviation;  ///< (rows, 1)
  };

  static LayerNorm identity(Index width) { return {Matrix<Scalar>::Ones(1, width), Matrix<Scalar>::Zero(1, width)}; }

  template <class Visitor>
  void visit(const Visitor& visitor) {
    visitor(gain);
    visitor(bias);
  }

  Matrix<Scalar> forward(const Matrix<Scalar>& x, Trace& trace) const {
    constexpr auto epsilon = static_cast<Scalar>(1e-5);
    Matrix<Scalar> y(x.rows(), x.cols());
    trace.normalised.resize(x.rows(), x.cols());
    trace.inverse_deviation.resize(x.rows(), 1);
    for (Index row = 0; row < x.rows(); ++row) {
      auto normalised = trace.normalised.row(row);
      normalised = x.row(row).array() - x.row(row).mean();
      const Scalar scale = 1 / std::sqrt(normalised.squaredNorm() / static_cast<Scalar>(x.cols()) + epsilon);
      normalised *= scale;
      trace.inverse_deviation(row) = scale;
      y.row(row) = normalised.cwiseProduct(gain) + bias;
    }
    return y;
  }

  Matrix<Scalar> backward(const Matrix<Scalar>& grad_y, const Trace& trace, LayerNorm& gradient) const {
    gradient.gain += grad_y.cwiseProduct(trace.normalised).colwise().sum();
    gradient.bias += grad_y.colwise().sum();
    Matrix<Scalar> grad_x(grad_y.rows(), grad_y.cols());
    for (Index row = 0; row < grad_y.rows(); ++row) {
      const auto normalised = trace.normalised.row(row);
      auto grad = grad_x.row(row);
      grad = grad_y.row(row).cwiseProduct(gain);
      const Scalar mean = grad.mean();
      const Scalar slope = grad.dot(normalised) / static_cast<Scalar>(grad_y.cols());
      grad = trace.inverse_deviation(row) * (grad.array() - mean - slope * normalised.array());
    }
    return grad_x;
  }
};

/// y = relu(x W1 + b1) W2 + b2
template <class Scalar>
struct Mlp {
  Linear<Scalar> expand;    ///< (D, 4 D)
  Linear<Scalar> contract;  ///< (4 D, D)

  struct Trace {
    Matrix<Scalar> x;
    Matrix<Scalar> hidden;  ///< after the relu
  };

  template <class Visitor>
  void visit(const Visitor& visitor) {
    expand.visit(visitor);
    contract.visit(visitor);
  }

  Matrix<Scalar> forward(const Matrix<Scalar>& x, Trace& trace) const {
    trace.x = x;
    trace.hidden = expand.forward(x).cwiseMax(Scalar(0));
    return contract.forward(trace.hidden);
  }

  Matrix<Scalar> backward(const Matrix<Scalar>& grad_y, const Trace& trace, Mlp& gradient) const {
    Matrix<Scalar> grad_hidden = contract.backward(grad_y, trace.hidden, gradient.contract);
    grad_hidden = (trace.hidden.array() > 0).select(grad_hidden, Scalar(0));
    return expand.backward(grad_hidden, trace.x, gradient.expand);
  }
};

/// A character, as a number below V.
using Symbol = std::uint16_t;

/// One row of the table per character.
template <class Scalar>
struct CharacterEmbedding {
  Matrix<Scalar> table;  ///< (V, D)

  template <class Visitor>
  void visit(const Visitor& visitor) {
    visitor(table);
  }

  [[nodiscard]] Matrix<Scalar> forward(std::span<const Symbol> characters) const {
    Matrix<Scalar> x(static_cast<Index>(characters.size()), table.cols());
    for (Index row = 0; row < x.rows(); ++row) x.row(row) = table.row(characters[static_cast<std::size_t>(row)]);
    return x;
  }

  void backward(const Matrix<Scalar>& grad_x, std::span<const Symbol> characters, CharacterEmbedding& gradient) const {
    for (Index row = 0; row < grad_x.rows(); ++row)
      gradient.table.row(characters[static_cast<std::size_t>(row)]) += grad_x.row(row);
  }
};

/// -log softmax(logits)[target], summed over the rows; in nats. Turns the logits into their probabilities.
template <class Scalar>
double cross_entropy(Matrix<Scalar>& logits, std::span<const Symbol> targets) {
  double sum = 0;
  for (Index row = 0; row < logits.rows(); ++row) {
    auto scores = logits.row(row).array();
    scores -= scores.maxCoeff();
    const auto target_score = static_cast<double>(scores(targets[static_cast<std::size_t>(row)]));
    scores = scores.exp();
    const Scalar total = scores.sum();
    scores /= total;
    sum += std::log(static_cast<double>(total)) - target_score;
  }
  return sum;
}

/// The gradient of `weight` · cross_entropy with respect to the logits, in place of the probabilities.
template <class Scalar>
void cross_entropy_backward(Matrix<Scalar>& probabilities, std::span<const Symbol> targets, double weight) {
  for (Index row = 0; row < probabilities.rows(); ++row)
    probabilities(row, targets[static_cast<std::size_t>(row)]) -= 1;
  probabilities *= static_cast<Scalar>(weight);
}

}  // namespace demo
