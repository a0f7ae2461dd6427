// SPDX-License-Identifier: MIT
/// \file
/// Rotary on q and k, ALiBi on the mask, of one attention with a cache: a query at position 100, 101 keys.
#include <iostream>
#include <posbias/posbias.hpp>

int main() {
  using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;  // (B, L, NH, H)
  Heads q(2, 1, 8, 64), k(2, 101, 8, 64), v(2, 101, 8, 64);
  q.setConstant(0.5F);
  k.setConstant(0.25F);
  v.setConstant(1.0F);

  const posbias::Rotary<float> rotary({.head_dim = 64});
  const posbias::ALiBi<float> alibi({.n_heads = 8});
  const posbias::PairPositions at{.q = posbias::Positions::range(100)};

  rotary.mod_qkv(q, k, v, at);                     // rotates q and k in place
  const auto mask = alibi.make_mask(q, k, v, at);  // (B, NH, L1, L2), to be added to q·kᵀ / 8

  std::cout << "q(0, 0, 0, 0..1) = " << q(0, 0, 0, 0) << ' ' << q(0, 0, 0, 1) << '\n'
            << "mask(0, 0, 0, 98..100) = " << mask(0, 0, 0, 98) << ' ' << mask(0, 0, 0, 99) << ' ' << mask(0, 0, 0, 100)
            << '\n';

  // The key at the query's own position was rotated alike, and the first head of 8 pays 1/2 a token of distance.
  const bool alike = 2 * k(0, 100, 0, 0) == q(0, 0, 0, 0) && 2 * k(0, 100, 0, 1) == q(0, 0, 0, 1);
  return alike && mask(0, 0, 0, 98) == -1 && mask(0, 0, 0, 99) == -0.5F && mask(0, 0, 0, 100) == 0 ? 0 : 1;
}
