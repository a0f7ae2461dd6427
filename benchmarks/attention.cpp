// SPDX-License-Identifier: MIT
/// \file
/// Fused attention at B 1, 8 heads, H 64: the kernel without a bias beside as many operations of Eigen's matrix product,
/// each module beside the kernel without a bias, one query beside reading its keys and values.
#include <Eigen/Core>
#include <posbias/posbias.hpp>
#include <string>

#include "suite.hpp"
#include "tensors.hpp"

namespace posbias_benchmarks {
namespace {

using namespace posbias;

constexpr Index B = 1, L = 2048, NH = 8, H = 64;

/// Forward and backward of one attention; its bound is the same without a bias.
template <class Module>
Subject attention_with(const Module& module, const AttentionOptions& options = {}) {
  const auto q = shared_tensor(B, L, NH, H), k = shared_tensor(B, L, NH, H), v = shared_tensor(B, L, NH, H),
             out = shared_tensor(B, L, NH, H), grad_out = shared_tensor(B, L, NH, H),
             grad_q = shared_tensor(B, L, NH, H), grad_k = shared_tensor(B, L, NH, H),
             grad_v = shared_tensor(B, L, NH, H);
  const auto log_sum_exp = shared_tensor(B, NH, L);
  const auto grads = std::make_shared<typename Module::Gradients>(module.zero_gradients());
  const auto with = [options](const Executor& executor) {
    AttentionOptions result = options;
    result.executor = executor;
    return result;
  };
  attention(*out, *q, *k, *v, module, options, *log_sum_exp);
  return {
      [=](const Executor& executor) { attention(*out, *q, *k, *v, module, with(executor), *log_sum_exp); },
      [=](const Executor&) { attention(*out, *q, *k, *v, Identity(), {}, *log_sum_exp); },
      [=](const Executor& executor) {
        attention_backward(*grad_q, *grad_k, *grad_v, *grad_out, *out, *q, *k, *v, module, with(executor), *grads,
                           *log_sum_exp);
      },
  };
}

/// Beside as many operations of Eigen's product of 1024×1024 matrices.
Subject kernel_beside_products() {
  constexpr Index n = 1024, products = 4 * B * NH * L * L * H / (2 * n * n * n);
  Subject subject = attention_with(Identity());
  const auto a = shared_tensor(n, n), b = shared_tensor(n, n), c = shared_tensor(n, n);
  subject.bound = [=](const Executor&) {
    const auto matrix = [](auto& tensor) { return Eigen::Map<Eigen::MatrixXf>(tensor.data(), n, n); };
    for (Index i = 0; i < products; ++i) matrix(*c).noalias() = matrix(*a) * matrix(*b);
  };
  return subject;
}

/// One query and a long cache beside reading k and v once.
template <class Module>
Subject decode(const Module& module, Index keys) {
  const auto q = shared_tensor(B, 1, NH, H), out = shared_tensor(B, 1, NH, H);
  const auto k = shared_tensor(B, keys, NH, H), v = shared_tensor(B, keys, NH, H);
  const auto read = [](const auto& tensor) {
    float sum = Eigen::Map<const Eigen::ArrayXf>(tensor.data(), tensor.size()).sum();
    benchmark::DoNotOptimize(sum);
  };
  return {[=](const Executor& executor) {
            attention(*out, *q, *k, *v, module, {.at = {.q = Positions::range(keys - 1)}, .executor = executor});
          },
          [=](const Executor&) {
            read(*k);
            read(*v);
          }};
}

template <class Module>
void add_module(const std::string& name, const Module& module) {
  const std::string shape = shape_text(B, NH, L, L);
  const auto make = [=] { return attention_with(module); };
  if constexpr (!std::is_same_v<Module, Identity>) add_forward({"attention", name, shape, "no bias"}, make);
  add_two_threads("attention " + name, shape, make, Limit::arithmetic);
  add_backward("attention " + name, shape, make, Limit::arithmetic);
}

}  // namespace

void add_attention() {
  const std::string shape = shape_text(B, NH, L, L);
  add_forward({"attention", "no bias", shape, "FLOP of Eigen's product"}, kernel_beside_products);
  add_forward({"attention", "no bias, causal", shape, "all keys"},
              [] { return attention_with(Identity(), {.causal = true}); });
  for (const Index keys : {4096, 65536})
    add_forward({"attention", "no bias, one query", shape_text(B, NH, 1, keys), "reading k and v once"},
                [=] { return decode(Identity(), keys); });
  add_forward({"attention", "T5, one query", shape_text(B, NH, 1, 4096), "reading k and v once"},
              [] { return decode(RelativePositionBias<float>({.n_heads = NH}), 4096); });

  add_module("no bias", Identity());
  add_module("ALiBi", ALiBi<float>({.n_heads = NH}));
  add_module("T5", RelativePositionBias<float>({.n_heads = NH}));
  add_module("DPB", DynamicPositionBias<float>({.dim = 64, .n_heads = NH, .depth = 2}));
  add_module("XL", TransformerXL<float>({.dim = NH * H, .n_heads = NH}));
  add_module("DisentangledBias", DisentangledBias<float>({.n_heads = NH, .head_dim = H, .n_positions = 512}));
  add_module("Rotary", Rotary<float>({.head_dim = H}));
}

}  // namespace posbias_benchmarks
