// SPDX-License-Identifier: MIT
/// \file
/// The hook mod_qkv of Rotary beside an in-place scale of q and k, and one new token far out beside one at the start.
#include <posbias/rotation/rotary.hpp>
#include <string>

#include "suite.hpp"
#include "tensors.hpp"

namespace posbias_benchmarks {
namespace {

using namespace posbias;

constexpr Index B = 4, L = 2048, NH = 8, H = 64;

Subject mod_qkv(const Rotary<float>& module) {
  const auto q = shared_tensor(B, L, NH, H), k = shared_tensor(B, L, NH, H), grad_q = shared_tensor(B, L, NH, H),
             grad_k = shared_tensor(B, L, NH, H);
  const auto grads = std::make_shared<Rotary<float>::Gradients>(module.zero_gradients());
  return {[=](const Executor& executor) { module.mod_qkv(*q, *k, *k, {.executor = executor}); }, in_place_scale(q, k),
          [=](const Executor& executor) {
            module.mod_qkv_backward(*grad_q, *grad_k, *grad_k, *q, *k, *k, {.executor = executor}, *grads);
          }};
}

/// One new token.
Task step(const Rotary<float>& module, Index position) {
  const auto q = shared_tensor(1, 1, NH, H), k = shared_tensor(1, 1, NH, H);
  return [=](const Executor&) { module.mod_qkv(*q, *k, *k, {.q_k = Positions::range(position)}); };
}

}  // namespace

void add_rotary() {
  const std::string shape = shape_text(B, L, NH, H);
  for (const auto& [name, pairing] :
       {std::pair("interleaved", RotaryPairing::interleaved), std::pair("half", RotaryPairing::half)}) {
    const std::string work = "Rotary " + std::string(name);
    const Rotary<float> cold({.head_dim = H, .pairing = pairing});
    Rotary<float> reserved = cold;
    reserved.reserve(L);
    const auto make = [=] { return mod_qkv(reserved); };
    const auto make_cold = [=] { return mod_qkv(cold); };
    add_forward({"mod_qkv", work + ", reserved", shape, "in-place scale of q and k", at_most(1.25)}, make);
    add_forward({"mod_qkv", work + ", cold", shape, "in-place scale of q and k", at_most(2)}, make_cold);
    add_two_threads(work + ", reserved", shape, make, Limit::memory);
    add_two_threads(work + ", cold", shape, make_cold, Limit::memory);
    add_backward(work, shape, make, Limit::memory);
  }
  const Rotary<float> learned({.head_dim = H, .learned_div = true});
  add_backward(
      "Rotary learned_div", shape, [=] { return mod_qkv(learned); }, Limit::memory);

  for (const Index position : {0, 1000, 10'000, 100'000}) {
    const Target target = position == 0 ? Target{} : at_most(1.1);
    add_forward({"mod_qkv", "Rotary, one token at " + std::to_string(position), shape_text(1, 1, NH, H),
                 "the same at position 0", target},
                [=] {
                  Rotary<float> module({.head_dim = H});
                  module.reserve(100'001);
                  return Subject{step(module, position), step(module, 0)};
                });
  }
}

}  // namespace posbias_benchmarks
