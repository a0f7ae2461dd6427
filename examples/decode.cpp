// SPDX-License-Identifier: MIT
/// \file
/// Decoding with a growing cache: token by token, the same bits as one pass over the whole sequence. The cache holds keys
/// as `Rotary` turned them, so each is turned once, when its token comes.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <posbias/posbias.hpp>
#include <vector>

namespace {

using posbias::Index;
using Heads = Eigen::Tensor<float, 3, Eigen::RowMajor>;  // (L, NH, H): leading dimensions may be none
constexpr Index L = 300, NH = 2, H = 16;

/// One token of a sequence, as q, k and v of a decoder's step.
Heads token_of(const Heads& sequence, Index token) {
  Heads result(1, NH, H);
  std::copy_n(&sequence(token, 0, 0), NH * H, result.data());
  return result;
}

/// Keys or values of all tokens so far.
class Cache {
 public:
  void append(const Heads& token) { values_.insert(values_.end(), token.data(), token.data() + token.size()); }
  [[nodiscard]] Eigen::TensorMap<const Heads> all() const {
    return {values_.data(), std::ssize(values_) / (NH * H), NH, H};
  }

 private:
  std::vector<float> values_;
};

}  // namespace

int main() {
  const posbias::Rotary<float> rotary({.head_dim = H});
  const posbias::ALiBi<float> alibi({.n_heads = NH});
  Heads q(L, NH, H), k(L, NH, H), v(L, NH, H), whole(L, NH, H);
  q.setRandom(), k.setRandom(), v.setRandom();
  posbias::attention(whole, q, k, v, posbias::Compose(rotary, alibi), {.causal = true});

  Cache keys, values;
  Index equal = 0;
  for (Index token = 0; token < L; ++token) {
    const auto here = posbias::Positions::range(token);
    Heads new_q = token_of(q, token), new_k = token_of(k, token), new_v = token_of(v, token), out(1, NH, H);
    rotary.mod_qkv(new_q, new_k, new_v, {.q_k = here});
    keys.append(new_k);
    values.append(new_v);
    posbias::attention(out, new_q, keys.all(), values.all(), alibi, {.at = {.q = here}});  // keys are at 0 .. token
    if (std::memcmp(out.data(), &whole(token, 0, 0), NH * H * sizeof(float)) == 0) ++equal;
  }
  std::printf("%td of %td tokens have the same bits, decoded one by one and all at once\n", equal, L);
  return equal == L ? 0 : 1;
}
