// SPDX-License-Identifier: MIT
/// \file
/// Each hook beside the least that could be done to the same bytes: memset for a bias that is made, an in-place scale
/// for tensors that are modified. Ratios within one run are what counts; times on shared machines are noise.
#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <cstring>
#include <posbias/posbias.hpp>

namespace {

using namespace posbias;
using Tensor3 = Eigen::Tensor<float, 3, Eigen::RowMajor>;
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;

constexpr Index heads = 12;

template <class Tensor>
void set_bytes(benchmark::State& state, const Tensor& tensor) {
  state.SetBytesProcessed(state.iterations() * tensor.size() * static_cast<Index>(sizeof(float)));
  benchmark::DoNotOptimize(tensor.data());
}

void memset_bias(benchmark::State& state) {
  Tensor3 bias(heads, state.range(0), state.range(0));
  for (auto _ : state) {
    std::memset(bias.data(), 0, static_cast<std::size_t>(bias.size()) * sizeof(float));
    benchmark::ClobberMemory();
  }
  set_bytes(state, bias);
}

template <class Tensor>
void scale(benchmark::State& state, Tensor& tensor) {
  Eigen::Map<Eigen::ArrayXf> values(tensor.data(), tensor.size());
  values.setConstant(1);
  float factor = 1;
  benchmark::DoNotOptimize(factor);
  for (auto _ : state) {
    values *= factor;
    benchmark::ClobberMemory();
  }
  set_bytes(state, tensor);
}

void scale_mask(benchmark::State& state) {
  Tensor4 mask(1, heads, state.range(0), state.range(0));
  scale(state, mask);
}

template <class Module>
void mod_mask(benchmark::State& state, const Module& module, const PairPositions& at = {}) {
  Tensor4 mask(1, heads, state.range(0), state.range(0));
  mask.setZero();
  for (auto _ : state) {
    module.mod_mask(mask, at);
    benchmark::ClobberMemory();
  }
  set_bytes(state, mask);
}

void mod_mask_alibi(benchmark::State& state) {
  mod_mask(state, ALiBi<float>({.n_heads = heads}));
}
void mod_mask_t5(benchmark::State& state) {
  mod_mask(state, RelativePositionBias<float>({.n_heads = heads}));
}

/// Rows of packed sequences of 100 tokens, each counted from 0.
void mod_mask_t5_packed(benchmark::State& state) {
  Eigen::Tensor<std::int64_t, 1> ids(state.range(0));
  for (Index i = 0; i < ids.size(); ++i) ids(i) = i % 100;
  mod_mask(state, RelativePositionBias<float>({.n_heads = heads}), {.q_k = ids});
}

template <class Module>
void bias(benchmark::State& state, const Module& module) {
  for (auto _ : state) {
    const Tensor3 result = module.bias(state.range(0), state.range(0));
    benchmark::DoNotOptimize(result.data());
  }
  state.SetBytesProcessed(state.iterations() * heads * state.range(0) * state.range(0) * 4);
}

void bias_alibi(benchmark::State& state) {
  bias(state, ALiBi<float>({.n_heads = heads}));
}
void bias_t5(benchmark::State& state) {
  bias(state, RelativePositionBias<float>({.n_heads = heads}));
}

void scale_q_and_k(benchmark::State& state) {
  Tensor4 q_and_k(8, 2048, 8, 64);
  scale(state, q_and_k);
}

void rotary(benchmark::State& state) {
  const auto pairing = state.range(0) == 0 ? RotaryPairing::interleaved : RotaryPairing::half;
  const Rotary<float> module({.head_dim = 64, .pairing = pairing});
  Tensor4 q(4, 2048, 8, 64), k(4, 2048, 8, 64);
  q.setConstant(1);
  k.setConstant(1);
  for (auto _ : state) {
    module.mod_qkv(q, k, k);
    benchmark::ClobberMemory();
  }
  state.SetLabel(state.range(0) == 0 ? "interleaved" : "half");
  state.SetBytesProcessed(state.iterations() * 2 * q.size() * 4);
}

void scale_x(benchmark::State& state) {
  Tensor3 x(8, 1024, 512);
  scale(state, x);
}

void sinusoidal(benchmark::State& state) {
  const Sinusoidal<float> module({.dim = 512});
  Tensor3 x(8, 1024, 512);
  x.setZero();
  for (auto _ : state) {
    module.mod_x(x);
    benchmark::ClobberMemory();
  }
  set_bytes(state, x);
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

BENCHMARK(memset_bias)->Arg(256)->Arg(1024);
BENCHMARK(bias_alibi)->Arg(256)->Arg(1024);
BENCHMARK(bias_t5)->Arg(256)->Arg(1024);
BENCHMARK(scale_mask)->Arg(256)->Arg(1024);
BENCHMARK(mod_mask_alibi)->Arg(256)->Arg(1024);
BENCHMARK(mod_mask_t5)->Arg(256)->Arg(1024);
BENCHMARK(mod_mask_t5_packed)->Arg(256)->Arg(1024);
BENCHMARK(scale_q_and_k);
BENCHMARK(rotary)->Arg(0)->Arg(1);
BENCHMARK(scale_x);
BENCHMARK(sinusoidal);
BENCHMARK(t5_buckets);

}  // namespace
