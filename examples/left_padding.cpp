// SPDX-License-Identifier: MIT
/// \file
/// A batch of sequences of different lengths, padded on the left, as decoders have it: each sequence counts from 0 behind
/// its padding, which a mask hides. Each gets what it gets alone, up to rounding: sums run in another order.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <posbias/posbias.hpp>

namespace {

using posbias::Index;
using Tokens = Eigen::Tensor<float, 3, Eigen::RowMajor>;  // (B, L, NH·H)
using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;   // (B, L, NH, H)
constexpr Index lengths[] = {23, 40, 9}, B = 3, L = 40, NH = 4, H = 32;

}  // namespace

int main() {
  const posbias::Compose position(posbias::Sinusoidal<float>({.dim = NH * H}), posbias::ALiBi<float>({.n_heads = NH}));
  // Attention of embedded tokens to each other; projections would be the same for all.
  const auto attend = [&](const Tokens& x, const posbias::AttentionOptions& options) {
    const Eigen::TensorMap<const Heads> heads(x.data(), x.dimension(0), x.dimension(1), NH, H);
    Heads out(heads.dimensions());
    posbias::attention(out, heads, heads, heads, position, options);
    return out;
  };
  Tokens x(B, L, NH * H);
  x.setRandom();

  Eigen::Tensor<std::int64_t, 2, Eigen::RowMajor> ids(B, L);
  Eigen::Tensor<bool, 4, Eigen::RowMajor> is_token(B, 1, 1, L);  // of keys, for all heads and queries
  for (Index b = 0; b < B; ++b)
    for (Index i = 0; i < L; ++i) {
      ids(b, i) = i - (L - lengths[b]);  // padding is before 0
      is_token(b, 0, 0, i) = ids(b, i) >= 0;
    }
  Tokens batch = x;
  position.mod_x(batch, {.pos = ids});
  const Heads padded = attend(batch, {.causal = true, .at = {.q_k = ids}, .mask = is_token});

  bool right = true;
  for (Index b = 0; b < B; ++b) {
    const Index length = lengths[b], padding = L - length;
    Tokens sequence = x.slice(Eigen::array<Index, 3>{b, padding, 0}, Eigen::array<Index, 3>{1, length, NH * H});
    position.mod_x(sequence);
    const Heads alone = attend(sequence, {.causal = true});
    const Eigen::TensorMap<const Heads> in_batch(&padded(b, padding, 0, 0), 1, length, NH, H);
    const Eigen::Tensor<float, 0, Eigen::RowMajor> largest = (alone - in_batch).abs().maximum<Eigen::PropagateNaN>();
    const float epsilons = largest() / std::numeric_limits<float>::epsilon();
    std::printf("%td tokens behind %td of padding: at most %.1f epsilon from the sequence alone\n", length, padding,
                epsilons);
    const bool zeros = std::all_of(&padded(b, 0, 0, 0), in_batch.data(), [](float value) { return value == 0; });
    right = right && epsilons <= 8 && zeros;  // what is averaged lies between -1 and 2; padding sees no key
  }
  return right ? 0 : 1;
}
