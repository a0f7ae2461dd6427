// SPDX-License-Identifier: MIT
/// \file
/// A module of your own: KERPLE's logarithmic bias (Chi et al., 2022, arXiv 2205.09921), -r1·log(1 + r2·|distance|) with
/// r1, r2 > 0 learned for each head. What it says is what is new; hooks, positions and attention come from its base.
#include <cmath>
#include <cstdio>
#include <numeric>
#include <posbias/posbias.hpp>
#include <span>
#include <string_view>

using posbias::Index;

/// The logarithms of r1 and r2, which so stay positive whatever is learned.
struct KerpleParameters {
  posbias::ParameterTensor<double, 2> log_r;  // (2, NH)
  static void visit(auto& self, auto& visitor) { visitor("log_r", self.log_r); }
};

class Kerple : public posbias::RelativeBias<Kerple, double, KerpleParameters> {
 public:
  static constexpr std::string_view name = "Kerple";  // for messages

  explicit Kerple(Index heads) : RelativeBias({posbias::ParameterTensor<double, 2>(2, heads)}) {
    parameters_.log_r.setZero();
  }
  [[nodiscard]] Index n_heads() const { return parameters_.log_r.dimension(1); }

  /// The values of some heads at key minus query positions, head by head.
  void evaluate(std::span<const double> relative, Index head, Index heads, double* values) const {
    for (Index h = head; h < head + heads; ++h)
      for (const double d : relative) *values++ = -r(0, h) * std::log1p(r(1, h) * std::abs(d));
  }

  /// Adds to the gradients of the parameters, given those of the values.
  void evaluate_backward(std::span<const double> relative, Index head, Index heads, const double* grad_values,
                         Gradients& grads) const {
    for (Index h = head; h < head + heads; ++h)
      for (const double d : relative) {
        const double grad = *grad_values++, scaled = r(1, h) * std::abs(d);
        grads.log_r(0, h) -= grad * r(0, h) * std::log1p(scaled);
        grads.log_r(1, h) -= grad * r(0, h) * scaled / (1 + scaled);
      }
  }

 private:
  [[nodiscard]] double r(Index which, Index h) const { return std::exp(parameters_.log_r(which, h)); }
};

/// Attention with it, forward and backward: gradients are what differences of the loss, sum(weights·out), are.
int main() {
  using Heads = Eigen::Tensor<double, 4, Eigen::RowMajor>;  // (B, L, NH, H)
  Heads q(2, 20, 3, 8), k = q, v = q, weights = q, out = q, grad_q = q, grad_k = q, grad_v = q;
  q.setRandom(), k.setRandom(), v.setRandom(), weights.setRandom();
  Kerple kerple(3);
  const auto loss = [&] {
    posbias::attention(out, q, k, v, kerple);
    return std::inner_product(out.data(), out.data() + out.size(), weights.data(), 0.0);
  };
  (void)loss();
  Kerple::Gradients grads = kerple.zero_gradients();
  posbias::attention_backward(grad_q, grad_k, grad_v, weights, out, q, k, v, kerple, {}, grads);

  bool right = true;
  posbias::for_each_parameter(kerple, [&](std::string_view, auto& log_r) {
    for (Index i = 0; i < log_r.size(); ++i) {
      const double step = 0x1p-16, start = log_r.data()[i];
      log_r.data()[i] = start + step;
      const double more = loss();
      log_r.data()[i] = start - step;
      const double difference = (more - loss()) / (2 * step), gradient = grads.log_r.data()[i];
      log_r.data()[i] = start;
      std::printf("log_r(%td, %td): gradient %9.6f, by differences %9.6f\n", i / 3, i % 3, gradient, difference);
      right = right && std::abs(gradient - difference) < 1e-7;
    }
  });
  return right ? 0 : 1;
}
