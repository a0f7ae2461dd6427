// SPDX-License-Identifier: MIT
/// \file
/// Biases of relative positions alone, of random options.
#include "fuzz/modules/drawn.hpp"
#include "posbias/bias/alibi.hpp"
#include "posbias/bias/dynamic_position_bias.hpp"
#include "posbias/bias/relative_position_bias.hpp"

namespace posbias_fuzz {

using posbias::ALiBi, posbias::DynamicPositionBias, posbias::RelativePositionBias;

template <class S>
Drawn<S> draw_alibi(FuzzedDataProvider& input) {
  const Index heads = draw_size(input, 6);
  const bool all = input.ConsumeBool(), asymmetric = input.ConsumeBool();
  const Index use = all ? -1 : input.ConsumeIntegralInRange<Index>(-2, 7);
  const Index used = use == -1 ? heads : use;
  const Divisor by = draw_divisor(input);
  const auto make = [&] {
    return ALiBi<S>({.n_heads = heads,
                     .use_n_heads = use,
                     .asymmetric = asymmetric,
                     .divide = by.divide,
                     .learned_div = by.learned});
  };
  const bool right = heads > 0 && used >= 1 && used <= heads && by.right();
  const reference_models::ALiBiHeads shape{static_cast<int>(heads), static_cast<int>(used), asymmetric};
  return made<S>(right, make, right ? reference_models::alibi(shape, by.divide) : ReferenceModel{},
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
                 reference_models::relative_position_bias({bidirectional, buckets, distance}),
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
                 reference_models::dynamic_position_bias(static_cast<int>(depth), norm, by.divide),
                 {.uses_mask = true, .mask_heads = heads, .squares = true});
}

template <class S>
std::vector<Draw<S>> relative_biases() {
  return {{ALiBi<S>::name, draw_alibi<S>},
          {RelativePositionBias<S>::name, draw_relative_position_bias<S>},
          {DynamicPositionBias<S>::name, draw_dynamic_position_bias<S>}};
}
template std::vector<Draw<float>> relative_biases();
template std::vector<Draw<double>> relative_biases();

}  // namespace posbias_fuzz
