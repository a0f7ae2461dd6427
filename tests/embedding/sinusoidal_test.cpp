// SPDX-License-Identifier: MIT
#include "posbias/embedding/sinusoidal.hpp"

#include <cmath>

#include "posbias/embedding/learned_continuous.hpp"
#include "support/golden.hpp"
#include "support/thread_runner.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

SinusoidalOptions options_of(const GoldenCase& golden) {
  return {.dim = golden.size("dim"),
          .divide = golden.config("divide", 1),
          .learned_div = golden.config("learned_div", 0) != 0};
}

TEMPLATE_TEST_CASE("Sinusoidal gives what bio-attention gives", "[golden]", double, float) {
  const auto names = golden_names("bio_sinusoidal__");
  REQUIRE(names.size() == 14);
  for (const auto& name : names) {
    const GoldenCase golden(name);
    DYNAMIC_SECTION(name) {
      const Sinusoidal<TestType> module(options_of(golden));
      if (golden.rank("in.x") == 3)
        check_mod_x<TestType, 3>(golden, module);
      else
        check_mod_x<TestType, 4>(golden, module);
    }
  }
}

TEST_CASE("Sinusoidal: the paper's rows, in both layouts") {
  // dim 4: frequencies 1 and 10000^(-2/4) = 1/100.
  const double p = 137;
  for (const auto layout : {SinusoidLayout::interleaved, SinusoidLayout::half}) {
    Eigen::Tensor<double, 2, Eigen::RowMajor> x(2, 4);
    x.setConstant(1);
    Sinusoidal<double>({.dim = 4, .layout = layout}).mod_x(x, {.pos = Positions::range(136)});
    const bool half = layout == SinusoidLayout::half;
    CHECK(x(1, 0) == Approx(1 + std::sin(p)).epsilon(1e-13));
    CHECK(x(1, half ? 2 : 1) == Approx(1 + std::cos(p)).epsilon(1e-13));
    CHECK(x(1, half ? 1 : 2) == Approx(1 + std::sin(p / 100)).epsilon(1e-13));
    CHECK(x(1, 3) == Approx(1 + std::cos(p / 100)).epsilon(1e-13));
  }
}

TEST_CASE("Sinusoidal: the learned divisor starts at divide and is clamped from below") {
  Sinusoidal<double> learned({.dim = 6, .divide = 3, .learned_div = true});
  const Sinusoidal<double> constant({.dim = 6, .divide = 3});
  Eigen::Tensor<double, 2, Eigen::RowMajor> a(5, 6), b(5, 6);
  a.setZero();
  b.setZero();
  learned.mod_x(a, {.pos = Positions::range(100)});
  constant.mod_x(b, {.pos = Positions::range(100)});
  check_close(flat(a), flat(b), 1e-12, 1e-13);

  for_each_parameter(learned, [](std::string_view, auto& div) { div.setConstant(-20); });  // exp(-20) < 1e-8
  a.setZero();
  learned.mod_x(a, {.pos = Positions::range(1)});
  CHECK(a(0, 0) == Approx(std::sin(1e8)).epsilon(1e-7));
  auto grads = learned.zero_gradients();
  learned.mod_x_backward(b, {}, grads);
  for_each_parameter(grads, [](std::string_view name, const auto& div) {
    CHECK(name == "div");
    CHECK(div() == 0);
  });
}

TEST_CASE("Sinusoidal names what is wrong and writes nothing") {
  const auto construct = [](SinusoidalOptions options) { return [=] { Sinusoidal<float> module(options); }; };
  CHECK(message_of<OptionError>(construct({})) == "Sinusoidal: dim = 0; it is required, and must be even and positive");
  CHECK(message_of<OptionError>(construct({.dim = 5})) ==
        "Sinusoidal: dim = 5; it is required, and must be even and positive");
  CHECK(message_of<OptionError>(construct({.dim = 4, .divide = 0})) ==
        "Sinusoidal: divide = 0; it must be positive and finite");
  CHECK(message_of<OptionError>(construct({.dim = 4, .divide = -1, .learned_div = true})) ==
        "Sinusoidal: divide = -1; it must be positive and finite");
  CHECK(message_of<OptionError>(construct({.dim = 4, .divide = std::nan("")})) ==
        "Sinusoidal: divide = nan; it must be positive and finite");

  const Sinusoidal<float> module({.dim = 8, .learned_div = true});
  Eigen::Tensor<float, 3, Eigen::RowMajor> x(2, 5, 8);
  x.setConstant(0.5F);
  const auto untouched = [&] {
    for (Index i = 0; i < x.size(); ++i)
      if (x.data()[i] != 0.5F) return false;
    return true;
  };
  const auto message = [&]<class Exception>(std::type_identity<Exception>, const TokenPositions& at) {
    std::string text = message_of<Exception>([&] { module.mod_x(x, at); });
    CHECK(untouched());
    auto grads = module.zero_gradients();
    std::string backward = message_of<Exception>([&] { module.mod_x_backward(x, at, grads); });
    CHECK(backward.replace(backward.find("_backward"), 9, "") == text);
    CHECK(untouched());
    for_each_parameter(grads, [](std::string_view, const auto& div) { CHECK(div() == 0); });
    return text;
  };
  constexpr std::type_identity<ShapeError> shape;
  constexpr std::type_identity<PositionError> position;

  Eigen::Tensor<double, 1> reals(5);
  reals.setValues({100, 101, std::nan(""), 103, 104});
  CHECK(message(position, {.pos = reals}) == "Sinusoidal::mod_x: pos at index 2 is nan; positions must be finite");
  reals.setValues({100, 101, 102, -std::numeric_limits<double>::infinity(), 104});
  CHECK(message(position, {.pos = reals}) == "Sinusoidal::mod_x: pos at index 3 is -inf; positions must be finite");
  reals(0) = 1.5e308;
  reals(3) = 103;
  CHECK(message(position, {.pos = reals}) ==
        "Sinusoidal::mod_x: pos at index 0 is 1.5e+308; reals must lie within ±2^1022");
  Eigen::Tensor<std::int64_t, 1> ids(6);
  ids.setConstant(7);
  CHECK(message(position, {.pos = ids}) == "Sinusoidal::mod_x: pos has 6 positions for 5 tokens");
  Eigen::Tensor<std::int64_t, 1> huge(1);
  huge.setConstant(std::numeric_limits<std::int64_t>::min());
  CHECK(message(position, {.pos = huge}) ==
        "Sinusoidal::mod_x: pos at index 0 is -9223372036854775808; integers must lie strictly between -2^62 and "
        "2^62");
  Eigen::Tensor<std::int64_t, 2> rows(3, 5);
  rows.setConstant(7);
  CHECK(message(shape, {.pos = rows}) == "Sinusoidal::mod_x: pos has leading dimensions (3); the tensor has (2)");
  Eigen::Tensor<bool, 1> flags(6);
  flags.setConstant(true);
  CHECK(message(shape, {.mask = flags}) == "Sinusoidal::mod_x: mask has 6 flags for 5 tokens");
  Eigen::Tensor<bool, 2> flag_rows(3, 5);
  flag_rows.setConstant(true);
  CHECK(message(shape, {.mask = flag_rows}) == "Sinusoidal::mod_x: mask has leading dimensions (3); x has (2)");

  const Sinusoidal<float> wider({.dim = 10});
  CHECK(message_of<ShapeError>([&] { wider.mod_x(x); }) == "Sinusoidal::mod_x: x has 8 features; dim = 10");
  auto grads = wider.zero_gradients();
  CHECK(message_of<ShapeError>([&] { wider.mod_x_backward(x, {}, grads); }) ==
        "Sinusoidal::mod_x_backward: grad_x has 8 features; dim = 10");
  CHECK(untouched());

  auto others = Sinusoidal<float>({.dim = 8}).zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_x_backward(x, {}, others); }) ==
        "Sinusoidal::mod_x_backward: grads lacks an entry div; use the module's zero_gradients()");
  auto surplus = module.zero_gradients();
  CHECK(message_of<ShapeError>([&] { Sinusoidal<float>({.dim = 8}).mod_x_backward(x, {}, surplus); }) ==
        "Sinusoidal::mod_x_backward: grads has an entry div that the module does not learn; use the "
        "module's zero_gradients()");
}

TEST_CASE("Sinusoidal and LearnedContinuous look at no position of a token that is left out") {
  const auto check = [](const auto& module) {
    Eigen::Tensor<double, 1, Eigen::RowMajor> positions(3);
    positions.setValues({100, std::numeric_limits<double>::quiet_NaN(), 102.5});
    Eigen::Tensor<bool, 1, Eigen::RowMajor> encode(3);
    encode.setValues({true, false, true});
    Eigen::Tensor<double, 2, Eigen::RowMajor> x(3, 8), expected(3, 8);
    x.setZero();
    module.mod_x(x, {.pos = positions, .mask = encode});
    auto grads = module.zero_gradients(), expected_grads = module.zero_gradients();
    module.mod_x_backward(x, {.pos = positions, .mask = encode}, grads);
    positions(1) = 101;
    expected.setZero();
    module.mod_x(expected, {.pos = positions, .mask = encode});
    module.mod_x_backward(expected, {.pos = positions, .mask = encode}, expected_grads);
    CHECK(flat(x) == flat(expected));
    CHECK(flat(x)[8 + 1] == 0);
    CHECK(flat(x)[16 + 1] != 0);
    const auto listed = [](const auto& owner) {
      std::vector<double> values;
      for_each_parameter(owner, [&](std::string_view, const auto& gradient) {
        for (const double value : flat(gradient)) values.push_back(value);
      });
      return values;
    };
    CHECK(listed(grads) == listed(expected_grads));
  };
  check(Sinusoidal<double>({.dim = 8, .learned_div = true}));
  check(LearnedContinuous<double>({.dim = 8, .depth = 2, .norm = true, .divide = 50}));
}

TEST_CASE("a reserved table changes no bit of Sinusoidal") {
  using Tokens = Eigen::Tensor<double, 3, Eigen::RowMajor>;
  for (const auto layout : {SinusoidLayout::interleaved, SinusoidLayout::half}) {
    Sinusoidal<double> module({.dim = 6, .layout = layout, .divide = 2.5});
    const auto encoded = [&](const Positions& at) {
      Tokens x(2, 70, 6);
      for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::sin(static_cast<double>(i));
      module.mod_x(x, {.pos = at});
      return std::vector<double>(x.data(), x.data() + x.size());
    };
    const std::vector<Positions> places{Positions(), Positions::range(-20), Positions::range(39)};
    std::vector<std::vector<double>> fresh;
    for (const Positions& at : places) fresh.push_back(encoded(at));
    module.reserve(40);
    for (std::size_t i = 0; i < places.size(); ++i) CHECK(encoded(places[i]) == fresh[i]);
    CHECK(message_of<OptionError>([&] { module.reserve(-7); }) ==
          "Sinusoidal::reserve: length = -7; it must not be negative");
  }
}

TEST_CASE("Sinusoidal sums the divisor's gradient over many blocks on threads, to the same bits") {
  const Sinusoidal<float> module({.dim = 6, .divide = 2.5, .learned_div = true});
  Eigen::Tensor<float, 3, Eigen::RowMajor> grad_x(2, 700, 6);
  for (Index i = 0; i < grad_x.size(); ++i) grad_x.data()[i] = std::sin(static_cast<float>(i));
  const auto gradient = [&](const TokenPositions& at) {
    auto grads = module.zero_gradients();
    module.mod_x_backward(grad_x, at, grads);
    float div = 0;
    for_each_parameter(grads, [&](std::string_view, const auto& tensor) { div = tensor(); });
    return div;
  };
  ThreadRunner runner;
  CHECK(gradient({.executor = runner}) == gradient({}));
  CHECK(runner.tasks() > 1);
  CHECK(gradient({}) != 0);
}

}  // namespace
