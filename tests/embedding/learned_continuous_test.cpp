// SPDX-License-Identifier: MIT
#include "posbias/embedding/learned_continuous.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "support/golden.hpp"
#include "support/numbers.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

using Row = std::vector<double>;
using Named = std::map<std::string, Row>;

LearnedContinuousOptions options_of(const GoldenCase& golden) {
  return {.dim = golden.size("dim"),
          .depth = golden.size("depth", 1),
          .norm = golden.config("norm", 0) != 0,
          .divide = golden.config("divide", 1),
          .learned_div = golden.config("learned_div", 0) != 0};
}

/// Gives a module these parameters, which must be all it has.
void set_parameters(LearnedContinuous<double>& module, const Named& values) {
  std::size_t parameters = 0;
  for_each_parameter(module, [&](std::string_view name, auto& tensor) {
    ++parameters;
    REQUIRE(values.contains(std::string(name)));
    const Row& from = values.at(std::string(name));
    REQUIRE(from.size() == static_cast<std::size_t>(tensor.size()));
    std::ranges::copy(from, tensor.data());
  });
  CHECK(parameters == values.size());
}

/// What is added to a token at each of these positions.
Eigen::Tensor<double, 2, Eigen::RowMajor> rows(const LearnedContinuous<double>& module, const Row& positions) {
  Eigen::Tensor<double, 1> at(static_cast<Index>(positions.size()));
  std::ranges::copy(positions, at.data());
  Eigen::Tensor<double, 2, Eigen::RowMajor> x(at.size(), module.dim());
  x.setZero();
  module.mod_x(x, {.pos = at});
  return x;
}

/// The gradients of the sum of all features at these positions.
Named gradients(const LearnedContinuous<double>& module, const Row& positions) {
  Eigen::Tensor<double, 1> at(static_cast<Index>(positions.size()));
  std::ranges::copy(positions, at.data());
  Eigen::Tensor<double, 2, Eigen::RowMajor> grad_x(at.size(), module.dim());
  grad_x.setConstant(1);
  auto grads = module.zero_gradients();
  module.mod_x_backward(grad_x, {.pos = at}, grads);
  Named result;
  for_each_parameter(grads,
                     [&](std::string_view name, const auto& tensor) { result[std::string(name)] = flat(tensor); });
  return result;
}

TEMPLATE_TEST_CASE("LearnedContinuous gives what bio-attention gives", "[golden]", double, float) {
  const auto names = golden_names("bio_learnedcontinuous__");
  REQUIRE(names.size() == 10);
  for (const auto& name : names) {
    const GoldenCase golden(name);
    DYNAMIC_SECTION(name) {
      const LearnedContinuous<TestType> module(options_of(golden));
      if (golden.rank("in.x") == 3)
        check_mod_x<TestType, 3>(golden, module);
      else
        check_mod_x<TestType, 4>(golden, module);
    }
  }
}

TEST_CASE("LearnedContinuous: at depth 1 a straight line for each feature") {
  LearnedContinuous<double> module({.dim = 3, .divide = 2});
  set_parameters(module, {{"mlp.0.0.weight", {0, 1, -3}}, {"mlp.0.0.bias", {5, 0, 0.5}}});
  const auto x = rows(module, {100, 137, -201});
  CHECK(flat(x) == Row{5, 50, -149.5, 5, 68.5, -205, 5, -100.5, 302});

  const Named grads = gradients(module, {100, 137, -201});
  CHECK(grads.at("mlp.0.0.weight") == Row(3, 18));
  CHECK(grads.at("mlp.0.0.bias") == Row(3, 3));
}

TEST_CASE("LearnedContinuous: a LayerNorm forgets how far a position is, but not on which side") {
  LearnedContinuous<double> module({.dim = 2, .norm = true});
  set_parameters(
      module,
      {{"mlp.0.0.weight", {0, 1}}, {"mlp.0.0.bias", {0, 0}}, {"mlp.0.1.weight", {2, 3}}, {"mlp.0.1.bias", {0, 7}}});
  for (const double p : {101.0, 0.001, -137.0}) {
    const double normal = p / 2 / std::sqrt(p * p / 4 + 1e-5);
    const auto x = rows(module, {p});
    CHECK(x(0, 0) == Approx(-2 * normal).epsilon(1e-14));
    CHECK(x(0, 1) == Approx(7 + 3 * normal).epsilon(1e-14));
  }

  // A single feature is its own mean: only the bias is left, and nothing before it learns.
  LearnedContinuous<double> single({.dim = 1, .norm = true}, 3);
  set_parameters(single,
                 {{"mlp.0.0.weight", {4}}, {"mlp.0.0.bias", {1}}, {"mlp.0.1.weight", {2}}, {"mlp.0.1.bias", {7}}});
  CHECK(rows(single, {137})(0, 0) == 7);
  CHECK(gradients(single, {137}) ==
        Named{{"mlp.0.0.weight", {0}}, {"mlp.0.0.bias", {0}}, {"mlp.0.1.weight", {0}}, {"mlp.0.1.bias", {1}}});
}

TEST_CASE("LearnedContinuous: a Swish before each further layer, none after the last") {
  LearnedContinuous<double> module({.dim = 2, .depth = 2, .divide = 100});
  // The second weight is (out, in): its first row reads the second feature alone.
  set_parameters(module, {{"mlp.0.0.weight", {1, -2}},
                          {"mlp.0.0.bias", {0, 1}},
                          {"mlp.1.1.weight", {0, 1, 3, 0}},
                          {"mlp.1.1.bias", {0.25, 0}}});
  const auto swish = [](double value) { return value / (1 + std::exp(-value)); };
  for (const double p : {100.0, 250.0, -137.0}) {
    const auto x = rows(module, {p});
    CHECK(x(0, 0) == Approx(0.25 + swish(1 - 2 * p / 100)).epsilon(1e-14));
    CHECK(x(0, 1) == Approx(3 * swish(p / 100)).epsilon(1e-14));
  }

  // Far from 0 a Swish is the identity or nothing, and its slope 1 or 0; exp must not overflow into a NaN.
  for (const double p : {1e5, 1e12, 1e300}) {
    const auto x = rows(module, {p, -p});
    check_close(flat(x), {0.25, 3 * (p / 100), 0.25 + (1 + 2 * (p / 100)), 0}, 1e-14);
    const Named grads = gradients(module, {p, -p});
    CHECK(grads.at("mlp.0.0.bias") == Row{3, 1});
    CHECK(grads.at("mlp.0.0.weight") == Row{3 * (p / 100), -(p / 100)});
    CHECK(grads.at("mlp.1.1.bias") == Row{2, 2});
  }
}

TEST_CASE("LearnedContinuous: the learned divisor starts at divide and is clamped from below") {
  const LearnedContinuousOptions options{.dim = 5, .depth = 3, .divide = 30};
  LearnedContinuousOptions learning = options;
  learning.learned_div = true;
  const LearnedContinuous<double> constant(options, 7);
  LearnedContinuous<double> learned(learning, 7);
  const Row positions{100, 137, 205.5, -160};
  check_close(flat(rows(learned, positions)), flat(rows(constant, positions)), 1e-12);

  const auto at_log = [&](double log_divisor) {
    for_each_parameter(learned, [&](std::string_view name, auto& tensor) {
      if (name == "div") tensor.setConstant(log_divisor);
    });
    double sum = 0;
    for (const double value : flat(rows(learned, positions))) sum += value;
    return sum;
  };
  const double start = std::log(30), step = 0x1p-10;
  const double slope =
      (8 * (at_log(start + step) - at_log(start - step)) - (at_log(start + 2 * step) - at_log(start - 2 * step))) /
      (12 * step);
  at_log(start);
  CHECK(std::abs(slope) > 1e-3);
  CHECK(gradients(learned, positions).at("div")[0] == Approx(slope).epsilon(1e-8));

  CHECK(at_log(-20) == at_log(-30));  // exp(-20) < 1e-8
  CHECK(gradients(learned, positions).at("div") == Row{0});
  CHECK(gradients(learned, positions).at("mlp.2.1.bias") != Row(5, 0));
}

TEST_CASE("LearnedContinuous starts as torch's Linear and LayerNorm do, by the seed alone") {
  const auto start = [](std::uint64_t seed) {
    Named values;
    const LearnedContinuous<double> module({.dim = 16, .depth = 2, .norm = true, .divide = 5, .learned_div = true},
                                           seed);
    for_each_parameter(module,
                       [&](std::string_view name, const auto& tensor) { values[std::string(name)] = flat(tensor); });
    return values;
  };
  CHECK(start(7) == start(7));
  const Named values = start(7), other = start(8);
  CHECK(values.size() == 9);
  const auto check_uniform = [&](const std::string& name, std::size_t size, double bound) {
    INFO(name);
    CHECK(values.at(name) != other.at(name));
    REQUIRE(values.at(name).size() == size);
    const auto [least, most] = std::ranges::minmax(values.at(name));
    CHECK(least >= -bound);
    CHECK(most < bound);
    CHECK(most - least > bound);  // of 16 values, with a chance of 1 - 3e-4
  };
  check_uniform("mlp.0.0.weight", 16, 1);
  check_uniform("mlp.0.0.bias", 16, 1);
  check_uniform("mlp.1.1.weight", 256, 0.25);
  check_uniform("mlp.1.1.bias", 16, 0.25);
  for (const std::string norm : {"mlp.0.1", "mlp.1.2"}) {
    CHECK(values.at(norm + ".weight") == Row(16, 1));
    CHECK(values.at(norm + ".bias") == Row(16, 0));
  }
  CHECK(values.at("div")[0] == Approx(std::log(5)).epsilon(1e-15));
}

TEST_CASE("LearnedContinuous: gradients of layers that several tasks share are the slope in a direction") {
  LearnedContinuous<double> module({.dim = 19, .depth = 3}, 5);
  Numbers numbers(6);
  Eigen::Tensor<double, 3, Eigen::RowMajor> grad(1, 4, 19);
  for (Index i = 0; i < grad.size(); ++i) grad.data()[i] = numbers.value();
  auto grads = module.zero_gradients();
  module.mod_x_backward(grad, {}, grads);
  Row direction;
  double slope = 0;
  for_each_parameter(grads, [&](std::string_view, const auto& gradient) {
    for (Index i = 0; i < gradient.size(); ++i) slope += gradient.data()[i] * direction.emplace_back(numbers.value());
  });
  const auto at = [&](double step) {
    auto moved = module;
    auto from = direction.begin();
    for_each_parameter(moved, [&](std::string_view, auto& tensor) {
      for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] += step * *from++;
    });
    auto x = grad;
    x.setZero();
    moved.mod_x(x);
    return std::inner_product(x.data(), x.data() + x.size(), grad.data(), 0.0);
  };
  CHECK((at(1e-5) - at(-1e-5)) / 2e-5 == Approx(slope).epsilon(1e-7));
}

TEST_CASE("LearnedContinuous names what is wrong and writes nothing") {
  const auto construct = [](LearnedContinuousOptions options) {
    return [=] { LearnedContinuous<float> module(options); };
  };
  CHECK(message_of<OptionError>(construct({})) == "LearnedContinuous: dim = 0; it is required, and must be positive");
  CHECK(message_of<OptionError>(construct({.dim = -4})) ==
        "LearnedContinuous: dim = -4; it is required, and must be positive");
  CHECK(message_of<OptionError>(construct({.dim = 4, .depth = 0})) ==
        "LearnedContinuous: depth = 0; it must be positive");
  CHECK(message_of<OptionError>(construct({.dim = 4, .divide = 0})) ==
        "LearnedContinuous: divide = 0; it must be positive and finite");

  const LearnedContinuous<float> module({.dim = 8, .depth = 2});
  Eigen::Tensor<float, 3, Eigen::RowMajor> x(2, 5, 8);
  x.setConstant(0.5F);
  auto grads = module.zero_gradients();
  Eigen::Tensor<double, 1> reals(5);
  reals.setValues({100, 101, std::nan(""), 103, 104});
  CHECK(message_of<PositionError>([&] { module.mod_x(x, {.pos = reals}); }) ==
        "LearnedContinuous::mod_x: pos at index 2 is nan; positions must be finite");
  CHECK(message_of<PositionError>([&] { module.mod_x_backward(x, {.pos = reals}, grads); }) ==
        "LearnedContinuous::mod_x_backward: pos at index 2 is nan; positions must be finite");
  reals.setConstant(1.5e308);
  CHECK(message_of<PositionError>([&] { module.mod_x(x, {.pos = reals}); }) ==
        "LearnedContinuous::mod_x: pos at index 0 is 1.5e+308; reals must lie within ±2^1022");
  const LearnedContinuous<float> wider({.dim = 10});
  CHECK(message_of<ShapeError>([&] { wider.mod_x(x); }) == "LearnedContinuous::mod_x: x has 8 features; dim = 10");

  auto shallow = LearnedContinuous<float>({.dim = 8}).zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_x_backward(x, {}, shallow); }) ==
        "LearnedContinuous::mod_x_backward: grads lacks an entry mlp.1.1.weight; use the module's zero_gradients()");
  auto normed = LearnedContinuous<float>({.dim = 8, .depth = 2, .norm = true}).zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_x_backward(x, {}, normed); }) ==
        "LearnedContinuous::mod_x_backward: grads has an entry mlp.0.1.weight in the place of mlp.1.1.weight; use the "
        "module's zero_gradients()");
  auto narrow = LearnedContinuous<float>({.dim = 4, .depth = 2}).zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_x_backward(x, {}, narrow); }) ==
        "LearnedContinuous::mod_x_backward: grads entry mlp.0.0.weight has shape (4, 1); the parameter has (8, 1); use "
        "the module's zero_gradients()");
  CHECK(flat(x) == Row(80, 0.5));
  for (const auto* untouched : {&grads, &shallow, &normed, &narrow})
    for_each_parameter(*untouched, [](std::string_view, const auto& values) {
      for (const double value : flat(values)) CHECK(value == 0);
    });
}

}  // namespace
