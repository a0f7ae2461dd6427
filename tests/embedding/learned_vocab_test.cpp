// SPDX-License-Identifier: MIT
#include "posbias/embedding/learned_vocab.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

#include "posbias/core/compose.hpp"
#include "support/golden.hpp"
#include "support/thread_runner.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

template <class S, int Rank>
using Tensor = Eigen::Tensor<S, Rank, Eigen::RowMajor>;

/// weight(p, f) = 10·p + f, so that a value tells where it is from.
template <class S>
void number_rows(LearnedVocab<S>& module) {
  for_each_parameter(module, [](std::string_view name, auto& weight) {
    CHECK(name == "emb.weight");
    for (Index p = 0; p < weight.dimension(0); ++p)
      for (Index f = 0; f < weight.dimension(1); ++f)
        weight.data()[p * weight.dimension(1) + f] = static_cast<S>(10 * p + f);
  });
}

template <class Gradients>
std::vector<double> weight_gradient(const Gradients& grads) {
  std::vector<double> values;
  for_each_parameter(grads, [&](std::string_view, const auto& gradient) { values = flat(gradient); });
  return values;
}

TEMPLATE_TEST_CASE("LearnedVocab gives what bio-attention gives", "[golden]", double, float) {
  const auto names = golden_names("bio_learnedvocab__");
  REQUIRE(names.size() == 8);
  for (const auto& name : names) {
    const GoldenCase golden(name);
    DYNAMIC_SECTION(name) {
      REQUIRE(golden.has("grad_out.x"));
      const LearnedVocab<TestType> module({.dim = golden.size("dim"), .max_seq_len = golden.size("max_seq_len")});
      if (golden.rank("in.x") == 3)
        check_mod_x<TestType, 3>(golden, module);
      else
        check_mod_x<TestType, 4>(golden, module);
    }
  }
}

TEMPLATE_TEST_CASE("LearnedVocab adds the rows of the ids", "", double, float) {
  LearnedVocab<TestType> module({.dim = 3, .max_seq_len = 107});
  number_rows(module);
  Tensor<TestType, 2> x(4, 3);
  const auto added = [&](const TokenPositions& at) {
    x.setConstant(0.5);
    module.mod_x(x, at);
    std::vector<double> values = flat(x);
    for (double& value : values) value -= 0.5;
    return values;
  };
  using Values = std::vector<double>;
  CHECK(added({}) == Values{0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32});
  CHECK(added({.pos = Positions::range(103)}) ==
        Values{1030, 1031, 1032, 1040, 1041, 1042, 1050, 1051, 1052, 1060, 1061, 1062});

  // Ids of any type, for the rightmost tokens; a flag that is false leaves its token alone.
  const auto check_ids = [&]<class Id>(std::type_identity<Id>) {
    Tensor<Id, 1> ids(3);
    ids.setValues({106, 0, 106});
    CHECK(added({.pos = ids}) == Values{0, 0, 0, 1060, 1061, 1062, 0, 1, 2, 1060, 1061, 1062});
    Tensor<bool, 1> flags(2);
    flags.setValues({true, false});
    CHECK(added({.pos = ids, .mask = flags}) == Values{0, 0, 0, 1060, 1061, 1062, 0, 1, 2, 0, 0, 0});
  };
  check_ids(std::type_identity<std::int32_t>());
  check_ids(std::type_identity<std::int64_t>());
  check_ids(std::type_identity<float>());
  check_ids(std::type_identity<double>());
}

TEST_CASE("LearnedVocab: the gradients of repeated ids add up") {
  const LearnedVocab<double> module({.dim = 2, .max_seq_len = 5});
  Tensor<double, 3> grad_x(2, 4, 2);
  for (Index i = 0; i < grad_x.size(); ++i) grad_x.data()[i] = static_cast<double>(i + 1);
  Tensor<std::int64_t, 1> ids(3);  // of the last three tokens
  ids.setValues({4, 1, 4});
  auto grads = module.zero_gradients();
  module.mod_x_backward(grad_x, {.pos = ids}, grads);
  const std::vector<double> once{0, 0, 5 + 13, 6 + 14, 0, 0, 0, 0, 3 + 7 + 11 + 15, 4 + 8 + 12 + 16};
  CHECK(weight_gradient(grads) == once);
  for (Index i = 0; i < grad_x.size(); ++i) CHECK(grad_x.data()[i] == static_cast<double>(i + 1));

  Tensor<std::int64_t, 2> rows(2, 3);
  rows.setValues({{4, 1, 4}, {4, 1, 4}});
  module.mod_x_backward(grad_x, {.pos = rows}, grads);
  std::vector<double> twice = once;
  for (double& value : twice) value *= 2;
  CHECK(weight_gradient(grads) == twice);
}

TEST_CASE("LearnedVocab: float gradients of repeated ids are summed in double") {
  const LearnedVocab<float> module({.dim = 1, .max_seq_len = 3});
  const Index length = 64;
  Tensor<float, 2> grad_x(length, 1);
  Tensor<std::int64_t, 1> ids(length);
  for (Index i = 0; i < length; ++i) {
    grad_x(i, 0) = i == 0 ? 0x1p24F : 0.75F;  // lost one by one beside 2^24
    ids(i) = 2;
  }
  auto grads = module.zero_gradients();
  module.mod_x_backward(grad_x, {.pos = ids}, grads);
  CHECK(weight_gradient(grads) ==
        std::vector<double>{0, 0, static_cast<double>(static_cast<float>(0x1p24 + 63 * 0.75))});
}

TEST_CASE("LearnedVocab: starts as N(0, 1), by the seed alone") {
  const auto weights = [](std::uint64_t seed) {
    std::vector<double> values;
    for_each_parameter(LearnedVocab<double>({.dim = 12, .max_seq_len = 32}, seed),
                       [&](std::string_view name, const auto& weight) {
                         CHECK(name == "emb.weight");
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

TEST_CASE("LearnedVocab names what is wrong and writes nothing") {
  const auto option_error = [](LearnedVocabOptions options) {
    return message_of<OptionError>([=] { LearnedVocab<float> module(options); });
  };
  CHECK(option_error({}) == "LearnedVocab: dim = 0; it is required, and must be positive");
  CHECK(option_error({.dim = -3, .max_seq_len = 9}) == "LearnedVocab: dim = -3; it is required, and must be positive");
  CHECK(option_error({.dim = 8}) == "LearnedVocab: max_seq_len = 0; it is required, and must be positive");
  CHECK(option_error({.dim = 8, .max_seq_len = -1}) ==
        "LearnedVocab: max_seq_len = -1; it is required, and must be positive");

  const LearnedVocab<float> module({.dim = 8, .max_seq_len = 107});
  Tensor<float, 3> x(2, 5, 8);
  x.setConstant(0.5F);
  auto grads = module.zero_gradients();
  const auto untouched = [&] {
    return flat(x) == std::vector<double>(2 * 5 * 8, 0.5) && weight_gradient(grads) == std::vector<double>(107 * 8, 0);
  };
  // What follows "LearnedVocab::mod_x: ", of an error in both directions.
  const auto message = [&](const TokenPositions& at) {
    const std::string hook = "LearnedVocab::mod_x";
    const std::string forward = message_of<PositionError>([&] { module.mod_x(x, at); });
    const std::string backward = message_of<PositionError>([&] { module.mod_x_backward(x, at, grads); });
    CHECK(untouched());
    REQUIRE(forward.starts_with(hook + ": "));
    const std::string text = forward.substr(hook.size() + 2);
    CHECK(backward == hook + "_backward: " + text);
    return text;
  };
  CHECK(message({.pos = Positions::range(103)}) == "pos at index 4 is 107; integers in [0, 107) are needed");
  CHECK(message({.pos = Positions::range(-2)}) == "pos at index 0 is -2; integers in [0, 107) are needed");
  Tensor<float, 3> one(1, 1, 8);
  CHECK(message_of<PositionError>([&] { module.mod_x(one, {.pos = Positions::range(107)}); }) ==
        "LearnedVocab::mod_x: pos at index 0 is 107; integers in [0, 107) are needed");
  Tensor<std::int64_t, 2> ids(2, 4);
  ids.setValues({{0, 106, 3, 3}, {7, -1, 107, 5}});
  CHECK(message({.pos = ids}) == "pos at index 5 is -1; integers in [0, 107) are needed");
  ids(1, 1) = 1;
  CHECK(message({.pos = ids}) == "pos at index 6 is 107; integers in [0, 107) are needed");
  Tensor<double, 1> reals(5);
  reals.setValues({100, 101, 102.5, 103, 104});
  CHECK(message({.pos = reals}) == "pos at index 2 is 102.5; integers in [0, 107) are needed");
  reals(2) = 1e30;
  CHECK(message({.pos = reals}) == "pos at index 2 is 1e+30; integers in [0, 107) are needed");
  reals(2) = std::numeric_limits<double>::quiet_NaN();
  CHECK(message({.pos = reals}) == "pos at index 2 is nan; positions must be finite");
  reals.setConstant(1.5e308);
  CHECK(message({.pos = reals}) == "pos at index 0 is 1.5e+308; reals must lie within ±2^1022");
  Tensor<std::int64_t, 1> surplus(6);
  surplus.setZero();
  CHECK(message({.pos = surplus}) == "pos has 6 positions for 5 tokens");

  const LearnedVocab<float> shorter({.dim = 8, .max_seq_len = 4});
  CHECK(message_of<PositionError>([&] { shorter.mod_x(x); }) ==
        "LearnedVocab::mod_x: pos at index 4 is 4; integers in [0, 4) are needed");
  CHECK(message_of<ShapeError>([&] { shorter.mod_x_backward(x, {.pos = Tensor<std::int64_t, 1>(0)}, grads); }) ==
        "LearnedVocab::mod_x_backward: grads entry emb.weight has shape (107, 8); the parameter has (4, 8); use the "
        "module's zero_gradients()");
  const LearnedVocab<float> wider({.dim = 10, .max_seq_len = 107});
  CHECK(message_of<ShapeError>([&] { wider.mod_x(x); }) == "LearnedVocab::mod_x: x has 8 features; dim = 10");
  CHECK(untouched());
}

TEST_CASE("LearnedVocab asks no row for a token that is left out") {
  LearnedVocab<double> module({.dim = 2, .max_seq_len = 4});
  number_rows(module);
  Tensor<std::int64_t, 2> ids(2, 3);
  ids.setValues({{-1, -1, 0}, {-1, 0, 1}});  // padded on the left, as tokenizers number
  Tensor<bool, 2> is_token(2, 3);
  is_token.setValues({{false, false, true}, {false, true, true}});
  const TokenPositions at{.pos = ids, .mask = is_token};
  const auto check = [&](const auto& embedding, auto grads) {
    Tensor<double, 3> x(2, 3, 2);
    x.setZero();
    embedding.mod_x(x, at);
    CHECK(flat(x) == std::vector<double>{0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 10, 11});
    x.setValues({{{1, 2}, {3, 4}, {5, 6}}, {{7, 8}, {9, 10}, {11, 12}}});
    embedding.mod_x_backward(x, at, grads);
    CHECK(weight_gradient(grads) == std::vector<double>{5 + 9, 6 + 10, 11, 12, 0, 0, 0, 0});
  };
  check(module, module.zero_gradients());
  const Compose composed(module, Identity());
  check(composed, composed.zero_gradients());

  // Default positions, of which only the first four have a row.
  Tensor<double, 2> longer(6, 2);
  longer.setZero();
  Tensor<bool, 1> four(6);
  four.setValues({true, true, true, true, false, false});
  module.mod_x(longer, {.mask = four});
  CHECK(flat(longer) == std::vector<double>{0, 1, 10, 11, 20, 21, 30, 31, 0, 0, 0, 0});
}

TEMPLATE_TEST_CASE("LearnedVocab sums gradients of many features on threads, to the same bits", "", float, double) {
  using S = TestType;
  constexpr Index dim = 300, rows = 50, B = 7, L = 70;
  const LearnedVocab<S> module({.dim = dim, .max_seq_len = rows});
  Tensor<S, 3> grad_x(B, L, dim);
  for (Index i = 0; i < grad_x.size(); ++i) grad_x.data()[i] = static_cast<S>(i % 1009) / 3 - 100;
  Tensor<std::int64_t, 1> ids(L);
  for (Index l = 0; l < L; ++l) ids(l) = l * l % rows;  // some rows twice in a block, some never
  auto serial = module.zero_gradients(), threaded = module.zero_gradients();
  module.mod_x_backward(grad_x, {.pos = ids}, serial);
  ThreadRunner runner;
  module.mod_x_backward(grad_x, {.pos = ids, .executor = runner}, threaded);
  CHECK(runner.tasks() > 1);
  CHECK(weight_gradient(threaded) == weight_gradient(serial));

  std::vector<double> sums(rows * dim);
  for (Index n = 0; n < B; ++n)
    for (Index l = 0; l < L; ++l)
      for (Index f = 0; f < dim; ++f)
        sums[static_cast<std::size_t>(ids(l) * dim + f)] += static_cast<double>(grad_x(n, l, f));
  const std::vector<double> gradient = weight_gradient(serial);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < sums.size(); ++i)
    if (std::abs(gradient[i] - sums[i]) > 1e-6 * 250 * B * 8) ++wrong;  // so much is summed up in a row at most
  CHECK(wrong == 0);
}

}  // namespace
