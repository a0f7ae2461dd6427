// SPDX-License-Identifier: MIT
/// \file
/// Decoding a batch of sequences of different lengths over preallocated bfloat16 caches (B, capacity, NHk, H), with queries
/// of float. Each step fills a slot of each sequence and attends to the filled part of the caches. Slots that a sequence
/// has not filled are at positions ahead of its query, so causal hides them, whatever they hold. Same bits as one pass.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <posbias/posbias.hpp>

namespace {

using Eigen::bfloat16;
using posbias::Index;
using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;     // (B, L, heads, H)
using Cache = Eigen::Tensor<bfloat16, 4, Eigen::RowMajor>;  // (B, capacity, NHk, H)
constexpr Index B = 3, capacity = 100, NH = 8, NHk = 2, H = 32, steps = 60;
constexpr Index prompts[B] = {40, 1, 17};  // tokens of each sequence before the first step

/// Writes a token's keys or values to a slot of a sequence, rounded.
void put(Cache& cache, Index sequence, Index slot, const float* token) {
  std::transform(token, token + NHk * H, &cache(sequence, slot, 0, 0),
                 [](float value) { return static_cast<bfloat16>(value); });
}

}  // namespace

int main() {
  const posbias::Rotary<float> rotary({.head_dim = H});
  Heads q(B, capacity, NH, H), k(B, capacity, NHk, H), v(B, capacity, NHk, H), whole(B, capacity, NH, H);
  q.setRandom(), k.setRandom(), v.setRandom();

  // All tokens in one pass.
  Heads rotated_q = q, rotated_k = k;
  rotary.mod_qkv(rotated_q, rotated_k, v);
  const Cache all_keys = rotated_k.cast<bfloat16>(), all_values = v.cast<bfloat16>();
  posbias::attention(whole, rotated_q, all_keys, all_values, posbias::Identity(), {.causal = true});

  Cache keys(B, capacity, NHk, H), values(B, capacity, NHk, H);
  keys.setConstant(std::numeric_limits<bfloat16>::quiet_NaN());  // free slots have no influence
  values.setConstant(std::numeric_limits<bfloat16>::quiet_NaN());
  for (Index b = 0; b < B; ++b)
    for (Index slot = 0; slot < prompts[b]; ++slot) {
      put(keys, b, slot, &rotated_k(b, slot, 0, 0));
      put(values, b, slot, &v(b, slot, 0, 0));
    }

  Index equal = 0;
  for (Index step = 0; step < steps; ++step) {
    Eigen::Tensor<std::int64_t, 2, Eigen::RowMajor> slots(B, 1);  // a token's slot is its position
    Heads new_q(B, 1, NH, H), new_k(B, 1, NHk, H), new_v(B, 1, NHk, H), out(B, 1, NH, H);
    for (Index b = 0; b < B; ++b) {
      const Index slot = slots(b, 0) = prompts[b] + step;
      std::copy_n(&q(b, slot, 0, 0), NH * H, &new_q(b, 0, 0, 0));
      std::copy_n(&k(b, slot, 0, 0), NHk * H, &new_k(b, 0, 0, 0));
      std::copy_n(&v(b, slot, 0, 0), NHk * H, &new_v(b, 0, 0, 0));
    }
    rotary.mod_qkv(new_q, new_k, new_v, {.q_k = slots});
    for (Index b = 0; b < B; ++b) {
      put(keys, b, slots(b, 0), &new_k(b, 0, 0, 0));
      put(values, b, slots(b, 0), &new_v(b, 0, 0, 0));
    }
    const Index filled = *std::max_element(slots.data(), slots.data() + B) + 1;  // of the longest
    posbias::attention(out, new_q, posbias::narrow(keys, 1, 0, filled), posbias::narrow(values, 1, 0, filled),
                       posbias::Identity(), {.causal = true, .at = {.q = slots}});
    for (Index b = 0; b < B; ++b)
      if (std::memcmp(&out(b, 0, 0, 0), &whole(b, slots(b, 0), 0, 0), NH * H * sizeof(float)) == 0) ++equal;
  }
  std::printf("%td of %td tokens have the same bits, decoded step by step and in one pass\n", equal, B * steps);
  return equal == B * steps ? 0 : 1;
}
