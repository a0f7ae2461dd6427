// SPDX-License-Identifier: MIT
/// \file
/// One long context on several processes: mpirun -n 4 context_parallel. Keys and values go round in a ring (Liu et al.,
/// 2023, arXiv 2310.01889), and each process merges what its queries get of every share by a running softmax. What a share
/// is, positions say, to Rotary, ALiBi and causal attention alike.
#include <mpi.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <posbias/posbias.hpp>

namespace {

using posbias::Positions;
using Heads = Eigen::Tensor<float, 3, Eigen::RowMajor>;  // (L, NH, H)
using Sums = Eigen::Tensor<float, 2, Eigen::RowMajor>;   // (NH, L): log_sum_exp
constexpr int share = 60, NH = 2, H = 16;                // tokens of a process

/// Some numbers from -1 to 1 for tokens from `first` on, the same whoever makes them.
Heads tokens(int first, int count, float seed) {
  Heads result(count, NH, H);
  for (int i = 0; i < result.size(); ++i) result.data()[i] = std::sin(seed * static_cast<float>(first * NH * H + i));
  return result;
}

/// Merges what queries got of other keys. Their own share comes first, of which each sees itself, so sums are finite.
void merge(Heads& out, Sums& sums, const Heads& other, const Sums& other_sums) {
  for (int i = 0; i < out.dimension(0); ++i)
    for (int h = 0; h < NH; ++h) {
      const float a = sums(h, i), b = other_sums(h, i);
      sums(h, i) = std::max(a, b) + std::log1p(std::exp(-std::abs(a - b)));
      const float kept = std::exp(a - sums(h, i)), added = std::exp(b - sums(h, i));
      for (int d = 0; d < H; ++d) out(i, h, d) = kept * out(i, h, d) + added * other(i, h, d);
    }
}

/// Attention of n queries, the share of one process, to the shares of all.
Heads attend(bool causal, int n, int rank, int ranks) {
  const Positions here = Positions::range(rank * n);
  Heads q = tokens(rank * n, n, 0.3F), k = tokens(rank * n, n, 0.7F), v = tokens(rank * n, n, 1.1F);
  posbias::Rotary<float>({.head_dim = H}).mod_qkv(q, k, v, {.q_k = here});  // keys travel as rotated
  const posbias::ALiBi<float> alibi({.n_heads = NH});
  Heads out = q.constant(0), other = q;
  Sums sums(NH, n), other_sums(NH, n);
  sums.setConstant(-std::numeric_limits<float>::infinity());
  for (int turn = 0; turn < ranks; ++turn) {
    const Positions there = Positions::range((rank + turn) % ranks * n);
    posbias::attention(other, q, k, v, alibi, {.causal = causal, .at = {.q = here, .k = there}}, other_sums);
    merge(out, sums, other, other_sums);
    const int next = (rank + 1) % ranks, last = (rank + ranks - 1) % ranks;
    for (Heads* x : {&k, &v})
      MPI_Sendrecv_replace(x->data(), n * NH * H, MPI_FLOAT, last, 0, next, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  bool right = true;
  for (const bool causal : {false, true}) {
    const Heads mine = attend(causal, share, rank, ranks);
    Heads all(ranks * share, NH, H);
    MPI_Gather(mine.data(), share * NH * H, MPI_FLOAT, all.data(), share * NH * H, MPI_FLOAT, 0, MPI_COMM_WORLD);
    if (rank != 0) continue;
    const Eigen::Tensor<float, 0, Eigen::RowMajor> largest =
        (all - attend(causal, ranks * share, 0, 1)).abs().maximum<Eigen::PropagateNaN>();
    const float epsilons = largest() / std::numeric_limits<float>::epsilon();
    std::printf("%s, %d processes: at most %.1f epsilon from one\n", causal ? "causal" : "all keys", ranks, epsilons);
    right = right && epsilons <= 4 * static_cast<float>(ranks);  // a merge rounds two logarithms below 8; v is below 1
  }
  MPI_Finalize();
  return right ? 0 : 1;
}
