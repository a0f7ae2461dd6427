// SPDX-License-Identifier: MIT
/// \file
/// Biases that look at queries and keys, of random options, and modules composed.
#include "fuzz/modules/drawn.hpp"
#include "posbias/bias/alibi.hpp"
#include "posbias/bias/disentangled_bias.hpp"
#include "posbias/bias/transformer_xl.hpp"
#include "posbias/core/compose.hpp"
#include "posbias/embedding/sinusoidal.hpp"
#include "posbias/rotation/rotary.hpp"

namespace posbias_fuzz {

using posbias::DisentangledBias, posbias::DisentangledIndex, posbias::TransformerXL;

template <class S>
Drawn<S> draw_transformer_xl(FuzzedDataProvider& input) {
  const Index heads = draw_size(input, 4), features = input.ConsumeIntegralInRange<Index>(0, 8);
  const Index dim = heads > 0 ? heads * features + (one_in(input, 16) ? 2 : 0) : 8;
  const bool half = input.ConsumeBool(), bio_attention = input.ConsumeBool(), linear_bias = input.ConsumeBool();
  const Divisor by = draw_divisor(input);
  const auto make = [&] {
    return TransformerXL<S>({.dim = dim,
                             .n_heads = heads,
                             .form = bio_attention ? posbias::XLForm::bio_attention : posbias::XLForm::paper,
                             .layout = half ? posbias::SinusoidLayout::half : posbias::SinusoidLayout::interleaved,
                             .linear_bias = linear_bias,
                             .divide = by.divide,
                             .learned_div = by.learned},
                            1);
  };
  const bool right = heads > 0 && dim >= 2 && dim % 2 == 0 && dim % heads == 0 && by.right();
  const Index head_dim = right ? dim / heads : 0;
  return made<S>(right, make,
                 reference_models::transformer_xl(
                     {.H = static_cast<int>(head_dim), .half = half, .bio_attention = bio_attention}, by.divide),
                 {.uses_qkv = true,
                  .uses_mask = true,
                  .qkv_heads = heads,
                  .qkv_features = head_dim,
                  .mask_heads = heads,
                  .mask_features = head_dim,
                  .qkv_has_positions = false,
                  .changes_k = false});
}

template <class S>
Drawn<S> draw_disentangled_bias(FuzzedDataProvider& input) {
  const Index heads = draw_size(input, 4), head_dim = draw_size(input, 8), rows = draw_size(input, 12);
  const Index size = input.ConsumeIntegralInRange<Index>(-1, 5);
  const bool same = input.ConsumeBool();
  const auto index = input.PickValueInArray(
      {DisentangledIndex::key_minus_query, DisentangledIndex::query_minus_key, DisentangledIndex::paper});
  const int terms = input.ConsumeIntegralInRange(0, 4);
  const posbias::AttentionTerms modes[] = {
      {posbias::c2p, posbias::p2c}, {posbias::c2p}, {posbias::p2c}, {}, {posbias::c2c, posbias::c2p}};
  const double scale = input.PickValueInArray({0.75, 1.0, -2.0, 0.0, std::numeric_limits<double>::quiet_NaN()});
  const auto make = [&] {
    return DisentangledBias<S>({.n_heads = heads,
                                .head_dim = head_dim,
                                .n_positions = rows,
                                .position_size = size,
                                .same_positional_key_query_proj = same,
                                .mode = modes[terms],
                                .scale = scale,
                                .index = index},
                               1);
  };
  const reference_models::DisentangledHeads shape{.n_positions = static_cast<int>(rows),
                                                  .scale = scale,
                                                  .c2p = terms != 2,
                                                  .p2c = terms != 1,
                                                  .c2p_sign = index == DisentangledIndex::key_minus_query ? -1 : 1,
                                                  .p2c_sign = index == DisentangledIndex::query_minus_key ? 1 : -1};
  return made<S>(heads > 0 && head_dim > 0 && rows > 0 && size >= 0 && terms < 3 && std::isfinite(scale), make,
                 reference_models::disentangled_bias(shape),
                 {.uses_mask = true, .mask_heads = heads, .mask_features = head_dim});
}

/// One module for each hook.
template <class S>
Drawn<S> draw_composed(FuzzedDataProvider& input) {
  const Index dim = 2 * input.ConsumeIntegralInRange<Index>(1, 4),
              head_dim = 2 * input.ConsumeIntegralInRange<Index>(1, 4);
  const Index heads = input.ConsumeIntegralInRange<Index>(1, 4);
  const auto make = [&] {
    return posbias::Compose(posbias::Sinusoidal<S>({.dim = dim}), posbias::Rotary<S>({.head_dim = head_dim}),
                            posbias::ALiBi<S>({.n_heads = heads}));
  };
  ReferenceModel reference_model = reference_models::sinusoidal(static_cast<int>(dim), false, 1);
  const ReferenceModel rotary =
      reference_models::rotary({.H = static_cast<int>(head_dim), .rotated = static_cast<int>(head_dim)}, 1);
  reference_model.change_query = rotary.change_query;
  reference_model.change_key = rotary.change_key;
  reference_model.bias = reference_models::alibi({static_cast<int>(heads), static_cast<int>(heads), false}, 1).bias;
  return made<S>(
      true, make, std::move(reference_model),
      {.uses_x = true, .uses_qkv = true, .uses_mask = true, .dim = dim, .qkv_features = head_dim, .mask_heads = heads});
}

template <class S>
std::vector<Draw<S>> content_biases() {
  return {{TransformerXL<S>::name, draw_transformer_xl<S>},
          {DisentangledBias<S>::name, draw_disentangled_bias<S>},
          {"Compose", draw_composed<S>}};
}
template std::vector<Draw<float>> content_biases();
template std::vector<Draw<double>> content_biases();

}  // namespace posbias_fuzz
