// SPDX-License-Identifier: MIT
/// \file
/// Linear maps of tokens, y = W·x + b, and their adjoints.
///
/// Entries do not depend on the other tokens (see kernel/product.hpp). Gradients of W and b are summed in Scalar over
/// 64 tokens at most, and in double from there on.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "posbias/core/executor.hpp"
#include "posbias/core/parameters.hpp"
#include "posbias/core/view.hpp"
#include "posbias/kernel/annihilating_product.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias {

/// A linear map, as torch.nn.Linear stores it.
template <class Scalar>
struct Linear {
  ParameterTensor<Scalar, 2> weight{};  ///< (outputs, inputs)
  ParameterTensor<Scalar, 1> bias{};    ///< (outputs)

  [[nodiscard]] Index outputs() const { return weight.dimension(0); }  ///< features of a result
  [[nodiscard]] Index inputs() const { return weight.dimension(1); }   ///< features of what it maps

  /// Weights and bias start uniform in ±1/sqrt(inputs).
  void start(Index inputs, Index outputs, detail::Random& random) {
    weight.resize(outputs, inputs);
    bias.resize(outputs);
    const double bound = 1 / std::sqrt(static_cast<double>(inputs));
    detail::fill_uniform(weight, bound, random);
    detail::fill_uniform(bias, bound, random);
  }

  /// Shows the parameters to a visitor, as `name` + ".weight" and `name` + ".bias".
  template <class Self, class Visitor>
  static void visit(const std::string& name, Self& self, Visitor& visitor) {
    visitor(std::string_view(name + ".weight"), self.weight);
    visitor(std::string_view(name + ".bias"), self.bias);
  }
};

namespace detail {

/// Tokens [first, first + count) of a batch entry as a matrix (tokens, features).
template <class Scalar>
MatrixView<Scalar> token_rows(const TensorView<const Scalar, 2>& tokens, Index batch, Index first) {
  return {tokens.batch(batch).data() + first * tokens.strides[0], tokens.strides[0], tokens.strides[1]};
}

/// A linear map cut into heads, packed: each head's outputs are computed by themselves.
template <class Scalar>
class LinearHeads {
 public:
  LinearHeads(const Linear<Scalar>& linear, Index heads)
      : inputs_(linear.inputs()),
        features_(linear.outputs() / heads),
        head_size_(packed_size<Scalar>(inputs_, features_)),
        weights_(heads * head_size_),
        bias_(heads * width()) {
    for (Index h = 0; h < heads; ++h) {
      const Scalar* first = linear.weight.data() + h * features_ * inputs_;
      panels_.push_back(
          pack(MatrixView<Scalar>{first, 1, inputs_}, inputs_, features_, weights_.data() + h * head_size_));
      std::copy_n(linear.bias.data() + h * features_, features_, bias_.data() + h * width());
    }
  }

  /// From one row of outputs to the next: a head's features, in whole lanes.
  [[nodiscard]] Index width() const { return round_up_to_lanes<Scalar>(features_); }

  /// y (tokens, width) = the head's outputs for x (tokens, inputs).
  void apply(Index head, const MatrixView<Scalar>& x, Index tokens, Scalar* y) const {
    for (Index i = 0; i < tokens; ++i) std::copy_n(bias_.data() + head * width(), width(), y + i * width());
    multiply<Accumulate::extend>(tokens, features_, inputs_, x, panels_[static_cast<std::size_t>(head)], y, width());
  }

 private:
  Index inputs_, features_, head_size_;
  Workspace<Scalar> weights_, bias_;
  std::vector<PackedMatrix<Scalar>> panels_;
};

/// Adjoint of a linear map of x (B, *, L, inputs): adds to grad_x and to grads. grad_y is (B·L, outputs), row-major.
/// Blocks of tokens do not end with a batch entry, so that many short ones cost no more than a long one.
template <class Scalar>
void linear_backward(const Linear<Scalar>& linear, const TensorView<const Scalar, 2>& x, const Scalar* grad_y,
                     const TensorView<Scalar, 2>& grad_x, Linear<Scalar>& grads, const Executor& executor) {
  constexpr Index block = 64;
  const Index inputs = linear.inputs(), outputs = linear.outputs(), L = x.shape[0], tokens = x.batches() * L;
  const Index width = round_up_to_lanes<Scalar>(inputs);
  const auto features_of = [L](const auto& tensor, Index token) {
    return tensor.batch(token / L).data() + token % L * tensor.strides[0];
  };

  Workspace<Scalar> packed(packed_size<Scalar>(outputs, inputs));
  const PackedMatrix<Scalar> weight =
      pack(MatrixView<Scalar>{linear.weight.data(), inputs, 1}, outputs, inputs, packed.data());
  executor.parallel_for((tokens + block - 1) / block, [&](Index task) {
    const Index first = task * block, count = (std::min)(block, tokens - first);
    Workspace<Scalar> product(count * width);
    multiply<Accumulate::overwrite>(count, inputs, outputs, MatrixView<Scalar>{grad_y + first * outputs, outputs, 1},
                                    weight, product.data(), width);
    for (Index i = 0; i < count; ++i) {
      Scalar* to = features_of(grad_x, first + i);
      for (Index d = 0; d < inputs; ++d) to[d * grad_x.strides[1]] += product.data()[i * width + d];
    }
  });

  executor.parallel_for((outputs + block - 1) / block, [&](Index task) {
    using Values = Eigen::ArrayX<Scalar>;
    const Index first_output = task * block, rows = (std::min)(block, outputs - first_output);
    Workspace<Scalar> x_rows(block * width), product(rows * width);
    auto weight_sums = Values::Zero(rows * width).template cast<double>().eval();
    auto bias_sums = Values::Zero(rows).template cast<double>().eval();
    for (Index first = 0; first < tokens; first += block) {
      const Index count = (std::min)(block, tokens - first);
      for (Index i = 0; i < count; ++i) {
        const Scalar* from = features_of(x, first + i);
        for (Index d = 0; d < inputs; ++d) x_rows.data()[i * width + d] = from[d * x.strides[1]];
      }
      const Scalar* gradient = grad_y + first * outputs + first_output;
      multiply_annihilating<Accumulate::overwrite>(rows, inputs, count, MatrixView<Scalar>{gradient, 1, outputs},
                                                   PackedMatrix<Scalar>::of_rows(x_rows.data(), width), product.data(),
                                                   width);
      weight_sums += Eigen::Map<const Values>(product.data(), rows * width).template cast<double>();
      for (Index i = 0; i < count; ++i)
        bias_sums += Eigen::Map<const Values>(gradient + i * outputs, rows).template cast<double>();
    }
    for (Index o = 0; o < rows; ++o) {
      for (Index d = 0; d < inputs; ++d)
        grads.weight(first_output + o, d) += static_cast<Scalar>(weight_sums[o * width + d]);
      grads.bias(first_output + o) += static_cast<Scalar>(bias_sums[o]);
    }
  });
}

}  // namespace detail
}  // namespace posbias
