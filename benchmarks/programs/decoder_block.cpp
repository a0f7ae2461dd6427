// SPDX-License-Identifier: MIT
/// \file
/// A decoder block as in Llama: rotary positions, four query heads per key head, a cache of fixed capacity. Decodes token
/// by token and checks that the result has the same bits as one pass over the whole sequence.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <posbias/posbias.hpp>

#include "layers.hpp"

namespace {

using namespace programs;
constexpr Index n_heads = 8, n_key_heads = 2, head_dim = 16;
constexpr Index dim = n_heads * head_dim, key_dim = n_key_heads * head_dim, hidden = 3 * dim, capacity = 64;

/// Rotated keys, and values, of the tokens so far; the slots after them are unused.
struct Cache {
  Heads k{capacity, n_key_heads, head_dim}, v{capacity, n_key_heads, head_dim};
  Index length = 0;

  void append(const Heads& new_k, const Heads& new_v) {
    std::copy_n(new_k.data(), new_k.size(), &k(length, 0, 0));
    std::copy_n(new_v.data(), new_v.size(), &v(length, 0, 0));
    length += new_k.dimension(0);
  }
};

struct Block {
  posbias::Rotary<float> rotary{{.head_dim = head_dim, .pairing = posbias::RotaryPairing::half}};
  Tokens to_q = weight(dim, dim), to_k = weight(dim, key_dim), to_v = weight(dim, key_dim);
  Tokens to_out = weight(dim, dim), gate = weight(dim, hidden), up = weight(dim, hidden), down = weight(hidden, dim);

  [[nodiscard]] Tokens attend(const Tokens& x, Cache& cache) const {
    const Index L = x.dimension(0);
    const auto here = posbias::Positions::range(cache.length);
    Heads q = linear(x, to_q, Heads(L, n_heads, head_dim)), out(q.dimensions());
    Heads k = linear(x, to_k, Heads(L, n_key_heads, head_dim)), v = linear(x, to_v, Heads(k.dimensions()));
    rotary.mod_qkv(q, k, v, {.q_k = here});
    cache.append(k, v);
    posbias::attention(out, q, cache.k, cache.v, posbias::Identity(), {.causal = true, .at = {.q = here}});
    return linear(out, to_out, Tokens(L, dim));
  }

  [[nodiscard]] Tokens feed_forward(const Tokens& x) const {
    const Index L = x.dimension(0);
    Tokens inner = linear(x, up, Tokens(L, hidden));
    const Tokens gates = linear(x, gate, Tokens(L, hidden));
    for (Index i = 0; i < inner.size(); ++i) inner.data()[i] *= gates.data()[i] / (1 + std::exp(-gates.data()[i]));
    return linear(inner, down, Tokens(L, dim));
  }

  [[nodiscard]] Tokens operator()(Tokens x, Cache& cache) const {
    add(x, attend(rms_norm(x), cache));
    add(x, feed_forward(rms_norm(x)));
    return x;
  }
};

}  // namespace

int main() {
  const Block block;
  const Tokens tokens = random(Tokens(50, dim), 1);
  Cache whole, growing;
  const Tokens expected = block(tokens, whole);
  Index equal = 0;
  for (Index i = 0; i < 50; ++i) {
    Tokens token(1, dim);
    std::copy_n(&tokens(i, 0), dim, token.data());
    const Tokens result = block(token, growing);
    equal += std::equal(result.data(), result.data() + dim, &expected(i, 0));
  }
  std::printf("decoder block: %td of 50 tokens are the same, decoded one by one and all at once\n", equal);
  return equal == 50 ? 0 : 1;
}
