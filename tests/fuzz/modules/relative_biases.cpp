// SPDX-License-Identifier: MIT
/// \file
/// Biases of relative positions alone, of random options, and modules composed.
#include "fuzz/modules/drawn.hpp"
#include "posbias/bias/alibi.hpp"
#include "posbias/bias/dynamic_position_bias.hpp"
#include "posbias/bias/relative_position_bias.hpp"
#include "posbias/core/compose.hpp"
#include "posbias/embedding/sinusoidal.hpp"
#include "posbias/rotation/rotary.hpp"

namespace posbias_fuzz {

using posbias::ALiBi, posbias::DynamicPositionBias, posbias::RelativePositionBias;

template <class S>
Drawn<S> draw_alibi(FuzzedDataProvider& input) {
  const Index heads = draw_size(input, 6);
  const bool all = input.ConsumeBool(), asymmetric = input.ConsumeBool();
  const Index use = all ? posbias::all : input.ConsumeIntegralInRange<Index>(-2, 7);
  const Index used = use == posbias::all ? heads : use;
  const Divisor by = draw_divisor(input);
  const auto make = [&] {
    return ALiBi<S>({.n_heads = heads,
                     .use_n_heads = use,
                     .asymmetric = asymmetric,
                     .divide = by.divide,
                     .learned_div = by.learned});
  };
  const bool right = heads > 0 && used >= 1 && used <= heads && by.right();
  const truths::ALiBiHeads shape{static_cast<int>(heads), static_cast<int>(used), asymmetric};
  return made<S>(right, make, right ? truths::alibi(shape, by.divide) : Truth{},
                 {.uses_mask = true, .mask_heads = heads});
}

template <class S>
Drawn<S> draw_relative_position_bias(FuzzedDataProvider& input) {
  const Index heads = draw_size(input, 4), buckets = input.ConsumeIntegralInRange<Index>(-1, 40);
  const bool bidirectional = input.ConsumeBool();
  const Index distance = one_in(input, 4) ? draw_integer(input) : input.ConsumeIntegralInRange<Index>(0, 200);
  const auto make = [&] {
    return RelativePositionBias<S>(
        {.bidirectional = bidirectional, .num_buckets = buckets, .max_distance = distance, .n_heads = heads}, 1);
  };
  const Index exact = (bidirectional ? buckets / 2 : buckets) / 2;
  return made<S>(heads > 0 && exact >= 1 && distance > exact, make,
                 truths::relative_position_bias({bidirectional, buckets, distance}),
                 {.uses_mask = true, .mask_heads = heads});
}

template <class S>
Drawn<S> draw_dynamic_position_bias(FuzzedDataProvider& input) {
  const Index dim = draw_size(input, 9), heads = draw_size(input, 4), depth = draw_size(input, 3);
  const bool norm = input.ConsumeBool();
  const Divisor by = draw_divisor(input);
  const auto make = [&] {
    return DynamicPositionBias<S>(
        {.dim = dim, .n_heads = heads, .depth = depth, .norm = norm, .divide = by.divide, .learned_div = by.learned},
        1);
  };
  return made<S>(dim > 0 && heads > 0 && depth > 0 && by.right(), make,
                 truths::dynamic_position_bias(static_cast<int>(depth), norm, by.divide),
                 {.uses_mask = true, .mask_heads = heads, .squares = true});
}

/// One module for each hook.
template <class S>
Drawn<S> draw_composed(FuzzedDataProvider& input) {
  const Index dim = 2 * input.ConsumeIntegralInRange<Index>(1, 4),
              head_dim = 2 * input.ConsumeIntegralInRange<Index>(1, 4);
  const Index heads = input.ConsumeIntegralInRange<Index>(1, 4);
  const auto make = [&] {
    return posbias::Compose(posbias::Sinusoidal<S>({.dim = dim}), posbias::Rotary<S>({.head_dim = head_dim}),
                            ALiBi<S>({.n_heads = heads}));
  };
  Truth truth = truths::sinusoidal(static_cast<int>(dim), false, 1);
  const Truth rotary = truths::rotary({.H = static_cast<int>(head_dim), .rotated = static_cast<int>(head_dim)}, 1);
  truth.change_query = rotary.change_query;
  truth.change_key = rotary.change_key;
  truth.bias = truths::alibi({static_cast<int>(heads), static_cast<int>(heads), false}, 1).bias;
  return made<S>(
      true, make, std::move(truth),
      {.uses_x = true, .uses_qkv = true, .uses_mask = true, .dim = dim, .qkv_features = head_dim, .mask_heads = heads});
}

template Drawn<float> draw_alibi(FuzzedDataProvider&);
template Drawn<double> draw_alibi(FuzzedDataProvider&);
template Drawn<float> draw_relative_position_bias(FuzzedDataProvider&);
template Drawn<double> draw_relative_position_bias(FuzzedDataProvider&);
template Drawn<float> draw_dynamic_position_bias(FuzzedDataProvider&);
template Drawn<double> draw_dynamic_position_bias(FuzzedDataProvider&);
template Drawn<float> draw_composed(FuzzedDataProvider&);
template Drawn<double> draw_composed(FuzzedDataProvider&);

}  // namespace posbias_fuzz
