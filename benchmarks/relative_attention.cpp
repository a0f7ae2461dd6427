// SPDX-License-Identifier: MIT
/// \file
/// RelativeAttention at n 4, 512 queries and keys, size 256, 8 heads, float: with positional terms beside content alone,
/// backward beside forward, two threads beside one.
#include <cmath>
#include <cstdint>
#include <posbias/parallel/thread_pool.hpp>
#include <posbias/posbias.hpp>
#include <string>

#include "compare.hpp"

namespace {

using namespace posbias;
using posbias_benchmarks::add;
using posbias_benchmarks::compare;
using State = benchmark::State;

constexpr Index N = 4, L = 512, size = 256, NH = 8;
using Tokens = Eigen::Tensor<float, 3, Eigen::RowMajor>;
using Logits = Eigen::Tensor<float, 4, Eigen::RowMajor>;

/// Content and relative positions: words in the order of reading, or boxes scattered over a page.
struct Inputs {
  Tokens x, grad, pooled;
  Logits logits;
  Eigen::Tensor<std::int64_t, 4, Eigen::RowMajor> relative;

  explicit Inputs(Index coordinates)
      : x(N, L, size), pooled(N, L, size), logits(N, L, L, NH), relative(N, L, L, coordinates) {
    double phase = 0;
    for (Index i = 0; i < x.size(); ++i)
      x.data()[i] = static_cast<float>(std::sin(phase += 0.7 + 1e-6 * static_cast<double>(i)));
    grad = x;
    for (Index n = 0; n < N; ++n)
      for (Index i = 0; i < L; ++i)
        for (Index j = 0; j < L; ++j)
          for (Index c = 0; c < coordinates; ++c)
            relative(n, i, j, c) = coordinates == 1 ? j - i : place(n, j, c) - place(n, i, c);
  }

  /// Of a box: columns and lines of a page.
  static Index place(Index n, Index i, Index coordinate) { return coordinate == 0 ? i * 37 % 61 : (i + n) * 64 / L; }
};

struct Subject {
  RelativeAttention<float> layer;
  RelativeAttentionCall call;

  static Subject content() { return {RelativeAttention<float>({.size = size, .n_heads = NH, .mode = {c2c}}), {}}; }
  static Subject positional(const Inputs& inputs, Index n_positions) {
    return {
        RelativeAttention<float>(
            {.size = size, .n_heads = NH, .n_positions = n_positions, .n_coordinates = inputs.relative.dimension(3)}),
        {.relative_positions = inputs.relative}};
  }

  void forward(Inputs& to, const Executor& executor = {}) {
    call.executor = executor;
    layer.forward(to.pooled, to.logits, to.x, to.x, to.x, call);
  }
  void backward(Inputs& to, RelativeAttention<float>::Gradients& grads, const Executor& executor = {}) {
    call.executor = executor;
    layer.backward(to.grad, to.grad, to.grad, to.pooled, to.logits, to.x, to.x, to.x, call, grads);
  }
};

void forward(State& state, Index coordinates, Index n_positions) {
  Inputs inputs(coordinates), others(coordinates);
  Subject with = Subject::positional(inputs, n_positions), without = Subject::content();
  compare(
      state, [&] { with.forward(inputs); }, [&] { without.forward(others); });
}

void backward(State& state, Index coordinates, Index n_positions) {
  Inputs inputs(coordinates);
  Subject subject = Subject::positional(inputs, n_positions);
  auto grads = subject.layer.zero_gradients();
  compare(
      state, [&] { subject.backward(inputs, grads); }, [&] { subject.forward(inputs); });
}

void two_threads(State& state, Index coordinates, Index n_positions) {
  Inputs inputs(coordinates);
  Subject subject = Subject::positional(inputs, n_positions);
  ThreadPool pool(2);
  compare(
      state, [&] { subject.forward(inputs); }, [&] { subject.forward(inputs, pool); });
}

void backward_two_threads(State& state, Index coordinates, Index n_positions) {
  Inputs inputs(coordinates);
  Subject subject = Subject::positional(inputs, n_positions);
  auto grads = subject.layer.zero_gradients();
  subject.forward(inputs);
  ThreadPool pool(2);
  compare(
      state, [&] { subject.backward(inputs, grads); }, [&] { subject.backward(inputs, grads, pool); });
}

const bool added = [] {
  for (const Index coordinates : {1, 2})
    for (const Index n_positions : {64, 512, 1024}) {
      const std::string name =
          "/coordinates:" + std::to_string(coordinates) + "/n_positions:" + std::to_string(n_positions);
      const auto add_one = [&](const std::string& what, auto run) {
        add(what + name, [=](State& s) { run(s, coordinates, n_positions); });
      };
      add_one("relative_attention", forward);
      add_one("relative_attention_backward", backward);
      add_one("relative_attention/two_threads", two_threads);
      add_one("relative_attention_backward/two_threads", backward_two_threads);
    }
  return true;
}();

}  // namespace
