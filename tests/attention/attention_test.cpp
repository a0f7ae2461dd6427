// SPDX-License-Identifier: MIT
/// \file
/// Attention is what one gets with all logits in memory: the module's hooks, a softmax by its definition, plain loops.
#include "posbias/attention/attention.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention/attention_under_test.hpp"
#include "laws/position_case.hpp"
#include "support/catch.hpp"

using posbias::AttentionOptions;
using posbias::Index;
using namespace posbias_test;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
template <class S>
constexpr double tolerance = std::is_same_v<S, float> ? 2e-5 : 1e-12;

/// One attention of the grid.
struct Setting {
  Scheme scheme = Scheme::identity;
  AttentionSizes sizes;
  bool causal = false;
  std::optional<double> scale{};
  PositionCase position_case{};
  MaskCase mask{};
  std::uint64_t seed = 1;

  /// Refers to this object's mask.
  AttentionOptions options() { return {.causal = causal, .scale = scale, .at = at(), .mask = mask.mask()}; }
  [[nodiscard]] posbias::PairPositions at() const { return position_case.pair_positions({sizes.B}, {}); }

  [[nodiscard]] std::string text() const {
    const AttentionSizes& s = sizes;
    std::string result = name_of(scheme) + ", B " + std::to_string(s.B) + ", L1 " + std::to_string(s.L1) + ", L2 " +
                         std::to_string(s.L2) + ", NH " + std::to_string(s.NH) + ", NHk " + std::to_string(s.NHk) +
                         ", H " + std::to_string(s.H) + ", Hv " + std::to_string(s.Hv) + (causal ? ", causal" : "") +
                         (scale ? ", scale " + std::to_string(*scale) : "") + ", positions: " + position_case.name +
                         ", mask type " + std::to_string(static_cast<int>(mask.type)) + " of shape";
    for (const Index size : mask.shape) result += " " + std::to_string(size);
    return result;
  }
};

/// Everything by its definition, in double.
template <class S>
class Materialised {
 public:
  Materialised(const AttentionUnderTest<S>& tested, const Setting& setting, const Tensors<S>& in)
      : tested_(tested), setting_(setting), s_(in.sizes), modified_(in) {
    tested.modify(modified_, setting.at());
    const std::vector<S> bias = tested.bias(modified_, setting.at());
    weights.assign(bias.size(), 0);
    out.assign(static_cast<std::size_t>(s_.out()), 0);
    log_sum_exp.assign(static_cast<std::size_t>(s_.sums()), -infinity);
    for_each_query([&](Index n, Index h, Index i, double* weight) {
      const S* added = bias.data() + (weight - weights.data());
      double top = -infinity, sum = 0;
      for (Index j = 0; j < s_.L2; ++j) {
        double dot = 0;
        for (Index d = 0; d < s_.H; ++d) dot += value(modified_.q, q(n, i, h, d)) * value(modified_.k, k(n, j, h, d));
        weight[j] =
            visible(n, i, j) ? scale() * dot + static_cast<double>(added[j]) + setting.mask.at(n, h, i, j) : -infinity;
        top = std::max(top, weight[j]);
      }
      if (top == -infinity) return std::fill_n(weight, s_.L2, 0.0), void();
      for (Index j = 0; j < s_.L2; ++j) sum += weight[j] = std::exp(weight[j] - top);
      log_sum_exp[static_cast<std::size_t>((n * s_.NH + h) * s_.L1 + i)] = top + std::log(sum);
      for (Index j = 0; j < s_.L2; ++j) {
        weight[j] /= sum;
        for (Index d = 0; d < s_.Hv; ++d) out[o(n, i, h, d)] += weight[j] * value(in.v, v(n, j, h, d));
      }
    });
  }

  std::vector<double> out, log_sum_exp, weights;

  /// Gradients, the parameters' added to `start`.
  [[nodiscard]] Differentiated<S> backward(const std::vector<S>& grad_out, const Named<S>& start) const {
    std::vector<double> grad_q(modified_.q.size()), grad_k(modified_.k.size()), grad_v(modified_.v.size()),
        grad_logits(weights.size());
    for_each_query([&](Index n, Index h, Index i, const double* weight) {
      double* grad = grad_logits.data() + (weight - weights.data());
      double mean = 0;
      for (Index j = 0; j < s_.L2; ++j) {
        for (Index d = 0; d < s_.Hv; ++d) {
          const double g = value(grad_out, o(n, i, h, d));
          grad[j] += g * value(modified_.v, v(n, j, h, d));
          grad_v[v(n, j, h, d)] += weight[j] * g;
        }
        mean += weight[j] * grad[j];
      }
      for (Index j = 0; j < s_.L2; ++j) {
        grad[j] = weight[j] * (grad[j] - mean);
        for (Index d = 0; d < s_.H; ++d) {
          grad_q[q(n, i, h, d)] += scale() * grad[j] * value(modified_.k, k(n, j, h, d));
          grad_k[k(n, j, h, d)] += scale() * grad[j] * value(modified_.q, q(n, i, h, d));
        }
      }
    });
    Differentiated<S> result{
        {grad_q.begin(), grad_q.end()}, {grad_k.begin(), grad_k.end()}, {grad_v.begin(), grad_v.end()}, start};
    tested_.hooks_backward({grad_logits.begin(), grad_logits.end()}, result, modified_, setting_.at());
    return result;
  }

 private:
  static double value(const std::vector<S>& values, std::size_t place) { return static_cast<double>(values[place]); }

  template <class Visit>
  void for_each_query(const Visit& visit) const {
    for (Index n = 0; n < s_.B; ++n)
      for (Index h = 0; h < s_.NH; ++h)
        for (Index i = 0; i < s_.L1; ++i)
          visit(n, h, i, const_cast<double*>(weights.data()) + ((n * s_.NH + h) * s_.L1 + i) * s_.L2);
  }

  [[nodiscard]] bool visible(Index n, Index i, Index j) const {
    if (!setting_.causal) return true;
    const auto query = setting_.position_case.q.at(n, i, s_.L1), key = setting_.position_case.k.at(n, j, s_.L2);
    return !query || !key || *key <= *query;
  }

  [[nodiscard]] double scale() const { return setting_.scale.value_or(1 / std::sqrt(static_cast<double>(s_.H))); }

  [[nodiscard]] std::size_t q(Index n, Index i, Index h, Index d) const {
    return static_cast<std::size_t>(((n * s_.L1 + i) * s_.NH + h) * s_.H + d);
  }
  [[nodiscard]] std::size_t o(Index n, Index i, Index h, Index d) const {
    return static_cast<std::size_t>(((n * s_.L1 + i) * s_.NH + h) * s_.Hv + d);
  }
  [[nodiscard]] std::size_t k(Index n, Index j, Index h, Index d) const {
    return static_cast<std::size_t>(((n * s_.L2 + j) * s_.NHk + h / (s_.NH / s_.NHk)) * s_.H + d);
  }
  [[nodiscard]] std::size_t v(Index n, Index j, Index h, Index d) const {
    return static_cast<std::size_t>(((n * s_.L2 + j) * s_.NHk + h / (s_.NH / s_.NHk)) * s_.Hv + d);
  }

  const AttentionUnderTest<S>& tested_;
  const Setting& setting_;
  AttentionSizes s_;
  Tensors<S> modified_;
};

/// The largest difference of two lists, each beside 1 or what is expected if that is more; infinite where one is NaN or
/// they are infinite in different places.
template <class A, class B>
double difference(const std::vector<A>& values, const std::vector<B>& expected) {
  if (values.size() != expected.size()) return infinity;
  double worst = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto a = static_cast<double>(values[i]), b = static_cast<double>(expected[i]);
    if (a == b) continue;
    const double error = std::abs(a - b) / std::max(1.0, std::abs(b));
    if (!(error <= worst)) worst = std::isnan(error) ? infinity : error;
  }
  return worst;
}

/// The same, beside `largest`.
template <class S>
double difference(const std::vector<S>& values, const std::vector<S>& expected, double largest) {
  if (values.size() != expected.size()) return infinity;
  double worst = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double error = std::abs(static_cast<double>(values[i]) - static_cast<double>(expected[i]));
    if (!(error <= worst)) worst = std::isnan(error) ? infinity : error;
  }
  return worst == 0 ? 0 : worst / largest;
}

template <class S>
double largest_of(const std::vector<S>& values, double largest) {
  for (const S value : values) largest = std::max(largest, std::abs(static_cast<double>(value)));
  return largest;
}

/// Where parameters' gradients start.
constexpr double start_value = 0.25;

/// The same values and gradients as with all logits in memory.
template <class S>
void check(Setting& setting) {
  INFO(setting.text());
  const auto tested = make_under_test<S>(setting.scheme, setting.sizes.NH, setting.sizes.H);
  const auto in = Tensors<S>::numbers(setting.sizes, setting.seed);
  const AttentionOptions options = setting.options();
  const Materialised<S> expected(*tested, setting, in);
  const Attended<S> attended = tested->attend(in, options);
  CHECK(difference(attended.out, expected.out) <= tolerance<S>);
  CHECK(difference(attended.log_sum_exp, expected.log_sum_exp) <= tolerance<S>);
  const Attended<S> without_sums = tested->attend(in, options, false);
  CHECK(without_sums.out == attended.out);

  const std::vector<S> grad_out = numbers<S>(setting.sizes.out(), 99 + setting.seed);
  const Named<S> start = tested->gradients_of(start_value);
  const Differentiated<S> expected_grads = expected.backward(grad_out, start);
  double largest = 1e-3;
  for (const auto* values : {&expected_grads.q, &expected_grads.k, &expected_grads.v})
    largest = largest_of(*values, largest);
  for (const auto& [name, values] : expected_grads.parameters) largest = largest_of(values, largest);
  for (const Attended<S>* forward : {&attended, &without_sums}) {
    INFO((forward == &attended ? "with log_sum_exp" : "without log_sum_exp"));
    const Differentiated<S> grads = tested->backward(in, *forward, grad_out, options, start);
    CHECK(difference(grads.q, expected_grads.q, largest) <= tolerance<S>);
    CHECK(difference(grads.k, expected_grads.k, largest) <= tolerance<S>);
    CHECK(difference(grads.v, expected_grads.v, largest) <= tolerance<S>);
    for (const auto& [name, values] : grads.parameters) {
      INFO(name);
      CHECK(difference(values, expected_grads.parameters.at(name), largest) <= tolerance<S>);
    }
  }
}

/// A setting drawn by lot.
class Lottery {
 public:
  explicit Lottery(std::uint64_t seed) : numbers_(seed) {}

  Index below(Index bound) { return static_cast<Index>(numbers_.below(static_cast<std::uint64_t>(bound))); }

  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return *(choices.begin() + below(static_cast<Index>(choices.size())));
  }

  PositionCase positions(Scheme scheme, const AttentionSizes& s) {
    const Index L1 = s.L1, L2 = s.L2;
    // A penalty that grows with the distance leaves few digits to logits of keys that are all far away.
    const bool linear = scheme == Scheme::alibi || scheme == Scheme::alibi_learned ||
                        scheme == Scheme::alibi_asymmetric || scheme == Scheme::rotary_alibi;
    const Index far = linear ? 303 : 1'000'000'007;
    const auto both = [&](std::string name, Index rows, Index q_left, Index k_left, auto position) -> PositionCase {
      return {std::move(name), Where::listed(rows, std::max<Index>(L1 - q_left, 0), position),
              Where::listed(rows, std::max<Index>(L2 - k_left, 0), position)};
    };
    const Index kinds = integers_only(scheme) ? 11 : 14;
    switch (below(kinds)) {
      case 0:
        if (L1 != L2) return {"queries from 0", Where::range(0), {}};
        return {"default"};
      case 1:
        return {"the last queries of the keys", Where::range(L2 - L1), {}};
      case 2:
        return {"range", Where::range(100), Where::range(103)};
      case 3:
        return both("packed rows", s.B, 0, 0, [](Index n, Index i) { return 100 + i % (7 + 20 * n); });
      case 4:
        return both("fewer positions", 0, 3, 2, [](Index, Index i) { return 100 + 2 * i; });
      case 5:
        return both("fewer positions per entry", s.B, 1, 4, [](Index n, Index i) { return 130 - 5 * n + i; });
      case 6:
        return {"offset 2^40", Where::range((Index{1} << 40) + 3), Where::range(Index{1} << 40)};
      case 7:
        return both("descending", 0, 0, 0, [](Index, Index i) { return 900 - i; });
      case 8:
        return both("no positions of queries", 0, L1, 0, [](Index, Index i) { return 100 + i; });
      case 9: {
        std::vector<Index> scattered;
        for (Index i = 0; i < s.B * std::max(L1, L2); ++i) scattered.push_back(-120 + below(40));
        return both("scattered", s.B, 0, 1,
                    [=, B = s.B](Index n, Index i) { return scattered[static_cast<std::size_t>(n + B * i)]; });
      }
      case 10:
        return both("far apart", 0, 0, 0, [=](Index, Index i) { return 100 + i / 3 + i % 2 * far; });
      case 11:
        return both("reals per entry", s.B, 0, 0,
                    [](Index n, Index i) { return -3.25L + 0.375L * static_cast<Real>(i * (n + 1)); });
      case 12:
        return {"real queries, integer keys",
                Where::listed(0, L1, [](Index, Index i) { return 100.5L + static_cast<Real>(3 * i % 50); }),
                Where::range(100)};
      default: {
        // Differences that do not repeat: each costs a bias all it has.
        const auto cubes = [](Index, Index i) { return -40.0625L + static_cast<Real>(i * i * i * 5) / 64; };
        return both("reals that do not repeat", 0, std::max<Index>(L1 - 20, 0), std::max<Index>(L2 - 30, 0), cubes);
      }
    }
  }

  MaskCase mask(const AttentionSizes& s) {
    MaskCase result;
    using enum MaskCase::Type;
    result.type = one_of({none, floats, doubles, bools, bools});
    if (result.type == none) return result;
    const Index sizes[] = {s.B, s.NH, s.L1, s.L2};
    const auto rank = static_cast<std::size_t>(1 + below(4));
    Index count = 1;
    for (std::size_t d = 4 - rank; d < 4; ++d) {
      result.shape.push_back(d == 3 || below(3) > 0 ? sizes[d] : 1);
      count *= result.shape.back();
    }
    // A third hidden, and every fourth row all of it, so that some queries see nothing.
    const Index rows = s.L2 > 0 ? count / s.L2 : 0;
    for (Index row = 0; row < rows; ++row) {
      const bool none_visible = rows > 1 && row % 4 == 1;
      for (Index j = 0; j < s.L2; ++j) {
        const bool hidden = none_visible || below(3) == 0;
        result.entries.push_back(result.type == bools ? (hidden ? 0 : 1) : hidden ? -infinity : numbers_.value());
      }
    }
    return result;
  }

  Setting setting(Scheme scheme, Index L1, Index L2, Index max_features) {
    Setting result;
    result.scheme = scheme;
    AttentionSizes& s = result.sizes;
    s.B = 1 + below(2);
    s.L1 = L1;
    s.L2 = L2;
    s.NHk = one_of<Index>({1, 1, 2, 3});
    s.NH = s.NHk * one_of<Index>({1, 1, 2, 3});
    // A projection of Transformer-XL costs the square of what all heads have together.
    const bool projects = scheme == Scheme::xl || scheme == Scheme::xl_bio || scheme == Scheme::t5_xl;
    do {
      s.H = one_of<Index>({1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 31, 32, 34, 64, 101, 128, 255, 256});
      if (s.H > 32) s.NH = s.NHk = 1 + s.H % 2;
    } while (!takes(scheme, s.NH, s.H) || s.H > max_features || (projects && s.NH * s.H > 64));
    do {
      s.Hv = one_of<Index>({1, 2, 3, 5, 8, 15, 16, 17, 30, 33, 64, 127, 256});
    } while (s.Hv > max_features);
    result.causal = below(2) == 0;
    if (below(3) == 0) result.scale = 0.5;
    do {
      result.position_case = positions(scheme, s);
      // The gradient of a rotation's divisor is a sum of angles, which says nothing where they are astronomical.
    } while (scheme == Scheme::rotary_learned && result.position_case.q.furthest() > 1e4L);
    result.mask = mask(s);
    result.seed = static_cast<std::uint64_t>(1 + below(1000));
    return result;
  }

 private:
  Numbers numbers_;
};

}  // namespace

TEMPLATE_TEST_CASE("attention is the softmax of all logits: short sequences", "[attention]", float, double) {
  for (const Scheme scheme : schemes<TestType>()) {
    Lottery lottery(100 + static_cast<std::uint64_t>(scheme));
    for (int i = 0; i < 15; ++i) {
      Setting setting = lottery.setting(scheme, 1 + lottery.below(19), 1 + lottery.below(35), i % 6 == 0 ? 256 : 34);
      check<TestType>(setting);
    }
    // One query, where it stands in a longer cache.
    Setting setting = lottery.setting(scheme, 1, 70, 16);
    setting.position_case = {"one query", Where::range(60), {}};
    setting.causal = true;
    check<TestType>(setting);
  }
}

TEMPLATE_TEST_CASE("attention is the softmax of all logits: several blocks of queries and keys", "[attention]", float,
                   double) {
  for (const Scheme scheme : schemes<TestType>()) {
    Lottery lottery(200 + static_cast<std::uint64_t>(scheme));
    for (const auto& [L1, L2] : {std::pair<Index, Index>{65, 257}, {131, 37}, {17, 330}}) {
      Setting setting = lottery.setting(scheme, L1, L2, 8);
      check<TestType>(setting);
    }
  }
}

TEMPLATE_TEST_CASE("attention is the softmax of all logits: several shares of the queries", "[attention]", float,
                   double) {
  // 512 queries share the packing of keys; of 5 heads each 102, of 40 heads each 16.
  for (const auto& [L1, L2, NH, NHk] :
       {std::array<Index, 4>{530, 259, 1, 1}, {217, 41, 5, 1}, {39, 21, 40, 1}, {39, 21, 40, 2}}) {
    Setting setting;
    setting.scheme = Scheme::alibi_learned;
    setting.sizes = {1, L1, L2, NH, NHk, 3, 2};
    setting.causal = true;
    setting.position_case = {"range", Where::range(L1 == 530 ? 0 : 100), Where::range(90)};
    check<TestType>(setting);
  }
}

TEMPLATE_TEST_CASE("attention is the softmax of all logits: the first keys are ahead of all queries", "[attention]",
                   float, double) {
  Setting setting;
  setting.scheme = Scheme::alibi_learned;
  setting.sizes = {2, 5, 40, 2, 1, 3, 2};
  setting.causal = true;
  setting.position_case = {"descending", Where::listed(0, 5, [](Index, Index i) { return 270 - i; }),
                           Where::listed(0, 40, [](Index, Index i) { return 300 - i; })};
  check<TestType>(setting);
}

TEMPLATE_TEST_CASE("gradients are those of central differences", "[attention][differences]", double) {
  // Of fourth order: errors of some h^4 and 2^-53 / h.
  constexpr double h = 0x1p-10;
  for (const Scheme scheme : schemes<double>()) {
    for (const bool causal : {false, true}) {
      Setting setting;
      setting.scheme = scheme;
      setting.sizes = {2, 5, 7, 4, 2, 4, 3};
      setting.causal = causal;
      setting.position_case = {"positions", Where::listed(2, 4, [](Index n, Index i) { return 100 + n + 3 * i; }),
                               Where::listed(0, 6, [](Index, Index i) { return 101 + 2 * i; })};
      if (causal) setting.scale = 0.75;
      setting.mask = {MaskCase::Type::doubles, {4, 5, 7}, numbers<double>(140, 5)};
      std::fill_n(setting.mask.entries.begin() + 14, 7, -infinity);
      setting.mask.entries[80] = -infinity;
      INFO(setting.text());

      const AttentionOptions options = setting.options();
      const auto tested = make_under_test<double>(scheme, 4, 4);
      const auto in = Tensors<double>::numbers(setting.sizes);
      const std::vector<double> grad_out = numbers<double>(setting.sizes.out(), 9);
      const auto grads = tested->backward(in, tested->attend(in, options), grad_out, options, tested->gradients_of(0));

      // How the sum of grad_out·out changes along a direction, of q, k, v or a parameter.
      const Named<double> parameters = tested->parameters();
      const auto loss = [&](const std::string& name, const std::vector<double>& direction, double step) {
        Tensors<double> moved = in;
        Named<double> moved_parameters = parameters;
        std::vector<double>& values = name == "q"   ? moved.q
                                      : name == "k" ? moved.k
                                      : name == "v" ? moved.v
                                                    : moved_parameters.at(name);
        for (std::size_t i = 0; i < values.size(); ++i) values[i] += step * direction[i];
        tested->set_parameters(moved_parameters);
        const auto out = tested->attend(moved, options, false).out;
        double sum = 0;
        for (std::size_t i = 0; i < out.size(); ++i) sum += grad_out[i] * out[i];
        return sum;
      };
      const auto check_along = [&](const std::string& name, const std::vector<double>& grad,
                                   const std::vector<double>& direction) {
        double expected = 0;
        for (std::size_t i = 0; i < grad.size(); ++i) expected += grad[i] * direction[i];
        const auto central = [&](double step) {
          return (loss(name, direction, step) - loss(name, direction, -step)) / (2 * step);
        };
        const double found = (4 * central(h) - central(2 * h)) / 3;
        CHECK(std::abs(found - expected) <= 1e-9 * std::max(1.0, std::abs(expected)));
      };
      const auto check_all = [&](const std::string& name, const std::vector<double>& grad) {
        INFO(name);
        Numbers choose(7);
        for (int times = 0; times < 6; ++times) {
          std::vector<double> one(grad.size());
          one[choose.below(grad.size())] = 1;
          check_along(name, grad, one);
        }
        std::vector<double> direction = numbers<double>(static_cast<Index>(grad.size()), 3);
        for (double& part : direction) part /= 4;
        check_along(name, grad, direction);
      };
      check_all("q", grads.q);
      check_all("k", grads.k);
      check_all("v", grads.v);
      for (const auto& [name, grad] : grads.parameters) check_all(name, grad);
    }
  }
}

TEMPLATE_TEST_CASE("queries that see no key get zeros, and have no gradients", "[attention]", float, double) {
  using S = TestType;
  for (const Scheme scheme : schemes<S>()) {
    INFO(name_of(scheme));
    const AttentionSizes sizes{2, 18, 270, 2, 1, 4, 5};
    Setting setting;
    setting.scheme = scheme;
    setting.sizes = sizes;
    // Of the first entry, every third query sees nothing; of the second, none sees anything.
    setting.mask = {MaskCase::Type::bools, {2, 1, 18, 270}, {}};
    for (Index n = 0; n < 2; ++n)
      for (Index i = 0; i < 18; ++i) setting.mask.entries.insert(setting.mask.entries.end(), 270, n == 0 && i % 3 != 1);
    const auto tested = make_under_test<S>(scheme, 2, 4);
    const auto in = Tensors<S>::numbers(sizes);
    const AttentionOptions options = setting.options();
    const auto attended = tested->attend(in, options);
    const auto grads = tested->backward(in, attended, numbers<S>(sizes.out(), 3), options, tested->gradients_of(0));
    const auto zeros = [](const std::vector<S>& values, Index begin, Index count) {
      return std::all_of(values.begin() + begin, values.begin() + begin + count, [](S value) { return value == 0; });
    };
    for (Index n = 0; n < 2; ++n)
      for (Index i = 0; i < 18; ++i) {
        const bool hidden = n == 1 || i % 3 == 1;
        if (zeros(attended.out, (n * 18 + i) * 10, 10) != hidden) FAIL_CHECK("out of query " << i << " of entry " << n);
        if (zeros(grads.q, (n * 18 + i) * 8, 8) != hidden) FAIL_CHECK("grad_q of query " << i << " of entry " << n);
        for (Index h = 0; h < 2; ++h)
          if ((attended.log_sum_exp[static_cast<std::size_t>((n * 2 + h) * 18 + i)] ==
               -std::numeric_limits<S>::infinity()) != hidden)
            FAIL_CHECK("log_sum_exp of query " << i << " of entry " << n);
      }
    CHECK(zeros(grads.k, 270 * 4, 270 * 4));
    CHECK(zeros(grads.v, 270 * 5, 270 * 5));
    // Nothing seen anywhere: nothing learned.
    std::fill(setting.mask.entries.begin(), setting.mask.entries.end(), 0);
    const AttentionOptions none = setting.options();
    const auto unseen =
        tested->backward(in, tested->attend(in, none), numbers<S>(sizes.out(), 3), none, tested->gradients_of(2));
    CHECK(unseen.parameters == tested->gradients_of(2));
  }
}
