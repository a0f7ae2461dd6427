// SPDX-License-Identifier: MIT
/// \file
/// Several sequences packed in one row: positions count each from 0, a mask keeps them apart. Each gets what it gets
/// alone, up to rounding: sums run in another order.
#include <cstdint>
#include <cstdio>
#include <limits>
#include <posbias/posbias.hpp>

namespace {

using posbias::Index;
using Tokens = Eigen::Tensor<float, 2, Eigen::RowMajor>;  // (L, NH·H): leading dimensions may be none
using Heads = Eigen::Tensor<float, 3, Eigen::RowMajor>;   // (L, NH, H)
constexpr Index lengths[] = {30, 50, 20}, L = 100, NH = 4, H = 32;

/// Attention of embedded tokens to each other; projections would be the same for all.
Heads attend(const Tokens& x, const auto& position, const posbias::AttentionOptions& options) {
  const Eigen::TensorMap<const Heads> heads(x.data(), x.dimension(0), NH, H);
  Heads out(heads.dimensions());
  posbias::attention(out, heads, heads, heads, position, options);
  return out;
}

}  // namespace

int main() {
  const posbias::Compose position(posbias::Sinusoidal<float>({.dim = NH * H}),
                                  posbias::RelativePositionBias<float>({.bidirectional = false, .n_heads = NH}));
  Tokens x(L, NH * H);
  x.setRandom();

  Eigen::Tensor<std::int64_t, 1> ids(L);                   // 0 .. 29, 0 .. 49, 0 .. 19
  Eigen::Tensor<bool, 2, Eigen::RowMajor> together(L, L);  // true where query and key are of one sequence
  together.setConstant(false);
  Index first = 0;
  for (const Index length : lengths) {
    for (Index i = 0; i < length; ++i) {
      ids(first + i) = i;
      for (Index j = 0; j < length; ++j) together(first + i, first + j) = true;
    }
    first += length;
  }
  // Within a sequence, which is all the mask lets see, T5 and causal would find the same in 0 .. 99.
  Tokens row = x;
  position.mod_x(row, {.pos = ids});
  const Heads packed = attend(row, position, {.causal = true, .at = {.q_k = ids}, .mask = together});

  bool right = true;
  first = 0;
  for (const Index length : lengths) {
    Tokens sequence = x.slice(Eigen::array<Index, 2>{first, 0}, Eigen::array<Index, 2>{length, NH * H});
    position.mod_x(sequence);
    const Heads alone = attend(sequence, position, {.causal = true});
    const Eigen::TensorMap<const Heads> in_row(&packed(first, 0, 0), length, NH, H);
    const Eigen::Tensor<float, 0, Eigen::RowMajor> largest = (alone - in_row).abs().maximum<Eigen::PropagateNaN>();
    const float epsilons = largest() / std::numeric_limits<float>::epsilon();
    std::printf("%td tokens from %td on: at most %.1f epsilon from the sequence alone\n", length, first, epsilons);
    right = right && epsilons <= 8;  // what is averaged lies between -1 and 2
    first += length;
  }
  return right ? 0 : 1;
}
