// SPDX-License-Identifier: MIT
/// \file
/// Prints the bits of hooks, adjoints and attention, for comparison: the same of header-only and compiled code.
#include <bit>
#include <cstdint>
#include <cstdio>
#include <posbias/io/safetensors.hpp>
#include <posbias/posbias.hpp>
#include <string>
#include <string_view>
#include <type_traits>

namespace {

using posbias::Index;

template <class Scalar>
using Heads = Eigen::Tensor<Scalar, 4, Eigen::RowMajor>;

/// Irregular numbers between -1 and 1, exact in 8 bits.
template <class Tensor>
Tensor filled(Tensor tensor, Index seed) {
  using Scalar = typename Tensor::Scalar;
  for (Index i = 0; i < tensor.size(); ++i)
    tensor.data()[i] = static_cast<Scalar>(static_cast<float>((i * 37 + seed * 101) % 127 - 63) / 64.0F);
  return tensor;
}

template <class Tensor>
void print(const char* name, const Tensor& tensor) {
  std::printf("%s:", name);
  for (Index i = 0; i < tensor.size(); ++i) {
    if constexpr (std::is_same_v<typename Tensor::Scalar, double>)
      std::printf(" %llx", static_cast<unsigned long long>(std::bit_cast<std::uint64_t>(tensor.data()[i])));
    else
      std::printf(" %x", std::bit_cast<std::uint32_t>(static_cast<float>(tensor.data()[i])));
  }
  std::printf("\n");
}

template <class Gradients>
void print_all(const Gradients& gradients) {
  posbias::for_each_parameter(
      gradients, [](std::string_view name, const auto& tensor) { print(std::string(name).c_str(), tensor); });
}

/// Attention with a module, and all its gradients; q, k and v of `Stored`.
template <class Scalar, class Stored, class Module>
void attend(const Module& module) {
  const Heads<Stored> q = filled(Heads<Stored>(2, 19, 4, 8), 1);
  const Heads<Stored> k = filled(Heads<Stored>(2, 19, 2, 8), 2), v = filled(Heads<Stored>(2, 19, 2, 8), 3);
  Heads<Scalar> out(q.dimensions()), grad_q(q.dimensions()), grad_k(k.dimensions()), grad_v(v.dimensions());
  const Heads<Scalar> grad_out = filled(Heads<Scalar>(q.dimensions()), 4);
  Eigen::Tensor<Scalar, 3, Eigen::RowMajor> log_sum_exp(2, 4, 19);
  const posbias::AttentionOptions options{.causal = true, .at = {.q_k = posbias::Positions::range(100)}};
  auto grads = module.zero_gradients();
  posbias::attention(out, q, k, v, module, options, log_sum_exp);
  posbias::attention_backward(grad_q, grad_k, grad_v, grad_out, out, q, k, v, module, options, grads, log_sum_exp);
  print("out", out);
  print("log_sum_exp", log_sum_exp);
  print("grad_q", grad_q);
  print("grad_k", grad_k);
  print("grad_v", grad_v);
  print_all(grads);
}

/// RelativeAttention, with positions of pairs, and all its gradients; tensors of `Stored`.
template <class Scalar, class Stored>
void attend_with_content() {
  using Tokens = Eigen::Tensor<Stored, 3, Eigen::RowMajor>;
  const posbias::RelativeAttention<Scalar> layer(
      {.size = 12, .n_heads = 2, .head_size = 6, .n_positions = 5, .position_size = 6, .n_coordinates = 2}, 5);
  const Tokens queries = filled(Tokens(2, 7, 12), 1), keys = filled(Tokens(2, 9, 12), 2);
  const Tokens values = filled(Tokens(2, 9, 12), 3), grad_pooled = filled(Tokens(2, 7, 12), 4);
  Eigen::Tensor<Index, 4, Eigen::RowMajor> positions(2, 7, 9, 2);
  for (Index i = 0; i < positions.size(); ++i) positions.data()[i] = i * 5 % 11 - 5;
  const typename posbias::RelativeAttention<Scalar>::Call call{.relative_positions = positions};
  const auto [pooled, logits] = layer(queries, keys, values, call);
  auto grad_queries = queries, grad_keys = keys, grad_values = values;
  auto grads = layer.zero_gradients();
  layer.backward(grad_queries, grad_keys, grad_values, grad_pooled, logits, queries, keys, values, call, grads);
  print("pooled", pooled);
  print("logits", logits);
  print("grad_queries", grad_queries);
  print("grad_keys", grad_keys);
  print("grad_values", grad_values);
  print_all(grads);
}

template <class Scalar, class Stored>
void run() {
  using namespace posbias;
  const Rotary<Scalar> rotary({.head_dim = 8, .pairing = RotaryPairing::half, .divide = 3, .learned_div = true});
  const ALiBi<Scalar> alibi({.n_heads = 4, .asymmetric = true});
  const RelativePositionBias<Scalar> t5({.n_heads = 4}, 1);
  const DynamicPositionBias<Scalar> mlp({.dim = 8, .n_heads = 4, .depth = 2, .norm = true}, 2);

  Heads<Stored> q = filled(Heads<Stored>(2, 19, 4, 8), 5), k = filled(Heads<Stored>(2, 23, 2, 8), 6);
  rotary.mod_qkv(q, k, k, {.q = Positions::range(100)});
  print("rotated q", q);
  print("rotated k", k);
  const auto add_mask = [&](const auto& module) {
    Heads<Stored> mask = filled(Heads<Stored>(2, 4, 19, 23), 7);
    module.mod_mask(mask, {.q = Positions::range(4)});
    print("mask", mask);
    auto grads = module.zero_gradients();
    module.mod_mask_backward(mask, {.q = Positions::range(4)}, grads);
    print_all(grads);
    print("bias", module.bias(5, 7));
  };
  add_mask(alibi);
  add_mask(t5);
  add_mask(mlp);

  const LearnedVocab<Scalar> table({.dim = 8, .max_seq_len = 40}, 3);
  Eigen::Tensor<Stored, 3> x = filled(Eigen::Tensor<Stored, 3>(2, 19, 8), 8);
  table.mod_x(x);
  print("x", x);

  attend<Scalar, Stored>(Identity());
  attend<Scalar, Stored>(Compose(rotary, t5));
  attend<Scalar, Stored>(alibi);
  attend<Scalar, Stored>(mlp);
  attend<Scalar, Stored>(TransformerXL<Scalar>({.dim = 32, .n_heads = 4}, 4));
  attend<Scalar, Stored>(DisentangledBias<Scalar>({.n_heads = 4, .head_dim = 8, .n_positions = 6}, 5));
  attend_with_content<Scalar, Stored>();

  io::SafeTensorsWriter writer;
  io::save_parameters(writer, mlp, "mlp.");
  DynamicPositionBias<Scalar> loaded({.dim = 8, .n_heads = 4, .depth = 2, .norm = true}, 4);
  io::load_parameters(loaded, io::SafeTensors::parse(writer.bytes()), "mlp.");
  print("loaded", loaded.bias(5, 7));
}

}  // namespace

int main() {
  run<float, float>();
  run<float, Eigen::bfloat16>();
  run<double, double>();
}
