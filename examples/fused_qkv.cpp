// SPDX-License-Identifier: MIT
/// \file
/// A fused projection: q, k and v are ranges of one buffer (B, L, NH + 2·NHk, H), rotated and attended where they are. Four
/// heads of queries share one of keys. Bit for bit the result of three tensors, of which nothing is copied.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <posbias/posbias.hpp>

namespace {

using posbias::Index;
using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;  // (B, L, heads, H)
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr Index B = 2, L = 70, NH = 8, NHk = 2, H = 32, features = 64;

/// q or k or v as a tensor of its own, to compare with.
Heads copy_of(const posbias::StridedMap<float, 4>& part) {
  Heads result(part.dimensions());
  for (Index b = 0; b < part.dimension(0); ++b)
    for (Index l = 0; l < part.dimension(1); ++l)
      std::copy_n(&part(b, l, 0, 0), part.dimension(2) * H, &result(b, l, 0, 0));
  return result;
}

bool same_bits(const Heads& a, const Heads& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

}  // namespace

int main() {
  const Matrix x = Matrix::Random(B * L, features);
  const Matrix weight = Matrix::Random(features, (NH + 2 * NHk) * H) / std::sqrt(static_cast<float>(features));
  Heads qkv(B, L, NH + 2 * NHk, H);
  Eigen::Map<Matrix>(qkv.data(), B * L, (NH + 2 * NHk) * H).noalias() = x * weight;  // one product projects all

  const auto q = posbias::narrow(qkv, 2, 0, NH);
  const auto k = posbias::narrow(qkv, 2, NH, NHk);
  const auto v = posbias::narrow(qkv, 2, NH + NHk, NHk);
  Heads own_q = copy_of(q), own_k = copy_of(k), own_v = copy_of(v), own_out(B, L, NH, H);

  const posbias::Rotary<float> rotary({.head_dim = H, .pairing = posbias::RotaryPairing::half});
  Heads out(B, L, NH, H);
  rotary.mod_qkv(q, k, v);  // in the buffer
  posbias::attention(out, q, k, v, posbias::Identity(), {.causal = true});

  rotary.mod_qkv(own_q, own_k, own_v);
  posbias::attention(own_out, own_q, own_k, own_v, posbias::Identity(), {.causal = true});
  const bool rotated = same_bits(copy_of(q), own_q) && same_bits(copy_of(k), own_k) && same_bits(copy_of(v), own_v);
  const bool attended = same_bits(out, own_out);
  std::printf("in one buffer: the same bits as three tensors, rotated: %s, attended: %s\n", rotated ? "yes" : "no",
              attended ? "yes" : "no");
  return rotated && attended ? 0 : 1;
}
