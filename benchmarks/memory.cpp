// SPDX-License-Identifier: MIT
/// \file
/// Any memory beside whole contiguous tensors of float: a fused buffer, 16 bits, heads before tokens.
#include <Eigen/Core>
#include <bit>
#include <cstdint>
#include <memory>
#include <posbias/posbias.hpp>
#include <string>
#include <vector>

#include "suite.hpp"
#include "tensors.hpp"

namespace posbias_benchmarks {
namespace {

using namespace posbias;
using Eigen::bfloat16;

/// The values of a shared tensor as bfloat16.
template <class... Sizes>
auto shared_bfloat16(Sizes... sizes) {
  const auto values = shared_tensor(sizes...);
  auto tensor = std::make_shared<Eigen::Tensor<bfloat16, sizeof...(Sizes), Eigen::RowMajor>>(values->dimensions());
  for (Index i = 0; i < tensor->size(); ++i) tensor->data()[i] = static_cast<bfloat16>(values->data()[i]);
  return tensor;
}

/// q and k of a fused buffer, rotated in place, beside the same of tensors of their own.
Subject fused_rotary(RotaryPairing pairing) {
  constexpr Index B = 4, L = 2048, NH = 32, NHk = 8, H = 128;
  Rotary<float> module({.head_dim = H, .pairing = pairing});
  module.reserve(L);
  const auto buffer = shared_tensor(B, L, NH + 2 * NHk, H);
  const auto q = shared_tensor(B, L, NH, H), k = shared_tensor(B, L, NHk, H);
  return {[=](const Executor& executor) {
            const auto of_k = narrow(*buffer, 2, NH, NHk);
            module.mod_qkv(narrow(*buffer, 2, 0, NH), of_k, of_k, {.executor = executor});
          },
          [=](const Executor& executor) { module.mod_qkv(*q, *k, *k, {.executor = executor}); }};
}

/// q and k of bfloat16 beside an in-place scale of as many floats.
Subject bfloat16_rotary(RotaryPairing pairing, Index NH, Index NHk, Index H) {
  constexpr Index B = 4, L = 2048;
  Rotary<float> module({.head_dim = H, .pairing = pairing});
  module.reserve(L);
  const auto q = shared_bfloat16(B, L, NH, H), k = shared_bfloat16(B, L, NHk, H);
  return {[=](const Executor& executor) { module.mod_qkv(*q, *k, *k, {.executor = executor}); },
          in_place_scale(shared_tensor(B, L, NH, H), shared_tensor(B, L, NHk, H))};
}

/// A bias added to a mask of bfloat16 beside an in-place scale of the mask.
template <class Module>
Subject bfloat16_mask(const Module& module, Index B, Index NH, Index L) {
  const auto mask = shared_bfloat16(B, NH, L, L);
  return {[=](const Executor& executor) { module.mod_mask(*mask, {.executor = executor}); },
          [=](const Executor&) {
            // As a plain loop over the bits would: widen, scale, round to nearest even.
            float factor = 1;
            benchmark::DoNotOptimize(factor);
            auto* bits = reinterpret_cast<std::uint16_t*>(mask->data());
            for (Index i = 0; i < mask->size(); ++i) {
              const float scaled = std::bit_cast<float>(std::uint32_t{bits[i]} << 16) * factor;
              const auto wide = std::bit_cast<std::uint32_t>(scaled);
              bits[i] = static_cast<std::uint16_t>((wide + 0x7fffU + ((wide >> 16) & 1U)) >> 16);
            }
            benchmark::ClobberMemory();
          }};
}

/// Attention of 8 heads of 64 features, beside the same on contiguous tensors of float, tokens first.
constexpr Index B = 1, L = 2048, NH = 8, H = 64;

template <class Attend>
Subject beside_contiguous(const Attend& attend) {
  const auto q = shared_tensor(B, L, NH, H), k = shared_tensor(B, L, NH, H), v = shared_tensor(B, L, NH, H),
             out = shared_tensor(B, L, NH, H);
  return {attend, [=](const Executor&) { attention(*out, *q, *k, *v, Identity()); }};
}

Subject heads_first_attention() {
  const auto q = shared_tensor(B, NH, L, H), k = shared_tensor(B, NH, L, H), v = shared_tensor(B, NH, L, H),
             out = shared_tensor(B, NH, L, H);
  return beside_contiguous([=](const Executor&) {
    attention(heads_first(*out), heads_first(*q), heads_first(*k), heads_first(*v), Identity());
  });
}

Subject bfloat16_attention() {
  const auto q = shared_tensor(B, L, NH, H), out = shared_tensor(B, L, NH, H);
  const auto k = shared_bfloat16(B, L, NH, H), v = shared_bfloat16(B, L, NH, H);
  return beside_contiguous([=](const Executor&) { attention(*out, *q, *k, *v, Identity()); });
}

}  // namespace

void add_memory() {
  for (const auto& [name, pairing] :
       {std::pair("interleaved", RotaryPairing::interleaved), std::pair("half", RotaryPairing::half)}) {
    add_forward({"memory", "Rotary " + std::string(name) + ", fused buffer", shape_text(4, 2048, 48, 128),
                 "tensors of their own", at_most(1.1)},
                [=] { return fused_rotary(pairing); });
    const auto add_bfloat16 = [&](Index NH, Index NHk, Index H) {
      add_forward({"memory", "Rotary " + std::string(name) + ", bfloat16", shape_text(4, 2048, NH + NHk, H),
                   "in-place scale of as many floats", at_most(1)},
                  [=] { return bfloat16_rotary(pairing, NH, NHk, H); });
    };
    add_bfloat16(32, 8, 128);
    add_bfloat16(8, 8, 64);  // in the cache of level 3
  }
  add_forward(
      {"memory", "ALiBi mod_mask, bfloat16", shape_text(1, 12, 1024, 1024), "in-place scale of it", at_most(1.3)},
      [] { return bfloat16_mask(ALiBi<float>({.n_heads = 12}), 1, 12, 1024); });
  add_forward({"memory", "T5 mod_mask, bfloat16", shape_text(1, 12, 1024, 1024), "in-place scale of it", at_most(1.3)},
              [] { return bfloat16_mask(RelativePositionBias<float>({.n_heads = 12}), 1, 12, 1024); });
  add_forward({"memory", "attention, heads first", shape_text(B, NH, L, L), "tokens first", at_most(1.02)},
              heads_first_attention);
  add_forward({"memory", "attention, bfloat16 k and v", shape_text(B, NH, L, L), "float k and v", at_most(1.05)},
              bfloat16_attention);
}

}  // namespace posbias_benchmarks
