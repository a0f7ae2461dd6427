// SPDX-License-Identifier: MIT
/// \file
/// Each hook beside the least that could be done in its place: a memset for a bias that is made, a fill or an in-place
/// scale for tensors that are modified, Eigen's q·kᵀ for a bias that multiplies queries.
#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <cstring>
#include <posbias/posbias.hpp>
#include <vector>

#include "compare.hpp"

namespace {

using namespace posbias;
using posbias_benchmarks::add;
using posbias_benchmarks::compare;
using Tensor3 = Eigen::Tensor<float, 3, Eigen::RowMajor>;
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;

/// Not with 0, for which the C library has writes that a bias cannot use.
template <class Tensor>
void fill(Tensor& tensor) {
  std::fill_n(tensor.data(), tensor.size(), 0.5F);
}

/// Reads and writes every value once.
template <class Tensor>
void scale(Tensor& tensor) {
  float factor = 1;
  benchmark::DoNotOptimize(factor);
  Eigen::Map<Eigen::ArrayXf>(tensor.data(), tensor.size()) *= factor;
}

constexpr Index heads = 12;

ALiBi<float> alibi() {
  return ALiBi<float>({.n_heads = heads});
}
RelativePositionBias<float> t5() {
  return RelativePositionBias<float>({.n_heads = heads});
}

/// bias(L, L) beside a memset of as much memory, kept.
template <class Module>
void bias(benchmark::State& state, const Module& module) {
  const Index L = state.range(0);
  Tensor3 memory(heads, L, L);
  compare(
      state, [&] { benchmark::DoNotOptimize(module.bias(L, L).data()); },
      [&] { std::memset(memory.data(), 0, static_cast<std::size_t>(memory.size()) * sizeof(float)); });
}

/// mod_mask in place beside a scale of the mask.
template <class Module>
void mod_mask(benchmark::State& state, const Module& module, const PairPositions& at = {}) {
  Tensor4 mask(1, heads, state.range(0), state.range(0));
  fill(mask);
  compare(
      state, [&] { module.mod_mask(mask, at); }, [&] { scale(mask); });
}

/// Sequences of 100 tokens packed in a row, each counted from 0.
Positions packed(Index length) {
  Eigen::Tensor<std::int64_t, 1> ids(length);
  for (Index i = 0; i < length; ++i) ids(i) = i % 100;
  return ids;
}

/// Two clusters of tokens, far apart: no table for all integers between.
Positions clusters(Index length) {
  Eigen::Tensor<std::int64_t, 1> ids(length);
  for (Index i = 0; i < length; ++i) ids(i) = i / 2 + i % 2 * 1'000'000'000;
  return ids;
}

/// DynamicPositionBias at L 1024, 8 heads, dim 64, depth 2, beside a fill of the mask.
void mod_mask_dynamic(benchmark::State& state, const PairPositions& at = {}) {
  const DynamicPositionBias<float> module({.dim = 64, .n_heads = 8, .depth = 2});
  Tensor4 mask(1, 8, 1024, 1024);
  fill(mask);
  compare(
      state, [&] { module.mod_mask(mask, at); }, [&] { fill(mask); });
}

/// Its adjoint beside itself.
void mod_mask_dynamic_backward(benchmark::State& state) {
  const DynamicPositionBias<float> module({.dim = 64, .n_heads = 8, .depth = 2});
  Tensor4 mask(1, 8, 1024, 1024);
  fill(mask);
  auto grads = module.zero_gradients();
  compare(
      state, [&] { module.mod_mask_backward(mask, {}, grads); }, [&] { module.mod_mask(mask); });
}

/// TransformerXL at dim 512, 8 heads, beside the q·kᵀ of the same batch by Eigen; or its adjoint beside itself.
void mod_mask_xl(benchmark::State& state, bool backward) {
  const Index B = state.range(0), L = state.range(1), NH = 8, H = 64;
  const TransformerXL<float> module({.dim = NH * H, .n_heads = NH});
  Tensor4 q(B, L, NH, H), k(B, L, NH, H), mask(B, NH, L, L), logits(B, NH, L, L);
  q.setConstant(0.5F);
  k.setConstant(0.5F);
  fill(mask);
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Head = Eigen::Map<const Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;
  const auto q_times_k = [&] {
    for (Index b = 0; b < B; ++b)
      for (Index h = 0; h < NH; ++h)
        Eigen::Map<Matrix>(&logits(b, h, 0, 0), L, L).noalias() =
            Head(&q(b, 0, h, 0), L, H, Eigen::OuterStride<>(NH * H)) *
            Head(&k(b, 0, h, 0), L, H, Eigen::OuterStride<>(NH * H)).transpose();
  };
  const auto forward = [&] { module.mod_mask(mask, q, k, k); };
  if (!backward) {
    compare(state, forward, q_times_k);
    return;
  }
  Tensor4 grad_q = q, grad_k = k;
  auto grads = module.zero_gradients();
  compare(
      state, [&] { module.mod_mask_backward(mask, grad_q, grad_k, grad_k, q, k, k, {}, grads); }, forward);
}

void rotary(benchmark::State& state, RotaryPairing pairing) {
  const Rotary<float> module({.head_dim = 64, .pairing = pairing});
  Tensor4 q(4, 2048, 8, 64), k(4, 2048, 8, 64);
  q.setConstant(1);
  k.setConstant(1);
  const auto scale_both = [&] {
    scale(q);
    scale(k);
  };
  compare(
      state, [&] { module.mod_qkv(q, k, k); }, scale_both);
}

template <class Module>
void mod_x(benchmark::State& state, const Module& module) {
  Tensor3 x(8, 1024, 512);
  fill(x);
  compare(
      state, [&] { module.mod_x(x); }, [&] { scale(x); });
}

void t5_buckets(benchmark::State& state) {
  std::vector<std::int64_t> relative(1 << 16);
  for (std::size_t i = 0; i < relative.size(); ++i)
    relative[i] = static_cast<std::int64_t>(i * 2654435761U % 1024) - 512;
  std::vector<Index> buckets(relative.size());
  const T5Buckets bucket_of;
  for (auto _ : state) {
    bucket_of(relative, buckets);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<Index>(relative.size()));
}

const bool added = [] {
  using State = benchmark::State;
  add("bias/ALiBi", [](State& s) { bias(s, alibi()); })->Arg(256)->Arg(1024);
  add("bias/T5", [](State& s) { bias(s, t5()); })->Arg(256)->Arg(1024);
  add("mod_mask/ALiBi", [](State& s) { mod_mask(s, alibi()); })->Arg(256)->Arg(1024);
  add("mod_mask/T5", [](State& s) { mod_mask(s, t5()); })->Arg(256)->Arg(1024);
  add("mod_mask/T5/packed", [](State& s) { mod_mask(s, t5(), {.q_k = packed(s.range(0))}); })->Arg(256)->Arg(1024);
  add("mod_mask/T5/clusters", [](State& s) { mod_mask(s, t5(), {.q_k = clusters(s.range(0))}); })->Arg(256)->Arg(1024);
  add("mod_mask/DynamicPositionBias", [](State& s) { mod_mask_dynamic(s); });
  add("mod_mask/DynamicPositionBias/clusters", [](State& s) { mod_mask_dynamic(s, {.q_k = clusters(1024)}); });
  add("mod_mask_backward/DynamicPositionBias", mod_mask_dynamic_backward);
  add("mod_mask/TransformerXL", [](State& s) { mod_mask_xl(s, false); })
      ->ArgNames({"B", "L"})
      ->ArgsProduct({{1, 8}, {256, 1024}});
  add("mod_mask_backward/TransformerXL", [](State& s) { mod_mask_xl(s, true); })->ArgNames({"B", "L"})->Args({8, 256});
  add("mod_qkv/Rotary/interleaved", [](State& s) { rotary(s, RotaryPairing::interleaved); });
  add("mod_qkv/Rotary/half", [](State& s) { rotary(s, RotaryPairing::half); });
  add("mod_x/Sinusoidal", [](State& s) { mod_x(s, Sinusoidal<float>({.dim = 512})); });
  add("mod_x/LearnedVocab", [](State& s) { mod_x(s, LearnedVocab<float>({.dim = 512, .max_seq_len = 1024})); });
  add("mod_x/LearnedContinuous", [](State& s) { mod_x(s, LearnedContinuous<float>({.dim = 512, .divide = 1024})); });
  benchmark::RegisterBenchmark("t5_buckets", t5_buckets);
  return true;
}();

}  // namespace
