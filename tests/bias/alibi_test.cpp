// SPDX-License-Identifier: MIT
#include "posbias/bias/alibi.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

#include "support/golden_bias.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

constexpr double blocked = -std::numeric_limits<double>::infinity();

ALiBiOptions options_of(const GoldenCase& golden) {
  return {.n_heads = golden.size("n_heads"),
          .use_n_heads = golden.size("use_n_heads", -1),
          .asymmetric = golden.config("asymmetric", 0) != 0,
          .divide = golden.config("divide", 1)};
}

/// Each head of a bias (NH, L1, L2), as rows.
std::vector<double> head(const Eigen::Tensor<double, 3, Eigen::RowMajor>& bias, Index h) {
  std::vector<double> values;
  for (Index i = 0; i < bias.dimension(1); ++i)
    for (Index j = 0; j < bias.dimension(2); ++j) values.push_back(bias(h, i, j));
  return values;
}

TEST_CASE("ALiBi: the paper's slopes") {
  using Slopes = std::vector<double>;
  CHECK(ALiBi<float>::get_slopes(8) == Slopes{1. / 2, 1. / 4, 1. / 8, 1. / 16, 1. / 32, 1. / 64, 1. / 128, 1. / 256});
  CHECK(ALiBi<float>::get_slopes(16)[0] == Approx(std::sqrt(0.5)).epsilon(1e-15));
  CHECK(ALiBi<float>::get_slopes(1) == Slopes{1. / 256});
  // No power of two: those of 4 heads, then every other one of 8.
  CHECK(ALiBi<double>::get_slopes(6) == Slopes{1. / 4, 1. / 16, 1. / 64, 1. / 256, 1. / 2, 1. / 8});
  CHECK(message_of<OptionError>([] { (void)ALiBi<double>::get_slopes(0); }) ==
        "ALiBi::get_slopes: heads = 0; it must be positive");
}

TEST_CASE("ALiBi: slopes of 1 to 64 heads as recorded", "[golden]") {
  const GoldenCase golden("hf_bloom_alibi__slopes_1_64");
  for (Index n = 1; n <= 64; ++n) {
    INFO(n << " heads");
    check_close(ALiBi<double>::get_slopes(n), golden.values("ref.bio_" + std::to_string(n)), 1e-14);
    check_close(ALiBi<double>::get_slopes(n), golden.values("out.slopes_" + std::to_string(n)), 6e-7);  // float32
  }
}

TEMPLATE_TEST_CASE("ALiBi gives what bio-attention gives", "[golden]", double, float) {
  const auto names = golden_names("bio_alibi__");
  REQUIRE(names.size() == 13);
  for (const auto& name : names) {
    // Upstream blocks along the wrong axis at rank 5; its own test below.
    if (name == "bio_alibi__asymmetric_rank5") continue;
    const GoldenCase golden(name);
    DYNAMIC_SECTION(name) {
      const ALiBi<TestType> module(options_of(golden));
      if (golden.rank("in.q") == 4)
        check_mask<TestType, 4>(golden, module);
      else
        check_mask<TestType, 5>(golden, module);
    }
  }
}

TEST_CASE("ALiBi blocks along the head axis at every rank, where upstream slices dimension 1", "[golden]") {
  const GoldenCase golden("bio_alibi__asymmetric_rank5");
  const ALiBi<double> module(options_of(golden));
  auto q = golden.input<double, 5, RowMajorCase>("in.q");
  auto k = golden.input<double, 5, RowMajorCase>("in.k");
  const auto mask = module.make_mask(q.tensor(), k.tensor(), k.tensor());
  const auto recorded = golden.tensor<double, 5>("out.mask");
  for (Index s = 0; s < 3; ++s)
    for (Index h = 0; h < 4; ++h)
      for (Index i = 0; i < 3; ++i)
        for (Index j = 0; j < 3; ++j) {
          const bool is_blocked = h % 2 == 0 ? i > j : i < j;
          const double slope = h < 2 ? 0.25 : 0.015625;
          const double distance = static_cast<double>(std::abs(i - j));
          CHECK(mask(0, s, h, i, j) == (is_blocked ? blocked : -slope * distance));
          // What upstream recorded depends on s in the place of h.
          const bool blocked_upstream = s % 2 == 0 ? i > j : i < j;
          CHECK((recorded(0, s, h, i, j) < -1e37) == blocked_upstream);
        }
}

TEMPLATE_TEST_CASE("ALiBi gives what x-transformers gives: queries are the last i of j", "[golden]", double, float) {
  const auto check = [](const std::string& name, Index i, Index j) {
    const GoldenCase golden(name);
    const Index heads = golden.size("heads");
    const ALiBi<TestType> module({.n_heads = golden.size("total_heads", heads), .use_n_heads = heads});
    const auto expected = golden.expected<TestType>("out.bias");
    check_close(flat(module(i, j)), expected, golden_tolerance<TestType>);
    check_close(flat(module.get_bias(i, j)), expected, golden_tolerance<TestType>);
  };
  check("x_alibi__default", 5, 5);
  check("x_alibi__total_heads", 3, 7);
  check("x_alibi__cached_slice", 3, 5);

  SECTION("positions of its own for each batch entry") {
    const auto custom = [](const std::string& name, const std::string& keys) {
      const GoldenCase golden(name);
      const Index heads = golden.size("heads");
      const ALiBi<TestType> module({.n_heads = golden.size("total_heads", heads), .use_n_heads = heads});
      auto mask = golden.tensor<TestType, 4>("out.bias");
      mask.setZero();
      module.mod_mask(mask, {.q = golden.positions("in.pos_i"), .k = golden.positions(keys)});
      check_close(flat(mask), golden.expected<TestType>("out.bias"), golden_tolerance<TestType>);
    };
    custom("x_alibi__custom_pos", "in.pos_i");
    custom("x_alibi__custom_pos_ij", "in.pos_j");
  }
}

TEST_CASE("ALiBi: bias and diagonals at unequal lengths") {
  const ALiBi<double> module({.n_heads = 3, .divide = 2});
  const auto bias = module.bias(5, 7);
  const auto diagonals = module.diagonals(5, 7);
  REQUIRE(diagonals.dimension(1) == 11);
  // In Eigen's default layout they can be added to its default tensors.
  const Eigen::Tensor<double, 3> twice = module.bias<Eigen::ColMajor>(5, 7) * 2.0;
  const Eigen::Tensor<double, 2> columns = module.diagonals<Eigen::ColMajor>(5, 7);
  REQUIRE(columns.dimension(1) == 11);
  for (Index h = 0; h < 3; ++h)
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 7; ++j) {
        CHECK(bias(h, i, j) == diagonals(h, j - i + 4));
        CHECK(bias(h, i, j) * 2 == twice(h, i, j));
        CHECK(bias(h, i, j) == columns(h, j - i + 4));
        const double slopes[] = {1. / 16, 1. / 256, 1. / 4};
        CHECK(bias(h, i, j) == -slopes[h] * static_cast<double>(std::abs(i - j)) / 2);
      }
  CHECK(module.bias(0, 7).size() == 0);
  CHECK(module.diagonals(0, 0).size() == 0);
  CHECK(message_of<ShapeError>([&] { (void)module.bias(-1, 7); }) ==
        "ALiBi::bias: L1 = -1, L2 = 7; lengths must not be negative");
  CHECK(message_of<ShapeError>([&] { (void)module.diagonals(5, -7); }) ==
        "ALiBi::diagonals: L1 = 5, L2 = -7; lengths must not be negative");
}

TEST_CASE("ALiBi: blocked is -inf, so a row masked elsewhere cannot fall back on the blocked side") {
  // Upstream's -finfo.max is finite: with all else at -inf, softmax would attend to the blocked side.
  const ALiBi<double> module({.n_heads = 4, .use_n_heads = 3, .asymmetric = true});
  const auto bias = module.bias(3, 3, {.q_k = Positions::range(1000)});
  const double s = 1. / 16, t = 1. / 4;
  CHECK(head(bias, 0) == std::vector<double>{0, -s, -2 * s, blocked, 0, -s, blocked, blocked, 0});
  CHECK(head(bias, 1) == std::vector<double>{0, blocked, blocked, -s, 0, blocked, -2 * s, -s, 0});
  CHECK(head(bias, 2) == std::vector<double>{0, -t, -2 * t, blocked, 0, -t, blocked, blocked, 0});
  CHECK(head(bias, 3) == std::vector<double>(9, 0));
}

TEST_CASE("ALiBi: finite positions give no NaN and no -0") {
  const ALiBi<double> module({.n_heads = 2, .use_n_heads = 1});
  Eigen::Tensor<double, 1> far(2);
  far.setValues({0x1p1022, -0x1p1022});
  const auto bias = module.bias(2, 2, {.q_k = far});
  CHECK(head(bias, 0) == std::vector<double>{0, -0x1p1015, -0x1p1015, 0});  // 2^1023 / 256
  CHECK(head(bias, 1) == std::vector<double>(4, 0));
  const auto diagonals = module.diagonals(2, 2);
  CHECK_FALSE(std::signbit(diagonals(0, 1)));
  CHECK_FALSE(std::signbit(diagonals(1, 0)));
}

TEST_CASE("ALiBi: two heads in a column-major mask, which has them next to each other") {
  const ALiBi<float> module({.n_heads = 2});
  const auto bias = module.bias(400, 70);
  Eigen::Tensor<float, 3> mask(2, 400, 70);
  mask.setZero();
  module.mod_mask(mask);
  Index different = 0;
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < 400; ++i)
      for (Index j = 0; j < 70; ++j) different += mask(h, i, j) != bias(h, i, j);
  CHECK(different == 0);
}

TEST_CASE("ALiBi: only one of q and k given, the other is 0 .. L-1") {
  const ALiBi<double> module({.n_heads = 1});  // slope 1/256
  const auto bias = module.bias(2, 3, {.q = Positions::range(100)});
  CHECK(head(bias, 0) ==
        std::vector<double>{-100. / 256, -99. / 256, -98. / 256, -101. / 256, -100. / 256, -99. / 256});
  const auto other = module.bias(2, 1, {.k = Positions::range(100)});
  CHECK(head(other, 0) == std::vector<double>{-100. / 256, -99. / 256});
}

TEST_CASE("ALiBi: rows and columns of tokens without a position get no bias, where upstream fails") {
  // Upstream cannot add a bias of the positions' size to a mask of the tokens' size.
  const ALiBi<double> module({.n_heads = 1});  // slope 1/256
  Eigen::Tensor<std::int64_t, 1> two(2), three(3);
  two.setValues({102, 103});
  three.setValues({100, 101, 103});
  Eigen::Tensor<double, 3, Eigen::RowMajor> mask(1, 3, 4);
  mask.setConstant(7);
  module.mod_mask(mask, {.q = two, .k = three});
  const double s = 1. / 256;
  CHECK(head(mask, 0) == std::vector<double>{7, 7, 7, 7, 7, 7 - 2 * s, 7 - s, 7 - s, 7, 7 - 3 * s, 7 - 2 * s, 7});
}

TEST_CASE("ALiBi: the learned divisor starts at divide, and its gradient skips what is blocked") {
  const ALiBi<double> constant({.n_heads = 6, .asymmetric = true, .divide = 3});
  const ALiBi<double> learned({.n_heads = 6, .asymmetric = true, .divide = 3, .learned_div = true});
  const auto a = constant.bias(5, 7, {.q = Positions::range(102), .k = Positions::range(100)});
  const auto b = learned.bias(5, 7, {.q = Positions::range(102), .k = Positions::range(100)});
  check_close(flat(b), flat(a), 1e-14);

  // bias = -slope·d/exp(div), so d bias/d div = -bias where it is finite.
  Eigen::Tensor<double, 3, Eigen::RowMajor> grad(6, 5, 7);
  double expected = 0;
  for (Index i = 0; i < grad.size(); ++i) {
    grad.data()[i] = std::cos(static_cast<double>(i));
    if (std::isfinite(b.data()[i])) expected -= grad.data()[i] * b.data()[i];
  }
  auto grads = learned.zero_gradients();
  learned.mod_mask_backward(grad, {.q = Positions::range(102), .k = Positions::range(100)}, grads);
  for_each_parameter(grads, [&](std::string_view name, const auto& div) {
    CHECK(name == "div");
    CHECK(div() == Approx(expected).epsilon(1e-12));
  });
}

TEST_CASE("ALiBi names what is wrong and writes nothing") {
  const auto construct = [](ALiBiOptions options) { return [=] { ALiBi<float> module(options); }; };
  CHECK(message_of<OptionError>(construct({})) == "ALiBi: n_heads = 0; it is required, and must be positive");
  CHECK(message_of<OptionError>(construct({.n_heads = 4, .use_n_heads = 0})) ==
        "ALiBi: use_n_heads = 0; it must be from 1 to n_heads = 4");
  CHECK(message_of<OptionError>(construct({.n_heads = 4, .use_n_heads = 5})) ==
        "ALiBi: use_n_heads = 5; it must be from 1 to n_heads = 4");
  CHECK(message_of<OptionError>(construct({.n_heads = 4, .divide = std::numeric_limits<double>::infinity()})) ==
        "ALiBi: divide = inf; it must be positive and finite");

  const ALiBi<float> module({.n_heads = 3, .learned_div = true});
  using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;
  Heads mask(2, 3, 5, 7), q(2, 5, 3, 8), k(2, 7, 3, 8);
  for (Heads* t : {&mask, &q, &k}) t->setConstant(0.5F);
  const auto untouched = [&] {
    for (Index i = 0; i < mask.size(); ++i)
      if (mask.data()[i] != 0.5F) return false;
    return true;
  };
  Heads eight(2, 8, 5, 7);
  eight.setConstant(0.5F);
  CHECK(message_of<ShapeError>([&] { module.mod_mask(eight); }) == "ALiBi::mod_mask: mask has 8 heads; n_heads = 3");
  auto grads = module.zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_mask_backward(eight, {}, grads); }) ==
        "ALiBi::mod_mask_backward: grad_mask has 8 heads; n_heads = 3");
  CHECK(message_of<ShapeError>([&] { module.mod_mask(mask, k, k, k); }) ==
        "ALiBi::mod_mask: mask has shape (2, 3, 5, 7); q of shape (2, 7, 3, 8) and k of shape (2, 7, 3, 8) need "
        "(B, *, NH, L1, L2)");
  CHECK(message_of<ShapeError>([&] { (void)module.make_mask(q, k, k, {}, eight); }) ==
        "ALiBi::make_mask: mask has shape (2, 8, 5, 7); q and k make one of shape (2, 3, 5, 7), of which the last two "
        "dimensions may be smaller and all but the last 1 or missing from the left");
  Eigen::Tensor<double, 1> reals(5);
  reals.setValues({0.5, 1.5, std::nan(""), 3.5, 4.5});
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, q, k, k, {.q = reals}); }) ==
        "ALiBi::mod_mask: q at index 2 is nan; positions must be finite");
  CHECK(message_of<PositionError>(
            [&] { module.mod_mask(mask, {.k = Positions::range(std::numeric_limits<Index>::max())}); }) ==
        "ALiBi::mod_mask: k at index 0 is 9223372036854775807; integers must lie strictly between -2^62 and 2^62");
  CHECK(message_of<PositionError>([&] {
          module.mod_mask(mask, {.q_k = Positions::range(), .k = Positions::range()});
        }) == "ALiBi::mod_mask: positions q_k and k are both given; give q_k alone, or q and k");
  CHECK(message_of<PositionError>([&] { module.mod_mask_backward(mask, {.q = reals}, grads); }) ==
        "ALiBi::mod_mask_backward: q at index 2 is nan; positions must be finite");
  // Who was called, or who says that it was.
  const Heads four(2, 5, 4, 8);
  CHECK(message_of<PositionError>([&] { (void)module.make_mask(q, k, k, {.q = reals}); }) ==
        "ALiBi::make_mask: q at index 2 is nan; positions must be finite");
  CHECK(message_of<ShapeError>([&] { (void)module.make_mask(four, four, four); }) ==
        "ALiBi::make_mask: mask has 4 heads; n_heads = 3");
  CHECK(message_of<PositionError>([&] { (void)module.make_mask(q, k, k, {.q = reals}, mask); }) ==
        "ALiBi::make_mask: q at index 2 is nan; positions must be finite");
  CHECK(message_of<ShapeError>([&] { (void)module.prepare(four, four); }) ==
        "ALiBi::prepare: q has 4 heads; n_heads = 3");
  CHECK(message_of<ShapeError>([&] {
          (void)module.prepare(four, four, {.caller = {"attend", "my::layer"}});
        }) == "my::layer::attend: ALiBi: q has 4 heads; n_heads = 3");
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, {.q = reals, .caller = "bias_of"}); }) ==
        "ALiBi::bias_of: q at index 2 is nan; positions must be finite");
  CHECK(message_of<ShapeError>([&] { (void)module.get_bias(-1, 4); }) ==
        "ALiBi::get_bias: L1 = -1, L2 = 4; lengths must not be negative");
  reals.setConstant(1.5e308);
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, {.q = reals}); }) ==
        "ALiBi::mod_mask: q at index 0 is 1.5e+308; reals must lie within ±2^1022");
  CHECK(message_of<ShapeError>([&] { (void)module.bias(Index{1} << 62, 4); }) ==
        "ALiBi::bias: L1 = 4611686018427387904, L2 = 4; no tensor can be so large");
  CHECK(message_of<ShapeError>([&] { (void)module.bias(0, Index{1} << 62); }) ==
        "ALiBi::bias: L1 = 0, L2 = 4611686018427387904; no tensor can be so large");
  CHECK(untouched());
  for_each_parameter(grads, [](std::string_view, const auto& div) { CHECK(div() == 0); });
}

}  // namespace
