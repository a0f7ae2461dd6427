// SPDX-License-Identifier: MIT
/// \file
/// Training and testing a transformer on a few threads, with the same numbers for any number of them.
///
/// A batch is cut into a fixed number of shards. Each has gradients of its own, which are added up in the
/// order of the shards; threads only decide when a shard is computed.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <mutex>
#include <numbers>
#include <span>
#include <thread>
#include <vector>

#include "transformer/adamw.hpp"
#include "transformer/corpus.hpp"
#include "transformer/parameters.hpp"
#include "transformer/transformer.hpp"

namespace demo {

/// What a model may spend; the same for every scheme.
struct Budget {
  Index steps = 1200;
  Index batch = 16;   ///< windows in a step
  Index length = 64;  ///< characters in a window
  std::uint64_t seed = 0;
  int threads = 1;
  LearningRate learning_rate{};
  double gradient_norm = 1;  ///< longer gradients are clipped
};

/// Runs task(0) ... task(count - 1) on up to `threads` threads; rethrows the first exception.
template <class Task>
void for_each_shard(Index count, int threads, const Task& task) {
  std::atomic<Index> next = 0;
  std::exception_ptr failure;
  std::mutex failing;
  const auto work = [&] {
    try {
      for (Index shard = next++; shard < count; shard = next++) task(shard);
    } catch (...) {
      const std::lock_guard lock(failing);
      failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (Index i = 1; i < std::min<Index>(threads, count); ++i) helpers.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

/// One part of a model's training: gradients and what lies between forward and backward.
template <class Model>
struct Shard {
  typename Model::Gradients gradients;
  typename Model::Trace trace;
  double loss = 0;
};

/// Throws unless `text` has a window of this length, and the character after it.
inline void require_window(std::span<const Symbol> text, Index length, const char* which) {
  if (static_cast<Index>(text.size()) <= length)
    throw InputError("the " + std::string(which) + " text has " + std::to_string(text.size()) +
                     " characters, too few for a window of length " + std::to_string(length));
}

/// Trains on random windows of `text`. Calls on_step(step, bits per character of its batch) after every step.
template <class Model, class OnStep>
void train(Model& model, std::span<const Symbol> text, const Budget& budget, const OnStep& on_step) {
  using Scalar = typename Model::Scalar;
  constexpr Index max_shards = 8;
  require_window(text, budget.length, "training");
  const Index shard_count = std::min(budget.batch, max_shards);
  std::vector<Shard<Model>> shards(static_cast<std::size_t>(shard_count), {model.zero_gradients(), {}});
  std::vector<std::vector<ParameterView<Scalar>>> gradients;
  for (auto& shard : shards) gradients.push_back(parameter_views(shard.gradients));
  const auto parameters = parameter_views(model);
  AdamW<Scalar> optimiser(parameters);

  Random random(budget.seed);
  std::vector<Index> starts(static_cast<std::size_t>(budget.batch));
  const Index last_start = static_cast<Index>(text.size()) - budget.length - 1;
  const double per_character = 1 / static_cast<double>(budget.batch * budget.length);
  for (Index step = 0; step < budget.steps; ++step) {
    for (Index& start : starts) start = random.below(last_start + 1);
    for_each_shard(shard_count, budget.threads, [&](Index s) {
      const auto first = static_cast<std::size_t>(s * budget.batch / shard_count);
      const auto end = static_cast<std::size_t>((s + 1) * budget.batch / shard_count);
      Shard<Model>& shard = shards[static_cast<std::size_t>(s)];
      set_zero(gradients[static_cast<std::size_t>(s)]);
      const Windows windows{text, std::span(starts).subspan(first, end - first), budget.length};
      shard.loss = model.forward(windows, shard.trace);
      model.backward(shard.trace, per_character, shard.gradients);
    });
    double loss = shards[0].loss;
    for (std::size_t s = 1; s < shards.size(); ++s) {
      loss += shards[s].loss;
      add(gradients[s], gradients[0]);
    }
    clip_norm(gradients[0], budget.gradient_norm);
    optimiser.step(parameters, gradients[0], budget.learning_rate.at(step, budget.steps));
    on_step(step + 1, loss * per_character / std::numbers::ln2);
  }
}

/// Bits per character over given stretches of a text, read in consecutive windows of `length` that know
/// nothing of each other. `length` divides `stretch`, so every length is tested on the same characters, all
/// of them counted.
template <class Model>
double bits_per_character(const Model& model, std::span<const Symbol> text, std::span<const Index> stretches,
                          Index stretch, Index length, int threads) {
  std::vector<double> losses(stretches.size());
  for_each_shard(static_cast<Index>(stretches.size()), threads, [&](Index s) {
    std::vector<Index> starts;
    for (Index offset = 0; offset < stretch; offset += length)
      starts.push_back(stretches[static_cast<std::size_t>(s)] + offset);
    typename Model::Trace trace;
    losses[static_cast<std::size_t>(s)] = model.forward({text, starts, length}, trace);
  });
  double loss = 0;
  for (const double part : losses) loss += part;
  return loss / static_cast<double>(static_cast<Index>(stretches.size()) * stretch) / std::numbers::ln2;
}

}  // namespace demo
