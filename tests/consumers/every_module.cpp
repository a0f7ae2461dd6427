// SPDX-License-Identifier: MIT
/// \file
/// Every module and every opt-in header in use, forward and backward: what warnings are looked for in.
#include <algorithm>
#include <cstdio>
#include <posbias/posbias.hpp>
// After Eigen's tensors, which is the harder order.
#include <posbias/io/safetensors.hpp>
#include <posbias/parallel/thread_pool.hpp>
#include <string>
#include <string_view>
#include <tuple>

#include "../support/modules.hpp"

namespace {

/// All modules as one.
template <class Scalar>
auto every_module() {
  return std::apply([](const auto&... modules) { return posbias::Compose(modules...); },
                    posbias_test::every_module<Scalar>());
}

template <class Tensor>
bool equal(const Tensor& a, const Tensor& b) {
  return std::equal(a.data(), a.data() + a.size(), b.data(), b.data() + b.size());
}

/// A query that sees one key gets that key's value, and the gradient of the value is that of the result.
template <class Scalar, int Layout>
bool attention_works(const posbias::Executor& executor) {
  const auto module = every_module<Scalar>();
  const posbias::AttentionOptions options{
      .causal = true, .at = {.q_k = posbias::Positions::range(3)}, .executor = executor};
  Eigen::Tensor<Scalar, 4, Layout> q(2, 1, 3, 8), k(2, 1, 3, 8), v(2, 1, 3, 8), out(2, 1, 3, 8);
  Eigen::Tensor<Scalar, 3, Layout> x(2, 1, 8);
  for (posbias::Index i = 0; i < v.size(); ++i) v.data()[i] = static_cast<Scalar>(i);
  q.setConstant(1);
  k.setConstant(2);
  x.setZero();
  module.mod_x(x, {.executor = executor});
  posbias::attention(out, q, k, v, module, options);

  auto grads = module.zero_gradients();
  auto grad_q = q, grad_k = k, grad_v = v;
  module.mod_x_backward(x, {}, grads);
  posbias::attention_backward(grad_q, grad_k, grad_v, out, out, q, k, v, module, options, grads);
  return equal(out, v) && equal(grad_v, out);
}

/// Parameters survive being written and read.
template <class Scalar>
bool files_work() {
  const auto module = every_module<Scalar>();
  auto loaded = module;
  posbias::for_each_parameter(loaded, [](std::string_view, auto& tensor) { tensor.setZero(); });
  posbias::io::SafeTensorsWriter writer;
  posbias::io::save_parameters(writer, module);
  Eigen::Tensor<Scalar, 4> q(2, 5, 3, 8), k(2, 7, 3, 8);
  q.setConstant(1);
  k.setConstant(2);
  writer.add("q", q);
  const auto file = posbias::io::SafeTensors::parse(writer.bytes());
  posbias::io::load_parameters(loaded, file, [](std::string_view name) { return std::string(name); });
  const auto view = file.view<Scalar, 4>("q");
  return std::equal(view.data(), view.data() + view.size(), q.data()) &&
         equal(module.make_mask(q, k, k), loaded.make_mask(q, k, k));
}

/// Tokens that are all alike, without positions, look at each other alike, and get the same.
template <class Scalar>
bool layer_works(const posbias::Executor& executor) {
  const posbias::RelativeAttention<Scalar> layer({.size = 8, .n_heads = 2, .n_positions = 4}, 7);
  Eigen::Tensor<Scalar, 3, Eigen::RowMajor> x(2, 3, 8), grad_x(2, 3, 8);
  x.setConstant(1);
  grad_x.setZero();
  const auto [pooled, logits] = layer(x, x, x, {.executor = executor});
  auto grads = layer.zero_gradients();
  Eigen::Tensor<Scalar, 3, Eigen::RowMajor> grad_pooled = pooled;
  layer.backward(grad_x, grad_x, grad_x, grad_pooled, logits, x, x, x, {.executor = executor}, grads);
  return logits(0, 0, 0, 1) == logits(1, 2, 1, 1) && pooled(0, 0, 0) == pooled(1, 2, 0);
}

}  // namespace

int main() {
  const posbias::ThreadPool pool(2);
  const bool works = attention_works<float, Eigen::RowMajor>(pool) && attention_works<double, Eigen::ColMajor>({}) &&
                     files_work<float>() && layer_works<float>(pool);
  std::printf("every module works: %s\n", works ? "yes" : "no");
  return works ? 0 : 1;
}
