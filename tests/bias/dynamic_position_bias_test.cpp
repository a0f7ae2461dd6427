// SPDX-License-Identifier: MIT
#include "posbias/bias/dynamic_position_bias.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "support/golden_bias.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

using Values = std::vector<double>;
using Named = std::map<std::string, Values>;
using Logits = Eigen::Tensor<double, 3, Eigen::RowMajor>;

DynamicPositionBiasOptions options_of(const GoldenCase& golden) {
  return {.dim = golden.size("dim"),
          .n_heads = golden.size("n_heads"),
          .depth = golden.size("depth", 1),
          .norm = golden.config("norm", 0) != 0,
          .divide = golden.config("divide", 1)};
}

/// Gives a module these parameters, which must be all it has.
template <class Scalar>
void set_parameters(DynamicPositionBias<Scalar>& module, const Named& values) {
  std::size_t parameters = 0;
  for_each_parameter(module, [&](std::string_view name, auto& tensor) {
    ++parameters;
    REQUIRE(values.contains(std::string(name)));
    const Values& from = values.at(std::string(name));
    REQUIRE(from.size() == static_cast<std::size_t>(tensor.size()));
    for (std::size_t i = 0; i < from.size(); ++i) tensor.data()[i] = static_cast<Scalar>(from[i]);
  });
  CHECK(parameters == values.size());
}

template <class Scalar>
Named gradients(const DynamicPositionBias<Scalar>& module, const Eigen::Tensor<Scalar, 3, Eigen::RowMajor>& grad_mask,
                const PairPositions& at) {
  auto grads = module.zero_gradients();
  module.mod_mask_backward(grad_mask, at, grads);
  Named result;
  for_each_parameter(grads,
                     [&](std::string_view name, const auto& tensor) { result[std::string(name)] = flat(tensor); });
  return result;
}

TEMPLATE_TEST_CASE("DynamicPositionBias gives what bio-attention gives", "[golden]", double, float) {
  const auto names = golden_names("bio_dpb__");
  REQUIRE(names.size() == 9);
  for (const auto& name : names) {
    const GoldenCase golden(name);
    DYNAMIC_SECTION(name) {
      const DynamicPositionBias<TestType> module(options_of(golden));
      if (golden.rank("in.q") == 4)
        check_mask<TestType, 4>(golden, module);
      else
        check_mask<TestType, 5>(golden, module);
    }
  }
}

TEMPLATE_TEST_CASE("DynamicPositionBias gives what x-transformers gives", "[golden]", double, float) {
  // Theirs adds, and has a Swish before the last Linear: a layer more here, which passes on what it gets. Theirs with
  // norm (one without a bias), with log_distance, and zeta's, of absolute distances, are other functions.
  const GoldenCase golden("x_dynposbias__depth1");
  const Index dim = golden.size("dim"), heads = golden.size("heads");
  const auto i = static_cast<Index>(golden.call("i", 0)), j = static_cast<Index>(golden.call("j", 0));
  const auto negated = [](Values values) {
    for (double& value : values) value = -value;
    return values;
  };
  Values identity(static_cast<std::size_t>(dim * dim), 0);
  for (std::size_t d = 0; d < identity.size(); d += static_cast<std::size_t>(dim) + 1) identity[d] = 1;

  DynamicPositionBias<TestType> module({.dim = dim, .n_heads = heads, .depth = 2});
  set_parameters(module, {{"mlp.0.0.weight", golden.values("param.mlp.0.0.weight")},
                          {"mlp.0.0.bias", golden.values("param.mlp.0.0.bias")},
                          {"mlp.1.1.weight", identity},
                          {"mlp.1.1.bias", Values(static_cast<std::size_t>(dim), 0)},
                          {"mlp.2.weight", negated(golden.values("param.mlp.1.weight"))},
                          {"mlp.2.bias", negated(golden.values("param.mlp.1.bias"))}});
  constexpr double tolerance = golden_tolerance<TestType>;
  const PairPositions at{.q = Positions::range(j - i)};
  check_close(flat(module.bias(i, j, at)), golden.expected<TestType>("out.bias"), tolerance);

  const Named grads = gradients(module, golden.tensor<TestType, 3>("grad_out.bias"), at);
  for (const std::string name : {"mlp.0.0.weight", "mlp.0.0.bias"})
    check_close(grads.at(name), golden.values("grad_param." + name), tolerance);
  for (const std::string name : {"weight", "bias"})
    check_close(grads.at("mlp.2." + name), negated(golden.values("grad_param.mlp.1." + name)), tolerance);
}

TEST_CASE("DynamicPositionBias: at depth 1 a straight line for each head, subtracted, of q - k") {
  DynamicPositionBias<double> module({.dim = 2, .n_heads = 3, .divide = 4});
  // Hidden: ((q - k)/4, 1). The last weight is (NH, dim): head 0 reads the first, head 1 the second, head 2 both.
  set_parameters(module, {{"mlp.0.0.weight", {1, 0}},
                          {"mlp.0.0.bias", {0, 1}},
                          {"mlp.1.weight", {1, 0, 0, 5, -2, 1}},
                          {"mlp.1.bias", {0, 0.5, 0}}});
  const PairPositions at{.q = Positions::range(137), .k = Positions::range(100)};
  const Logits bias = module.bias(2, 3, at);
  for (Index i = 0; i < 2; ++i)
    for (Index j = 0; j < 3; ++j) {
      const double forward = static_cast<double>(137 + i - 100 - j) / 4;
      CHECK(bias(0, i, j) == -forward);
      CHECK(bias(1, i, j) == -5.5);
      CHECK(bias(2, i, j) == 2 * forward - 1);
    }
  // Towards keys before the query and after it: the sign is that of q - k.
  CHECK(module.bias(1, 1, {.q = Positions::range(100), .k = Positions::range(104)})(0, 0, 0) == 1);

  Logits grad_mask(3, 2, 3);
  grad_mask.setZero();
  grad_mask(2, 1, 0) = 8;  // at q - k = 38
  const Named grads = gradients(module, grad_mask, at);
  CHECK(grads.at("mlp.1.bias") == Values{0, 0, -8});
  CHECK(grads.at("mlp.1.weight") == Values{0, 0, 0, 0, -8 * 9.5, -8});
  CHECK(grads.at("mlp.0.0.bias") == Values{16, -8});
  CHECK(grads.at("mlp.0.0.weight") == Values{16 * 9.5, -8 * 9.5});
}

TEST_CASE("DynamicPositionBias: some of the heads are those of all") {
  const DynamicPositionBias<double> module({.dim = 5, .n_heads = 4}, 1);
  const Values relative{100, -101.5, 137};
  Values all(12), some(6);
  module.evaluate(relative, 0, 4, all.data());
  module.evaluate(relative, 1, 2, some.data());
  CHECK(some == Values(all.begin() + 3, all.begin() + 9));
}

TEST_CASE("DynamicPositionBias: one head and one feature, queries and keys without a position") {
  DynamicPositionBias<double> module({.dim = 1, .n_heads = 1});
  set_parameters(module, {{"mlp.0.0.weight", {1}}, {"mlp.0.0.bias", {3}}, {"mlp.1.weight", {2}}, {"mlp.1.bias", {1}}});
  Eigen::Tensor<std::int64_t, 1> two(2), three(3);
  two.setValues({102, 105});
  three.setValues({100, 101, 103});
  Eigen::Tensor<double, 3, Eigen::RowMajor> mask(1, 3, 4);
  mask.setConstant(7);
  const PairPositions at{.q = two, .k = three};
  module.mod_mask(mask, at);
  CHECK(flat(mask) == Values{7, 7, 7, 7, 7, -4, -2, 2, 7, -10, -8, -4});  // 7 - (2(q - k + 3) + 1)

  mask.setConstant(1);
  const Named grads = gradients(module, mask, at);
  CHECK(grads.at("mlp.1.bias") == Values{-6});
  CHECK(grads.at("mlp.0.0.bias") == Values{-12});
  CHECK(grads.at("mlp.0.0.weight") == Values{-2 * (2 + 1 - 1 + 5 + 4 + 2)});
  CHECK(grads.at("mlp.1.weight") == Values{-(2 + 1 - 1 + 5 + 4 + 2 + 18)});
}

TEST_CASE("DynamicPositionBias: the learned divisor starts at divide and is clamped from below") {
  const DynamicPositionBiasOptions options{.dim = 5, .n_heads = 2, .depth = 3, .divide = 30};
  DynamicPositionBiasOptions learning = options;
  learning.learned_div = true;
  const DynamicPositionBias<double> constant(options, 7);
  DynamicPositionBias<double> learned(learning, 7);
  const PairPositions at{.q = Positions::range(187), .k = Positions::range(100)};
  check_close(flat(learned.bias(3, 5, at)), flat(constant.bias(3, 5, at)), 1e-12);

  const auto at_log = [&](double log_divisor) {
    for_each_parameter(learned, [&](std::string_view name, auto& tensor) {
      if (name == "div") tensor.setConstant(log_divisor);
    });
    double sum = 0;
    for (const double value : flat(learned.bias(3, 5, at))) sum += value;
    return sum;
  };
  const double start = std::log(30), step = 0x1p-10;
  const double slope =
      (8 * (at_log(start + step) - at_log(start - step)) - (at_log(start + 2 * step) - at_log(start - 2 * step))) /
      (12 * step);
  at_log(start);
  Logits ones(2, 3, 5);
  ones.setConstant(1);
  CHECK(std::abs(slope) > 1e-3);
  CHECK(gradients(learned, ones, at).at("div")[0] == Approx(slope).epsilon(1e-8));

  CHECK(at_log(-20) == at_log(-30));  // exp(-20) < 1e-8
  CHECK(gradients(learned, ones, at).at("div") == Values{0});
  CHECK(gradients(learned, ones, at).at("mlp.3.bias") == Values{-15, -15});
}

TEST_CASE("DynamicPositionBias starts as torch's Linear does, by the seed alone") {
  const auto start = [](std::uint64_t seed) {
    Named values;
    const DynamicPositionBias<double> module({.dim = 16, .n_heads = 3, .norm = true}, seed);
    for_each_parameter(module,
                       [&](std::string_view name, const auto& tensor) { values[std::string(name)] = flat(tensor); });
    return values;
  };
  CHECK(start(7) == start(7));
  const Named values = start(7);
  CHECK(values != start(8));
  CHECK(values.size() == 6);
  REQUIRE(values.at("mlp.1.weight").size() == 48);
  REQUIRE(values.at("mlp.1.bias").size() == 3);
  for (const std::string name : {"mlp.1.weight", "mlp.1.bias"})
    for (const double value : values.at(name)) CHECK(std::abs(value) <= 0.25);
  const auto [least, most] = std::ranges::minmax(values.at("mlp.1.weight"));
  CHECK(most - least > 0.4);  // of 48 values in a range of 0.5
  CHECK(values.at("mlp.0.1.weight") == Values(16, 1));
  CHECK(values.at("mlp.0.1.bias") == Values(16, 0));
}

TEST_CASE("DynamicPositionBias names what is wrong and writes nothing") {
  const auto construct = [](DynamicPositionBiasOptions options) {
    return [=] { DynamicPositionBias<float> module(options); };
  };
  CHECK(message_of<OptionError>(construct({.n_heads = 3})) ==
        "DynamicPositionBias: dim = 0; it is required, and must be positive");
  CHECK(message_of<OptionError>(construct({.dim = 4})) ==
        "DynamicPositionBias: n_heads = 0; it is required, and must be positive");
  CHECK(message_of<OptionError>(construct({.dim = 4, .n_heads = 3, .depth = 0})) ==
        "DynamicPositionBias: depth = 0; it must be positive");
  CHECK(message_of<OptionError>(construct({.dim = 4, .n_heads = 3, .divide = -1})) ==
        "DynamicPositionBias: divide = -1; it must be positive and finite");

  const DynamicPositionBias<float> module({.dim = 4, .n_heads = 3});
  using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;
  Heads mask(2, 3, 5, 7), eight(2, 8, 5, 7), q(2, 5, 3, 8), k(2, 7, 3, 8);
  for (Heads* tensor : {&mask, &eight, &q, &k}) tensor->setConstant(0.5F);
  auto grads = module.zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_mask(eight); }) ==
        "DynamicPositionBias::mod_mask: mask has 8 heads; n_heads = 3");
  CHECK(message_of<ShapeError>([&] { module.mod_mask_backward(eight, {}, grads); }) ==
        "DynamicPositionBias::mod_mask_backward: grad_mask has 8 heads; n_heads = 3");
  CHECK(message_of<ShapeError>([&] { module.mod_mask(mask, k, k, k); }) ==
        "DynamicPositionBias::mod_mask: mask has shape (2, 3, 5, 7); q of shape (2, 7, 3, 8) and k of shape "
        "(2, 7, 3, 8) need (B, *, NH, L1, L2)");
  Eigen::Tensor<double, 1> reals(5);
  reals.setValues({0.5, 1.5, std::nan(""), 3.5, 4.5});
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, q, k, k, {.q = reals}); }) ==
        "DynamicPositionBias::mod_mask: q at index 2 is nan; positions must be finite");
  reals.setConstant(1.5e308);
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, q, k, k, {.q = reals}); }) ==
        "DynamicPositionBias::mod_mask: q at index 0 is 1.5e+308; reals must lie within ±2^1022");
  auto others = DynamicPositionBias<float>({.dim = 3, .n_heads = 4}).zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_mask_backward(mask, {}, others); }) ==
        "DynamicPositionBias::mod_mask_backward: grads entry mlp.0.0.weight has shape (3, 1); the parameter has "
        "(4, 1); use the module's zero_gradients()");
  auto deeper = DynamicPositionBias<float>({.dim = 4, .n_heads = 3, .depth = 2}).zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_mask_backward(mask, {}, deeper); }) ==
        "DynamicPositionBias::mod_mask_backward: grads has an entry mlp.1.1.weight in the place of mlp.1.weight; use "
        "the module's zero_gradients()");
  CHECK(flat(mask) == Values(210, 0.5));
  for (const auto* untouched : {&grads, &others, &deeper})
    for_each_parameter(*untouched, [](std::string_view, const auto& values) {
      for (const double value : flat(values)) CHECK(value == 0);
    });
}

}  // namespace
