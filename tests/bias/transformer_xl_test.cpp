// SPDX-License-Identifier: MIT
#include "posbias/bias/transformer_xl.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/golden_bias.hpp"
#include "support/numbers.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

using Values = std::vector<double>;
using Named = std::map<std::string, Values>;
template <class S, int Rank = 4>
using Tensor = Eigen::Tensor<S, Rank, Eigen::RowMajor>;

TransformerXLOptions options_of(const std::string& name, const GoldenCase& golden) {
  return {.dim = golden.size("dim"),
          .n_heads = golden.size("n_heads"),
          .form = name.starts_with("bio_") ? XLForm::bio_attention : XLForm::paper,
          .layout = name.ends_with("_half") ? SinusoidLayout::half : SinusoidLayout::interleaved,
          .linear_bias = golden.has("param.embed_lin.bias"),
          .divide = golden.config("divide", 1)};
}

/// Gives a module these parameters, which must be all it has but "div".
template <class S>
void set_parameters(TransformerXL<S>& module, const Named& values) {
  std::size_t parameters = 0;
  for_each_parameter(module, [&](std::string_view name, auto& tensor) {
    if (name == "div") return;
    ++parameters;
    REQUIRE(values.contains(std::string(name)));
    const Values& from = values.at(std::string(name));
    REQUIRE(from.size() == static_cast<std::size_t>(tensor.size()));
    for (std::size_t i = 0; i < from.size(); ++i) tensor.data()[i] = static_cast<S>(from[i]);
  });
  CHECK(parameters == values.size());
}

template <class Owner>
Named named(const Owner& owner) {
  Named values;
  for_each_parameter(owner,
                     [&](std::string_view name, const auto& tensor) { values[std::string(name)] = flat(tensor); });
  return values;
}

Values times(Values values, double factor) {
  for (double& value : values) value *= factor;
  return values;
}

double largest(const Values& values) {
  double result = 0;
  for (const double value : values) result = std::max(result, std::abs(value));
  return result;
}

TEMPLATE_TEST_CASE("TransformerXL, form bio_attention: mod_mask gives what bio-attention gives", "[golden]", double,
                   float) {
  const auto names = golden_names("bio_xl__mod_mask_");
  REQUIRE(names.size() == 7);
  for (const auto& name : names) {
    const GoldenCase golden(name);
    DYNAMIC_SECTION(name) {
      const TransformerXL<TestType> module(options_of(name, golden));
      if (golden.rank("in.q") == 4)
        check_mask<TestType, 4>(golden, module);
      else
        check_mask<TestType, 5>(golden, module);
    }
  }
}

TEMPLATE_TEST_CASE("TransformerXL: mod_qkv, and mod_mask after it, give what bio-attention gives", "[golden]", double,
                   float) {
  constexpr double tolerance = golden_tolerance<TestType>;
  for (const std::string name : {"bio_xl__mod_qkv_default", "bio_xl__chain_default"}) {
    const GoldenCase golden(name);
    const bool with_mask = golden.has("in.mask");
    DYNAMIC_SECTION(name) {
      TransformerXL<TestType> module(options_of(name, golden));
      golden.load_parameters(module);
      for_each_layout_case([&]<class LayoutCase>() {
        auto q = golden.input<TestType, 4, LayoutCase>("in.q");
        auto k = golden.input<TestType, 4, LayoutCase>("in.k");
        auto v = golden.input<TestType, 4, LayoutCase>("in.v");
        auto grad_q = golden.input<TestType, 4, LayoutCase>("grad_out.q");
        auto grad_k = golden.input<TestType, 4, LayoutCase>("grad_out.k");
        auto grad_v = golden.input<TestType, 4, LayoutCase>("grad_out.v");
        auto grads = module.zero_gradients();
        module.mod_qkv(q.tensor(), k.tensor(), v.tensor());
        check_close(flat(q.tensor()), golden.expected<TestType>("out.q"), tolerance);
        CHECK(flat(k.tensor()) == golden.values("in.k"));
        CHECK(flat(v.tensor()) == golden.values("in.v"));
        if (with_mask) {
          auto mask = golden.input<TestType, 4, LayoutCase>("in.mask");
          module.mod_mask(mask.tensor(), q.tensor(), k.tensor(), v.tensor());
          check_close(flat(mask.tensor()), golden.expected<TestType>("out.mask"), tolerance);
          auto grad_mask = golden.input<TestType, 4, LayoutCase>("grad_out.mask");
          module.mod_mask_backward(grad_mask.tensor(), grad_q.tensor(), grad_k.tensor(), grad_v.tensor(), q.tensor(),
                                   k.tensor(), v.tensor(), {}, grads);
          check_close(flat(grad_mask.tensor()), golden.values("grad_in.mask"), tolerance);
        }
        module.mod_qkv_backward(grad_q.tensor(), grad_k.tensor(), grad_v.tensor(), q.tensor(), k.tensor(), v.tensor(),
                                {}, grads);
        check_close(flat(grad_q.tensor()), golden.values("grad_in.q"), tolerance);
        check_close(flat(grad_k.tensor()), golden.values("grad_in.k"), tolerance);
        check_close(flat(grad_v.tensor()), golden.values("grad_in.v"), tolerance);
        golden.check_gradients<TestType>(grads);
        module.undo_mod_qkv(q.tensor(), k.tensor(), v.tensor());
        check_close(flat(q.tensor()), golden.values("in.q"), tolerance);
      });
    }
  }
}

/// Plain loops over an attention (N, L1, NH, H) x (N, L2, NH, H), all row-major.
struct Attention {
  Index N, L1, L2, NH, H;

  [[nodiscard]] double scale() const { return 1 / std::sqrt(static_cast<double>(H)); }

  /// visit(first feature of the query, first feature of the key, place of the logit)
  template <class Visit>
  void for_each(const Visit& visit) const {
    for (Index n = 0, logit = 0; n < N; ++n)
      for (Index h = 0; h < NH; ++h)
        for (Index i = 0; i < L1; ++i)
          for (Index j = 0; j < L2; ++j, ++logit)
            visit(((n * L1 + i) * NH + h) * H, ((n * L2 + j) * NH + h) * H, logit);
  }

  /// logits += q·k / sqrt(H)
  void add_products(const auto& q, const auto& k, Values& logits) const {
    for_each([&](Index query, Index key, Index logit) {
      for (Index f = 0; f < H; ++f)
        logits[static_cast<std::size_t>(logit)] +=
            scale() * static_cast<double>(q.data()[query + f]) * static_cast<double>(k.data()[key + f]);
    });
  }

  /// Its adjoint, adding to grad_q and grad_k.
  void add_product_gradients(const Values& grad_logits, const auto& q, const auto& k, auto& grad_q,
                             auto& grad_k) const {
    using S = typename std::remove_cvref_t<decltype(q)>::Scalar;
    for_each([&](Index query, Index key, Index logit) {
      const auto grad = static_cast<S>(scale() * grad_logits[static_cast<std::size_t>(logit)]);
      for (Index f = 0; f < H; ++f) {
        grad_q.data()[query + f] += grad * k.data()[key + f];
        grad_k.data()[key + f] += grad * q.data()[query + f];
      }
    });
  }
};

/// The paper's bd, which is the mask times sqrt(H), or its score, q·k / sqrt(H) + mask, on q without u; and gradients.
template <class S, int Rank>
void check_paper(const std::string& name) {
  constexpr double tolerance = golden_tolerance<S>;
  const GoldenCase golden(name);
  const bool score = golden.has("out.score");
  const std::string output = score ? "score" : "bd";
  TransformerXL<S> module(options_of(name, golden));
  golden.load_parameters(module);
  const PairPositions at = golden.pair_positions();

  auto q = golden.tensor<S, Rank>("in.q");
  auto k = golden.tensor<S, Rank>("in.k");
  auto v = k;
  const Index NH = q.dimension(Rank - 2), H = q.dimension(Rank - 1);
  const Attention attention{q.size() / (q.dimension(Rank - 3) * NH * H), q.dimension(Rank - 3), k.dimension(Rank - 3),
                            NH, H};
  module.mod_qkv(q, k, v, at);
  const auto mask = module.make_mask(q, k, v, at);
  Values actual = flat(mask);
  if (score)
    attention.add_products(q, k, actual);
  else
    actual = times(actual, 1 / attention.scale());
  check_close(actual, golden.values("out." + output), tolerance);

  auto grad_mask = golden.tensor<S, Rank>("grad_out." + output);
  auto grad_q = q, grad_k = k;
  grad_q.setZero();
  grad_k.setZero();
  auto grad_v = grad_k;
  if (score)
    attention.add_product_gradients(flat(grad_mask), q, k, grad_q, grad_k);
  else
    grad_mask = grad_mask * static_cast<S>(1 / attention.scale());
  auto grads = module.zero_gradients();
  module.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, v, at, grads);
  module.mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, grads);
  check_close(flat(grad_q), golden.values("grad_in.q"), tolerance);
  check_close(flat(grad_k), golden.values("grad_in.k"), tolerance);
  CHECK(largest(flat(grad_v)) == 0);
  for (const auto& [parameter, gradient] : named(grads)) {
    INFO(parameter);
    // u is added by mod_qkv and taken away by mod_mask: what is left of its gradient is what q·k has of it.
    const double cancelled = parameter == "bias_r_w" ? tolerance * largest(golden.values("grad_param.bias_r_r")) : 0;
    check_close(gradient, golden.values("grad_param." + parameter), tolerance, cancelled);
  }
}

TEMPLATE_TEST_CASE("TransformerXL gives the paper's bias and score", "[golden]", double, float) {
  const auto names = golden_names("paper_xl__");
  REQUIRE(names.size() == 8);
  for (const auto& name : names) DYNAMIC_SECTION(name) {
      if (name == "paper_xl__bd_rank5")
        check_paper<TestType, 5>(name);
      else
        check_paper<TestType, 4>(name);
    }
}

/// What Hugging Face's layer does after the softmax: ·v, o_net, residual, layer norm. Returns the gradient of the
/// probabilities and adds that of v. Recorded tokens are time-major, (L, B, D).
template <class S>
Values through_output(const GoldenCase& golden, const Attention& attention, const Values& probabilities,
                      const Tensor<S>& v, Tensor<S>& grad_v) {
  const Index D = attention.NH * attention.H;
  const double* weight = golden.values("param.o_net.weight").data();
  const double* gamma = golden.values("param.layer_norm.weight").data();
  const double* beta = golden.values("param.layer_norm.bias").data();
  Values context(golden.values("in.w").size()), grad_context(context.size()), out(context.size());
  Values normal(static_cast<std::size_t>(D)), grad(normal.size());
  attention.for_each([&](Index query, Index key, Index logit) {
    for (Index f = 0; f < attention.H; ++f)
      context.data()[query + f] += probabilities.data()[logit] * static_cast<double>(v.data()[key + f]);
  });
  for (Index token = 0; token < attention.N * attention.L1; ++token) {
    const Index recorded = (token % attention.L1 * attention.N + token / attention.L1) * D;
    double mean = 0, square = 0, grad_mean = 0, grad_square = 0;
    for (Index d = 0; d < D; ++d) {
      double& y = normal.data()[d] = golden.values("in.w").data()[recorded + d];
      for (Index e = 0; e < D; ++e) y += weight[d * D + e] * context.data()[token * D + e];
      mean += y / static_cast<double>(D);
    }
    for (const double y : normal) square += (y - mean) * (y - mean) / static_cast<double>(D);
    const double deviation = std::sqrt(square + 1e-5);
    for (Index d = 0; d < D; ++d) {
      double& y = normal.data()[d];
      y = (y - mean) / deviation;
      out.data()[recorded + d] = gamma[d] * y + beta[d];
      grad.data()[d] = gamma[d] * golden.values("grad_out.w").data()[recorded + d];
      grad_mean += grad.data()[d] / static_cast<double>(D);
      grad_square += grad.data()[d] * y / static_cast<double>(D);
    }
    for (Index d = 0; d < D; ++d)
      for (Index e = 0; e < D; ++e)
        grad_context.data()[token * D + e] +=
            weight[d * D + e] * (grad.data()[d] - grad_mean - normal.data()[d] * grad_square) / deviation;
  }
  check_close(out, golden.expected<S>("out.w"), golden_tolerance<S>);

  Values grad_probabilities(probabilities.size());
  attention.for_each([&](Index query, Index key, Index logit) {
    for (Index f = 0; f < attention.H; ++f) {
      const double along = grad_context.data()[query + f];
      grad_probabilities.data()[logit] += along * static_cast<double>(v.data()[key + f]);
      grad_v.data()[key + f] += static_cast<S>(along * probabilities.data()[logit]);
    }
  });
  return grad_probabilities;
}

/// The gradient of qkv_net.weight (3·D, D), which makes q, k and v of [mems, w]; q of the last tokens only.
template <class S>
Values qkv_net_gradient(const GoldenCase& golden, const std::array<Tensor<S>, 3>& grads) {
  const Index D = golden.size("d_model"), N = grads[0].dimension(0), L2 = grads[1].dimension(1);
  Values tokens = golden.has("in.mems") ? golden.values("in.mems") : Values();
  tokens.insert(tokens.end(), golden.values("in.w").begin(), golden.values("in.w").end());
  Values gradient;
  for (const auto& grad : grads)
    for (Index r = 0; r < D; ++r)
      for (Index d = 0; d < D; ++d) {
        double& sum = gradient.emplace_back();
        for (Index n = 0; n < N; ++n)
          for (Index l = L2 - grad.dimension(1); l < L2; ++l)
            sum += static_cast<double>(grad.data()[((n + 1) * grad.dimension(1) + l - L2) * D + r]) *
                   tokens.data()[(l * N + n) * D + d];
      }
  return gradient;
}

/// A tensor with its dimensions in another order.
template <class T>
T shuffled(const T& tensor, const std::array<int, 4>& order) {
  return tensor.shuffle(order);
}

/// Bias, probabilities and gradients of Hugging Face's layer, with the module in its place.
template <class S>
void check_transfo_xl(const std::string& name) {
  constexpr double tolerance = golden_tolerance<S>;
  const GoldenCase golden(name);
  const auto mlen = static_cast<Index>(golden.call("mlen", 0)), qlen = static_cast<Index>(golden.call("qlen", 0));
  const Attention attention{2, qlen, mlen + qlen, golden.size("n_head"), golden.size("d_head")};
  TransformerXL<S> module(
      {.dim = golden.size("d_model"), .n_heads = attention.NH, .layout = SinusoidLayout::half, .linear_bias = false});
  set_parameters(module, {{"bias_r_w", golden.values("param.r_w_bias")},
                          {"bias_r_r", golden.values("param.r_r_bias")},
                          {"embed_lin.weight", golden.values("param.r_net.weight")}});
  const PairPositions at{.q = Positions::range(mlen), .k = Positions::range()};

  // Recorded time-major: (L, B, NH, H), and (L1, L2, B, NH) with 0 for the keys after a query.
  const auto heads = [&](const std::string& tensor) { return shuffled(golden.tensor<S, 4>(tensor), {1, 0, 2, 3}); };
  const auto logits_of = [&](const std::string& tensor) {
    return flat(shuffled(golden.tensor<double, 4>(tensor), {2, 3, 0, 1}));
  };
  const auto visible = [&](std::size_t logit) {
    const auto l = static_cast<Index>(logit);
    return l % attention.L2 <= mlen + l / attention.L2 % attention.L1;
  };
  const auto as_recorded = [&](const Values& logits) {
    Tensor<double> result(attention.N, attention.NH, attention.L1, attention.L2);
    for (std::size_t l = 0; l < logits.size(); ++l) result.data()[l] = visible(l) ? logits[l] : 0;
    return flat(shuffled(result, {2, 3, 0, 1}));
  };

  auto q = heads("out.q"), k = heads("out.k"), v = heads("out.v");
  module.mod_qkv(q, k, v, at);
  const auto mask = module.make_mask(q, k, v, at);
  check_close(as_recorded(times(flat(mask), 1 / attention.scale())), golden.expected<S>("out.bd"), tolerance);

  Values probabilities = flat(mask);
  attention.add_products(q, k, probabilities);
  const auto keys = static_cast<std::size_t>(attention.L2);
  for (std::size_t row = 0; row < probabilities.size(); row += keys) {
    double sum = 0;
    for (std::size_t l = row; l < row + keys; ++l)
      sum += probabilities[l] = visible(l) ? std::exp(probabilities[l]) : 0;
    for (std::size_t l = row; l < row + keys; ++l) probabilities[l] /= sum;
  }
  check_close(as_recorded(probabilities), golden.expected<S>("out.attn_prob"), tolerance);

  std::array grads_qkv{q, heads("grad_out.k"), heads("grad_out.v")};
  auto& [grad_q, grad_k, grad_v] = grads_qkv;
  grad_q.setZero();
  Values grad_logits = through_output(golden, attention, probabilities, v, grad_v);
  const Values grad_recorded = logits_of("grad_out.attn_prob"), grad_bd = logits_of("grad_out.bd");
  for (std::size_t row = 0; row < grad_logits.size(); row += keys) {
    double mean = 0;
    for (std::size_t l = row; l < row + keys; ++l) mean += probabilities[l] * (grad_logits[l] += grad_recorded[l]);
    for (std::size_t l = row; l < row + keys; ++l) grad_logits[l] = probabilities[l] * (grad_logits[l] - mean);
  }
  attention.add_product_gradients(grad_logits, q, k, grad_q, grad_k);
  auto grad_mask = mask;
  for (std::size_t l = 0; l < grad_logits.size(); ++l)
    grad_mask.data()[l] = static_cast<S>(grad_logits[l] + (visible(l) ? grad_bd[l] / attention.scale() : 0));
  auto grads = module.zero_gradients();
  module.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, v, at, grads);
  module.mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, grads);

  const Named gradients = named(grads);
  check_close(gradients.at("embed_lin.weight"), golden.values("grad_param.r_net.weight"), tolerance);
  check_close(gradients.at("bias_r_w"), golden.values("grad_param.r_w_bias"), tolerance);
  check_close(gradients.at("bias_r_r"), golden.values("grad_param.r_r_bias"), tolerance);
  grad_q += heads("grad_out.q");  // of q as recorded, before u was added
  check_close(qkv_net_gradient(golden, grads_qkv), golden.values("grad_param.qkv_net.weight"), tolerance);
}

TEMPLATE_TEST_CASE("TransformerXL in the attention of Hugging Face's Transfo-XL, with and without memory", "[golden]",
                   double, float) {
  for (const std::string name : {"hf_transfoxl__nomem", "hf_transfoxl__mem"}) DYNAMIC_SECTION(name) {
      check_transfo_xl<TestType>(name);
    }
}

/// dim 8 in two heads, W the identity, b = 0, v = `v` and u = `u`: r is the sinusoid.
Named reading_the_sinusoid(double u, double v, bool linear_bias) {
  Named values{{"bias_r_w", Values(8, u)}, {"bias_r_r", Values(8, v)}, {"embed_lin.weight", Values(64, 0)}};
  for (std::size_t d = 0; d < 64; d += 9) values["embed_lin.weight"][d] = 1;
  if (linear_bias) values["embed_lin.bias"] = Values(8, 0);
  return values;
}

TEST_CASE("TransformerXL: with W the identity a one-hot query reads the sinusoid of q - k, its head's part") {
  for (const auto layout : {SinusoidLayout::interleaved, SinusoidLayout::half})
    for (const auto form : {XLForm::paper, XLForm::bio_attention}) {
      TransformerXL<double> module({.dim = 8, .n_heads = 2, .form = form, .layout = layout, .divide = 3});
      set_parameters(module, reading_the_sinusoid(0, 0, true));
      Tensor<double> k(1, 3, 2, 4);
      k.setConstant(9);
      const bool paper = form == XLForm::paper;
      for (Index f = 0; f < 4; ++f) {
        Tensor<double> q(1, 2, 2, 4);
        q.setZero();
        for (Index i = 0; i < 2; ++i)
          for (Index h = 0; h < 2; ++h) q(0, i, h, f) = 1;
        const auto mask = module.make_mask(q, k, k, {.q = Positions::range(137), .k = Positions::range(100)});
        for (Index h = 0; h < 2; ++h)
          for (Index i = 0; i < 2; ++i)
            for (Index j = 0; j < 3; ++j) {
              const Index feature = 4 * h + f;
              const bool half = layout == SinusoidLayout::half;
              const Index pair = half ? feature % 4 : feature / 2;
              const bool sine = half ? feature < 4 : feature % 2 == 0;
              const double angle =
                  static_cast<double>(137 + i - 100 - j) / 3 * std::pow(10., -static_cast<double>(pair));
              const double value = sine ? std::sin(angle) : std::cos(angle);
              CHECK(mask(0, h, i, j) == Approx(paper ? value / 2 : value).epsilon(1e-13).margin(1e-15));
            }
      }
    }
}

TEST_CASE("TransformerXL: u cancels in the paper's form, v does not, bio-attention adds u and never uses v") {
  const auto bias = [](XLForm form, double u, double v) {
    TransformerXL<double> module({.dim = 8, .n_heads = 2, .form = form, .linear_bias = false});
    set_parameters(module, reading_the_sinusoid(u, v, false));
    Tensor<double> q(1, 1, 2, 4), k(1, 1, 2, 4);
    q.setZero();
    k.setZero();
    const PairPositions at{.q = Positions::range(104), .k = Positions::range(100)};
    module.mod_qkv(q, k, k, at);
    CHECK(flat(q) == Values(8, u));
    CHECK(flat(k) == Values(8, 0));
    return flat(module.make_mask(q, k, k, at));
  };
  // The sum of the sinusoid's features of head 0 and 1 at distance 4.
  const Values sums{std::sin(4) + std::cos(4) + std::sin(0.4) + std::cos(0.4),
                    std::sin(0.04) + std::cos(0.04) + std::sin(0.004) + std::cos(0.004)};
  check_close(bias(XLForm::paper, 0, 3), times(sums, 1.5), 1e-13);
  check_close(bias(XLForm::paper, 0.75, 3), times(sums, 1.5), 1e-13);
  CHECK(bias(XLForm::paper, 0.75, 0) == Values{0, 0});
  check_close(bias(XLForm::bio_attention, 0.75, 3), times(sums, 1.5), 1e-13);  // u twice, by mod_qkv and mod_mask
}

TEST_CASE("TransformerXL: one feature a head, and one head") {
  TransformerXL<double> narrow({.dim = 2, .n_heads = 2});
  set_parameters(narrow, {{"bias_r_w", {5, 6}},
                          {"bias_r_r", {0, 1}},
                          {"embed_lin.weight", {0, 2, 3, 0}},  // (out, in): head 0 reads the cosine, head 1 the sine
                          {"embed_lin.bias", {0, 10}}});
  Tensor<double> q(1, 1, 2, 1), k(1, 2, 2, 1);
  q.setConstant(1);
  k.setConstant(1);
  const PairPositions at{.q = Positions::range(103), .k = Positions::range(101)};
  narrow.mod_qkv(q, k, k, at);
  check_close(flat(narrow.make_mask(q, k, k, at)),
              {2 * std::cos(2), 2 * std::cos(1), 2 * (3 * std::sin(2) + 10), 2 * (3 * std::sin(1) + 10)}, 1e-14);

  TransformerXL<double> single({.dim = 4, .n_heads = 1, .linear_bias = false});
  Named values{{"bias_r_w", Values(4, 0)}, {"bias_r_r", {0, 0, 8, 0}}, {"embed_lin.weight", Values(16, 0)}};
  values["embed_lin.weight"][2 * 4 + 3] = 1;  // feature 2 of r is the second cosine
  set_parameters(single, values);
  Tensor<double> query(1, 1, 1, 4);
  query.setZero();
  CHECK(flat(single.make_mask(query, query, query, {.q = Positions::range(137), .k = Positions::range(100)}))[0] ==
        Approx(4 * std::cos(0.37)).epsilon(1e-14));
}

TEST_CASE("TransformerXL: gradients of more features than are projected at a time") {
  // The mask is linear in the weight, so a step of 1 changes its sum by the gradient.
  TransformerXL<double> module({.dim = 130, .n_heads = 1}, 1);
  Tensor<double> q(1, 2, 1, 130), k(1, 3, 1, 130), mask(1, 1, 2, 3), grad_mask = mask;
  for (Index i = 0; i < q.size(); ++i) q.data()[i] = static_cast<double>(i % 7) - 3;
  k.setZero();
  grad_mask.setConstant(1);
  const PairPositions at{.q = Positions::range(100)};
  Tensor<double> grad_q = q, grad_k = k, grad_v = k;
  auto grads = module.zero_gradients();
  module.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, k, at, grads);

  const auto sum_of_mask = [&] {
    const Values values = flat(module.make_mask(q, k, k, at));
    return std::accumulate(values.begin(), values.end(), 0.0);
  };
  const double before = sum_of_mask();
  for (const Index row : {0, 63, 64, 129}) {
    double gradient = 0;
    for_each_parameter(grads, [&](std::string_view name, const auto& tensor) {
      if (name == "embed_lin.weight") gradient = tensor.data()[row * 130 + 1];
    });
    const auto step = [&](double by) {
      for_each_parameter(module, [&](std::string_view name, auto& tensor) {
        if (name == "embed_lin.weight") tensor.data()[row * 130 + 1] += by;
      });
    };
    step(1);
    CHECK(sum_of_mask() - before == Approx(gradient).margin(1e-11));
    step(-1);
  }
}

TEST_CASE("TransformerXL: rows and columns of tokens without a position get no bias, and give no gradient") {
  const TransformerXL<double> module({.dim = 8, .n_heads = 2}, 7);
  Eigen::Tensor<std::int64_t, 1> two(2), three(3);
  two.setValues({102, 107});
  three.setValues({100, 101, 103});
  Tensor<double> q(1, 3, 2, 4), k(1, 4, 2, 4), mask(1, 2, 3, 4);
  q.setConstant(0.5);
  k.setConstant(0.5);
  mask.setConstant(7);
  const PairPositions at{.q = two, .k = three};
  module.mod_qkv(q, k, k, at);
  module.mod_mask(mask, q, k, k, at);
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < 3; ++i)
      for (Index j = 0; j < 4; ++j) CHECK((mask(0, h, i, j) == 7) == (i == 0 || j == 0));

  mask.setZero();
  auto grad_q = q, grad_k = k;
  for (Index j = 0; j < 4; ++j) mask(0, 1, 0, j) = 1;
  for (Index i = 0; i < 3; ++i) mask(0, 0, i, 0) = 1;
  auto grads = module.zero_gradients();
  module.mod_mask_backward(mask, grad_q, grad_k, grad_k, q, k, k, at, grads);
  CHECK(flat(grad_q) == flat(q));
  CHECK(flat(grad_k) == flat(k));
  for (const auto& [name, gradient] : named(grads)) CHECK(largest(gradient) == 0);
}

TEST_CASE("TransformerXL in tiles is the bias of the whole mask, and its gradient") {
  const TransformerXL<double> module({.dim = 12, .n_heads = 3, .divide = 2, .learned_div = true}, 7);
  const Index B = 2, NH = 3, L1 = 5, L2 = 7;
  Tensor<double> q(B, L1, NH, 4), k(B, L2, NH, 4), grad_mask(B, NH, L1, L2);
  k.setConstant(9);
  Numbers numbers(5);
  for (auto* tensor : {&q, &grad_mask})
    for (Index i = 0; i < tensor->size(); ++i) tensor->data()[i] = numbers.value();
  Eigen::Tensor<double, 2> apart(B, L2 - 1);
  for (Index i = 0; i < apart.size(); ++i) apart.data()[i] = 100 + 1000 * numbers.value();
  for (const PairPositions& at : {PairPositions{.q = Positions::range(137)}, PairPositions{.k = apart}}) {
    const auto mask = module.make_mask(q, k, k, at);
    auto whole_q = q, tiled_q = q, grad_k = k;
    auto whole = module.zero_gradients(), tiled = module.zero_gradients();
    module.mod_mask_backward(grad_mask, whole_q, grad_k, grad_k, q, k, k, at, whole);

    const auto prepared = module.prepare(q, k, at);
    auto sums = prepared.accumulator(tiled_q, grad_k);
    Tensor<double> tiles(B, NH, L1, L2);
    tiles.setZero();
    for (Index n = 0; n < B; ++n)
      for (Index h = 0; h < NH; h += 2)
        for (Index i = 0; i < L1; i += 3)
          for (Index j = 0; j < L2; j += 4) {
            const auto tile = [&](auto* data) {
              return LogitTile<std::remove_pointer_t<decltype(data)>>{data,
                                                                      L1 * L2,
                                                                      L2,
                                                                      1,
                                                                      n,
                                                                      h,
                                                                      std::min<Index>(2, NH - h),
                                                                      i,
                                                                      std::min<Index>(3, L1 - i),
                                                                      j,
                                                                      std::min<Index>(4, L2 - j)};
            };
            prepared.add_to(tile(&tiles(n, h, i, j)));
            prepared.accumulate(tile(&std::as_const(grad_mask)(n, h, i, j)), sums);
          }
    prepared.finish(sums, tiled);
    CHECK(flat(tiles) == flat(mask));
    check_close(flat(tiled_q), flat(whole_q), 1e-13);
    const Named expected = named(whole);
    for (const auto& [name, gradient] : named(tiled)) check_close(gradient, expected.at(name), 1e-12);
  }
}

/// An attention of one batch entry, and what mod_mask and its adjoint make of it.
struct Call {
  Tensor<double> mask, grad_q;
  TransformerXL<double>::Gradients grads;
};

/// Adds the gradients of a call to those of `to`, whose mask it makes.
void run(const TransformerXL<double>& module, const Tensor<double>& q, const Tensor<double>& grad_mask,
         const PairPositions& at, Call& to) {
  Tensor<double> k(1, grad_mask.dimension(3), q.dimension(2), q.dimension(3));
  k.setZero();
  to.mask = module.make_mask(q, k, k, at);
  module.mod_mask_backward(grad_mask, to.grad_q, k, k, q, k, k, at, to.grads);
}

Call run(const TransformerXL<double>& module, const Tensor<double>& q, const Tensor<double>& grad_mask,
         const PairPositions& at) {
  Call call{{}, q, module.zero_gradients()};
  call.grad_q.setZero();
  run(module, q, grad_mask, at, call);
  return call;
}

Tensor<double> numbers_of(Index L1, Index b, Index c, std::uint64_t seed) {
  Tensor<double> tensor(1, L1, b, c);
  Numbers numbers(seed);
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = numbers.value();
  return tensor;
}

/// The part of a tensor along one dimension.
Tensor<double> part(const Tensor<double>& tensor, int dimension, Index begin, Index count) {
  Eigen::array<Index, 4> offsets{}, extents = tensor.dimensions();
  offsets[static_cast<std::size_t>(dimension)] = begin;
  extents[static_cast<std::size_t>(dimension)] = count;
  return tensor.slice(offsets, extents);
}

void check_gradients(const TransformerXL<double>::Gradients& actual, const TransformerXL<double>::Gradients& expected) {
  const Named values = named(expected);
  for (const auto& [name, gradient] : named(actual)) {
    INFO(name);
    CHECK(largest(values.at(name)) > 0);
    check_close(gradient, values.at(name), 1e-11);
  }
}

TEST_CASE("TransformerXL: more keys than a strip of columns is wide are those keys chunk by chunk") {
  const TransformerXL<double> module({.dim = 12, .n_heads = 3, .divide = 2, .learned_div = true}, 5);
  const Index L1 = 37, L2 = 2600, chunk = 100;
  const auto q = numbers_of(L1, 3, 4, 1), grad_mask = numbers_of(3, L1, L2, 2);
  const Call whole = run(module, q, grad_mask, {.q = Positions::range(1300)});
  Call chunks{{}, q, module.zero_gradients()};
  chunks.grad_q.setZero();
  for (Index begin = 0; begin < L2; begin += chunk) {
    INFO("keys from " << begin);
    run(module, q, part(grad_mask, 3, begin, chunk), {.q = Positions::range(1300), .k = Positions::range(begin)},
        chunks);
    CHECK(flat(chunks.mask) == flat(part(whole.mask, 3, begin, chunk)));
  }
  check_close(flat(chunks.grad_q), flat(whole.grad_q), 1e-11);
  check_gradients(chunks.grads, whole.grads);
}

TEST_CASE("TransformerXL: queries in any order get what they get in order") {
  const TransformerXL<double> module({.dim = 12, .n_heads = 3, .divide = 2, .learned_div = true}, 5);
  const Index L1 = 150, L2 = 5;
  const auto q = numbers_of(L1, 3, 4, 1), grad_mask = numbers_of(3, L1, L2, 2);
  const Call ordered = run(module, q, grad_mask, {});
  Eigen::Tensor<std::int64_t, 1> order(L1);
  for (Index i = 0; i < L1; ++i) order(i) = i * 67 % L1;  // 67 and 150 have no divisor in common
  auto shuffled_q = q, expected_grad_q = q;
  auto shuffled_mask = grad_mask, expected_mask = grad_mask;
  for (Index i = 0; i < L1; ++i) {
    shuffled_q.chip<1>(i) = q.chip<1>(order(i));
    shuffled_mask.chip<2>(i) = grad_mask.chip<2>(order(i));
    expected_mask.chip<2>(i) = ordered.mask.chip<2>(order(i));
    expected_grad_q.chip<1>(i) = ordered.grad_q.chip<1>(order(i));
  }
  const Call shuffled = run(module, shuffled_q, shuffled_mask, {.q = order});
  CHECK(flat(shuffled.mask) == flat(expected_mask));
  check_close(flat(shuffled.grad_q), flat(expected_grad_q), 1e-11);
  check_gradients(shuffled.grads, ordered.grads);
}

TEST_CASE("TransformerXL: where reals do not repeat a query's gradient does not see the other queries") {
  const TransformerXL<double> module({.dim = 12, .n_heads = 3, .divide = 2, .learned_div = true}, 5);
  const Index L1 = 21, L2 = 30;
  const auto q = numbers_of(L1, 3, 4, 1), grad_mask = numbers_of(3, L1, L2, 2);
  const auto roots = [](Index first, Index count) {
    Eigen::Tensor<double, 1> values(count);
    for (Index i = 0; i < count; ++i) values(i) = 100 + 10 * std::sqrt(static_cast<double>(first + i) + 0.5);
    return values;
  };
  const Call whole = run(module, q, grad_mask, {.q = roots(7, L1), .k = roots(0, L2)});
  auto sums = module.zero_gradients();
  for (Index i = 0; i < L1; ++i) {
    INFO("query " << i);
    Call one{{}, part(whole.grad_q, 1, i, 1), sums};
    one.grad_q.setZero();
    run(module, part(q, 1, i, 1), part(grad_mask, 2, i, 1), {.q = roots(7 + i, 1), .k = roots(0, L2)}, one);
    CHECK(flat(one.mask) == flat(part(whole.mask, 2, i, 1)));
    CHECK(flat(one.grad_q) == flat(part(whole.grad_q, 1, i, 1)));
    sums = one.grads;
  }
  check_gradients(sums, whole.grads);
}

TEST_CASE("TransformerXL: the learned divisor starts at divide and is clamped from below") {
  const TransformerXLOptions options{.dim = 8, .n_heads = 2, .divide = 30};
  TransformerXLOptions learning = options;
  learning.learned_div = true;
  const TransformerXL<double> constant(options, 7);
  TransformerXL<double> learned(learning, 7);
  Tensor<double> q(1, 3, 2, 4), k(1, 5, 2, 4);
  for (Index i = 0; i < q.size(); ++i) q.data()[i] = std::cos(static_cast<double>(i));
  k.setZero();
  const PairPositions at{.q = Positions::range(187), .k = Positions::range(100)};
  check_close(flat(learned.make_mask(q, k, k, at)), flat(constant.make_mask(q, k, k, at)), 1e-12);

  const auto at_log = [&](double log_divisor) {
    for_each_parameter(learned, [&](std::string_view name, auto& tensor) {
      if (name == "div") tensor.setConstant(log_divisor);
    });
    double sum = 0;
    for (const double value : flat(learned.make_mask(q, k, k, at))) sum += value;
    return sum;
  };
  const auto gradient = [&] {
    Tensor<double> ones(1, 2, 3, 5);
    ones.setConstant(1);
    auto grad_q = q, grad_k = k;
    auto grads = learned.zero_gradients();
    learned.mod_mask_backward(ones, grad_q, grad_k, grad_k, q, k, k, at, grads);
    return named(grads);
  };
  const double start = std::log(30), step = 0x1p-10;
  const double slope =
      (8 * (at_log(start + step) - at_log(start - step)) - (at_log(start + 2 * step) - at_log(start - 2 * step))) /
      (12 * step);
  at_log(start);
  CHECK(std::abs(slope) > 1e-3);
  CHECK(gradient().at("div")[0] == Approx(slope).epsilon(1e-8));

  CHECK(at_log(-20) == at_log(-30));  // exp(-20) < 1e-8
  CHECK(gradient().at("div") == Values{0});
  CHECK(largest(gradient().at("embed_lin.weight")) > 0);
}

TEST_CASE("TransformerXL starts as torch's Linear does, u and v alike, by the seed alone") {
  const auto start = [](std::uint64_t seed) { return named(TransformerXL<double>({.dim = 64, .n_heads = 4}, seed)); };
  CHECK(start(7) == start(7));
  const Named values = start(7), other = start(8);
  CHECK(values.size() == 4);
  const auto check_uniform = [&](const std::string& name, std::size_t size, double bound) {
    INFO(name);
    REQUIRE(values.at(name).size() == size);
    CHECK(values.at(name) != other.at(name));
    const auto [least, most] = std::ranges::minmax(values.at(name));
    CHECK(least >= -bound);
    CHECK(most < bound);
    CHECK(most - least > 1.6 * bound);  // of 64 values and more
  };
  check_uniform("bias_r_w", 64, 0.25);
  check_uniform("bias_r_r", 64, 0.25);
  check_uniform("embed_lin.weight", 4096, 0.125);
  check_uniform("embed_lin.bias", 64, 0.125);
  CHECK(values.at("bias_r_w") != values.at("bias_r_r"));
}

TEST_CASE("TransformerXL names what is wrong and writes nothing") {
  const auto construct = [](TransformerXLOptions options) { return [=] { TransformerXL<float> module(options); }; };
  CHECK(message_of<OptionError>(construct({.n_heads = 3})) ==
        "TransformerXL: dim = 0; it is required, and must be even and positive");
  CHECK(message_of<OptionError>(construct({.dim = 9, .n_heads = 3})) ==
        "TransformerXL: dim = 9; it is required, and must be even and positive");
  CHECK(message_of<OptionError>(construct({.dim = 8})) ==
        "TransformerXL: n_heads = 0; it is required, and must be positive");
  CHECK(message_of<OptionError>(construct({.dim = 8, .n_heads = 3})) ==
        "TransformerXL: dim = 8; it must be a multiple of n_heads = 3");
  CHECK(message_of<OptionError>(construct({.dim = 8, .n_heads = 2, .divide = 0})) ==
        "TransformerXL: divide = 0; it must be positive and finite");

  const TransformerXL<float> module({.dim = 24, .n_heads = 3});
  using Heads = Tensor<float>;
  Heads mask(2, 3, 5, 7), q(2, 5, 3, 8), k(2, 7, 3, 8), narrow_q(2, 5, 3, 4), narrow_k(2, 7, 3, 4), two_q(2, 5, 2, 12),
      two_k(2, 7, 2, 12), two(2, 2, 5, 7);
  const std::array all_tensors{&mask, &q, &k, &narrow_q, &narrow_k, &two_q, &two_k, &two};
  for (Heads* tensor : all_tensors) tensor->setConstant(0.5F);
  auto grads = module.zero_gradients();
  auto others = TransformerXL<float>({.dim = 24, .n_heads = 2}).zero_gradients();
  auto biasless = TransformerXL<float>({.dim = 24, .n_heads = 3, .linear_bias = false}).zero_gradients();

  CHECK(message_of<ShapeError>([&] { module.mod_qkv(narrow_q, narrow_k, narrow_k); }) ==
        "TransformerXL::mod_qkv: q has 4 features per head; dim / n_heads = 8");
  CHECK(message_of<ShapeError>([&] { module.mod_mask(mask, narrow_q, narrow_k, narrow_k); }) ==
        "TransformerXL::mod_mask: q has 4 features per head; dim / n_heads = 8");
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(two_q, two_k, two_k); }) ==
        "TransformerXL::mod_qkv: q has 2 heads; n_heads = 3");
  CHECK(message_of<ShapeError>([&] { module.mod_mask(two, two_q, two_k, two_k); }) ==
        "TransformerXL::mod_mask: q has 2 heads; n_heads = 3");
  CHECK(message_of<ShapeError>([&] { module.mod_mask(two, q, k, k); }) ==
        "TransformerXL::mod_mask: mask has shape (2, 2, 5, 7); q of shape (2, 5, 3, 8) and k of shape (2, 7, 3, 8) "
        "need (B, *, NH, L1, L2)");
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(k, k, k); }) ==
        "TransformerXL::mod_qkv: q shares memory with k; only q is to change");
  // A part of k.
  Eigen::TensorMap<Heads> within(k.data() + 96, 2, 5, 3, 8);
  Heads long_v(2, 7, 3, 8);
  long_v.setConstant(0.5F);
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(within, k, long_v); }) ==
        "TransformerXL::mod_qkv: q shares memory with k; only q is to change");
  CHECK(message_of<ShapeError>([&] { module.mod_qkv(within, long_v, k); }) ==
        "TransformerXL::mod_qkv: q shares memory with v; only q is to change");
  const auto backward = [&](auto& into, Heads& grad_mask, Heads& query, Heads& key) {
    return [&] { module.mod_mask_backward(grad_mask, query, key, key, query, key, key, {}, into); };
  };
  CHECK(message_of<ShapeError>(backward(grads, two, two_q, two_k)) ==
        "TransformerXL::mod_mask_backward: q has 2 heads; n_heads = 3");
  CHECK(message_of<ShapeError>([&] { module.mod_mask_backward(mask, narrow_q, k, k, q, k, k, {}, grads); }) ==
        "TransformerXL::mod_mask_backward: grad_q has shape (2, 5, 3, 4); q has (2, 5, 3, 8)");
  CHECK(message_of<ShapeError>(backward(others, mask, q, k)) ==
        "TransformerXL::mod_mask_backward: grads entry bias_r_w has shape (2, 12); the parameter has (3, 8); use the "
        "module's zero_gradients()");
  CHECK(message_of<ShapeError>(backward(biasless, mask, q, k)) ==
        "TransformerXL::mod_mask_backward: grads lacks an entry embed_lin.bias; use the module's zero_gradients()");
  CHECK(message_of<ShapeError>([&] { module.mod_qkv_backward(q, k, k, q, k, k, {}, others); }) ==
        "TransformerXL::mod_qkv_backward: grads entry bias_r_w has shape (2, 12); the parameter has (3, 8); use the "
        "module's zero_gradients()");

  Eigen::Tensor<double, 1> reals(5);
  reals.setValues({0.5, 1.5, std::nan(""), 3.5, 4.5});
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, q, k, k, {.q = reals}); }) ==
        "TransformerXL::mod_mask: q at index 2 is nan; positions must be finite");
  CHECK(message_of<PositionError>([&] { module.mod_mask_backward(mask, q, k, k, q, k, k, {.q = reals}, grads); }) ==
        "TransformerXL::mod_mask_backward: q at index 2 is nan; positions must be finite");
  reals.setConstant(1.5e308);
  CHECK(message_of<PositionError>([&] { module.mod_mask(mask, q, k, k, {.q = reals}); }) ==
        "TransformerXL::mod_mask: q at index 0 is 1.5e+308; reals must lie within ±2^1022");

  for (const Heads* tensor : all_tensors)
    CHECK(std::all_of(tensor->data(), tensor->data() + tensor->size(), [](float value) { return value == 0.5F; }));
  for (const auto* untouched : {&grads, &others, &biasless})
    for (const auto& [name, values] : named(*untouched)) CHECK(largest(values) == 0);
}

}  // namespace
