// SPDX-License-Identifier: MIT
/// \file
/// A stranger's first program. Every project beside it compiles it, in another way; it checks what it prints.
#include <cmath>
#include <cstdio>
#include <posbias/posbias.hpp>

int main() {
  const posbias::ALiBi<float> alibi({.n_heads = 8});
  const Eigen::Tensor<float, 3, Eigen::RowMajor> bias = alibi.bias(5, 7);

  const posbias::Rotary<double> rotary({.head_dim = 2});
  Eigen::Tensor<double, 3, Eigen::RowMajor> q(1, 1, 2), k(1, 1, 2), v(1, 1, 2);
  q.setValues({{{1, 0}}});
  k.setValues({{{0, 1}}});
  v.setZero();
  rotary.mod_qkv(q, k, v, {.q_k = posbias::Positions::range(100)});

  Eigen::Tensor<float, 3> wrong(7, 5, 5);
  bool refused = false;
  try {
    alibi.mod_mask(wrong);
  } catch (const posbias::Error& error) {
    refused = true;
    std::printf("%s\n", error.what());
  }

  std::printf("posbias %d.%d.%d: bias %g, turned to %.3f, %.3f\n", POSBIAS_VERSION_MAJOR, POSBIAS_VERSION_MINOR,
              POSBIAS_VERSION_PATCH, static_cast<double>(bias(1, 4, 0)), q(0, 0, 0), q(0, 0, 1));
  // The second of eight heads has the slope 1/4.
  const bool right = bias(1, 4, 0) == -1 && std::abs(q(0, 0, 0) - std::cos(100.)) < 1e-14 &&
                     std::abs(k(0, 0, 0) + std::sin(100.)) < 1e-14;
  return refused && right ? 0 : 1;
}
