// SPDX-License-Identifier: MIT
/// \file
/// Causal attention over a long context with ALiBi and with T5's bias, on all threads: long_context [L]. The bias itself
/// would be 8·L² floats, 128 GiB for the default L. Checks some queries against sums in double precision.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <posbias/parallel/thread_pool.hpp>
#include <posbias/posbias.hpp>
#include <random>
#include <string_view>
#include <thread>

namespace {

using posbias::Index;
using Heads = Eigen::Tensor<float, 4, Eigen::RowMajor>;  // (B, L, NH, H)

constexpr Index NH = 8, H = 64;
constexpr double tolerance = 2e-5, MiB = 0x1p20;

/// A task runner: a pool that says on stderr how far it is.
struct Progress {
  const char* name;
  const posbias::ThreadPool& pool;

  template <class Task>
  void parallel_for(Index count, const Task& task) const {
    std::atomic<Index> done = 0;
    pool.parallel_for(count, [&](Index i) {
      task(i);
      const Index now = ++done;  // each number once, so each line too
      if (now * 10 / count > (now - 1) * 10 / count) std::fprintf(stderr, "%s: %td %%\n", name, now * 100 / count);
    });
  }
};

/// Uniform with variance 1, so that logits have about that too; the same on every platform.
Heads random_heads(Index L, std::mt19937& random) {
  Heads heads(1, L, NH, H);
  for (Index i = 0; i < heads.size(); ++i)
    heads.data()[i] = static_cast<float>(std::sqrt(3.0) * (static_cast<double>(random()) * 0x1p-31 - 1));
  return heads;
}

/// The largest error of a query in `out`: against all it sees, one key after another, in double precision.
template <class Module>
double error_of(Index query, const Heads& out, const Heads& q, const Heads& k, const Heads& v, const Module& module) {
  const auto row = [](const Heads& x, Index i, Index h) -> Eigen::VectorXd {
    return Eigen::Map<const Eigen::VectorXf>(&x(0, i, h, 0), H).cast<double>();
  };
  const auto bias = module.bias(1, query + 1, {.q = posbias::Positions::range(query)});  // (NH, 1, query + 1)
  double worst = 0;
  for (Index h = 0; h < NH; ++h) {
    const Eigen::VectorXd features = row(q, query, h);
    Eigen::VectorXd mixed = Eigen::VectorXd::Zero(H);
    double sum = 0;
    for (Index j = 0; j <= query; ++j) {
      const double logit = features.dot(row(k, j, h)) / std::sqrt(H) + static_cast<double>(bias(h, 0, j));
      mixed += std::exp(logit) * row(v, j, h);
      sum += std::exp(logit);  // far from overflow here
    }
    const Eigen::VectorXd error = mixed / sum - row(out, query, h);
    if (!error.allFinite()) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, error.cwiseAbs().maxCoeff());
  }
  return worst;
}

/// The most memory that this process has had so far.
double peak_MiB() {
#ifdef __APPLE__
  constexpr double unit = 1;
#else
  constexpr double unit = 1024;
#endif
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return unit * static_cast<double>(usage.ru_maxrss) / MiB;
}

/// Prints a line of results; true if they are right.
template <class Module>
bool run(const char* name, const Module& module, const Heads& q, const Heads& k, const Heads& v,
         const posbias::ThreadPool& pool) {
  const Index L = q.dimension(1);
  Heads out(1, L, NH, H);
  const Progress progress{name, pool};
  const auto start = std::chrono::steady_clock::now();
  posbias::attention(out, q, k, v, module, {.causal = true, .executor = progress});
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;

  const auto pairs = static_cast<double>(L) * static_cast<double>(L + 1) / 2;  // of a query and a key it sees
  std::printf("%-20s  %.2f s, %.1f GFLOP/s; peak memory %.0f MiB; ", name, time.count(),
              4e-9 * pairs * NH * H / time.count(), peak_MiB());
  double error = 0;
  for (const Index quarter : {0, 1, 2, 3, 4})
    error = std::max(error, error_of(quarter * (L - 1) / 4, out, q, k, v, module));
  std::printf("largest error of 5 queries %.1e\n", error);
  std::fflush(stdout);
  return error <= tolerance;
}

}  // namespace

int main(int argc, char** argv) {
  Index L = 0;
  const std::string_view text = argc > 1 ? argv[1] : "65536";
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), L);
  if (argc > 2 || problem != std::errc() || end != text.data() + text.size() || L < 1 || L > (1 << 20)) {
    std::fprintf(stderr, "usage: long_context [L]\nL is a number of tokens from 1 to 1048576, 65536 by default.\n");
    return 2;
  }
  std::mt19937 random;
  const Heads q = random_heads(L, random), k = random_heads(L, random), v = random_heads(L, random);
  const posbias::ThreadPool pool(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  const auto tokens = static_cast<double>(L);
  std::printf("L = %td, %td heads of %td floats, causal, %d threads\n", L, NH, H, pool.threads());
  std::printf("q, k, v and out take %.1f MiB, a materialised bias would take %.1f MiB\n", 16 * tokens * NH * H / MiB,
              4 * tokens * tokens * NH / MiB);
  std::fflush(stdout);

  const posbias::ALiBi<float> alibi({.n_heads = NH});
  const posbias::RelativePositionBias<float> t5({.bidirectional = false, .n_heads = NH});
  const bool alibi_is_right = run("ALiBi", alibi, q, k, v, pool);
  return run("RelativePositionBias", t5, q, k, v, pool) && alibi_is_right ? 0 : 1;
}
