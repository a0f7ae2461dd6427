// SPDX-License-Identifier: MIT
/// \file
/// Embeddings and rotations of random options.
#include "fuzz/modules/drawn.hpp"
#include "posbias/embedding/learned_continuous.hpp"
#include "posbias/embedding/learned_vocab.hpp"
#include "posbias/embedding/sinusoidal.hpp"
#include "posbias/rotation/rotary.hpp"

namespace posbias_fuzz {

using posbias::LearnedContinuous, posbias::LearnedVocab, posbias::Rotary, posbias::Sinusoidal;

template <class S>
Drawn<S> draw_sinusoidal(FuzzedDataProvider& input) {
  const Index dim = draw_size(input, 6) * (one_in(input, 16) ? 1 : 2);
  const bool half = input.ConsumeBool();
  const Divisor by = draw_divisor(input);
  const auto make = [&] {
    return Sinusoidal<S>({.dim = dim,
                          .layout = half ? posbias::SinusoidLayout::half : posbias::SinusoidLayout::interleaved,
                          .divide = by.divide,
                          .learned_div = by.learned});
  };
  return made<S>(dim >= 2 && dim % 2 == 0 && by.right(), make,
                 reference_models::sinusoidal(static_cast<int>(dim), half, by.divide), {.uses_x = true, .dim = dim});
}

template <class S>
Drawn<S> draw_learned_vocab(FuzzedDataProvider& input) {
  const Index dim = draw_size(input, 9), rows = draw_size(input, 150);
  return made<S>(dim > 0 && rows > 0, [&] { return LearnedVocab<S>({.dim = dim, .max_seq_len = rows}); },
                 reference_models::learned_vocab(static_cast<int>(dim), rows), {.uses_x = true, .dim = dim});
}

template <class S>
Drawn<S> draw_learned_continuous(FuzzedDataProvider& input) {
  const Index dim = draw_size(input, 9), depth = draw_size(input, 3);
  const bool norm = input.ConsumeBool();
  const Divisor by = draw_divisor(input);
  const auto make = [&] {
    return LearnedContinuous<S>(
        {.dim = dim, .depth = depth, .norm = norm, .divide = by.divide, .learned_div = by.learned}, 1);
  };
  return made<S>(dim > 0 && depth > 0 && by.right(), make,
                 reference_models::learned_continuous(static_cast<int>(depth), norm, by.divide),
                 {.uses_x = true, .dim = dim, .squares = true});
}

template <class S>
Drawn<S> draw_rotary(FuzzedDataProvider& input) {
  const Index head_dim = draw_size(input, 6) * (one_in(input, 16) ? 1 : 2);
  const bool all = input.ConsumeBool(), half = input.ConsumeBool(), own_spectrum = input.ConsumeBool();
  const Index n_dims = all ? -1 : input.ConsumeIntegralInRange<Index>(-3, 14);
  const double base =
      input.PickValueInArray({10000.0, 10000.0, 500.0, 1.0, 1e300, 1e6, 0.0, -2.0,
                              std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()});
  const Divisor by = draw_divisor(input);
  const auto make = [&] {
    return Rotary<S>({.head_dim = head_dim,
                      .n_dims = n_dims,
                      .pairing = half ? posbias::RotaryPairing::half : posbias::RotaryPairing::interleaved,
                      .spectrum = own_spectrum ? posbias::RotarySpectrum::n_dims : posbias::RotarySpectrum::head_dim,
                      .base = base,
                      .divide = by.divide,
                      .learned_div = by.learned});
  };
  const bool is_default = n_dims == -1;
  const Index rotated = is_default ? head_dim : n_dims;
  const bool right = head_dim >= 2 && head_dim % 2 == 0 && rotated >= 0 && rotated <= head_dim && rotated % 2 == 0 &&
                     std::isfinite(base) && base > 0 && by.right();
  return made<S>(right, make,
                 reference_models::rotary({.H = static_cast<int>(head_dim),
                                           .rotated = static_cast<int>(rotated),
                                           .half = half,
                                           .own_spectrum = own_spectrum,
                                           .base = base},
                                          by.divide),
                 {.uses_qkv = true, .qkv_features = head_dim});
}

template <class S>
std::vector<Draw<S>> positions_of_tokens() {
  return {{Sinusoidal<S>::name, draw_sinusoidal<S>},
          {LearnedVocab<S>::name, draw_learned_vocab<S>},
          {LearnedContinuous<S>::name, draw_learned_continuous<S>},
          {Rotary<S>::name, draw_rotary<S>}};
}
template std::vector<Draw<float>> positions_of_tokens();
template std::vector<Draw<double>> positions_of_tokens();

}  // namespace posbias_fuzz
