// SPDX-License-Identifier: MIT
/// \file
/// Fused attention against plain loops in long double, beside the same loops in float with all logits at hand.
#include "accuracy/accuracy.hpp"

namespace posbias_accuracy {
namespace {

namespace reference = posbias_test::reference;

constexpr Index NH = 2, H = 64;

template <class Scalar>
using Heads = Tensor<Scalar, 3>;  // (L, NH, H)

/// Causal attention as a reader would write it down, all in `Scalar`; `bias(h, i, j)`.
template <class Scalar, class Bias>
Heads<Scalar> plain_attention(const Heads<float>& q, const Heads<float>& k, const Heads<float>& v, const Bias& bias) {
  const Index L = q.dimension(0);
  const Scalar scale = 1 / std::sqrt(static_cast<Scalar>(H));
  Heads<Scalar> out(L, NH, H);
  out.setZero();
  std::vector<Scalar> weights(static_cast<std::size_t>(L));
  for (Index h = 0; h < NH; ++h)
    for (Index i = 0; i < L; ++i) {
      const auto keys = static_cast<std::size_t>(i) + 1;
      for (Index j = 0; j <= i; ++j) {
        Scalar logit = 0;
        for (Index f = 0; f < H; ++f) logit += static_cast<Scalar>(q(i, h, f)) * static_cast<Scalar>(k(j, h, f));
        weights[static_cast<std::size_t>(j)] = scale * logit + static_cast<Scalar>(bias(h, i, j));
      }
      const Scalar largest = *std::max_element(weights.begin(), weights.begin() + i + 1);
      Scalar sum = 0;
      for (std::size_t j = 0; j < keys; ++j) sum += weights[j] = std::exp(weights[j] - largest);
      for (std::size_t j = 0; j < keys; ++j)
        for (Index f = 0; f < H; ++f)
          out(i, h, f) += weights[j] / sum * static_cast<Scalar>(v(static_cast<Index>(j), h, f));
    }
  return out;
}

template <class Out>
std::string error_of(const Out& out, const Heads<Real>& reference_model) {
  Worst worst;
  for (Index i = 0; i < reference_model.size(); ++i) worst.see(out.data()[i], reference_model.data()[i]);
  return worst.absolute();
}

template <class Scalar, class Module>
Heads<Scalar> fused(const Heads<float>& q, const Heads<float>& k, const Heads<float>& v, const Module& module) {
  Heads<Scalar> out(q.dimensions());
  const Heads<Scalar> query = q.cast<Scalar>(), key = k.cast<Scalar>(), value = v.cast<Scalar>();
  posbias::attention(out, query, key, value, module, {.causal = true});
  return out;
}

/// `make.template operator()<Scalar>()` is the module.
template <class Make, class Bias>
void print_row_of(const char* name, Index L, const Make& make, const Bias& bias) {
  const auto q = numbers<float, 3>({L, NH, H}, 1), k = numbers<float, 3>({L, NH, H}, 2),
             v = numbers<float, 3>({L, NH, H}, 3);
  const Heads<Real> reference_model = plain_attention<Real>(q, k, v, bias);
  print_row({name, std::to_string(L),
             error_of(fused<float>(q, k, v, make.template operator()<float>()), reference_model),
             error_of(plain_attention<float>(q, k, v, bias), reference_model),
             error_of(fused<double>(q, k, v, make.template operator()<double>()), reference_model)});
}

}  // namespace

void print_attention() {
  std::puts("\n## Attention\n");
  print_header({"causal, 2 heads of 64, with", "L", "posbias, float", "plain loops, float", "posbias, double"});
  const auto slopes = reference::alibi_slopes(static_cast<int>(NH));
  const auto t5_weights = weights_of(posbias::RelativePositionBias<float>({.n_heads = NH}, 1));
  for (const Index L : {64, 1000}) {
    print_row_of(
        "nothing", L, []<class Scalar>() { return posbias::Identity(); }, [](Index, Index, Index) { return Real(0); });
    print_row_of(
        "ALiBi", L, []<class Scalar>() { return posbias::ALiBi<Scalar>({.n_heads = NH}); },
        [&](Index h, Index i, Index j) {
          return reference::alibi(slopes[static_cast<std::size_t>(h)], static_cast<Real>(i), static_cast<Real>(j), 1);
        });
    print_row_of(
        "T5", L,
        []<class Scalar>() {
          // The weights that a seed gives are not the same in float and double: those of float, in either.
          const posbias::RelativePositionBias<float> start({.n_heads = NH}, 1);
          posbias::RelativePositionBias<Scalar> module({.n_heads = NH}, 1);
          posbias::for_each_parameter(module, [&](std::string_view, auto& to) {
            posbias::for_each_parameter(start,
                                        [&](std::string_view, const auto& from) { to = from.template cast<Scalar>(); });
          });
          return module;
        },
        [&](Index h, Index i, Index j) {
          return t5_weights.at(
              "relative_attention_bias.weight")[static_cast<std::size_t>(reference::t5_bucket(j - i, {}) * NH + h)];
        });
  }
}

}  // namespace posbias_accuracy
