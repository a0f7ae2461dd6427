// SPDX-License-Identifier: MIT
/// \file
/// No hook needs memory in proportion to L1·L2: twice as many queries and keys take about twice as much.
#include <cmath>
#include <posbias/posbias.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using namespace posbias;

namespace {

/// Positions of every kind that the library tells apart.
std::vector<std::pair<std::string, Positions>> kinds(Index length) {
  const auto listed = [&](auto position) {
    Eigen::Tensor<decltype(position(Index())), 1> ids(length);
    for (Index i = 0; i < length; ++i) ids(i) = position(i);
    return Positions(ids);
  };
  return {{"default", {}},
          {"packed", listed([](Index i) -> std::int64_t { return i % 50; })},
          {"far clusters", listed([](Index i) -> std::int64_t { return i / 2 + i % 2 * (Index{1} << 40); })},
          {"half-integers", listed([](Index i) { return static_cast<double>(i) + 0.5; })},
          {"reals that do not repeat", listed([](Index i) { return std::sqrt(static_cast<double>(i)); })}};
}

constexpr Index heads = 2, H = 8;

/// The most memory in use at once, beside the tensors that a caller has.
template <class Module>
double peak(const Module& module, Index length, const Positions& positions) {
  Eigen::Tensor<float, 2, Eigen::RowMajor> x(length, H);
  Eigen::Tensor<float, 3, Eigen::RowMajor> q(length, heads, H), mask(heads, length, length);
  x.setConstant(0.5F);
  q.setConstant(0.5F);
  mask.setConstant(0.5F);
  auto k = q, v = q, grad_q = q, grad_k = q, grad_v = q;
  auto grads = module.zero_gradients();
  const PairPositions at{.q_k = positions};
  return static_cast<double>(posbias_test::peak_bytes_of([&] {
    module.mod_x(x, {.pos = positions});
    module.mod_qkv(q, k, v, at);
    module.mod_mask(mask, q, k, v, at);
    module.mod_mask_backward(mask, grad_q, grad_k, grad_v, q, k, v, at, grads);
    module.mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, grads);
    module.mod_x_backward(x, {.pos = positions}, grads);
  }));
}

/// With the first kinds of positions: some modules take only ids, or only small ones.
template <class Module>
void check_memory(const Module& module, std::size_t kinds_taken = 5) {
  const Index length = 200;
  const auto some = kinds(length), twice = kinds(2 * length);
  REQUIRE(some.size() == 5);
  for (std::size_t kind = 0; kind < kinds_taken; ++kind) {
    INFO(Module::name << ", " << some[kind].first);
    const double used = peak(module, length, some[kind].second);
    CHECK(used > 0);
    CHECK(peak(module, 2 * length, twice[kind].second) < 2.2 * used);
  }
}

TEST_CASE("hooks use no memory proportional to L1·L2", "[laws]") {
  const Sinusoidal<float> sinusoidal({.dim = H, .learned_div = true});
  const Rotary<float> rotary({.head_dim = H, .learned_div = true});
  const ALiBi<float> alibi({.n_heads = heads, .learned_div = true});
  check_memory(sinusoidal);
  check_memory(LearnedContinuous<float>({.dim = H, .depth = 2, .norm = true}));
  check_memory(LearnedVocab<float>({.dim = H, .max_seq_len = 400}), 2);
  check_memory(rotary);
  check_memory(alibi);
  check_memory(RelativePositionBias<float>({.n_heads = heads}), 3);
  check_memory(DynamicPositionBias<float>({.dim = 8, .n_heads = heads, .depth = 2}));
  check_memory(TransformerXL<float>({.dim = heads * H, .n_heads = heads}));
  check_memory(Compose(sinusoidal, rotary, alibi));
}

}  // namespace
