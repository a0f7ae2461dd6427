// SPDX-License-Identifier: MIT
/// \file
/// A small T5: an encoder and a decoder, each with one table of relative positions that its layers share, and cross
/// attention, which knows no positions. Checks which outputs depend on which tokens.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <posbias/posbias.hpp>

#include "layers.hpp"

namespace {

using namespace programs;
constexpr Index n_layers = 2, n_heads = 4, head_dim = 16, dim = n_heads * head_dim, hidden = 4 * dim;

struct Attention {
  Tokens to_q = weight(dim, dim), to_k = weight(dim, dim), to_v = weight(dim, dim), to_out = weight(dim, dim);

  /// Of x to `source`, which may be x.
  template <class Bias>
  [[nodiscard]] Tokens operator()(const Tokens& x, const Tokens& source, const Bias& bias, bool causal) const {
    const Index L1 = x.dimension(0), L2 = source.dimension(0);
    const Heads q = linear(x, to_q, Heads(L1, n_heads, head_dim)),
                k = linear(source, to_k, Heads(L2, n_heads, head_dim)),
                v = linear(source, to_v, Heads(L2, n_heads, head_dim));
    Heads out(q.dimensions());
    posbias::attention(out, q, k, v, bias, {.causal = causal, .scale = 1});  // T5 does not scale
    return linear(out, to_out, Tokens(L1, dim));
  }
};

struct FeedForward {
  Tokens up = weight(dim, hidden), down = weight(hidden, dim);

  [[nodiscard]] Tokens operator()(const Tokens& x) const {
    Tokens inner = linear(x, up, Tokens(x.dimension(0), hidden));
    for (Index i = 0; i < inner.size(); ++i) inner.data()[i] = std::fmax(inner.data()[i], 0.0F);
    return linear(inner, down, Tokens(x.dimensions()));
  }
};

struct Encoder {
  struct Layer {
    Attention self;
    FeedForward feed_forward;
  };
  posbias::RelativePositionBias<float> bias{{.bidirectional = true, .n_heads = n_heads}, /*seed=*/1};
  std::array<Layer, n_layers> layers;

  [[nodiscard]] Tokens operator()(Tokens x) const {
    for (const Layer& layer : layers) {
      const Tokens normed = rms_norm(x);
      add(x, layer.self(normed, normed, bias, false));
      add(x, layer.feed_forward(rms_norm(x)));
    }
    return rms_norm(x);
  }
};

struct Decoder {
  struct Layer {
    Attention self, cross;
    FeedForward feed_forward;
  };
  posbias::RelativePositionBias<float> bias{{.bidirectional = false, .n_heads = n_heads}, /*seed=*/2};
  std::array<Layer, n_layers> layers;

  [[nodiscard]] Tokens operator()(Tokens x, const Tokens& encoded) const {
    for (const Layer& layer : layers) {
      const Tokens normed = rms_norm(x);
      add(x, layer.self(normed, normed, bias, true));
      add(x, layer.cross(rms_norm(x), encoded, posbias::Identity(), false));
      add(x, layer.feed_forward(rms_norm(x)));
    }
    return rms_norm(x);
  }
};

/// Whether the tokens first .. last - 1 are the same.
bool same(const Tokens& a, const Tokens& b, Index first, Index last) {
  return std::equal(a.data() + first * dim, a.data() + last * dim, b.data() + first * dim);
}

}  // namespace

int main() {
  const Encoder encoder;
  const Decoder decoder;
  const Tokens source = random(Tokens(29, dim), 1), target = random(Tokens(23, dim), 1);
  Tokens other_source = source, other_target = target;
  other_source(28, 0) += 1;
  other_target(22, 0) += 1;

  const Tokens encoded = encoder(source), other_encoded = encoder(other_source);
  const Tokens decoded = decoder(target, encoded), other_decoded = decoder(other_target, encoded);
  const bool causal = same(decoded, other_decoded, 0, 22) && !same(decoded, other_decoded, 22, 23);
  const bool bidirectional = !same(encoded, other_encoded, 0, 1);
  const bool crosses = !same(decoded, decoder(target, other_encoded), 0, 1);
  std::printf("T5: the decoder's first token %s its last, and %s the source; the encoder's first token %s its last\n",
              causal ? "does not see" : "sees", crosses ? "sees" : "does not see",
              bidirectional ? "sees" : "does not see");
  return causal && crosses && bidirectional ? 0 : 1;
}
