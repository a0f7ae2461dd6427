// SPDX-License-Identifier: MIT
/// \file
/// The hook mod_mask: biases of relative positions beside a memset of a new tensor, or an in-place scale of the one that
/// is modified; biases of content beside Eigen's q·kᵀ.
#include <cstdint>
#include <initializer_list>
#include <posbias/bias/alibi.hpp>
#include <posbias/bias/disentangled_bias.hpp>
#include <posbias/bias/dynamic_position_bias.hpp>
#include <posbias/bias/relative_position_bias.hpp>
#include <posbias/bias/transformer_xl.hpp>
#include <string>

#include "suite.hpp"
#include "tensors.hpp"

namespace posbias_benchmarks {
namespace {

using namespace posbias;

constexpr Index heads = 12;

/// bias(L, L).
template <class Module>
Subject bias(const Module& module, Index L) {
  const auto forward = [=](const Executor& executor) {
    auto result = module.bias(L, L, {.executor = executor});
    benchmark::DoNotOptimize(result);
  };
  return {forward, memset_of_new(heads, L, L)};
}

/// make_mask; of q, k and v only the shape is looked at.
template <class Module>
Subject make_mask(const Module& module, Index L) {
  const auto q = shared_tensor(1, L, heads, 1);
  const auto forward = [=](const Executor& executor) {
    auto result = module.make_mask(*q, *q, *q, {.executor = executor});
    benchmark::DoNotOptimize(result);
  };
  return {forward, memset_of_new(1, heads, L, L)};
}

/// mod_mask in place.
template <class Module, int Layout = Eigen::RowMajor>
Subject mod_mask(const Module& module, Index L, const Positions& positions = {}) {
  const auto mask = shared_tensor<Layout>(1, heads, L, L);
  const auto grads = std::make_shared<typename Module::Gradients>(module.zero_gradients());
  const auto at = [positions](const Executor& executor) {
    return PairPositions{.q_k = positions, .executor = executor};
  };
  return {[=](const Executor& executor) { module.mod_mask(*mask, at(executor)); }, in_place_scale(mask),
          [=](const Executor& executor) { module.mod_mask_backward(*mask, at(executor), *grads); }};
}

/// The same of a column-major mask, beside a row-major one.
template <class Module>
Subject mod_mask_col_major(const Module& module, Index L) {
  Subject subject = mod_mask<Module, Eigen::ColMajor>(module, L);
  subject.bound = mod_mask(module, L).forward;
  return subject;
}

/// mod_mask of a module that looks at content, 8 heads of 64.
template <class Module>
Subject mod_mask_of_content(const Module& module, Index B, Index L) {
  constexpr Index NH = 8, H = 64;
  const auto q = shared_tensor(B, L, NH, H), k = shared_tensor(B, L, NH, H), grad_q = shared_tensor(B, L, NH, H),
             grad_k = shared_tensor(B, L, NH, H);
  const auto mask = shared_tensor(B, NH, L, L), logits = shared_tensor(B, NH, L, L);
  const auto grads = std::make_shared<typename Module::Gradients>(module.zero_gradients());
  const auto q_times_k = [=](const Executor&) {
    using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using Head = Eigen::Map<const Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;
    for (Index b = 0; b < B; ++b)
      for (Index h = 0; h < NH; ++h)
        Eigen::Map<Matrix>(&(*logits)(b, h, 0, 0), L, L).noalias() =
            Head(&(*q)(b, 0, h, 0), L, H, Eigen::OuterStride<>(NH * H)) *
            Head(&(*k)(b, 0, h, 0), L, H, Eigen::OuterStride<>(NH * H)).transpose();
  };
  return {[=](const Executor& executor) { module.mod_mask(*mask, *q, *k, *k, {.executor = executor}); }, q_times_k,
          [=](const Executor& executor) {
            module.mod_mask_backward(*mask, *grad_q, *grad_k, *grad_k, *q, *k, *k, {.executor = executor}, *grads);
          }};
}

/// Positions between integers: no table, every pair is evaluated.
Positions real_positions(Index length) {
  Eigen::Tensor<double, 1> positions(length);
  for (Index i = 0; i < length; ++i) positions(i) = static_cast<double>(i) * 1.61803398875;
  return positions;
}

template <class Module>
void add_relative_bias(const std::string& name, const Module& module) {
  for (const Index L : {256, 1024, 4096}) {
    const std::string shape = shape_text(heads, L, L);
    const auto add_one = [&](const std::string& kind, const std::string& beside, double most, const MakeSubject& make) {
      add_forward({kind, name, shape, beside, at_most(most)}, make);
      if (L == 1024) add_two_threads(name + ", " + kind, shape, make, Limit::memory);
    };
    add_one("bias", "memset of a new tensor", 1.10, [=] { return bias(module, L); });
    add_one("make_mask", "memset of a new tensor", 1.10, [=] { return make_mask(module, L); });
    add_one("mod_mask", "in-place scale", 1.15, [=] { return mod_mask(module, L); });
    add_one("mod_mask, packed", "in-place scale", 2, [=] { return mod_mask(module, L, packed(L)); });
    add_one("mod_mask, ColMajor", "RowMajor", 2, [=] { return mod_mask_col_major(module, L); });
  }
}

template <class Module>
void add_content_bias(const std::string& name, const Module& module, std::initializer_list<Index> batches,
                      const Target& target) {
  constexpr Index L = 1024;
  const auto make = [=](Index B) { return [=] { return mod_mask_of_content(module, B, L); }; };
  for (const Index B : batches)
    add_forward({"mod_mask", name, shape_text(B, 8, L, L), "q times k by Eigen", target}, make(B));
  add_two_threads(name + ", mod_mask", shape_text(1, 8, L, L), make(1), Limit::arithmetic);
  add_backward(name + ", mod_mask", shape_text(1, 8, L, L), make(1), Limit::arithmetic);
}

/// How many a second, for 10^9.
void t5_buckets(State& state, const Row& row) {
  constexpr std::size_t count = 1 << 16;
  std::vector<std::int64_t> relative(count);
  for (std::size_t i = 0; i < count; ++i) relative[i] = static_cast<std::int64_t>(i * 2654435761U % 1024) - 512;
  std::vector<Index> buckets(count);
  const T5Buckets bucket_of;
  const Rounds rounds = in_turn({[&] { bucket_of(relative, buckets); }});
  show(
      state, "speedup", rounds, 0, [](const auto& t) { return 1e-9 * count / t[0]; }, row.target);
}

}  // namespace

void add_biases() {
  const ALiBi<float> alibi({.n_heads = heads});
  const RelativePositionBias<float> t5({.n_heads = heads});
  const DynamicPositionBias<float> dpb({.dim = 64, .n_heads = heads, .depth = 2});
  add_relative_bias("ALiBi", alibi);
  add_relative_bias("T5", t5);
  add_relative_bias("DPB", dpb);

  const std::string shape = shape_text(heads, 1024, 1024);
  const ALiBi<float> alibi_learned({.n_heads = heads, .learned_div = true});
  add_backward(
      "ALiBi learned_div, mod_mask", shape, [=] { return mod_mask(alibi_learned, 1024); }, Limit::memory);
  add_backward(
      "T5, mod_mask", shape, [=] { return mod_mask(t5, 1024); }, Limit::memory);
  add_backward(
      "DPB, mod_mask", shape, [=] { return mod_mask(dpb, 1024); }, Limit::memory);

  const auto dpb_of_pairs = [=] { return mod_mask(dpb, 256, real_positions(256)); };
  add_forward({"mod_mask, real positions", "DPB", shape_text(heads, 256, 256), "in-place scale"}, dpb_of_pairs);
  add_two_threads("DPB, mod_mask, real positions", shape_text(heads, 256, 256), dpb_of_pairs, Limit::arithmetic);

  add_content_bias("XL", TransformerXL<float>({.dim = 512, .n_heads = 8}), {1, 8}, at_most(2));
  add_content_bias("DisentangledBias", DisentangledBias<float>({.n_heads = 8, .head_dim = 64, .n_positions = 512}), {1},
                   {});

  add({"buckets", "T5, any integers", "65536", "1 G positions a second", at_least(1)}, t5_buckets);
}

}  // namespace posbias_benchmarks
