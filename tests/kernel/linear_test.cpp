// SPDX-License-Identifier: MIT
#include "posbias/kernel/linear.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "posbias/kernel/relative_position_table.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"
#include "support/thread_runner.hpp"

using posbias::GroupedLinear;
using posbias::Index;
using posbias::Linear;
using posbias::ParameterTensor;
using posbias::detail::linear_backward;
using posbias::detail::LinearHeads;
using posbias::detail::MatrixView;
using posbias::detail::Random;
using posbias_test::Numbers;

namespace {

template <class Tensor>
void draw(Tensor& tensor, std::uint64_t seed) {
  Numbers numbers(seed);
  std::generate_n(tensor.data(), tensor.size(),
                  [&] { return static_cast<typename Tensor::Scalar>(numbers.value() / 3); });
}

template <class S>
Linear<S> linear_of(Index inputs, Index outputs) {
  Random random(7);
  Linear<S> linear;
  linear.start(inputs, outputs, random);
  return linear;
}

template <class Tensor>
std::vector<double> values(const Tensor& tensor) {
  return {tensor.data(), tensor.data() + tensor.size()};
}

/// Each within some roundings of the largest.
template <class A>
void check_near(const A& found, const std::vector<long double>& expected, double relative) {
  REQUIRE(static_cast<std::size_t>(found.size()) == expected.size());
  long double largest = 1, worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::max(worst, std::abs(static_cast<long double>(found.data()[i]) - expected[i]));
  }
  CHECK(static_cast<double>(worst / largest) <= relative);
}

}  // namespace

TEST_CASE("a head of a linear map is its outputs, token by token", "[linear]") {
  for (const Index inputs : {1, 5, 64})
    for (const Index features : {1, 7, 8, 19}) {
      constexpr Index heads = 3, tokens = 6;
      INFO("inputs " << inputs << ", features " << features);
      const auto linear = linear_of<double>(inputs, heads * features);
      CHECK(linear.inputs() == inputs);
      CHECK(linear.outputs() == heads * features);
      const LinearHeads<double> cut(linear, heads);
      CHECK(cut.width() == posbias::detail::round_up_to_lanes<double>(features));
      // Tokens with gaps between them, features apart.
      Eigen::Tensor<double, 3, Eigen::RowMajor> x(tokens, inputs, 2);
      draw(x, 5);
      for (Index h = 0; h < heads; ++h) {
        std::vector<double> y(static_cast<std::size_t>(tokens * cut.width())), alone(y.size());
        cut.apply(h, MatrixView<double>{x.data() + 1, 2 * inputs, 2}, tokens, y.data());
        for (Index i = 0; i < tokens; ++i) {
          cut.apply(h, MatrixView<double>{x.data() + 2 * i * inputs + 1, 2 * inputs, 2}, 1,
                    alone.data() + i * cut.width());
          for (Index o = 0; o < features; ++o) {
            long double expected = linear.bias(h * features + o);
            for (Index d = 0; d < inputs; ++d)
              expected += static_cast<long double>(linear.weight(h * features + o, d)) * x(i, d, 1);
            const double found = y[static_cast<std::size_t>(i * cut.width() + o)];
            if (!(std::abs(static_cast<double>(found - expected)) < 1e-15 * static_cast<double>(inputs + 1)))
              FAIL_CHECK("head " << h << ", token " << i << ", output " << o << ": " << found);
          }
        }
        CHECK(alone == y);
      }
    }
}

TEST_CASE("the adjoint of a linear map adds the sums of its definition", "[linear]") {
  // Blocks are 64 tokens, and 64 outputs.
  posbias_test::ThreadRunner runner(2);
  for (const Index tokens : {0, 1, 64, 65, 150})
    for (const Index outputs : {3, 70}) {
      constexpr Index B = 2, inputs = 5;
      INFO("tokens " << tokens << ", outputs " << outputs);
      const auto linear = linear_of<double>(inputs, outputs);
      Eigen::Tensor<double, 3> x(B, tokens, inputs), grad_x(B, tokens, inputs);
      Eigen::Tensor<double, 3, Eigen::RowMajor> grad_y(B, tokens, outputs);
      draw(x, 1);
      draw(grad_x, 2);
      draw(grad_y, 3);
      auto grads = linear;  // what they start from
      std::vector<long double> of_x(grad_x.data(), grad_x.data() + grad_x.size()),
          of_weight(grads.weight.data(), grads.weight.data() + grads.weight.size()),
          of_bias(grads.bias.data(), grads.bias.data() + grads.bias.size());
      for (Index n = 0; n < B; ++n)
        for (Index i = 0; i < tokens; ++i)
          for (Index o = 0; o < outputs; ++o) {
            const long double g = grad_y(n, i, o);
            of_bias[static_cast<std::size_t>(o)] += g;
            for (Index d = 0; d < inputs; ++d) {
              of_weight[static_cast<std::size_t>(o * inputs + d)] += g * x(n, i, d);
              of_x[static_cast<std::size_t>((d * tokens + i) * B + n)] += g * linear.weight(o, d);
            }
          }
      const auto before = grads;
      const auto before_x = grad_x;
      const auto run = [&](const posbias::Executor& executor) {
        const auto to = posbias::detail::view<2>(grad_x);
        const posbias::detail::TensorView<const double, 2> from =
            posbias::detail::view<2>(static_cast<const decltype(x)&>(x));
        linear_backward(linear, from, grad_y.data(), to, grads, executor);
      };
      run({});
      check_near(grad_x, of_x, 1e-15);
      check_near(grads.weight, of_weight, 1e-15);
      check_near(grads.bias, of_bias, 1e-15);

      // Threads change no bit.
      const auto serial = grads;
      const auto serial_x = grad_x;
      grads = before;
      grad_x = before_x;
      run(runner);
      CHECK(values(grad_x) == values(serial_x));
      CHECK(values(grads.weight) == values(serial.weight));
      CHECK(values(grads.bias) == values(serial.bias));
    }
}

TEST_CASE("float gradients of many tokens are summed in double", "[linear]") {
  // 2^24 and as many ones after another would stay 2^24 in float.
  constexpr Index tokens = 64 * 40;
  Linear<float> linear = linear_of<float>(1, 1);
  Eigen::Tensor<float, 2, Eigen::RowMajor> x(tokens, 1), grad_x(tokens, 1);
  std::fill_n(x.data(), tokens, 1.0F);
  std::fill_n(grad_x.data(), tokens, 0.0F);
  std::vector<float> grad_y(tokens, 0.015625F);  // of a block: 1
  std::fill_n(grad_y.begin(), 64, 0.0F);
  grad_y[0] = 0x1p24F;
  Linear<float> grads = linear;
  grads.weight(0, 0) = grads.bias(0) = 0;
  linear_backward(linear, posbias::detail::view<2>(static_cast<const decltype(x)&>(x)), grad_y.data(),
                  posbias::detail::view<2>(grad_x), grads, {});
  CHECK(grads.weight(0, 0) == 0x1p24F + 40);  // 39, rounded to even
  CHECK(grads.bias(0) == 0x1p24F + 40);
}

TEST_CASE("groups of features are projected apart, forward and backward", "[linear]") {
  constexpr Index rows = 11;
  for (const Index groups : {1, 2, 3})
    for (const Index outputs : {1, 4, 9}) {
      constexpr Index inputs = 5;
      INFO("groups " << groups << ", outputs " << outputs);
      Random random(3);
      GroupedLinear<double> linear;
      linear.start(groups, groups * inputs, groups * outputs, random);
      CHECK(linear.groups() == groups);
      CHECK(linear.inputs() == inputs);
      CHECK(linear.outputs() == outputs);
      draw(linear.bias, 4);
      ParameterTensor<double, 2> x(rows, groups * inputs), grad_x(rows, groups * inputs);
      ParameterTensor<double, 2> y(rows, groups * outputs), grad_y(rows, groups * outputs);
      draw(x, 5);
      draw(grad_x, 6);
      draw(grad_y, 7);
      auto grads = linear;
      std::vector<long double> expected, of_x(grad_x.data(), grad_x.data() + grad_x.size()),
          of_weight(grads.weight.data(), grads.weight.data() + grads.weight.size()),
          of_bias(grads.bias.data(), grads.bias.data() + grads.bias.size());
      for (Index i = 0; i < rows; ++i)
        for (Index g = 0; g < groups; ++g)
          for (Index o = 0; o < outputs; ++o) {
            expected.push_back(linear.bias(g, o));
            const long double gradient = grad_y(i, g * outputs + o);
            of_bias[static_cast<std::size_t>(g * outputs + o)] += gradient;
            for (Index d = 0; d < inputs; ++d) {
              const Index feature = g * inputs + d;
              expected.back() += static_cast<long double>(linear.weight(g, d, o)) * x(i, feature);
              of_weight[static_cast<std::size_t>(feature * outputs + o)] += gradient * x(i, feature);
              of_x[static_cast<std::size_t>(i * groups * inputs + feature)] += gradient * linear.weight(g, d, o);
            }
          }
      linear.apply(x, 0, rows, y.data(), {});
      check_near(y, expected, 1e-15);
      linear.backward(x, 0, rows, grad_y.data(), grads, &grad_x, {});
      check_near(grads.weight, of_weight, 1e-15);
      check_near(grads.bias, of_bias, 1e-15);
      check_near(grad_x, of_x, 1e-15);
      const auto again = grad_x;
      linear.backward(x, 0, rows, grad_y.data(), grads, nullptr, {});  // x is constant
      CHECK(values(grad_x) == values(again));
    }
}
