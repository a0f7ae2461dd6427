// SPDX-License-Identifier: MIT
/// \file
/// The positional schemes of the demo: each module with the options that fit an experiment's transformer.
#pragma once

#include <algorithm>
#include <posbias/posbias.hpp>

#include "transformer/experiment.hpp"

namespace demo {

template <class Scalar>
auto sinusoidal(const Experiment& experiment) {
  return posbias::Sinusoidal<Scalar>({.dim = experiment.shape.width()});
}

template <class Scalar>
auto learned_vocab(const Experiment& experiment) {
  return posbias::LearnedVocab<Scalar>({.dim = experiment.shape.width(), .max_seq_len = experiment.budget.length});
}

template <class Scalar>
auto learned_continuous(const Experiment& experiment) {
  return posbias::LearnedContinuous<Scalar>({.dim = experiment.shape.width(),
                                             .depth = 2,
                                             .norm = true,
                                             .divide = static_cast<double>(experiment.budget.length)});
}

template <class Scalar>
auto rotary(const Experiment& experiment) {
  return posbias::Rotary<Scalar>({.head_dim = experiment.shape.head_width});
}

template <class Scalar>
auto alibi(const Experiment& experiment) {
  return posbias::ALiBi<Scalar>({.n_heads = experiment.shape.heads});
}

template <class Scalar>
auto relative_position_bias(const Experiment& experiment) {
  constexpr Index buckets = 32;
  return posbias::RelativePositionBias<Scalar>({.bidirectional = false,
                                                .num_buckets = buckets,
                                                .max_distance = std::max(buckets, experiment.budget.length),
                                                .n_heads = experiment.shape.heads});
}

template <class Scalar>
auto dynamic_position_bias(const Experiment& experiment) {
  return posbias::DynamicPositionBias<Scalar>({.dim = 32,
                                               .n_heads = experiment.shape.heads,
                                               .depth = 2,
                                               .divide = static_cast<double>(experiment.budget.length)});
}

template <class Scalar>
auto transformer_xl(const Experiment& experiment) {
  return posbias::TransformerXL<Scalar>(
      {.dim = experiment.shape.width(), .n_heads = experiment.shape.heads, .linear_bias = false});
}

}  // namespace demo
