// SPDX-License-Identifier: MIT
/// \file
/// Train short, test long, for one positional module: what all of them have in common, and what comes out.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>
#include <posbias/posbias.hpp>
#include <string>
#include <utility>
#include <vector>

#include "transformer/corpus.hpp"
#include "transformer/progress.hpp"
#include "transformer/training.hpp"
#include "transformer/transformer.hpp"

namespace demo {

/// The same for every scheme.
struct Experiment {
  Corpus corpus;
  Architecture shape;
  Budget budget;
  std::vector<Index> test_lengths;
  Index stretch = 0;             ///< the longest of them
  std::vector<Index> stretches;  ///< where the tested stretches of the held-out text start

  [[nodiscard]] Index tested_characters() const { return static_cast<Index>(stretches.size()) * stretch; }
};

/// A row of the table.
struct Result {
  std::string scheme;
  Index parameters = 0;  ///< of the positional module
  double milliseconds_per_step = 0;
  /// One per test length; none where the scheme has no positions that far.
  std::vector<std::optional<double>> bits_per_character;
};

/// Chooses what is tested: about 65536 characters, in stretches spread evenly over the held-out text.
inline Experiment prepare(Corpus corpus, const Budget& budget, const std::vector<Index>& test_lengths) {
  constexpr Index tested_characters = 65536;
  const Index stretch = *std::max_element(test_lengths.begin(), test_lengths.end());
  for (const Index length : test_lengths)
    if (stretch % length != 0)
      throw InputError("test length " + std::to_string(length) + " does not divide the longest, " +
                       std::to_string(stretch));
  require_window(corpus.training, budget.length, "training");
  require_window(corpus.held_out, stretch, "held-out");

  const Index usable = static_cast<Index>(corpus.held_out.size()) - 1;
  const Index count = std::clamp<Index>(tested_characters / stretch, 1, usable / stretch);
  std::vector<Index> stretches;
  for (Index i = 0; i < count; ++i) stretches.push_back(i * (usable / count));
  const Architecture shape{.symbols = corpus.symbols};
  return {std::move(corpus), shape, budget, test_lengths, stretch, std::move(stretches)};
}

/// Trains and tests the transformer with `module` as its sense of position; the module has learned then. Every module
/// meets the same initial weights and the same batches.
template <class Scalar, posbias::PositionalModule<Scalar> Module>
Result measure(const std::string& scheme, Module& module, const Experiment& experiment, Progress& progress) {
  const Budget& budget = experiment.budget;
  Random random(budget.seed);
  Transformer<Scalar, Module> model(experiment.shape, module, random);
  Result result;
  result.scheme = scheme;
  posbias::for_each_parameter(model.position,
                              [&](std::string_view, const auto& tensor) { result.parameters += tensor.size(); });

  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  train(model, experiment.corpus.training, budget,
        [&](Index step, double bits) { progress.step(scheme, step, budget.steps, bits); });
  const std::chrono::duration<double, std::milli> spent = Clock::now() - start;
  result.milliseconds_per_step = spent.count() / static_cast<double>(budget.steps);
  module = model.position;

  for (const Index length : experiment.test_lengths) {
    auto& bits = result.bits_per_character.emplace_back();
    try {
      bits = bits_per_character(model, experiment.corpus.held_out, experiment.stretches, experiment.stretch, length,
                                budget.threads);
    } catch (const posbias::PositionError&) {
      // The scheme has no positions that far, so there is nothing to report.
    }
  }
  return result;
}

}  // namespace demo
