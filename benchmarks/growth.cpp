// SPDX-License-Identifier: MIT
/// \file
/// How time grows with the number of tokens, or with the position of one, fitted by Google Benchmark. Tensors are larger
/// than the caches from the first size on, so that no cache's end is taken for growth.
#include <initializer_list>
#include <posbias/attention/attention.hpp>
#include <posbias/bias/alibi.hpp>
#include <posbias/bias/relative_position_bias.hpp>
#include <posbias/embedding/sinusoidal.hpp>
#include <posbias/rotation/rotary.hpp>
#include <string>

#include "suite.hpp"
#include "tensors.hpp"

namespace posbias_benchmarks {
namespace {

using namespace posbias;

/// `make(N)` returns what is to be run.
void add_growth_of(const std::string& work, benchmark::BigO expected, std::initializer_list<Index> sizes,
                   const std::function<Run(Index)>& make) {
  auto* family = add_benchmark("growth/" + work, [make](State& state) {
    const Index N = state.range(0);
    const Rounds rounds = in_turn({make(N)});
    for (auto _ : state) state.SetIterationTime(median_of(rounds, 0));
    state.SetComplexityN(N);
  });
  for (const Index N : sizes) family->Arg(N);
  family->Unit(benchmark::kNanosecond)->Complexity(expected);
}

template <class Module>
void add_bias(const std::string& name, const Module& module) {
  constexpr Index heads = 12;
  add_growth_of("mod_mask " + name, benchmark::oNSquared, {1536, 2048, 2560, 3072}, [=](Index N) -> Run {
    const auto mask = shared_tensor(heads, N, N);
    return [=] { module.mod_mask(*mask); };
  });
  add_growth_of("bias(N, N) " + name, benchmark::oNSquared, {1536, 2048, 2560, 3072}, [=](Index N) -> Run {
    return [=] {
      auto bias = module.bias(N, N);
      benchmark::DoNotOptimize(bias);
    };
  });
  add_growth_of("bias(1, N) " + name, benchmark::oN, {1024, 2048, 4096, 8192}, [=](Index N) -> Run {
    return [=] {
      auto bias = module.bias(1, N, {.q = Positions::range(N - 1)});
      benchmark::DoNotOptimize(bias);
    };
  });
}

}  // namespace

void add_growth() {
  add_bias("ALiBi", ALiBi<float>({.n_heads = 12}));
  add_bias("T5", RelativePositionBias<float>({.n_heads = 12}));
  Rotary<float> rotary({.head_dim = 64});
  rotary.reserve(100'001);
  add_growth_of("mod_x Sinusoidal", benchmark::oN, {2048, 4096, 8192, 16384}, [](Index N) -> Run {
    const auto x = shared_tensor(8, N, 512);
    return [x, module = Sinusoidal<float>({.dim = 512})] { module.mod_x(*x); };
  });
  add_growth_of("mod_qkv Rotary", benchmark::oN, {2048, 4096, 8192, 16384}, [=](Index N) -> Run {
    const auto q = shared_tensor(4, N, 8, 64), k = shared_tensor(4, N, 8, 64);
    return [=] { rotary.mod_qkv(*q, *k, *k); };
  });
  add_growth_of("attention T5", benchmark::oNSquared, {256, 512, 1024, 2048}, [](Index N) -> Run {
    const auto q = shared_tensor(1, N, 8, 64), out = shared_tensor(1, N, 8, 64);
    return [=, module = RelativePositionBias<float>({.n_heads = 8})] { attention(*out, *q, *q, *q, module); };
  });
  add_growth_of("mod_qkv Rotary, one token at N", benchmark::o1, {1, 10, 100, 1000, 10'000, 100'000},
                [=](Index N) -> Run {
                  const auto q = shared_tensor(1, 1, 8, 64);
                  return [=] { rotary.mod_qkv(*q, *q, *q, {.q_k = Positions::range(N)}); };
                });
}

}  // namespace posbias_benchmarks
