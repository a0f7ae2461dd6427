// SPDX-License-Identifier: MIT
#include "posbias/bias/relative_position_bias.hpp"

#include <cstdint>
#include <limits>

#include "support/golden_bias.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

TEST_CASE("T5 buckets are the recorded ones, as integers", "[golden]") {
  const auto names = golden_names("t5_bucket__");
  REQUIRE(names.size() == 24);
  for (const auto& name : names) {
    if (name == "t5_bucket__ties") continue;
    INFO(name);
    const GoldenCase golden(name);
    const BucketOptions options{.bidirectional = golden.config("bidirectional", 1) != 0,
                                .num_buckets = golden.size("num_buckets"),
                                .max_distance = golden.size("max_distance")};
    std::vector<std::int64_t> relative;
    if (golden.has("in.range")) {
      const auto& range = golden.values("in.range");
      for (auto r = static_cast<std::int64_t>(range[0]); r < static_cast<std::int64_t>(range[1]); ++r)
        relative.push_back(r);
    } else {
      for (double r : golden.values("in.relative_position")) relative.push_back(static_cast<std::int64_t>(r));
    }
    const auto& expected = golden.values("out.buckets");
    REQUIRE(expected.size() == relative.size());
    std::vector<Index> buckets(relative.size());
    t5_bucket(relative, buckets, options);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < relative.size(); ++i)
      if (buckets[i] != static_cast<Index>(expected[i])) ++wrong;
    CHECK(wrong == 0);
  }
}

TEST_CASE("T5 buckets at exact ties are float32's, one above float64's", "[golden]") {
  const GoldenCase golden("t5_bucket__ties");
  const auto& combinations = golden.values("in.combo");
  const auto& expected = golden.values("out.buckets");
  std::size_t differ_from_double = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double* c = &combinations[4 * i];
    const Index bucket = t5_bucket(static_cast<std::int64_t>(c[3]), {.bidirectional = c[0] != 0,
                                                                     .num_buckets = static_cast<Index>(c[1]),
                                                                     .max_distance = static_cast<Index>(c[2])});
    CHECK(bucket == static_cast<Index>(expected[i]));
    if (expected[i] != golden.values("ref.float64")[i]) ++differ_from_double;
  }
  CHECK(differ_from_double > 0);
}

/// A recorded bias (*, NH, q, k) of queries from `step` on, forward and backward; upstream multiplied it by `scale`.
template <class Scalar, int Rank>
void check_bias(const std::string& name, const RelativePositionBiasOptions& options, Index step, double scale = 1) {
  INFO(name);
  const GoldenCase golden(name);
  RelativePositionBias<Scalar> module(options);
  golden.load_parameters(module);
  const auto scaled = [&](std::vector<double> values) {
    for (double& value : values) value *= scale;
    return values;
  };
  auto mask = golden.tensor<Scalar, Rank>("out.bias");
  mask.setZero();
  module.mod_mask(mask, {.q = Positions::range(step)});
  check_close(scaled(flat(mask)), golden.expected<Scalar>("out.bias"), golden_tolerance<Scalar>);

  auto grads = module.zero_gradients();
  module.mod_mask_backward(golden.tensor<Scalar, Rank>("grad_out.bias"), {.q = Positions::range(step)}, grads);
  for_each_parameter(grads, [&](std::string_view parameter, const auto& gradient) {
    CHECK(parameter == "relative_attention_bias.weight");
    check_close(scaled(flat(gradient)), golden.values("grad_param.relative_attention_bias.weight"),
                golden_tolerance<Scalar>);
  });
}

TEMPLATE_TEST_CASE("RelativePositionBias gives what zeta, Hugging Face and x-transformers give", "[golden]", double,
                   float) {
  using S = TestType;
  check_bias<S, 4>("t5_zeta__bi_default", {.n_heads = 4}, 0);
  check_bias<S, 4>("t5_zeta__uni", {.bidirectional = false, .num_buckets = 8, .max_distance = 20, .n_heads = 2}, 0);
  check_bias<S, 4>("t5_zeta__step", {.num_buckets = 16, .max_distance = 64, .n_heads = 2}, 17);
  check_bias<S, 4>("t5_hf__encoder", {.n_heads = 4}, 0);
  check_bias<S, 4>("t5_hf__decoder_cache",
                   {.bidirectional = false, .num_buckets = 16, .max_distance = 40, .n_heads = 2}, 27);
  check_bias<S, 4>("t5_mpnet__default", {.n_heads = 3}, 0);
  // x-transformers: queries are the last i of j, and the result is scaled, here by the caller.
  check_bias<S, 3>("x_relposbias__default", {.n_heads = 4}, 0, 8);
  check_bias<S, 3>("x_relposbias__causal_cache",
                   {.bidirectional = false, .num_buckets = 16, .max_distance = 64, .n_heads = 2}, 38, 0.5);
}

TEMPLATE_TEST_CASE("RelativePositionBias: zeta's calling styles", "[golden]", double, float) {
  const auto check = [](const std::string& name, RelativePositionBiasOptions options, Index q_len, Index k_len,
                        Index step) {
    INFO(name);
    const GoldenCase golden(name);
    RelativePositionBias<TestType> module(options);
    golden.load_parameters(module);
    const auto expected = golden.expected<TestType>("out.bias");
    if (golden.rank("out.bias") == 4) {
      const auto bias = module.compute_bias(q_len, k_len, step);
      CHECK(bias.dimension(0) == 1);
      CHECK(bias.dimension(1) == options.n_heads);
      check_close(flat(bias), expected, golden_tolerance<TestType>);
      if (step == 0) CHECK(flat(module.compute_bias(q_len, k_len)) == flat(bias));
      return;
    }
    const auto bias = module(2, q_len, k_len, step);
    CHECK(bias.dimension(0) == 2 * options.n_heads);
    if (step == 0) CHECK(flat(module(2, q_len, k_len)) == flat(bias));
    check_close(flat(bias), expected, golden_tolerance<TestType>);
    // Its adjoint is that of (batch, NH, q, k), the same values in memory.
    auto grad = golden.tensor<TestType, 3>("grad_out.bias");
    const Eigen::TensorMap<Eigen::Tensor<TestType, 4, Eigen::RowMajor>> as_mask(grad.data(), 2, options.n_heads, q_len,
                                                                                k_len);
    auto grads = module.zero_gradients();
    module.mod_mask_backward(as_mask, {.q = Positions::range(step)}, grads);
    golden.check_gradients<TestType>(grads);
  };
  check("t5_zeta__bi_default", {.n_heads = 4}, 7, 7, 0);
  check("t5_zeta__step", {.num_buckets = 16, .max_distance = 64, .n_heads = 2}, 3, 20, 17);
  check("t5_zeta__forward", {.num_buckets = 8, .max_distance = 16, .n_heads = 3}, 5, 6, 0);
  check("t5_zeta__forward_step", {.bidirectional = false, .num_buckets = 8, .max_distance = 16, .n_heads = 2}, 1, 10,
        9);
}

TEST_CASE("RelativePositionBias: starts as N(0, 1), by the seed alone") {
  const auto weights = [](std::uint64_t seed) {
    std::vector<double> values;
    for_each_parameter(RelativePositionBias<double>({}, seed), [&](std::string_view name, const auto& weight) {
      CHECK(name == "relative_attention_bias.weight");
      CHECK(weight.dimension(0) == 32);
      CHECK(weight.dimension(1) == 12);
      values = flat(weight);
    });
    return values;
  };
  CHECK(weights(7) == weights(7));
  CHECK(weights(7) != weights(8));
  double square = 0;
  for (double value : weights(7)) square += value * value;
  CHECK(square / 384 == Approx(1).margin(0.3));  // four standard deviations of a mean of 384 squares
}

TEST_CASE("RelativePositionBias: float gradients are summed in double, with and without a table") {
  const Index length = 500;
  const RelativePositionBias<float> module({.n_heads = 1});
  Eigen::Tensor<float, 3, Eigen::RowMajor> grad(1, length, length);
  grad.setConstant(0.1F);
  for (const Index gap : {1, 100}) {  // positions 100 apart are too many for a table
    Eigen::Tensor<std::int64_t, 1> ids(length);
    for (Index i = 0; i < length; ++i) ids(i) = i * gap;
    auto grads = module.zero_gradients();
    module.mod_mask_backward(grad, {.q_k = ids}, grads);
    std::vector<std::int64_t> offsets;
    for (Index d = 1 - length; d < length; ++d) offsets.push_back(d * gap);
    std::vector<Index> buckets(offsets.size());
    t5_bucket(offsets, buckets);
    std::vector<double> expected(32);
    for (Index i = 0; i < length; ++i)
      for (Index j = 0; j < length; ++j)
        expected[static_cast<std::size_t>(buckets[static_cast<std::size_t>(j - i + length - 1)])] +=
            static_cast<double>(0.1F);
    for_each_parameter(grads, [&](std::string_view, const auto& g) {
      for (Index b = 0; b < 32; ++b) CHECK(g(b, 0) == static_cast<float>(expected[static_cast<std::size_t>(b)]));
    });
  }
}

TEST_CASE("RelativePositionBias names what is wrong and writes nothing") {
  const auto construct = [](RelativePositionBiasOptions options) {
    return [=] { RelativePositionBias<float> module(options); };
  };
  CHECK(message_of<OptionError>(construct({.num_buckets = 2})) ==
        "RelativePositionBias: num_buckets = 2; at least 4 are needed");
  CHECK(message_of<OptionError>(construct({.bidirectional = false, .num_buckets = 1})) ==
        "RelativePositionBias: num_buckets = 1; at least 2 are needed");
  CHECK(message_of<OptionError>(construct({.bidirectional = false, .max_distance = 16})) ==
        "RelativePositionBias: max_distance = 16; it must exceed 16, the number of exact buckets");
  CHECK(message_of<OptionError>(construct({.n_heads = 0})) == "RelativePositionBias: n_heads = 0; it must be positive");

  const RelativePositionBias<float> module({.n_heads = 3});
  Eigen::Tensor<float, 4, Eigen::RowMajor> mask(2, 3, 5, 7);
  mask.setConstant(0.5F);
  Eigen::Tensor<double, 1> reals(5);
  reals.setValues({100, 101, 102.5, 103, 104});
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, {.q = reals}); }) ==
        "RelativePositionBias::mod_mask: q at index 2 is 102.5; integers strictly between -2^62 and 2^62 are needed");
  Eigen::Tensor<double, 1> keys(7);
  keys.setValues({0, 1, 2, 3, 1e30, 5, 6});
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, {.k = keys}); }) ==
        "RelativePositionBias::mod_mask: k at index 4 is 1e+30; integers strictly between -2^62 and 2^62 are needed");
  keys.setConstant(1.5e308);
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, {.k = keys}); }) ==
        "RelativePositionBias::mod_mask: k at index 0 is 1.5e+308; reals must lie within ±2^1022");
  CHECK(message_of<ShapeError>([&] { (void)module(-1, 5, 7); }) ==
        "RelativePositionBias: batch = -1; it must not be negative");
  CHECK(module(0, 5, 7).size() == 0);
  auto grads = module.zero_gradients();
  auto others = RelativePositionBias<float>({.num_buckets = 48, .n_heads = 2}).zero_gradients();  // as many values
  CHECK(message_of<ShapeError>([&] { module.mod_mask_backward(mask, {}, others); }) ==
        "RelativePositionBias::mod_mask_backward: grads entry relative_attention_bias.weight has shape (48, 2); the "
        "parameter has (32, 3); use the module's zero_gradients()");
  CHECK(message_of<PositionError>([&] { module.mod_mask_backward(mask, {.q = reals}, grads); }) ==
        "RelativePositionBias::mod_mask_backward: q at index 2 is 102.5; integers strictly between -2^62 and 2^62 are "
        "needed");
  for (Index i = 0; i < mask.size(); ++i) REQUIRE(mask.data()[i] == 0.5F);
  for (const auto* g : {&grads, &others})
    for_each_parameter(*g, [](std::string_view, const auto& values) {
      for (Index i = 0; i < values.size(); ++i) REQUIRE(values.data()[i] == 0);
    });
}

}  // namespace
