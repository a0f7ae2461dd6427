// SPDX-License-Identifier: MIT
/// \file
/// The hook mod_x beside an in-place scale of the tokens.
#include <posbias/embedding/learned_continuous.hpp>
#include <posbias/embedding/learned_vocab.hpp>
#include <posbias/embedding/sinusoidal.hpp>
#include <string>

#include "suite.hpp"
#include "tensors.hpp"

namespace posbias_benchmarks {
namespace {

using namespace posbias;

constexpr Index B = 8, L = 1024, dim = 512;

template <class Module>
Subject mod_x(const Module& module) {
  const auto x = shared_tensor(B, L, dim);
  const auto grads = std::make_shared<typename Module::Gradients>(module.zero_gradients());
  return {[=](const Executor& executor) { module.mod_x(*x, {.executor = executor}); }, in_place_scale(x),
          [=](const Executor& executor) { module.mod_x_backward(*x, {.executor = executor}, *grads); }};
}

}  // namespace

void add_embeddings() {
  const std::string shape = shape_text(B, L, dim);
  const auto add_module = [&](const std::string& name, const auto& module, const Target& target, Limit limit) {
    const auto make = [=] { return mod_x(module); };
    add_forward({"mod_x", name, shape, "in-place scale", target}, make);
    add_two_threads(name, shape, make, limit);
  };
  const Sinusoidal<float> sinusoidal({.dim = dim});
  Sinusoidal<float> reserved = sinusoidal;
  reserved.reserve(L);
  add_module("Sinusoidal, reserved", reserved, at_most(1.25), Limit::memory);
  add_module("Sinusoidal, cold", sinusoidal, at_most(2), Limit::memory);
  const LearnedVocab<float> vocab({.dim = dim, .max_seq_len = L});
  add_module("LearnedVocab", vocab, at_most(1.5), Limit::memory);
  const LearnedContinuous<float> linear({.dim = dim, .divide = L}), mlp({.dim = dim, .depth = 2, .divide = L});
  add_module("LearnedContinuous, depth 1", linear, {}, Limit::memory);
  add_module("LearnedContinuous, depth 2", mlp, {}, Limit::arithmetic);

  const Sinusoidal<float> learned({.dim = dim, .learned_div = true});
  add_backward(
      "Sinusoidal learned_div", shape, [=] { return mod_x(learned); }, Limit::memory);
  add_backward(
      "LearnedVocab", shape, [=] { return mod_x(vocab); }, Limit::memory);
  add_backward(
      "LearnedContinuous, depth 2", shape, [=] { return mod_x(mlp); }, Limit::arithmetic);
}

}  // namespace posbias_benchmarks
