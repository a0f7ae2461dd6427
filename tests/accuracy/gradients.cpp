// SPDX-License-Identifier: MIT
/// \file
/// Adjoints against differences of the hooks they belong to, in double.
#include <functional>
#include <map>

#include "accuracy/accuracy.hpp"

namespace posbias_accuracy {
namespace {

constexpr Index L = 19, NH = 2, H = 8, dim = NH * H;
using Heads = Tensor<double, 3>;
using Mask = Tensor<double, 3>;

/// The slope of a loss at one number, which is moved and put back: differences over steps h and 2h, together exact to
/// the fourth power of h.
double slope(double& number, const std::function<double()>& loss) {
  constexpr double h = 3e-4;
  const double start = number;
  const auto at = [&](double value) {
    number = value;
    return loss();
  };
  const double near = at(start + h) - at(start - h), far = at(start + 2 * h) - at(start - 2 * h);
  number = start;
  return (8 * near - far) / (12 * h);
}

/// The largest difference of a gradient from the slopes over the largest slope, of every so many entries.
template <class Values, class Gradient>
void compare(Values& values, const Gradient& gradient, const std::function<double()>& loss, Worst& worst) {
  const Index step = std::max<Index>(values.size() / 40, 1);
  for (Index i = 0; i < values.size(); i += step) worst.see(gradient.data()[i], slope(values.data()[i], loss));
}

template <class Module, class Gradients>
Worst compare_parameters(Module& module, const Gradients& grads, const std::function<double()>& loss) {
  Worst worst;
  posbias::for_each_parameter(module, grads, [&](std::string_view, auto& values, const auto& gradient) {
    compare(values, gradient, loss, worst);
  });
  return worst;
}

double dot(const double* a, const double* b, Index size) {
  return static_cast<double>(
      Eigen::Map<const Eigen::VectorXd>(a, size).dot(Eigen::Map<const Eigen::VectorXd>(b, size)));
}

template <class Module>
void print_embedding(const char* name, Module module) {
  const auto x = numbers<double, 2>({L, dim}, 1), weight = numbers<double, 2>({L, dim}, 2);
  auto grads = module.zero_gradients();
  auto grad_x = weight;
  module.mod_x_backward(grad_x, {}, grads);
  const auto loss = [&] {
    auto out = x;
    module.mod_x(out);
    return dot(out.data(), weight.data(), out.size());
  };
  print_row({name, compare_parameters(module, grads, loss).relative(), ""});
}

/// `mod_qkv` and `mod_mask` with the sum of weight times result as the loss.
template <class Module>
void print_pair_module(const char* name, Module module) {
  auto q = numbers<double, 3>({L, NH, H}, 1), k = numbers<double, 3>({L, NH, H}, 2);
  const auto weight_q = numbers<double, 3>({L, NH, H}, 3), weight_k = numbers<double, 3>({L, NH, H}, 4);
  const Mask weight_mask = numbers<double, 3>({NH, L, L}, 5);
  const auto forward = [&](Heads& q_, Heads& k_) {
    module.mod_qkv(q_, k_, k_);
    return module.make_mask(q_, k_, k_);
  };
  const auto loss = [&] {
    Heads q_ = q, k_ = k;
    const Mask mask = forward(q_, k_);
    return dot(q_.data(), weight_q.data(), q_.size()) + dot(k_.data(), weight_k.data(), k_.size()) +
           dot(mask.data(), weight_mask.data(), mask.size());
  };
  Heads q_ = q, k_ = k, grad_q = weight_q, grad_k = weight_k, grad_v = weight_k;
  (void)forward(q_, k_);
  auto grads = module.zero_gradients();
  module.mod_mask_backward(weight_mask, grad_q, grad_k, grad_v, q_, k_, k_, {}, grads);
  module.mod_qkv_backward(grad_q, grad_k, grad_v, q_, k_, k_, {}, grads);
  Worst inputs;
  compare(q, grad_q, loss, inputs);
  compare(k, grad_k, loss, inputs);
  print_row({name, compare_parameters(module, grads, loss).relative(), inputs.relative()});
}

template <class Module>
void print_attention_row(const char* name, Module module) {
  auto q = numbers<double, 3>({L, NH, H}, 1), k = numbers<double, 3>({L, NH, H}, 2),
       v = numbers<double, 3>({L, NH, H}, 3);
  const auto weight = numbers<double, 3>({L, NH, H}, 4);
  const posbias::AttentionOptions options{.causal = true};
  Heads out(L, NH, H), grad_q(L, NH, H), grad_k(L, NH, H), grad_v(L, NH, H);
  const auto loss = [&] {
    posbias::attention(out, q, k, v, module, options);
    return dot(out.data(), weight.data(), out.size());
  };
  (void)loss();
  auto grads = module.zero_gradients();
  posbias::attention_backward(grad_q, grad_k, grad_v, weight, out, q, k, v, module, options, grads);
  Worst inputs;
  compare(q, grad_q, loss, inputs);
  compare(k, grad_k, loss, inputs);
  compare(v, grad_v, loss, inputs);
  print_row({name, compare_parameters(module, grads, loss).relative(), inputs.relative()});
}

}  // namespace

void print_gradients() {
  using namespace posbias;
  std::puts("\n## Gradients\n");
  print_header({"adjoint of", "parameters", "q, k, v"});
  print_embedding("Sinusoidal, learned_div", Sinusoidal<double>({.dim = dim, .divide = 3, .learned_div = true}));
  print_embedding("LearnedVocab", LearnedVocab<double>({.dim = dim, .max_seq_len = 32}, 1));
  print_embedding("LearnedContinuous, depth 3",
                  LearnedContinuous<double>({.dim = dim, .depth = 3, .norm = true, .divide = 8}, 2));
  print_pair_module("Rotary, learned_div", Rotary<double>({.head_dim = H, .divide = 3, .learned_div = true}));
  print_pair_module("ALiBi, learned_div", ALiBi<double>({.n_heads = NH, .divide = 3, .learned_div = true}));
  print_pair_module("RelativePositionBias", RelativePositionBias<double>({.n_heads = NH}, 3));
  print_pair_module("DynamicPositionBias, depth 3",
                    DynamicPositionBias<double>({.dim = dim, .n_heads = NH, .depth = 3, .norm = true, .divide = 8}, 4));
  print_pair_module("TransformerXL", TransformerXL<double>({.dim = dim, .n_heads = NH}, 5));
  print_attention_row("attention, Rotary", Rotary<double>({.head_dim = H}));
  print_attention_row("attention, RelativePositionBias", RelativePositionBias<double>({.n_heads = NH}, 6));
  print_attention_row("attention, TransformerXL", TransformerXL<double>({.dim = dim, .n_heads = NH}, 7));
}

}  // namespace posbias_accuracy
