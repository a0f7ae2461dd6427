// SPDX-License-Identifier: MIT
#include "posbias/rotation/rotary.hpp"

#include <cmath>

#include "support/golden.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

RotaryOptions options_of(const GoldenCase& golden) {
  return {.head_dim = golden.size("head_dim"),
          .n_dims = golden.size("n_dims", -1),
          .divide = golden.config("divide", 1),
          .learned_div = golden.config("learned_div", 0) != 0};
}

/// Upstream pads sines and cosines of short positions with 0, which makes tokens without a position 0; here they
/// stay as they were. Replaces those tokens of a recorded result (B, L, NH, H) by what went in.
std::vector<double> keep_unplaced_tokens(const GoldenCase& golden, std::vector<double> recorded,
                                         const std::string& input, const std::string& positions) {
  if (!golden.has(positions)) return recorded;
  const auto& shape = golden.shape(input);
  const auto& original = golden.values(input);
  const std::size_t length = static_cast<std::size_t>(shape[1]);
  const std::size_t placed = static_cast<std::size_t>(golden.shape(positions).back());
  const std::size_t token = static_cast<std::size_t>(shape[2] * shape[3]);
  for (std::size_t i = 0; i < recorded.size(); ++i)
    if (i / token % length < length - placed) recorded[i] = original[i];
  return recorded;
}

template <class Scalar, int Rank>
void check_rotary(const GoldenCase& golden) {
  constexpr double tolerance = golden_tolerance<Scalar>;
  Rotary<Scalar> module(options_of(golden));
  golden.load_parameters(module);
  const PairPositions at = golden.pair_positions();
  const std::string of_q = at.q_k.given() ? "in.pos_q_k" : "in.pos_q";
  const std::string of_k = at.q_k.given() ? "in.pos_q_k" : "in.pos_k";
  const double rounding = 4 * angle_rounding(golden);  // features are of the order of 1
  for_each_layout_case([&]<class LayoutCase>() {
    auto q = golden.input<Scalar, Rank, LayoutCase>("in.q");
    auto k = golden.input<Scalar, Rank, LayoutCase>("in.k");
    auto v = golden.input<Scalar, Rank, LayoutCase>("in.v");
    module.mod_qkv(q.tensor(), k.tensor(), v.tensor(), at);
    const auto check = [&](auto& actual, const std::string& tensor, const std::string& input,
                           const std::string& positions) {
      INFO(tensor);
      const auto expected = expected_of_angles<Scalar>(golden, tensor);
      check_close(flat(actual.tensor()), keep_unplaced_tokens(golden, expected, input, positions), tolerance, rounding);
    };
    check(q, "out.q", "in.q", of_q);
    check(k, "out.k", "in.k", of_k);
    check(v, "out.v", "in.v", "");

    auto grad_q = golden.input<Scalar, Rank, LayoutCase>("grad_out.q");
    auto grad_k = golden.input<Scalar, Rank, LayoutCase>("grad_out.k");
    auto grad_v = golden.input<Scalar, Rank, LayoutCase>("grad_out.v");
    auto grads = module.zero_gradients();
    module.mod_qkv_backward(grad_q.tensor(), grad_k.tensor(), grad_v.tensor(), q.tensor(), k.tensor(), v.tensor(), at,
                            grads);
    const auto check_gradient = [&](auto& actual, const std::string& name, const std::string& positions) {
      INFO("gradient of " << name);
      const auto expected =
          keep_unplaced_tokens(golden, golden.values("grad_in." + name), "grad_out." + name, positions);
      check_close(flat(actual.tensor()), expected, tolerance, rounding);
    };
    check_gradient(grad_q, "q", of_q);
    check_gradient(grad_k, "k", of_k);
    check_gradient(grad_v, "v", "");
    golden.check_gradients<Scalar>(grads);
  });
}

TEMPLATE_TEST_CASE("Rotary gives what bio-attention gives", "[golden]", double, float) {
  const auto names = golden_names("bio_rotary__");
  REQUIRE(names.size() == 13);
  for (const auto& name : names) {
    const GoldenCase golden(name);
    DYNAMIC_SECTION(name) {
      if (golden.rank("in.q") == 4)
        check_rotary<TestType, 4>(golden);
      else
        check_rotary<TestType, 5>(golden);
    }
  }
}

/// Hugging Face and x-transformers have heads before tokens, (B, NH, L, H); ours come after.
template <class Scalar>
auto tokens_first(const Eigen::Tensor<Scalar, 4, Eigen::RowMajor>& t) {
  Eigen::Tensor<Scalar, 4, Eigen::RowMajor> result(t.dimension(0), t.dimension(2), t.dimension(1), t.dimension(3));
  for (Index b = 0; b < t.dimension(0); ++b)
    for (Index h = 0; h < t.dimension(1); ++h)
      for (Index l = 0; l < t.dimension(2); ++l)
        for (Index d = 0; d < t.dimension(3); ++d) result(b, l, h, d) = t(b, h, l, d);
  return result;
}

/// Compares with a record of another package, q and k only, forward and backward.
template <class Scalar>
void check_peer(const std::string& name, const RotaryOptions& options, bool heads_first, const std::string& positions) {
  const GoldenCase golden(name);
  const Rotary<Scalar> module(options);
  const PairPositions at{.q_k = golden.positions(positions)};
  const auto load = [&](const std::string& tensor) {
    const auto stored = golden.tensor<Scalar, 4>(tensor);
    return heads_first ? tokens_first<Scalar>(stored) : stored;
  };
  const auto record = [&](const std::string& tensor) {
    const std::string as_float = "f32." + tensor;
    const bool use_float = std::is_same_v<Scalar, float> && golden.has(as_float);
    const auto stored = golden.tensor<double, 4>(use_float ? as_float : tensor);
    return flat(heads_first ? tokens_first<double>(stored) : stored);
  };
  auto q = load("in.q");
  auto k = load("in.k");
  auto v = k;
  module.mod_qkv(q, k, v, at);
  check_close(flat(q), record("out.q"), golden_tolerance<Scalar>);
  check_close(flat(k), record("out.k"), golden_tolerance<Scalar>);
  auto grad_q = load("grad_out.q");
  auto grad_k = load("grad_out.k");
  auto grads = module.zero_gradients();
  module.mod_qkv_backward(grad_q, grad_k, v, q, k, v, at, grads);
  check_close(flat(grad_q), record("grad_in.q"), golden_tolerance<Scalar>);
  check_close(flat(grad_k), record("grad_in.k"), golden_tolerance<Scalar>);
}

TEMPLATE_TEST_CASE("Rotary gives what Hugging Face and x-transformers give", "[golden]", double, float) {
  constexpr auto half = RotaryPairing::half;
  constexpr auto n_dims = RotarySpectrum::n_dims;
  SECTION("Llama: half") {
    check_peer<TestType>("hf_rope__default", {.head_dim = 8, .pairing = half}, true, "in.position_ids");
  }
  SECTION("half of the features, spectrum of their own, positions divided by 2") {
    check_peer<TestType>("hf_rope__partial_linear",
                         {.head_dim = 8, .n_dims = 4, .pairing = half, .spectrum = n_dims, .divide = 2}, true,
                         "in.position_ids");
  }
  SECTION("GPT-J: interleaved") {
    check_peer<TestType>("hf_gptj__full", {.head_dim = 8}, false, "in.position_ids");
  }
  SECTION("GPT-J: interleaved, the first 4 of 8 features") {
    check_peer<TestType>("hf_gptj__partial", {.head_dim = 8, .n_dims = 4, .spectrum = n_dims}, false,
                         "in.position_ids");
  }
  SECTION("x-transformers") {
    check_peer<TestType>("x_rotary__default", {.head_dim = 8}, true, "");
  }
  SECTION("x-transformers: the first 4 of 8 features") {
    check_peer<TestType>("x_rotary__partial", {.head_dim = 8, .n_dims = 4, .spectrum = n_dims}, true, "");
  }
  SECTION("x-transformers: interpolation is divide, rescaling is a larger base") {
    const double base = 10000 * std::pow(2.0, 8.0 / 6.0);  // base · factor^(dim / (dim - 2))
    check_peer<TestType>("x_rotary__interp_rescale", {.head_dim = 8, .base = base, .divide = 4}, true, "");
  }
}

TEST_CASE("Rotary: which features turn, by how much") {
  const double p = 137;
  // Features 0 .. 7; frequency i of a spectrum of w is 10000^(-2i/w).
  const auto rotated = [&](RotaryOptions options) {
    Eigen::Tensor<double, 3, Eigen::RowMajor> q(1, 1, 8);
    for (Index d = 0; d < 8; ++d) q(0, 0, d) = static_cast<double>(d + 1);
    auto k = q;
    Rotary<double>(options).mod_qkv(q, k, k, {.q_k = Positions::range(137)});
    Eigen::Tensor<double, 3> apart(2, 1, 8);  // features are two apart in memory
    for (Index d = 0; d < 8; ++d) apart(0, 0, d) = apart(1, 0, d) = static_cast<double>(d + 1);
    auto other = apart;
    Rotary<double>(options).mod_qkv(apart, other, other, {.q_k = Positions::range(137)});
    for (Index d = 0; d < 8; ++d) CHECK(apart(0, 0, d) == q(0, 0, d));
    return flat(q);
  };
  const auto expected = [&](std::vector<std::array<int, 2>> pairs, double width) {
    std::vector<double> values{1, 2, 3, 4, 5, 6, 7, 8};
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const double angle = p * std::pow(10000.0, -2 * static_cast<double>(i) / width);
      const double a = pairs[i][0] + 1, b = pairs[i][1] + 1;
      values[static_cast<std::size_t>(pairs[i][0])] = a * std::cos(angle) - b * std::sin(angle);
      values[static_cast<std::size_t>(pairs[i][1])] = a * std::sin(angle) + b * std::cos(angle);
    }
    return values;
  };
  const auto check = [&](RotaryOptions options, std::vector<std::array<int, 2>> pairs, double width) {
    options.head_dim = 8;
    check_close(rotated(options), expected(std::move(pairs), width), 1e-12);
  };
  constexpr auto half = RotaryPairing::half;
  constexpr auto own = RotarySpectrum::n_dims;
  check({}, {{0, 1}, {2, 3}, {4, 5}, {6, 7}}, 8);
  check({.pairing = half}, {{0, 4}, {1, 5}, {2, 6}, {3, 7}}, 8);
  check({.n_dims = 4}, {{0, 1}, {2, 3}}, 8);
  check({.n_dims = 4, .pairing = half}, {{0, 4}, {1, 5}}, 8);
  check({.n_dims = 4, .spectrum = own}, {{0, 1}, {2, 3}}, 4);
  check({.n_dims = 4, .pairing = half, .spectrum = own}, {{0, 2}, {1, 3}}, 4);
  check({.n_dims = 0}, {}, 8);
}

TEST_CASE("Rotary: q·k depends on the difference of positions only, with grouped keys too") {
  const Rotary<double> module({.head_dim = 8});
  Eigen::Tensor<double, 3, Eigen::RowMajor> q(3, 6, 8), k(3, 2, 8);
  for (Index i = 0; i < q.size(); ++i) q.data()[i] = std::sin(static_cast<double>(3 * i));
  for (Index i = 0; i < k.size(); ++i) k.data()[i] = std::cos(static_cast<double>(2 * i));
  const auto product = [&](Index start) {
    auto rotated_q = q;
    auto rotated_k = k;
    module.mod_qkv(rotated_q, rotated_k, rotated_k, {.q = Positions::range(start + 5), .k = Positions::range(start)});
    double sum = 0;
    for (Index d = 0; d < 8; ++d) sum += rotated_q(2, 5, d) * rotated_k(1, 1, d);
    return sum;
  };
  CHECK(product(1000) == Approx(product(0)).epsilon(1e-11));
}

TEST_CASE("Rotary: tokens without a position stay as they are, where upstream makes them 0", "[golden]") {
  // Upstream pads sines and cosines with 0 on the left, and so erases the content of a CLS token. A token that is
  // nowhere is not turned.
  const GoldenCase golden("bio_rotary__pos_short");
  const Rotary<double> module(options_of(golden));
  auto q = golden.tensor<double, 4>("in.q");
  auto k = golden.tensor<double, 4>("in.k");
  const auto before = q;
  const auto recorded = golden.tensor<double, 4>("out.q");
  module.mod_qkv(q, k, k, golden.pair_positions());
  for (Index b = 0; b < 2; ++b)
    for (Index l = 0; l < 3; ++l)  // 7 tokens, 4 positions
      for (Index h = 0; h < 2; ++h)
        for (Index d = 0; d < 4; ++d) {
          CHECK(q(b, l, h, d) == before(b, l, h, d));
          CHECK(recorded(b, l, h, d) == 0);
        }
}

TEST_CASE("Rotary: q and k that are one tensor are rotated once, and their gradient back once") {
  const Rotary<double> module({.head_dim = 4, .learned_div = true});
  Eigen::Tensor<double, 4, Eigen::RowMajor> q(2, 3, 2, 4);
  for (Index i = 0; i < q.size(); ++i) q.data()[i] = std::sin(static_cast<double>(i));
  auto k = q, shared = q, grad_q = q, grad_k = q;
  module.mod_qkv(q, k, k, {.q_k = Positions::range(100)});
  module.mod_qkv(shared, shared, k, {.q_k = Positions::range(100)});
  CHECK(flat(shared) == flat(q));
  CHECK(flat(q) == flat(k));

  // The gradient of the shared tensor is the sum of q's and k's, here twice the same.
  Eigen::Tensor<double, 4, Eigen::RowMajor> grad_shared = grad_q + grad_k;
  auto apart = module.zero_gradients(), together = module.zero_gradients();
  module.mod_qkv_backward(grad_q, grad_k, k, q, k, k, {.q_k = Positions::range(100)}, apart);
  module.mod_qkv_backward(grad_shared, grad_shared, k, shared, shared, k, {.q_k = Positions::range(100)}, together);
  for (Index i = 0; i < q.size(); ++i) CHECK(grad_shared.data()[i] == 2 * grad_q.data()[i]);
  double sums[2] = {};
  for_each_parameter(apart, [&](std::string_view, const auto& div) { sums[0] = div(); });
  for_each_parameter(together, [&](std::string_view, const auto& div) { sums[1] = div(); });
  CHECK(sums[1] == Approx(sums[0]).epsilon(1e-12));
}

TEST_CASE("Rotary needs no v, and turns one tensor given as both q and k") {
  const Rotary<double> module({.head_dim = 4, .learned_div = true});
  const PairPositions at{.q = Positions::range(107), .k = Positions::range(100)};
  Eigen::Tensor<double, 4, Eigen::RowMajor> q(2, 3, 2, 4), k(2, 5, 1, 4), v(2, 5, 1, 3);
  for (Index i = 0; i < q.size(); ++i) q.data()[i] = std::sin(static_cast<double>(i));
  for (Index i = 0; i < k.size(); ++i) k.data()[i] = std::cos(static_cast<double>(i));
  v.setZero();
  auto q_alone = q, k_alone = k, key = k;
  module.mod_qkv(q, k, v, at);
  module.mod_qkv(q_alone, k_alone, at);
  CHECK(flat(q_alone) == flat(q));
  CHECK(flat(k_alone) == flat(k));
  module.mod_qkv(key, key, {.q_k = Positions::range(100)});
  CHECK(flat(key) == flat(k));

  Eigen::Tensor<double, 4, Eigen::RowMajor> grad_q = q.cwiseMax(0.0), grad_k = k.cwiseMax(0.0);
  auto grad_q_alone = grad_q, grad_k_alone = grad_k;
  auto grads = module.zero_gradients(), grads_alone = module.zero_gradients();
  module.mod_qkv_backward(grad_q, grad_k, v, q, k, v, at, grads);
  module.mod_qkv_backward(grad_q_alone, grad_k_alone, q, k, at, grads_alone);
  CHECK(flat(grad_q_alone) == flat(grad_q));
  CHECK(flat(grad_k_alone) == flat(grad_k));
  for_each_parameter(grads, [&](std::string_view, const auto& div) {
    CHECK(div() != 0);
    for_each_parameter(grads_alone, [&](std::string_view, const auto& alone) { CHECK(alone() == div()); });
  });
}

TEST_CASE("Rotary names what is wrong and writes nothing") {
  const auto construct = [](RotaryOptions options) { return [=] { Rotary<float> module(options); }; };
  const std::string required = "; it is required, and must be even and positive";
  CHECK(message_of<OptionError>(construct({})) == "Rotary: head_dim = 0" + required);
  CHECK(message_of<OptionError>(construct({.head_dim = 5})) == "Rotary: head_dim = 5" + required);
  CHECK(message_of<OptionError>(construct({.head_dim = 8, .n_dims = 3})) ==
        "Rotary: n_dims = 3; it must be even, from 0 to head_dim = 8");
  CHECK(message_of<OptionError>(construct({.head_dim = 8, .n_dims = 10})) ==
        "Rotary: n_dims = 10; it must be even, from 0 to head_dim = 8");
  CHECK(message_of<OptionError>(construct({.head_dim = 8, .n_dims = -2})) ==
        "Rotary: n_dims = -2; it must be even, from 0 to head_dim = 8");
  CHECK(message_of<OptionError>(construct({.head_dim = 8, .base = 0})) ==
        "Rotary: base = 0; it must be positive and finite");
  CHECK(message_of<OptionError>(construct({.head_dim = 8, .divide = 0})) ==
        "Rotary: divide = 0; it must be positive and finite");

  const Rotary<float> module({.head_dim = 8, .learned_div = true});
  using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;
  Heads q(2, 5, 3, 8), k(2, 7, 3, 8), v(2, 7, 3, 8);
  for (Heads* t : {&q, &k, &v}) t->setConstant(0.5F);
  const auto untouched = [&] {
    for (const Heads* t : {&q, &k, &v})
      for (Index i = 0; i < t->size(); ++i)
        if (t->data()[i] != 0.5F) return false;
    return true;
  };
  const auto message = [&]<class Exception>(std::type_identity<Exception>, const PairPositions& at) {
    const std::string text = message_of<Exception>([&] { module.mod_qkv(q, k, v, at); });
    CHECK(untouched());
    return text;
  };
  constexpr std::type_identity<ShapeError> shape;
  constexpr std::type_identity<PositionError> position;
  Eigen::Tensor<double, 1> reals(7);
  reals.setValues({0.5, 1.5, 2.5, 3.5, std::nan(""), 5.5, 6.5});
  CHECK(message(position, {.k = reals}) == "Rotary::mod_qkv: k at index 4 is nan; positions must be finite");
  CHECK(message(position, {.q = reals}) == "Rotary::mod_qkv: q has 7 positions for 5 tokens");
  Eigen::Tensor<double, 1> huge(5);
  huge.setConstant(1.5e308);
  CHECK(message(position, {.q = huge}) == "Rotary::mod_qkv: q at index 0 is 1.5e+308; reals must lie within ±2^1022");
  CHECK(message(position, {.q_k = Positions::range(), .k = Positions::range()}) ==
        "Rotary::mod_qkv: positions q_k and k are both given; give q_k alone, or q and k");
  CHECK(message(position, {.q_k = Positions::range(), .q = Positions::range()}) ==
        "Rotary::mod_qkv: positions q_k and q are both given; give q_k alone, or q and k");
  Eigen::Tensor<std::int64_t, 2> rows(3, 5);
  rows.setConstant(1);
  CHECK(message(shape, {.q = rows}) == "Rotary::mod_qkv: q has leading dimensions (3); the tensor has (2)");
  CHECK(message(shape, {.q_k = Positions::range()}) ==
        "Rotary::mod_qkv: positions q_k need L1 = L2; L1 = 5, L2 = 7; give q and k instead");

  const Rotary<float> wider({.head_dim = 10});
  CHECK(message_of<ShapeError>([&] { wider.mod_qkv(q, k, v); }) ==
        "Rotary::mod_qkv: q has 8 features per head; head_dim = 10");
  Heads other_batch(1, 7, 3, 8), other_length(2, 6, 3, 8);
  other_batch.setConstant(0.5F);
  other_length.setConstant(0.5F);
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(q, other_batch, v); }) ==
        "Rotary::mod_qkv: k has shape (1, 7, 3, 8); q has (2, 5, 3, 8) and needs (B, *, L2, NH, H) with the same B, "
        "*, NH (or a divisor of it) and H");
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(q, k, other_length); }) ==
        "Rotary::mod_qkv: v has shape (2, 6, 3, 8); q has (2, 5, 3, 8) and needs (B, *, L2, NH, any) with the same "
        "B, *, and the L2 and NH of k");
  auto grads = module.zero_gradients();
  CHECK(message_of<ShapeError>([&] { module.mod_qkv_backward(q, k, v, k, k, v, {}, grads); }) ==
        "Rotary::mod_qkv_backward: grad_q has shape (2, 5, 3, 8); q has (2, 7, 3, 8)");
  Heads four_features(2, 5, 3, 4);
  CHECK(message_of<ShapeError>([&] { module.mod_qkv_backward(four_features, k, v, q, k, v, {}, grads); }) ==
        "Rotary::mod_qkv_backward: grad_q has shape (2, 5, 3, 4); q has (2, 5, 3, 8)");
  CHECK(message_of<PositionError>([&] { module.mod_qkv_backward(q, k, v, q, k, v, {.k = reals}, grads); }) ==
        "Rotary::mod_qkv_backward: k at index 4 is nan; positions must be finite");
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(k, k, v, {.q = Positions::range(7)}); }) ==
        "Rotary::mod_qkv: q and k share memory; they must be one tensor, at the same positions");
  // A part of k, and as many numbers as all of it in another order.
  Eigen::TensorMap<Heads> within(k.data() + 96, 2, 5, 3, 8);
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(within, k, v); }) ==
        "Rotary::mod_qkv: q and k share memory; they must be one tensor, at the same positions");
  Eigen::TensorMap<Eigen::Tensor<float, 4, Eigen::ColMajor>> reordered(k.data(), 2, 7, 3, 8);
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(reordered, k, v); }) ==
        "Rotary::mod_qkv: q and k share memory; they must be one tensor, at the same positions");
  // Neighbours in one buffer share nothing: only their rotation is seen.
  std::vector<float> buffer(static_cast<std::size_t>(q.size() + k.size()), 0.5F);
  Eigen::TensorMap<Heads> first(buffer.data(), 2, 5, 3, 8), second(buffer.data() + q.size(), 2, 7, 3, 8);
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(first, second, v); }) == "<nothing thrown>");
  CHECK(untouched());
  for_each_parameter(grads, [](std::string_view, const auto& div) { CHECK(div() == 0); });
}

TEST_CASE("a reserved table changes no bit of Rotary, of use or not") {
  using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;
  Rotary<float> module({.head_dim = 8, .divide = 2.5, .learned_div = true});
  const Rotary<float> fresh = module;
  module.reserve(40);
  const Rotary<float> copy = module;
  const auto rotated = [](const Rotary<float>& by, const Positions& at) {
    Heads q(2, 70, 3, 8), k(2, 70, 3, 8);
    for (Index i = 0; i < q.size(); ++i) q.data()[i] = k.data()[i] = std::sin(static_cast<float>(i));
    by.mod_qkv(q, k, k, {.q_k = at});
    return std::vector<float>(q.data(), q.data() + q.size());
  };
  Eigen::Tensor<double, 1> reals(70);
  for (Index i = 0; i < 70; ++i) reals(i) = static_cast<double>(i) / 2;
  for (const Positions& at :
       {Positions(), Positions::range(-20), Positions::range(39), Positions::range(5000), Positions(reals)}) {
    CHECK(rotated(module, at) == rotated(fresh, at));
    CHECK(rotated(copy, at) == rotated(fresh, at));
  }
  // The table is that of a divisor; with another one it is of no use.
  const auto learn = [](Rotary<float>& of) { for_each_parameter(of, [](std::string_view, auto& div) { div() += 1; }); };
  Rotary<float> learned = fresh;
  learn(module);
  learn(learned);
  CHECK(rotated(module, {}) == rotated(learned, {}));
  CHECK(rotated(module, {}) != rotated(fresh, {}));
  module.reserve(0);
  CHECK(rotated(module, {}) == rotated(learned, {}));
  CHECK(message_of<OptionError>([&] { module.reserve(-1); }) ==
        "Rotary::reserve: length = -1; it must not be negative");
}

TEST_CASE("Rotary turns back by what it turned, on either side of 0") {
  Eigen::Tensor<double, 4, Eigen::RowMajor> q(1, 1, 1, 8), k(1, 1, 1, 8);
  for (const Index p : {1, 15, 16, 300, 5000, 1 << 20}) {
    q.setConstant(0.5);
    k.setConstant(0.5);
    Rotary<double>({.head_dim = 8}).mod_qkv(q, k, k, {.q = Positions::range(p), .k = Positions::range(-p)});
    for (Index i = 0; i < 4; ++i) {  // (a, b) turned by t is (b, a) turned by -t where a = b
      CHECK(q(0, 0, 0, 2 * i) == k(0, 0, 0, 2 * i + 1));
      CHECK(q(0, 0, 0, 2 * i + 1) == k(0, 0, 0, 2 * i));
    }
  }
}

}  // namespace
