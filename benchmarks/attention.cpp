// SPDX-License-Identifier: MIT
/// \file
/// Fused attention at B 1, 8 heads, H 64, float: the kernel without a bias beside Eigen's product of 1024×1024 matrices,
/// each module beside the kernel without a bias, backward beside forward, two threads beside one.
#include <Eigen/Core>
#include <cmath>
#include <posbias/parallel/thread_pool.hpp>
#include <posbias/posbias.hpp>
#include <string>

#include "compare.hpp"

namespace {

using namespace posbias;
using posbias_benchmarks::add;
using posbias_benchmarks::compare;
using State = benchmark::State;

constexpr Index B = 1, L = 2048, NH = 8, H = 64;
constexpr double operations = 4.0 * B * NH * L * L * H;  // of q·kᵀ and weights·v

/// Inputs, outputs and gradients of one attention, filled with numbers of order 1 that repeat nowhere.
struct Tensors {
  using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;
  Tensor q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  Eigen::Tensor<float, 3, Eigen::RowMajor> log_sum_exp;

  explicit Tensors(Index queries = L, Index keys = L)
      : q(B, queries, NH, H), k(B, keys, NH, H), v(B, keys, NH, H), log_sum_exp(B, NH, queries) {
    double phase = 0;
    for (Tensor* tensor : {&q, &k, &v})
      for (Index i = 0; i < tensor->size(); ++i)
        tensor->data()[i] = static_cast<float>(std::sin(phase += 0.7 + 1e-6 * static_cast<double>(i)));
    out = q;
    grad_out = q;
    grad_q = q;
    grad_k = k;
    grad_v = v;
  }

  template <class Module>
  void forward(const Module& module, const AttentionOptions& options = {}) {
    attention(out, q, k, v, module, options, log_sum_exp);
  }
  template <class Module>
  void backward(const Module& module, typename Module::Gradients& grads, const AttentionOptions& options = {}) {
    attention_backward(grad_q, grad_k, grad_v, grad_out, out, q, k, v, module, options, grads, log_sum_exp);
  }
};

/// How many of Eigen's operations a second the kernel reaches: `of_gemm`.
void of_gemm(State& state) {
  constexpr Index n = 1024;
  Eigen::MatrixXf a = Eigen::MatrixXf::Random(n, n), b = a, c = a;
  Tensors tensors;
  const double ratio = compare(
      state, [&] { tensors.forward(Identity()); }, [&] { c.noalias() = a * b; });
  state.counters["of_gemm"] = operations / (2.0 * n * n * n) / ratio;
}

/// The module's forward beside that of Identity.
template <class Module>
void forward(State& state, const Module& module, const AttentionOptions& options = {}) {
  Tensors with, without;
  compare(
      state, [&] { with.forward(module, options); }, [&] { without.forward(Identity()); });
}

template <class Module>
void backward(State& state, const Module& module, const AttentionOptions& options = {}) {
  Tensors tensors;
  auto grads = module.zero_gradients();
  tensors.forward(module, options);
  compare(
      state, [&] { tensors.backward(module, grads, options); }, [&] { tensors.forward(module, options); });
}

/// One thread beside two: the ratio is how much faster two are.
template <class Run>
void threads(State& state, const Run& run) {
  ThreadPool pool(2);
  compare(
      state, [&] { run(AttentionOptions{}); }, [&] { run(AttentionOptions{.executor = pool}); });
}

/// One query and a long cache beside reading k and v once.
template <class Module>
void decode(State& state, const Module& module) {
  const Index keys = state.range(0);
  Tensors tensors(1, keys);
  const AttentionOptions options{.at = {.q = Positions::range(keys - 1)}};
  float sum = 0;
  const auto read = [&](const Tensors::Tensor& tensor) {
    sum += Eigen::Map<const Eigen::ArrayXf>(tensor.data(), tensor.size()).sum();
    benchmark::DoNotOptimize(sum);
  };
  compare(
      state, [&] { tensors.forward(module, options); },
      [&] {
        read(tensors.k);
        read(tensors.v);
      });
}

const bool added = [] {
  const auto with_modules = [](const auto& visit) {
    visit("ALiBi", [] { return ALiBi<float>({.n_heads = NH}); });
    visit("T5", [] { return RelativePositionBias<float>({.n_heads = NH}); });
    visit("DynamicPositionBias", [] { return DynamicPositionBias<float>({.dim = 64, .n_heads = NH, .depth = 2}); });
    visit("TransformerXL", [] { return TransformerXL<float>({.dim = NH * H, .n_heads = NH}); });
    visit("DisentangledBias",
          [] { return DisentangledBias<float>({.n_heads = NH, .head_dim = H, .n_positions = 512}); });
    visit("Rotary", [] { return Rotary<float>({.head_dim = H}); });
  };
  add("attention/Identity", of_gemm);
  with_modules(
      [](const std::string& name, auto make) { add("attention/" + name, [=](State& s) { forward(s, make()); }); });
  add("attention/Identity/causal", [](State& s) { forward(s, Identity(), {.causal = true}); });
  add("attention_backward/Identity", [](State& s) { backward(s, Identity()); });
  with_modules([](const std::string& name, auto make) {
    add("attention_backward/" + name, [=](State& s) { backward(s, make()); });
  });
  add("attention/two_threads", [](State& s) {
    Tensors tensors;
    threads(s, [&](const AttentionOptions& options) { tensors.forward(Identity(), options); });
  });
  add("attention_backward/two_threads", [](State& s) {
    Tensors tensors;
    tensors.forward(Identity());
    Identity::Gradients grads;
    threads(s, [&](const AttentionOptions& options) { tensors.backward(Identity(), grads, options); });
  });
  add("attention/decode/Identity", [](State& s) { decode(s, Identity()); })->Arg(4096)->Arg(65536);
  add("attention/decode/T5", [](State& s) { decode(s, RelativePositionBias<float>({.n_heads = NH})); })->Arg(4096);
  return true;
}();

}  // namespace
