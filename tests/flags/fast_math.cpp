// SPDX-License-Identifier: MIT
/// \file
/// Every module, attention and RelativeAttention, forward and backward, compiled with -ffast-math: beside plain loops in
/// long double and, for gradients, beside central differences. Returns how many are wrong.
///
/// Nothing here compares with infinity or looks for NaN but by bits, because compilers may take either for impossible.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <posbias/posbias.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "reference/reference.hpp"
#include "support/numbers.hpp"

namespace {

using posbias::Index;
using posbias::Positions;
namespace reference = posbias_test::reference;
using reference::Real, reference::Weights;
using Tokens = Eigen::Tensor<double, 2, Eigen::RowMajor>;  // (L, dim)
using Heads = Eigen::Tensor<double, 3, Eigen::RowMajor>;   // (L, NH, H)

constexpr Index L = 19, NH = 2, H = 4, dim = NH * H, start = 100000;
constexpr std::uint64_t exponent = 0x7ff0000000000000U, minus_infinity = 0xfff0000000000000U;

int failures = 0;

bool odd(double value) {
  return (std::bit_cast<std::uint64_t>(value) & exponent) == exponent;
}

/// The largest error, and whether anything was infinite or NaN.
struct Worst {
  Real error = 0;
  bool finite = true;

  void see(double found, Real reference_model) {
    finite = finite && !odd(found);
    if (finite)
      error = std::max(
          error, std::abs(static_cast<Real>(found) - reference_model) / std::max(Real(1), std::abs(reference_model)));
  }
};

void check(const char* what, const Worst& worst, Real tolerance = 1e-10L) {
  if (worst.finite && worst.error <= tolerance) return;
  std::printf("WRONG: %s: %s, error %.1e\n", what, worst.finite ? "finite" : "not finite",
              static_cast<double>(worst.error));
  ++failures;
}
void check(const char* what, bool right) {
  if (right) return;
  std::printf("WRONG: %s\n", what);
  ++failures;
}

template <class Tensor>
Tensor numbers(Tensor tensor, std::uint64_t seed) {
  posbias_test::Numbers from(seed);
  std::generate_n(tensor.data(), tensor.size(), [&] { return from.value(); });
  return tensor;
}

template <class Module>
Weights weights_of(const Module& module) {
  Weights weights;
  posbias::for_each_parameter(module, [&](std::string_view name, const auto& tensor) {
    weights[std::string(name)] = std::vector<Real>(tensor.data(), tensor.data() + tensor.size());
  });
  return weights;
}

template <class Tensor>
double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (Index i = 0; i < a.size(); ++i) sum += a.data()[i] * b.data()[i];
  return sum;
}

/// Compares some entries of a gradient with central differences of a loss, which reads the values.
void check_gradient(double* values, const double* gradient, Index size, const std::function<double()>& loss,
                    Worst& worst) {
  constexpr double step = 1e-4;
  for (Index i = 0; i < size; i += std::max<Index>(size / 4, 1)) {
    const double middle = values[i];
    const auto at = [&](double value) {
      values[i] = value;
      return loss();
    };
    const double slope =
        (8 * (at(middle + step) - at(middle - step)) - (at(middle + 2 * step) - at(middle - 2 * step))) / (12 * step);
    values[i] = middle;
    worst.see(gradient[i], slope);
  }
}

template <class Module, class Gradients>
void check_parameter_gradients(const char* what, Module& module, const Gradients& grads,
                               const std::function<double()>& loss) {
  Worst worst;
  std::vector<const double*> gradients;
  posbias::for_each_parameter(grads, [&](std::string_view, const auto& g) { gradients.push_back(g.data()); });
  auto next = gradients.begin();
  posbias::for_each_parameter(module, [&](std::string_view, auto& values) {
    check_gradient(values.data(), *next++, values.size(), loss, worst);
  });
  check(what, worst, 1e-7L);
}

using Embeddings =
    posbias::Compose<posbias::Sinusoidal<double>, posbias::LearnedVocab<double>, posbias::LearnedContinuous<double>>;

void check_embeddings() {
  using namespace posbias;
  Embeddings embeddings(Sinusoidal<double>({.dim = dim, .learned_div = true}),
                        LearnedVocab<double>({.dim = dim, .max_seq_len = start + L}, 1),
                        LearnedContinuous<double>({.dim = dim, .depth = 2, .norm = true, .divide = 1000}, 2));
  const TokenPositions at{.pos = Positions::range(start)};
  const auto x = numbers(Tokens(L, dim), 3);
  Tokens found = x;
  embeddings.mod_x(found, at);
  const Weights vocab = weights_of(embeddings.get<1>()), mlp = weights_of(embeddings.get<2>());
  Worst worst;
  for (Index i = 0; i < L; ++i) {
    const auto position = static_cast<Real>(start + i);
    const auto sines = reference::sinusoid(position, 1, dim, false);
    const auto features = reference::mlp(position / 1000, mlp, 2, true);
    for (Index d = 0; d < dim; ++d) {
      const auto f = static_cast<std::size_t>(d);
      const Real row = vocab.begin()->second[static_cast<std::size_t>((start + i) * dim + d)];
      worst.see(found(i, d), static_cast<Real>(x(i, d)) + sines[f] + row + features[f].value);
    }
  }
  check("embeddings", worst);

  auto grads = embeddings.zero_gradients();
  auto grad_x = numbers(Tokens(L, dim), 4);
  const Tokens weight = grad_x;
  const TokenPositions close_by{.pos = Positions::range(7)};  // so that differences are exact enough
  embeddings.mod_x_backward(grad_x, close_by, grads);
  check_parameter_gradients("gradients of embeddings", embeddings, grads, [&] {
    Tokens y = x;
    embeddings.mod_x(y, close_by);
    return dot(y, weight);
  });
}

/// Logits of attention with every module that has a part in it, at positions from `start` on. ALiBi hides keys behind a
/// query from the first head, and keys ahead from the second.
struct Logits {
  posbias::Compose<posbias::Rotary<double>, posbias::ALiBi<double>, posbias::RelativePositionBias<double>,
                   posbias::DynamicPositionBias<double>, posbias::TransformerXL<double>,
                   posbias::DisentangledBias<double>>
      module{
          posbias::Rotary<double>({.head_dim = H, .learned_div = true}),
          posbias::ALiBi<double>({.n_heads = NH, .asymmetric = true}),
          posbias::RelativePositionBias<double>({.n_heads = NH}, 1),
          posbias::DynamicPositionBias<double>({.dim = 4, .n_heads = NH, .depth = 2, .norm = true, .divide = 8}, 2),
          posbias::TransformerXL<double>({.dim = dim, .n_heads = NH}, 3),
          posbias::DisentangledBias<double>({.n_heads = NH, .head_dim = H, .n_positions = 8, .position_size = 4}, 4)};
  const posbias::PairPositions at{.q_k = Positions::range(start)};
  Heads q = numbers(Heads(L, NH, H), 5), k = numbers(Heads(L, NH, H), 6), v = numbers(Heads(L, NH, H), 7);

  using Vector = std::array<Real, H>;
  std::vector<Vector> queries, keys;  // as mod_qkv leaves them, by loops: (L, NH)
  std::vector<Real> biases;           // (NH, L, L); of hidden keys too

  Logits() {
    const Weights t5 = weights_of(module.get<2>()), dpb = weights_of(module.get<3>()), xl = weights_of(module.get<4>()),
                  table = weights_of(module.get<5>());
    const auto slopes = reference::alibi_slopes(NH, NH, true);
    for (Index i = 0; i < L; ++i)
      for (Index h = 0; h < NH; ++h) {
        Vector query, key;
        std::copy_n(&q(i, h, 0), H, query.begin());
        std::copy_n(&k(i, h, 0), H, key.begin());
        reference::rotate(query, static_cast<Real>(start + i), 1, {.H = H, .rotated = H});
        reference::rotate(key, static_cast<Real>(start + i), 1, {.H = H, .rotated = H});
        for (std::size_t d = 0; d < H; ++d) query[d] += xl.at("bias_r_w")[static_cast<std::size_t>(h * H) + d];
        queries.push_back(query), keys.push_back(key);
      }
    // A row of the table, projected to keys or to queries.
    const auto projected = [&](const std::string& to, Index row, Index h, Index d) {
      const auto o = static_cast<std::size_t>(h * H + d);
      Real sum = table.at("position_" + to + "_proj.bias")[o];
      for (std::size_t p = 0; p < 4; ++p)
        sum += table.at("position_embedding")[static_cast<std::size_t>(row) * 4 + p] *
               table.at("position_" + to + "_proj.weight")[p * dim + o];
      return sum;
    };
    for (Index h = 0; h < NH; ++h)
      for (Index i = 0; i < L; ++i)
        for (Index j = 0; j < L; ++j) {
          const auto head = static_cast<std::size_t>(h);
          const auto difference = static_cast<Real>(i - j);
          Real bias = -slopes[head] * std::abs(difference);
          bias += t5.begin()->second[static_cast<std::size_t>(reference::t5_bucket(j - i, {}) * NH + h)];
          bias -= reference::dynamic_bias(difference / 8, dpb, 2, true)[head].value;
          bias +=
              reference::xl(static_cast<int>(h), query(i, h), reference::xl_row(difference, 1, xl, false), xl, false)
                  .value;
          const Index row = std::clamp<Index>(j - i + 4, 0, 7);
          for (Index d = 0; d < H; ++d)
            bias += (query(i, h)[static_cast<std::size_t>(d)] * projected("key", row, h, d) +
                     key(j, h)[static_cast<std::size_t>(d)] * projected("query", row, h, d)) /
                    2;
          biases.push_back(bias);
        }
  }

  [[nodiscard]] const Vector& query(Index i, Index h) const { return queries[static_cast<std::size_t>(i * NH + h)]; }
  [[nodiscard]] const Vector& key(Index j, Index h) const { return keys[static_cast<std::size_t>(j * NH + h)]; }
  [[nodiscard]] Real bias(Index h, Index i, Index j) const {
    return biases[static_cast<std::size_t>((h * L + i) * L + j)];
  }
  [[nodiscard]] static bool hidden_by_alibi(Index h, Index i, Index j) { return h == 0 ? j < i : j > i; }
};

void check_hooks(const Logits& logits) {
  Heads q = logits.q, k = logits.k, v = logits.v;
  logits.module.mod_qkv(q, k, v, logits.at);
  Worst rotated;
  for (Index i = 0; i < L; ++i)
    for (Index h = 0; h < NH; ++h)
      for (Index d = 0; d < H; ++d) {
        rotated.see(q(i, h, d), logits.query(i, h)[static_cast<std::size_t>(d)]);
        rotated.see(k(i, h, d), logits.key(i, h)[static_cast<std::size_t>(d)]);
      }
  check("mod_qkv", rotated);

  Heads mask = logits.module.make_mask(q, k, v, logits.at);
  Worst visible;
  bool hidden = true;
  for (Index h = 0; h < NH; ++h)
    for (Index i = 0; i < L; ++i)
      for (Index j = 0; j < L; ++j)
        if (Logits::hidden_by_alibi(h, i, j))
          hidden = hidden && std::bit_cast<std::uint64_t>(mask(h, i, j)) == minus_infinity;
        else
          visible.see(mask(h, i, j), logits.bias(h, i, j));
  check("make_mask", visible);
  check("make_mask is -inf where ALiBi hides a key", hidden);
}

/// Causal, so that the first head sees a query's own position only, and a mask of -inf, so that query 5 sees nothing. The
/// last key is hidden from all, and NaN.
void check_attention(Logits& logits) {
  const double hidden = std::bit_cast<double>(minus_infinity), nan = std::bit_cast<double>(exponent + 1);
  Tokens add(L, L);
  const auto masked = [](Index i, Index j) { return i == 5 || j == L - 1 || (i + j) % 4 == 1; };
  for (Index i = 0; i < L; ++i)
    for (Index j = 0; j < L; ++j) add(i, j) = masked(i, j) ? hidden : 0.5;
  const posbias::AttentionOptions options{.causal = true, .at = logits.at, .mask = add};
  for (Index h = 0; h < NH; ++h)
    for (Index d = 0; d < H; ++d) logits.k(L - 1, h, d) = logits.v(L - 1, h, d) = nan;

  Heads out(L, NH, H);
  Tokens log_sum_exp(NH, L);
  posbias::attention(out, logits.q, logits.k, logits.v, logits.module, options, log_sum_exp);
  Worst worst;
  bool nothing = true;
  for (Index h = 0; h < NH; ++h)
    for (Index i = 0; i < L; ++i) {
      std::array<Real, H> sums{};
      Real total = 0;
      for (Index j = 0; j <= i; ++j) {
        if (masked(i, j) || Logits::hidden_by_alibi(h, i, j)) continue;
        Real logit = logits.bias(h, i, j) + 0.5L;
        for (std::size_t d = 0; d < H; ++d) logit += logits.query(i, h)[d] * logits.key(j, h)[d] / 2;
        total += std::exp(logit);
        for (std::size_t d = 0; d < H; ++d)
          sums[d] += std::exp(logit) * static_cast<Real>(logits.v(j, h, static_cast<Index>(d)));
      }
      for (std::size_t d = 0; d < H; ++d) worst.see(out(i, h, static_cast<Index>(d)), total > 0 ? sums[d] / total : 0);
      if (total > 0)
        worst.see(log_sum_exp(h, i), std::log(total));
      else
        nothing = nothing && std::bit_cast<std::uint64_t>(log_sum_exp(h, i)) == minus_infinity;
    }
  check("attention", worst);
  check("log_sum_exp is -inf where a query sees nothing", nothing);

  posbias::AttentionOptions close_by = options;
  close_by.at = {.q_k = Positions::range(7)};  // so that differences are exact enough
  posbias::attention(out, logits.q, logits.k, logits.v, logits.module, close_by, log_sum_exp);
  const Heads weight = numbers(Heads(L, NH, H), 8);
  Heads grad_q(L, NH, H), grad_k(L, NH, H), grad_v(L, NH, H);
  auto grads = logits.module.zero_gradients();
  posbias::attention_backward(grad_q, grad_k, grad_v, weight, out, logits.q, logits.k, logits.v, logits.module,
                              close_by, grads, log_sum_exp);
  const auto loss = [&] {
    posbias::attention(out, logits.q, logits.k, logits.v, logits.module, close_by);
    return dot(out, weight);
  };
  Worst content;
  check_gradient(logits.q.data(), grad_q.data(), logits.q.size(), loss, content);
  check_gradient(logits.k.data(), grad_k.data(), logits.k.size() - dim, loss, content);
  check_gradient(logits.v.data(), grad_v.data(), logits.v.size() - dim, loss, content);
  check("gradients of q, k and v", content, 1e-7L);
  check_parameter_gradients("gradients of every module in attention", logits.module, grads, loss);
  bool zeros = true;
  for (Index h = 0; h < NH; ++h)
    for (Index d = 0; d < H; ++d)
      zeros = zeros && grad_q(5, h, d) == 0 && grad_k(L - 1, h, d) == 0 && grad_v(L - 1, h, d) == 0;
  check("gradients of a query that sees nothing, and of a hidden key, are zeros", zeros);
}

void check_relative_attention() {
  posbias::RelativeAttention<double> layer({.size = dim, .n_heads = NH, .n_positions = 8}, 5);
  Tokens x = numbers(Tokens(L, dim), 9), base(L, L);
  for (Index i = 0; i < L; ++i)
    for (Index j = 0; j < L; ++j) base(i, j) = i == 5 || (i + j) % 4 == 1 ? std::bit_cast<double>(minus_infinity) : 0.5;
  posbias::RelativeAttentionCall call;
  call.positions = {{.q_k = Positions::range(start)}};
  call.base_attn = base;
  const auto result = layer(x, x, x, call);

  const Weights weights = weights_of(layer);
  const auto map = [&](const std::string& name, auto&& input, std::size_t inputs, Index o, bool by_output) {
    const auto output = static_cast<std::size_t>(o);
    Real sum = weights.at(name + ".bias")[output];
    for (std::size_t d = 0; d < inputs; ++d)
      sum += weights.at(name + ".weight")[by_output ? output * inputs + d : d * dim + output] * input(d);
    return sum;
  };
  const auto content = [&](const char* name, Index i, Index o) {
    return map(
        name, [&](std::size_t d) { return static_cast<Real>(x(i, static_cast<Index>(d))); }, dim, o, true);
  };
  const auto table = [&](const char* name, Index row, Index o) {
    return map(
        name, [&](std::size_t d) { return weights.at("position_embedding")[static_cast<std::size_t>(row * dim) + d]; },
        dim, o, false);
  };
  Worst worst;
  for (Index h = 0; h < NH; ++h)
    for (Index i = 0; i < L; ++i) {
      std::array<Real, H> sums{};
      Real total = 0;
      for (Index j = 0; j < L; ++j) {
        if (i == 5 || (i + j) % 4 == 1) continue;
        const Index row = std::clamp<Index>(j - i + 4, 0, 7);
        Real logit = 0;
        for (Index o = h * H; o < (h + 1) * H; ++o) {
          const Real query = content("content_query_proj", i, o), key = content("content_key_proj", j, o);
          logit +=
              query * key + query * table("position_key_proj", row, o) + key * table("position_query_proj", row, o);
        }
        logit = logit / std::sqrt(Real(3 * H)) + 0.5L + weights.at("bias")[static_cast<std::size_t>(h)];
        worst.see(result.logits(i, j, h), logit);
        total += std::exp(logit);
        for (Index d = 0; d < H; ++d)
          sums[static_cast<std::size_t>(d)] += std::exp(logit) * content("content_value_proj", j, h * H + d);
      }
      for (Index d = 0; d < H; ++d)
        worst.see(result.pooled(i, h * H + d), total > 0 ? sums[static_cast<std::size_t>(d)] / total : 0);
    }
  check("RelativeAttention", worst);

  const Tokens weight = numbers(Tokens(L, dim), 10);
  Tokens grad_x(L, dim);
  grad_x.setZero();
  auto grads = layer.zero_gradients();
  layer.backward(grad_x, grad_x, grad_x, weight, result.logits, x, x, x, call, grads);
  const auto loss = [&] { return dot(Tokens(layer(x, x, x, call).pooled), weight); };
  Worst inputs;
  check_gradient(x.data(), grad_x.data(), x.size(), loss, inputs);
  check("gradients of RelativeAttention's content", inputs, 1e-7L);
  check_parameter_gradients("gradients of RelativeAttention", layer, grads, loss);
}

}  // namespace

int main() {
  check_embeddings();
  Logits logits;
  check_hooks(logits);
  check_attention(logits);
  check_relative_attention();
  std::printf("%d wrong\n", failures);
  return failures;
}
