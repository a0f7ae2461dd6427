// SPDX-License-Identifier: MIT
/// \file
/// Every module, once. A new one takes its place here: the contract and consumers use it as it is, and the laws,
/// attention and fuzzing fail until they have it too, with options of their own.
#pragma once

#include <posbias/posbias.hpp>
#include <tuple>
#include <type_traits>

namespace posbias_test {

/// Of an attention with tokens x (B, L, D), and q, k and v (B, L, NH, H).
struct ModuleSizes {
  posbias::Index D = 8, NH = 3, H = 8;
};

/// All modules but `Identity` and `Compose`, for positions below 128.
template <class S>
auto every_module(const ModuleSizes& s = {}) {
  using namespace posbias;
  return std::tuple(Sinusoidal<S>({.dim = s.D}), LearnedVocab<S>({.dim = s.D, .max_seq_len = 128}, 1),
                    LearnedContinuous<S>({.dim = s.D}, 2), Rotary<S>({.head_dim = s.H}), ALiBi<S>({.n_heads = s.NH}),
                    RelativePositionBias<S>({.n_heads = s.NH}, 3),
                    DynamicPositionBias<S>({.dim = 8, .n_heads = s.NH}, 4),
                    TransformerXL<S>({.dim = s.NH * s.H, .n_heads = s.NH}, 5),
                    DisentangledBias<S>({.n_heads = s.NH, .head_dim = s.H, .n_positions = 4}, 6));
}

/// Calls `visit(std::type_identity<Module>())` for each; makes none.
template <class S, class Visit>
void for_each_module_type(const Visit& visit) {
  const auto visit_all = [&]<class... Modules>(std::type_identity<std::tuple<Modules...>>) {
    (visit(std::type_identity<Modules>()), ...);
  };
  visit_all(std::type_identity<decltype(every_module<S>())>());
}

}  // namespace posbias_test
