// SPDX-License-Identifier: MIT
/// \file
/// The public contract, word for word: what clients write must keep compiling and doing something sensible. What the
/// calls compute is tested elsewhere.
#include <posbias/posbias.hpp>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/modules.hpp"

namespace {

using namespace posbias;
using S = float;
using Eigen::RowMajor;
using Eigen::Tensor;

static_assert(std::is_same_v<Index, Eigen::Index>);

TEST_CASE("contract: hooks on tensors and maps, with and without positions") {
  Tensor<S, 3, RowMajor> x(2, 5, 8);
  Tensor<S, 4, RowMajor> q(2, 5, 3, 8), k(2, 5, 3, 8), v(2, 5, 3, 8), mask(2, 3, 5, 5);
  x.setZero();
  q.setConstant(1);
  k.setConstant(1);
  v.setConstant(1);
  mask.setZero();
  Tensor<std::int64_t, 1> eigen_tensor(5);
  eigen_tensor.setValues({100, 101, 102, 103, 104});
  Tensor<bool, 1> flags(5);
  flags.setConstant(true);
  const Positions positions{eigen_tensor};
  const Positions pos_q = Positions::range(100), pos_k = Positions::range();

  const auto use = [&](const auto& module) {
    module.mod_x(x);
    module.mod_x(x, {.pos = positions, .mask = flags});
    module.mod_qkv(q, k, v);
    module.mod_qkv(q, k, v, {.q_k = positions});
    module.mod_mask(mask, q, k, v);
    module.mod_mask(mask, q, k, v, {.q = pos_q, .k = pos_k});
    auto made = module.make_mask(q, k, v);
    static_assert(std::is_same_v<decltype(made), Tensor<S, 4, RowMajor>>);
    CHECK(made.dimension(1) == 3);
    const PairPositions at{};
    Tensor<bool, 4, RowMajor> smaller_mask(2, 3, 4, 4);
    smaller_mask.setConstant(true);
    made = module.make_mask(q, k, v, at, smaller_mask);
    Tensor<S, 4, RowMajor> additive(2, 3, 4, 4);
    additive.setZero();
    made = module.make_mask(q, k, v, at, additive);

    Eigen::TensorMap<Tensor<S, 3, RowMajor>> map(x.data(), 2, 5, 8);
    module.mod_x(map);
    module.mod_x(Eigen::TensorMap<Tensor<S, 3, RowMajor>>(x.data(), 2, 5, 8));

    int parameters = 0;
    for_each_parameter(module, [&](std::string_view name, auto& tensor) {
      CHECK(!name.empty());
      CHECK(tensor.size() > 0);
      ++parameters;
    });
    auto grads = module.zero_gradients();
    for_each_parameter(grads, [&](std::string_view, auto& tensor) {
      tensor.setZero();
      --parameters;
    });
    CHECK(parameters == 0);
    for_each_parameter(module, grads, [&](std::string_view, auto& parameter, auto& gradient) {
      CHECK(parameter.size() == gradient.size());
      ++parameters;
    });
    for_each_parameter(module, [&](std::string_view, auto&) { --parameters; });
    CHECK(parameters == 0);

    auto grad_x = x;
    auto grad_q = q, grad_k = k, grad_v = v, grad_mask = mask;
    module.mod_x_backward(grad_x, {}, grads);
    module.mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, grads);
    module.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, v, at, grads);
    static_assert(PositionalModule<std::remove_cvref_t<decltype(module)>, S>);
  };

  std::apply([&](const auto&... modules) { (use(modules), ...); }, posbias_test::every_module<S>());
  use(Identity());
  use(Identity{});
  use(Sinusoidal<S>({.dim = 8, .layout = SinusoidLayout::interleaved, .divide = 1, .learned_div = false}));
  use(Sinusoidal<S>({.dim = 8, .layout = SinusoidLayout::half}));
  use(LearnedVocab<S>({.dim = 8, .max_seq_len = 128}));
  use(LearnedContinuous<S>({.dim = 8, .depth = 1, .norm = false, .divide = 1, .learned_div = false}));
  use(LearnedContinuous<S>({.dim = 8, .depth = 2, .norm = true, .learned_div = true}, 7));
  use(Rotary<S>({.head_dim = 8,
                 .n_dims = all,
                 .pairing = RotaryPairing::interleaved,
                 .spectrum = RotarySpectrum::head_dim,
                 .base = 10000,
                 .divide = 1,
                 .learned_div = false}));
  use(Rotary<S>({.head_dim = 8, .pairing = RotaryPairing::half, .spectrum = RotarySpectrum::n_dims}, 7));
  use(ALiBi<S>({.n_heads = 3, .use_n_heads = all, .asymmetric = false, .divide = 1, .learned_div = false}));
  use(ALiBi<S>({.n_heads = 3, .learned_div = true}, 7));
  use(RelativePositionBias<S>({.bidirectional = true, .num_buckets = 32, .max_distance = 128, .n_heads = 3}));
  use(RelativePositionBias<S>({.n_heads = 3}, 7));
  use(DynamicPositionBias<S>({.dim = 8, .n_heads = 3, .depth = 1, .norm = false, .divide = 1, .learned_div = false}));
  use(DynamicPositionBias<S>({.dim = 8, .n_heads = 3, .depth = 2, .norm = true, .learned_div = true}, 7));
  use(TransformerXL<S>({.dim = 24,
                        .n_heads = 3,
                        .form = XLForm::paper,
                        .layout = SinusoidLayout::interleaved,
                        .linear_bias = true,
                        .divide = 1,
                        .learned_div = false}));
  use(TransformerXL<S>({.dim = 24, .n_heads = 3, .form = XLForm::bio_attention, .layout = SinusoidLayout::half},
                       7));
  use(DisentangledBias<S>({.n_heads = 3,
                           .head_dim = 8,
                           .n_positions = 9,
                           .position_size = 2,
                           .same_positional_key_query_proj = true,
                           .mode = {c2p, p2c},
                           .scale = 0.5,
                           .index = DisentangledIndex::paper},
                          7));
  use(Compose(Sinusoidal<S>({.dim = 8}), Rotary<S>({.head_dim = 8}), ALiBi<S>({.n_heads = 3})));
}

TEST_CASE("contract: several modules as one") {
  Compose both(Rotary<S>({.head_dim = 8, .learned_div = true}), RelativePositionBias<S>({.n_heads = 3}));
  std::vector<std::string> names;
  for_each_parameter(both, [&](std::string_view name, auto&) { names.emplace_back(name); });
  CHECK(names == std::vector<std::string>{"0.div", "1.relative_attention_bias.weight"});
  const Rotary<S>& rotary = both.get<0>();
  CHECK(rotary.options().head_dim == 8);
}

TEST_CASE("contract: relative biases need no content") {
  const Index L1 = 5, L2 = 7, NH = 3;
  const ALiBi<S> alibi({.n_heads = NH});
  Tensor<S, 4, RowMajor> mask(2, NH, L1, L2);
  mask.setZero();
  alibi.mod_mask(mask);
  const Tensor<S, 3, RowMajor> b = alibi.bias(L1, L2);
  const Tensor<S, 2, RowMajor> d = alibi.diagonals(L1, L2);
  CHECK(d.dimension(1) == L1 + L2 - 1);
  for (Index h = 0; h < NH; ++h)
    for (Index i = 0; i < L1; ++i)
      for (Index j = 0; j < L2; ++j) CHECK(b(h, i, j) == d(h, j - i + L1 - 1));
}

TEST_CASE("contract: positions") {
  const Positions default_range = Positions::range();
  const Positions from = Positions::range(7);
  CHECK(default_range.given());
  CHECK(from.given());
  Tensor<std::int32_t, 1> a(3);
  Tensor<std::int64_t, 2> b(2, 3);
  Tensor<float, 3> c(2, 2, 3);
  Tensor<double, 1, RowMajor> d(3);
  a.setZero();
  b.setZero();
  c.setZero();
  d.setZero();
  for (const Positions& positions : {Positions{a}, Positions{b}, Positions{c}, Positions{d}}) CHECK(positions.given());
  const TokenPositions token{.pos = from, .mask = {}};
  const PairPositions pair{.q_k = {}, .q = from, .k = from};
  CHECK(token.pos.given());
  CHECK(pair.q.given());
  CHECK_FALSE(pair.q_k.given());
}

TEST_CASE("contract: the seeds' other calling styles") {
  const RelativePositionBias<S> t5({.n_heads = 3});
  CHECK(t5.compute_bias(5, 7).dimensions() == Eigen::DSizes<Index, 4>(1, 3, 5, 7));
  CHECK(t5.compute_bias(5, 7, 2).dimensions() == Eigen::DSizes<Index, 4>(1, 3, 5, 7));
  CHECK(t5(2, 5, 7).dimensions() == Eigen::DSizes<Index, 3>(6, 5, 7));
  CHECK(t5(2, 5, 7, 2).dimensions() == Eigen::DSizes<Index, 3>(6, 5, 7));
  const RelativePositionBias<S> defaults({});
  CHECK(defaults.compute_bias(2, 2).dimension(1) == 12);

  const ALiBi<S> alibi({.n_heads = 3});
  CHECK(alibi.get_bias(5, 7).dimensions() == Eigen::DSizes<Index, 3>(3, 5, 7));
  CHECK(alibi(5, 7).dimensions() == Eigen::DSizes<Index, 3>(3, 5, 7));
  CHECK(ALiBi<S>::get_slopes(3).size() == 3);

  CHECK(t5_bucket(-3, {.bidirectional = true, .num_buckets = 32, .max_distance = 128}) == 3);
  const std::vector<std::int64_t> relative{-3, 3};
  std::vector<Index> buckets(2);
  t5_bucket(relative, buckets, {.bidirectional = false});
  CHECK(buckets == std::vector<Index>{3, 0});
}

template <class Learned>
void check_seed_of_none(const typename Learned::Options& options) {
  const auto start = [](const Learned& learned) {
    std::vector<S> all;
    for_each_parameter(learned, [&](auto, const auto& t) { all.insert(all.end(), t.data(), t.data() + t.size()); });
    return all;
  };
  CHECK(start(Learned(options)) == start(Learned(options, 0)));
  CHECK(start(Learned(options)) != start(Learned(options, 1)));
}

TEST_CASE("contract: what learns starts by seed 0 unless told") {
  check_seed_of_none<LearnedVocab<S>>({.dim = 2, .max_seq_len = 3});
  check_seed_of_none<LearnedContinuous<S>>({.dim = 2});
  check_seed_of_none<RelativePositionBias<S>>({});
  check_seed_of_none<DynamicPositionBias<S>>({.dim = 2, .n_heads = 2});
  check_seed_of_none<TransformerXL<S>>({.dim = 4, .n_heads = 2});
  check_seed_of_none<DisentangledBias<S>>({.n_heads = 2, .head_dim = 2, .n_positions = 3});
  check_seed_of_none<RelativeAttention<S>>({.size = 4, .n_heads = 2});
}

TEST_CASE("contract: errors") {
  static_assert(std::is_base_of_v<std::invalid_argument, ShapeError> && std::is_base_of_v<Error, ShapeError>);
  static_assert(std::is_base_of_v<std::invalid_argument, OptionError> && std::is_base_of_v<Error, OptionError>);
  static_assert(std::is_base_of_v<std::invalid_argument, PositionError> && std::is_base_of_v<Error, PositionError>);
  static_assert(std::is_base_of_v<std::runtime_error, FormatError> && std::is_base_of_v<Error, FormatError>);
  Tensor<S, 4, RowMajor> mask(2, 8, 5, 5);
  mask.setZero();
  try {
    ALiBi<S>({.n_heads = 12}).mod_mask(mask);
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.what() == std::string("ALiBi::mod_mask: mask has 8 heads; n_heads = 12"));
  }
}

}  // namespace
