// SPDX-License-Identifier: MIT
/// \file
/// What must not matter to attention does not, to the last bit: threads, chunks, caches, the rest of the batch, ranks,
/// layouts. Nothing else is written, no memory in proportion to L1·L2 is used, and what cannot be is refused.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "attention/attention_under_test.hpp"
#include "laws/module_under_test_of.hpp"
#include "posbias/attention/attention.hpp"
#include "posbias/rotation/rotary.hpp"
#include "support/catch.hpp"
#include "support/modules.hpp"
#include "support/thread_runner.hpp"

using namespace posbias;
using namespace posbias_test;
using posbias_test::Index;

namespace {

template <class S>
std::string differing(const Attended<S>& a, const Attended<S>& b) {
  return std::string(same_bits(a.out, b.out) ? "" : "out ") +
         (same_bits(a.log_sum_exp, b.log_sum_exp) ? "" : "log_sum_exp");
}

template <class S>
std::string differing(const Differentiated<S>& a, const Differentiated<S>& b) {
  std::string names = posbias_test::differing(a.parameters, b.parameters);
  if (!same_bits(a.q, b.q)) names += "q ";
  if (!same_bits(a.k, b.k)) names += "k ";
  if (!same_bits(a.v, b.v)) names += "v ";
  return names;
}

/// The part [begin, end) of an axis.
template <class S>
std::vector<S> cut(const std::vector<S>& values, Index outer, Index axis, Index inner, Index begin, Index end) {
  std::vector<S> part;
  for (Index n = 0; n < outer; ++n)
    part.insert(part.end(), values.begin() + (n * axis + begin) * inner, values.begin() + (n * axis + end) * inner);
  return part;
}

template <class S>
Tensors<S> cut_queries(const Tensors<S>& in, Index begin, Index end) {
  Tensors<S> part = in;
  part.sizes.L1 = end - begin;
  part.q = cut(in.q, in.sizes.B, in.sizes.L1, in.sizes.NH * in.sizes.H, begin, end);
  return part;
}

template <class S>
Tensors<S> first_keys(const Tensors<S>& in, Index end) {
  Tensors<S> part = in;
  part.sizes.L2 = end;
  part.k = cut(in.k, in.sizes.B, in.sizes.L2, in.sizes.NHk * in.sizes.H, 0, end);
  part.v = cut(in.v, in.sizes.B, in.sizes.L2, in.sizes.NHk * in.sizes.Hv, 0, end);
  return part;
}

template <class S>
Attended<S> cut_queries(const Attended<S>& whole, const AttentionSizes& s, Index begin, Index end) {
  return {cut(whole.out, s.B, s.L1, s.NH * s.Hv, begin, end), cut(whole.log_sum_exp, s.B * s.NH, s.L1, 1, begin, end)};
}

/// Where the tokens of the laws are: some consecutive, some not, some per entry, some without.
std::vector<PositionCase> places(Scheme scheme, const AttentionSizes& s) {
  std::vector<PositionCase> result;
  result.push_back({"range", Where::range(100 + s.L2 - s.L1), Where::range(100)});
  result.push_back({"packed, fewer than tokens",
                    Where::listed(s.B, s.L1 - 2, [](Index n, Index i) { return 100 + i % (40 + n); }),
                    Where::listed(s.B, s.L2 - 3, [](Index n, Index i) { return 100 + i % (50 + n); })});
  if (!integers_only(scheme))
    result.push_back({"reals", Where::listed(0, s.L1, [](Index, Index i) { return 100.5L + static_cast<Real>(3 * i); }),
                      Where::listed(0, s.L2, [](Index, Index i) { return 300.25L - static_cast<Real>(i); })});
  return result;
}

/// A bool mask (NH, L1, L2) that hides every fifth key or so.
MaskCase some_hidden(const AttentionSizes& s) {
  MaskCase mask(MaskCase::Type::bools, {s.NH, s.L1, s.L2}, {});
  Numbers numbers(4);
  for (Index i = 0; i < s.NH * s.L1 * s.L2; ++i) mask.entries.push_back(numbers.below(5) == 0 ? 0 : 1);
  return mask;
}

constexpr AttentionSizes across_blocks{1, 67, 261, 2, 1, 4, 3};

}  // namespace

TEST_CASE("every module that changes queries, keys or logits is in a scheme", "[attention]") {
  for_each_module_type<double>([]<class Module>(std::type_identity<Module>) {
    if (detail::leaves_qkv_alone<Module> && detail::leaves_mask_alone<Module>) return;
    const bool is_in_one = std::ranges::any_of(
        schemes<double>(), [](Scheme scheme) { return name_of(scheme).find(Module::name) != std::string::npos; });
    INFO(Module::name);
    CHECK(is_in_one);
  });
}

TEMPLATE_TEST_CASE("attention is the same bits with any executor, forward and backward", "[attention]", float, double) {
  using S = TestType;
  ThreadRunner runner(3);
  for (const Scheme scheme : schemes<S>()) {
    // Six heads of keys; and one, whose queries are more than share a packing.
    for (const AttentionSizes& sizes : {AttentionSizes{2, 11, 19, 6, 3, 4, 3}, {1, 44, 10, 12, 1, 2, 2}}) {
      const auto tested = make_under_test<S>(scheme, sizes.NH, sizes.H);
      const auto in = Tensors<S>::numbers(sizes);
      MaskCase mask = some_hidden(sizes);
      const std::vector<S> grad_out = numbers<S>(sizes.out(), 9);
      for (const PositionCase& position_case : places(scheme, sizes)) {
        INFO(name_of(scheme) << ", NHk " << sizes.NHk << ", " << position_case.name);
        AttentionOptions options{
            .causal = true, .at = position_case.pair_positions({sizes.B}, {}), .mask = mask.mask()};
        const auto alone = tested->attend(in, options);
        const auto grads = tested->backward(in, alone, grad_out, options, tested->gradients_of(0.5));
        options.executor = runner;
        const int calls = runner.calls();
        const auto together = tested->attend(in, options);
        CHECK(runner.calls() > calls);
        CHECK(differing(together, alone) == "");
        CHECK(differing(tested->backward(in, alone, grad_out, options, tested->gradients_of(0.5)), grads) == "");
        // The executor of the positions serves as well.
        options.executor = {};
        options.at.executor = runner;
        CHECK(differing(tested->attend(in, options), alone) == "");
        const Attended<S> without_sums{alone.out, {}};
        CHECK(differing(tested->backward(in, without_sums, grad_out, options, tested->gradients_of(0.5)), grads) == "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("queries by themselves are the bits of all at once", "[attention]", float, double) {
  using S = TestType;
  for (const Scheme scheme : schemes<S>()) {
    const AttentionSizes& s = across_blocks;
    const auto tested = make_under_test<S>(scheme, s.NH, s.H);
    const auto in = Tensors<S>::numbers(s);
    const Shape shape{s.B, s.NH, s.L1, s.L2, s.H, 0};
    MaskCase mask = some_hidden(s);
    for (const bool causal : {false, true}) {
      const std::vector<PositionCase> listed = places(scheme, s);
      const PositionCase& position_case = listed[causal ? 0 : listed.size() - 1];
      INFO(name_of(scheme) << ", " << position_case.name);
      const auto whole =
          tested->attend(in, {.causal = causal, .at = position_case.pair_positions({s.B}, {}), .mask = mask.mask()});
      const auto check = [&](Index begin, Index end) {
        INFO("queries " << begin << " to " << end);
        MaskCase part(MaskCase::Type::bools, {s.NH, end - begin, s.L2},
                      cut(mask.entries, s.NH, s.L1, s.L2, begin, end));
        const auto positions = position_case.cut_queries(begin, end, shape).pair_positions({s.B}, {});
        CHECK(differing(
                  tested->attend(cut_queries(in, begin, end), {.causal = causal, .at = positions, .mask = part.mask()}),
                  cut_queries(whole, s, begin, end)) == "");
      };
      for (const Index i : {0, 31, 64, 66}) check(i, i + 1);
      check(3, 20);
      check(20, 67);
    }
  }
}

TEMPLATE_TEST_CASE("a prompt in chunks, each with the keys so far, is the bits of the whole", "[attention]", float,
                   double) {
  using S = TestType;
  for (const Scheme scheme : schemes<S>()) {
    const AttentionSizes s{1, 270, 270, 2, 1, 4, 3};
    const auto tested = make_under_test<S>(scheme, s.NH, s.H);
    const auto in = Tensors<S>::numbers(s);
    const auto whole = tested->attend(in, {.causal = true});
    Index begin = 0;
    for (const Index end : {1, 2, 19, 100, 255, 256, 257, 269, 270}) {
      INFO(name_of(scheme) << ", queries " << begin << " to " << end);
      const AttentionOptions options{.causal = true, .at = {.q = Positions::range(begin)}};
      CHECK(differing(tested->attend(first_keys(cut_queries(in, begin, end), end), options),
                      cut_queries(whole, s, begin, end)) == "");
      begin = end;
    }
  }
}

TEMPLATE_TEST_CASE("batch entries do not see each other, forward and backward", "[attention]", float, double) {
  using S = TestType;
  for (const Scheme scheme : schemes<S>()) {
    const AttentionSizes s{2, 19, 37, 4, 2, 4, 3};
    const auto tested = make_under_test<S>(scheme, s.NH, s.H);
    const auto in = Tensors<S>::numbers(s);
    const std::vector<S> grad_out = numbers<S>(s.out(), 9);
    for (const PositionCase& position_case : places(scheme, s)) {
      INFO(name_of(scheme) << ", " << position_case.name);
      const AttentionOptions options{.causal = true, .at = position_case.pair_positions({s.B}, {})};
      const auto whole = tested->attend(in, options);
      const auto grads = tested->backward(in, whole, grad_out, options, tested->gradients_of(0));
      for (Index n = 0; n < 2; ++n) {
        const auto entry = [&](const std::vector<S>& values) {
          return cut(values, 1, 2, static_cast<Index>(values.size()) / 2, n, n + 1);
        };
        Tensors<S> alone{s, entry(in.q), entry(in.k), entry(in.v)};
        alone.sizes.B = 1;
        const AttentionOptions of_entry{.causal = true, .at = position_case.entry(n).pair_positions({1}, {})};
        const auto attended = tested->attend(alone, of_entry);
        CHECK(differing(attended, {entry(whole.out), entry(whole.log_sum_exp)}) == "");
        const auto found = tested->backward(alone, attended, entry(grad_out), of_entry, tested->gradients_of(0));
        CHECK(differing(found, {entry(grads.q), entry(grads.k), entry(grads.v), found.parameters}) == "");
      }
    }
  }
}

namespace {

using Rotation = Rotary<double>;

/// out, log_sum_exp, and the gradients of q, k, v and the parameters, of tensors with `Rank` leading dimensions: q,
/// grad_q, log_sum_exp of kind A, k, v, grad_v of kind B, out, grad_out, grad_k of kind C.
template <int Rank, Kind A, Kind B, Kind C>
std::vector<std::vector<double>> in_layout_case(const Rotation& module, const Tensors<double>& in,
                                                const BatchShape& leading, const AttentionOptions& options) {
  const AttentionSizes& s = in.sizes;
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const TensorCopy<double, Rank + 3, A> q(in.q, leading, {s.L1, s.NH, s.H});
  const TensorCopy<double, Rank + 3, B> k(in.k, leading, {s.L2, s.NHk, s.H}), v(in.v, leading, {s.L2, s.NHk, s.Hv});
  const TensorCopy<double, Rank + 3, C> grad_out(numbers<double>(s.out(), 9), leading, {s.L1, s.NH, s.Hv});
  TensorCopy<double, Rank + 3, C> out(std::vector<double>(grad_out.values().size(), nan), leading, {s.L1, s.NH, s.Hv});
  TensorCopy<double, Rank + 2, A> sums(std::vector<double>(static_cast<std::size_t>(s.sums()), nan), leading,
                                       {s.NH, s.L1});
  TensorCopy<double, Rank + 3, A> grad_q(in.q, leading, {s.L1, s.NH, s.H});
  TensorCopy<double, Rank + 3, C> grad_k(in.k, leading, {s.L2, s.NHk, s.H});
  TensorCopy<double, Rank + 3, B> grad_v(in.v, leading, {s.L2, s.NHk, s.Hv});
  auto grads = module.zero_gradients();
  attention(out.tensor(), q.tensor(), k.tensor(), v.tensor(), module, options, sums.tensor());
  attention_backward(grad_q.tensor(), grad_k.tensor(), grad_v.tensor(), grad_out.tensor(), out.tensor(), q.tensor(),
                     k.tensor(), v.tensor(), module, options, grads, sums.tensor());
  CHECK(same_bits(q.values(), in.q));
  CHECK(same_bits(k.values(), in.k));
  CHECK(same_bits(v.values(), in.v));
  std::vector<std::vector<double>> result{out.values(), sums.values(), grad_q.values(), grad_k.values(),
                                          grad_v.values()};
  for_each_parameter(grads, [&](std::string_view, const auto& tensor) {
    result.emplace_back(tensor.data(), tensor.data() + tensor.size());
  });
  return result;
}

}  // namespace

TEST_CASE("ranks, layouts and maps are the same bits", "[attention]") {
  const AttentionSizes s{6, 19, 37, 4, 2, 4, 3};
  const Rotation module({.head_dim = 4, .pairing = RotaryPairing::half, .divide = 40, .learned_div = true});
  const auto tested = make_under_test<double>(Scheme::rotary_learned, 4, 4);  // the same
  const auto in = Tensors<double>::numbers(s);
  const AttentionOptions options{.causal = true, .at = {.q = Positions::range(118), .k = Positions::range(100)}};
  const auto in_rows = [&](const Tensors<double>& tensors) -> std::vector<std::vector<double>> {
    const auto attended = tested->attend(tensors, options);
    const auto grads =
        tested->backward(tensors, attended, numbers<double>(tensors.sizes.out(), 9), options, tested->gradients_of(0));
    return {attended.out, attended.log_sum_exp, grads.q, grads.k, grads.v, grads.parameters.at("div")};
  };
  using enum Kind;
  const auto expected = in_rows(in);
  CHECK(in_layout_case<2, col, row_map, col_map>(module, in, {2, 3}, options) == expected);
  CHECK(in_layout_case<3, row_map, col, col>(module, in, {3, 1, 2}, options) == expected);

  // Without leading dimensions: an entry of the batch.
  Tensors<double> alone = in;
  alone.sizes.B = 1;
  alone.q.resize(in.q.size() / 6);
  alone.k.resize(in.k.size() / 6);
  alone.v.resize(in.v.size() / 6);
  CHECK(in_layout_case<0, col, row, row>(module, alone, {}, options) == in_rows(alone));
}

TEST_CASE("q, k, v, out and log_sum_exp are read only", "[attention]") {
  using S = double;
  for (const Scheme scheme : schemes<S>()) {
    INFO(name_of(scheme));
    const AttentionSizes s{2, 9, 11, 4, 2, 4, 3};
    const auto tested = make_under_test<S>(scheme, s.NH, s.H);
    const auto in = Tensors<S>::numbers(s);
    const Tensors<S> before = in;
    const AttentionOptions options{.causal = true, .at = {.q = Positions::range(2)}};
    const auto attended = tested->attend(in, options);
    CHECK(in == before);
    const Attended<S> attended_before = attended;
    const std::vector<S> grad_out = numbers<S>(s.out(), 9), grad_before = grad_out;
    (void)tested->backward(in, attended, grad_out, options, tested->gradients_of(0));
    CHECK(in == before);
    CHECK(differing(attended, attended_before) == "");
    CHECK(grad_out == grad_before);
  }
}

TEST_CASE("q, k and v may be one tensor", "[attention]") {
  using S = double;
  for (const Scheme scheme : schemes<S>()) {
    INFO(name_of(scheme));
    const AttentionSizes s{2, 9, 9, 2, 2, 4, 4};
    const auto tested = make_under_test<S>(scheme, s.NH, s.H);
    auto in = Tensors<S>::numbers(s);
    in.k = in.v = in.q;
    const AttentionOptions options{.causal = true, .at = {.q = Positions::range(105), .k = Positions::range(100)}};
    const auto expected = tested->attend(in, options);
    std::vector<S> out(in.q.size());
    const ConstMap<S> one(in.q.data(), s.B, s.L1, s.NH, s.H);
    tested->attend(Map<S>(out.data(), s.B, s.L1, s.NH, s.Hv), one, one, one, options, nullptr);
    CHECK(same_bits(out, expected.out));
  }
}

TEMPLATE_TEST_CASE("NaN shows where it is seen, and nowhere else", "[attention]", float, double) {
  using S = TestType;
  const AttentionSizes s{2, 40, 270, 2, 1, 4, 3};
  const Index query = 30, key = 140;  // the key is at the position of query 35
  for (const Scheme scheme : schemes<S>()) {
    INFO(name_of(scheme));
    const auto tested = make_under_test<S>(scheme, s.NH, s.H);
    const AttentionOptions options{.causal = true, .at = {.q = Positions::range(205), .k = Positions::range(100)}};
    const auto in = Tensors<S>::numbers(s);
    const auto clean = tested->attend(in, options);
    // Which queries of the first entry have NaN in every feature of out, or in none; nothing else may have changed.
    const auto check = [&](const Tensors<S>& with_nan, const auto& expected) {
      const auto attended = tested->attend(with_nan, options);
      for (Index i = 0; i < s.B * s.L1; ++i)
        for (Index h = 0; h < s.NH; ++h) {
          bool right = true;
          const auto same = [&](S found, S before) {
            right = right && (i < s.L1 && expected(i, h) ? std::isnan(found) : found == before);
          };
          for (Index d = 0; d < s.Hv; ++d) {
            const auto place = static_cast<std::size_t>((i * s.NH + h) * s.Hv + d);
            same(attended.out[place], clean.out[place]);
          }
          const auto place = static_cast<std::size_t>((i / s.L1 * s.NH + h) * s.L1 + i % s.L1);
          same(attended.log_sum_exp[place], clean.log_sum_exp[place]);
          if (!right) FAIL_CHECK("query " << i << ", head " << h);
        }
    };
    const S nan = std::numeric_limits<S>::quiet_NaN();
    // An asymmetric bias hides keys behind a query from its first head, and those ahead from its others.
    const bool hides = scheme == Scheme::alibi_asymmetric;
    Tensors<S> in_query = in;
    in_query.q[static_cast<std::size_t>(query * s.NH * s.H)] = nan;
    check(in_query, [&](Index i, Index h) { return i == query && h == 0; });
    Tensors<S> in_key = in;
    in_key.k[static_cast<std::size_t>(key * s.H)] = nan;
    check(in_key, [&](Index i, Index h) { return i == 35 || (i > 35 && !(hides && h == 0)); });
  }
}

TEMPLATE_TEST_CASE("a large number added to all logits leaves weights that sum to 1, backward too", "[attention]",
                   float, double) {
  using S = TestType;
  const AttentionSizes sizes{.B = 1, .L1 = 70, .L2 = 300, .NH = 2, .NHk = 2, .H = 8, .Hv = 5};
  const auto in = Tensors<S>::numbers(sizes);
  const auto grad_out = numbers<S>(sizes.out(), 7);
  const auto tested = make_under_test<S>(Scheme::alibi, 2, 8);
  for (const double constant : {0.0, -1e3, 1e4, -1e9, -3e38}) {
    MaskCase mask(MaskCase::Type::doubles, {300}, std::vector<double>(300, constant));
    const AttentionOptions options{.mask = mask.mask()};
    for (const bool with_sums : {true, false}) {
      INFO(constant << (with_sums ? ", with log_sum_exp" : ""));
      const auto attended = tested->attend(in, options, with_sums);
      const auto gradients = tested->backward(in, attended, grad_out, options, tested->gradients_of(0));
      double worst = 0;
      for (std::size_t column = 0; column < 10; ++column) {  // of 2 heads of 5 features
        double of_out = 0, of_v = 0;
        for (std::size_t i = column; i < grad_out.size(); i += 10) of_out += static_cast<double>(grad_out[i]);
        for (std::size_t j = column; j < gradients.v.size(); j += 10) of_v += static_cast<double>(gradients.v[j]);
        worst = std::max(worst, std::abs(of_out - of_v));
      }
      CHECK(worst < (std::is_same_v<S, float> ? 2e-4 : 1e-12));  // over 70 queries
    }
  }
}

TEST_CASE("no batch entry, no query, no key", "[attention]") {
  using S = double;
  for (const Scheme scheme : schemes<S>())
    for (const AttentionSizes& s :
         {AttentionSizes{0, 5, 7, 4, 2, 4, 3}, {2, 0, 7, 4, 2, 4, 3}, {2, 5, 0, 4, 2, 4, 3}, {2, 0, 0, 4, 2, 4, 3}})
      for (const bool causal : {false, true}) {
        INFO(name_of(scheme) << ", B " << s.B << ", L1 " << s.L1 << ", L2 " << s.L2);
        const auto tested = make_under_test<S>(scheme, s.NH, s.H);
        const auto in = Tensors<S>::numbers(s);
        const AttentionOptions options{.causal = causal, .at = {.q = Positions::range()}};
        const auto attended = tested->attend(in, options);
        CHECK(attended.out == std::vector<S>(static_cast<std::size_t>(s.out())));
        CHECK(attended.log_sum_exp ==
              std::vector<S>(static_cast<std::size_t>(s.sums()), -std::numeric_limits<S>::infinity()));
        for (const Attended<S>& forward : {attended, Attended<S>{attended.out, {}}}) {
          const auto grads = tested->backward(in, forward, numbers<S>(s.out(), 9), options, tested->gradients_of(0.5));
          CHECK(grads.q == std::vector<S>(in.q.size()));
          CHECK(grads.k == std::vector<S>(in.k.size()));
          CHECK(grads.v == std::vector<S>(in.v.size()));
          CHECK(grads.parameters == tested->gradients_of(0.5));
        }
      }
}

TEST_CASE("attention uses no memory proportional to L1·L2", "[attention][memory]") {
  // What operator new hands out is counted: that is where all memory of the library comes from.
  using enum Scheme;
  for (const Scheme scheme : {identity, alibi, t5, dynamic, xl, rotary}) {
    for (const bool causal : {false, true}) {
      const auto peaks = [&](Index length) {
        // Half as many queries as keys, the last ones: full blocks of both, in half the time.
        const AttentionSizes s{1, length / 2, length, 1, 1, 2, 2};
        const AttentionOptions options{.causal = causal, .at = {.q = Positions::range(length / 2)}};
        const auto tested = make_under_test<double>(scheme, s.NH, s.H);
        const auto in = Tensors<double>::numbers(s);
        const auto attended = tested->attend(in, options);
        return std::pair(
            attended.peak_bytes,
            tested->backward(in, attended, numbers<double>(s.out(), 9), options, tested->gradients_of(0)).peak_bytes);
      };
      INFO(name_of(scheme) << (causal ? ", causal" : ""));
      const auto some = peaks(600), twice = peaks(1200);
      CHECK(some.first > 0);
      CHECK(static_cast<double>(twice.first) < 2.2 * static_cast<double>(some.first));
      CHECK(static_cast<double>(twice.second) < 2.2 * static_cast<double>(some.second));
    }
  }
}

TEST_CASE("what cannot be is refused, and nothing is written", "[attention]") {
  const AttentionSizes s{2, 5, 7, 4, 2, 4, 3};
  std::vector<double> q = numbers<double>(s.q(), 1), k = numbers<double>(s.k(), 2), v = numbers<double>(s.v(), 3),
                      out(static_cast<std::size_t>(s.out() + 40), 77), sums(static_cast<std::size_t>(s.sums()), 78);
  const auto before = std::vector{q, k, v, out, sums};
  const ConstMap<double> q_map(q.data(), 2, 5, 4, 4), k_map(k.data(), 2, 7, 2, 4), v_map(v.data(), 2, 7, 2, 3);
  const Map<double> out_map(out.data(), 2, 5, 4, 3);
  Map<double, 3> sums_map(sums.data(), 2, 4, 5);
  const auto identity = make_under_test<double>(Scheme::identity, 4, 4);

  const auto forward_of = [&](const AttentionUnderTest<double>& tested, Map<double> to, ConstMap<double> a,
                              ConstMap<double> b, ConstMap<double> c, const AttentionOptions& options,
                              Map<double, 3>* log_sum_exp) {
    const std::string text = message_of<ShapeError>([&] { tested.attend(to, a, b, c, options, log_sum_exp); });
    CHECK(std::vector{q, k, v, out, sums} == before);
    return text;
  };
  const auto forward = [&](Map<double> to, Map<double, 3>* log_sum_exp) {
    return forward_of(*identity, to, q_map, k_map, v_map, {}, log_sum_exp);
  };
  const std::string need_out = "; q of shape (2, 5, 4, 4) and v of shape (2, 7, 2, 3) need (B, *, L1, NH, Hv)";
  CHECK(forward({out.data(), 2, 5, 4, 4}, nullptr) == "posbias::attention: out has shape (2, 5, 4, 4)" + need_out);
  CHECK(forward({out.data(), 2, 5, 2, 3}, nullptr) == "posbias::attention: out has shape (2, 5, 2, 3)" + need_out);
  CHECK(forward({out.data(), 2, 4, 4, 3}, nullptr) == "posbias::attention: out has shape (2, 4, 4, 3)" + need_out);
  CHECK(forward({out.data(), 1, 5, 4, 3}, &sums_map) == "posbias::attention: out has shape (1, 5, 4, 3)" + need_out);
  const auto shared = [](const std::string& name) { return " shares memory with " + name + "; it is written to"; };
  CHECK(forward({q.data() + 1, 2, 5, 4, 3}, nullptr) == "posbias::attention: out" + shared("q"));
  const ConstMap<double, 1> in_out_mask(out.data() + 7, 7);
  CHECK(forward_of(*identity, out_map, q_map, k_map, v_map, {.mask = in_out_mask}, nullptr) ==
        "posbias::attention: out" + shared("mask"));
  CHECK(forward_of(*identity, {out.data(), 2, 7, 2, 3}, {q.data(), 2, 7, 2, 4}, k_map, {out.data() + 83, 2, 7, 2, 3},
                   {}, nullptr) == "posbias::attention: out" + shared("v"));
  Map<double, 3> transposed(sums.data(), 2, 5, 4), in_out(out.data() + 119, 2, 4, 5), in_v(v.data(), 2, 4, 5);
  CHECK(forward(out_map, &transposed) ==
        "posbias::attention: log_sum_exp has shape (2, 5, 4); q of shape (2, 5, 4, 4) needs (B, *, NH, L1)");
  CHECK(forward(out_map, &in_out) == "posbias::attention: log_sum_exp" + shared("out"));
  CHECK(forward(out_map, &in_v) == "posbias::attention: log_sum_exp" + shared("v"));
  CHECK(forward_of(*identity, out_map, q_map, {k.data(), 2, 7, 3, 2}, v_map, {}, nullptr) ==
        "posbias::attention: k has shape (2, 7, 3, 2); q has (2, 5, 4, 4) and needs (B, *, L2, NH, H) with the same B, "
        "*, NH (or a divisor of it) and H");
  CHECK(forward_of(*identity, out_map, q_map, k_map, {v.data(), 2, 6, 2, 3}, {}, nullptr) ==
        "posbias::attention: v has shape (2, 6, 2, 3); q has (2, 5, 4, 4) and needs (B, *, L2, NH, any) with the same "
        "B, *, and the L2 and NH of k");

  // What the options say, forward and backward.
  MaskCase wrong_mask(MaskCase::Type::floats, {5, 1}, std::vector<double>(5));
  Eigen::Tensor<std::int64_t, 1> too_many(6);
  too_many.setZero();
  Eigen::Tensor<double, 1> halves(5);
  halves.setConstant(0.5);
  std::vector<double> grad_q(q.size(), 79), grad_k(k.size(), 80), grad_v(v.size(), 81), grad_out(out.size(), 1);
  const Map<double> grad_q_map(grad_q.data(), 2, 5, 4, 4), grad_k_map(grad_k.data(), 2, 7, 2, 4),
      grad_v_map(grad_v.data(), 2, 7, 2, 3);
  const ConstMap<double> grad_out_map(grad_out.data(), 2, 5, 4, 3), read_out(out.data(), 2, 5, 4, 3);
  const auto grads_before = std::vector{grad_q, grad_k, grad_v, grad_out};
  const auto both = [&]<class Error>(std::type_identity<Error>, const AttentionUnderTest<double>& tested,
                                     const AttentionOptions& options) {
    const std::string text =
        message_of<Error>([&] { tested.attend(out_map, q_map, k_map, v_map, options, &sums_map); });
    Named<double> parameters = tested.gradients_of(0.5);
    for (const Map<double, 3>* log_sum_exp : {static_cast<Map<double, 3>*>(nullptr), &sums_map}) {
      std::string backward_text = message_of<Error>([&] {
        tested.attend_backward(grad_q_map, grad_k_map, grad_v_map, grad_out_map, read_out, q_map, k_map, v_map, options,
                               log_sum_exp, parameters);
      });
      if (const std::size_t place = backward_text.find("attention_backward"); place != std::string::npos)
        backward_text.erase(place + 9, 9);
      CHECK(backward_text == text);
    }
    CHECK(std::vector{q, k, v, out, sums} == before);
    CHECK(std::vector{grad_q, grad_k, grad_v, grad_out} == grads_before);
    CHECK(parameters == tested.gradients_of(0.5));
    return text;
  };
  constexpr std::type_identity<ShapeError> shape;
  constexpr std::type_identity<OptionError> option;
  constexpr std::type_identity<PositionError> position;
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (const Scheme scheme : schemes<double>()) {
    INFO(name_of(scheme));
    const auto tested = make_under_test<double>(scheme, 4, 4);
    CHECK(both(option, *tested, {.scale = nan}) ==
          "posbias::attention: scale = nan; it must be finite, also as the tensors' scalar");
    CHECK(both(option, *tested, {.scale = -infinity}) ==
          "posbias::attention: scale = -inf; it must be finite, also as the tensors' scalar");
    CHECK_THAT(both(shape, *tested, {.mask = wrong_mask.mask()}),
               contains("attention: mask has shape (5, 1); q and k need"));
    CHECK(both(position, *tested, {.at = {.q = too_many}}) == "posbias::attention: q has 6 positions for 5 tokens");
    CHECK(both(shape, *tested, {.at = {.q_k = Positions::range()}}) ==
          "posbias::attention: positions q_k need L1 = L2; L1 = 5, L2 = 7; give q and k instead");
    CHECK(both(position, *tested, {.causal = true, .at = {.q_k = Positions::range(), .k = Positions::range()}}) ==
          "posbias::attention: positions q_k and k are both given; give q_k alone, or q and k");
    CHECK(both(position, *tested, {.causal = true}) ==
          "posbias::attention: causal needs positions, since L1 = 5 is not L2 = 7; .at = {.q = Positions::range(past)} "
          "says that past keys come before the first query");
  }
  CHECK(both(position, *make_under_test<double>(Scheme::t5, 4, 4), {.at = {.q = halves}}) ==
        "posbias::attention: RelativePositionBias: q at index 0 is 0.5; integers strictly between -2^62 and 2^62 are "
        "needed");
  CHECK(both(shape, *make_under_test<double>(Scheme::alibi, 3, 4), {}) ==
        "posbias::attention: ALiBi: q has 4 heads; n_heads = 3");
  CHECK(both(shape, *make_under_test<double>(Scheme::rotary, 4, 6), {}) ==
        "posbias::attention: Rotary: q has 4 features per head; head_dim = 6");
  CHECK(both(shape, *make_under_test<double>(Scheme::rotary_alibi, 3, 4), {}) ==
        "posbias::attention: ALiBi: q has 4 heads; n_heads = 3");
  CHECK(both(shape, *make_under_test<double>(Scheme::xl, 4, 6), {}) ==
        "posbias::attention: TransformerXL: q has 4 features per head; dim / n_heads = 6");

  // Backward's own.
  const auto backward = [&](Map<double> to_q, Map<double> to_k, Map<double> to_v, ConstMap<double> of_out,
                            ConstMap<double> of_attended, const Map<double, 3>* log_sum_exp) {
    Named<double> none;
    const std::string text = message_of<ShapeError>([&] {
      identity->attend_backward(to_q, to_k, to_v, of_out, of_attended, q_map, k_map, v_map, {}, log_sum_exp, none);
    });
    CHECK(std::vector{q, k, v, out, sums} == before);
    CHECK(std::vector{grad_q, grad_k, grad_v, grad_out} == grads_before);
    return text;
  };
  const std::string name = "posbias::attention_backward: ";
  CHECK(backward(grad_q_map, grad_k_map, grad_v_map, grad_out_map, {out.data(), 2, 5, 4, 4}, nullptr) ==
        name + "out has shape (2, 5, 4, 4)" + need_out);
  CHECK(backward(grad_q_map, grad_k_map, grad_v_map, {grad_out.data(), 2, 5, 4, 1}, read_out, nullptr) ==
        name + "grad_out has shape (2, 5, 4, 1)" + need_out);
  CHECK(backward({grad_q.data(), 2, 5, 4, 3}, grad_k_map, grad_v_map, grad_out_map, read_out, nullptr) ==
        name + "grad_q has shape (2, 5, 4, 3); q has (2, 5, 4, 4)");
  CHECK(backward(grad_q_map, {grad_k.data(), 2, 7, 1, 4}, grad_v_map, grad_out_map, read_out, nullptr) ==
        name + "grad_k has shape (2, 7, 1, 4); k has (2, 7, 2, 4)");
  CHECK(backward(grad_q_map, grad_k_map, {grad_v.data(), 1, 7, 2, 3}, grad_out_map, read_out, nullptr) ==
        name + "grad_v has shape (1, 7, 2, 3); v has (2, 7, 2, 3)");
  CHECK(backward(grad_q_map, {grad_q.data(), 2, 7, 2, 4}, grad_v_map, grad_out_map, read_out, nullptr) ==
        name + "grad_q" + shared("grad_k"));
  CHECK(backward({q.data(), 2, 5, 4, 4}, grad_k_map, grad_v_map, grad_out_map, read_out, nullptr) ==
        name + "grad_q" + shared("q"));
  CHECK(backward(grad_q_map, {out.data() + 8, 2, 7, 2, 4}, grad_v_map, grad_out_map, read_out, nullptr) ==
        name + "grad_k" + shared("out"));
  CHECK(backward(grad_q_map, grad_k_map, {grad_out.data(), 2, 7, 2, 3}, grad_out_map, read_out, nullptr) ==
        name + "grad_v" + shared("grad_out"));
  const Map<double, 3> in_grad_q(grad_q.data() + 9, 2, 4, 5), in_grad_v(grad_v.data() + 9, 2, 4, 5);
  CHECK(backward(grad_q_map, grad_k_map, grad_v_map, grad_out_map, read_out, &transposed) ==
        name + "log_sum_exp has shape (2, 5, 4); q of shape (2, 5, 4, 4) needs (B, *, NH, L1)");
  CHECK(backward(grad_q_map, grad_k_map, grad_v_map, grad_out_map, read_out, &in_grad_q) ==
        name + "grad_q" + shared("log_sum_exp"));
  CHECK(backward(grad_q_map, grad_k_map, grad_v_map, grad_out_map, read_out, &in_grad_v) ==
        name + "grad_v" + shared("log_sum_exp"));

  const Rotation module({.head_dim = 4, .learned_div = true}), other({.head_dim = 4});
  Eigen::Tensor<double, 3> grad_a(5, 4, 4);
  Eigen::Tensor<double, 3, Eigen::RowMajor> grad_b(7, 2, 4), grad_c(7, 2, 3), attended(5, 4, 3);
  Eigen::Tensor<double, 2> log_sum_exp(4, 5);
  grad_a.setConstant(82);
  grad_b.setConstant(83);
  grad_c.setConstant(84);
  attended.setConstant(0.5);
  log_sum_exp.setConstant(1);
  const auto a = grad_a;
  const auto b = grad_b, c = grad_c, of_attended = attended;
  auto grads = other.zero_gradients();
  CHECK(message_of<ShapeError>([&] {
          attention_backward(grad_a, grad_b, grad_c, of_attended, attended, a, b, c, module, {}, grads, log_sum_exp);
        }) == "posbias::attention_backward: Rotary: grads lacks an entry div; use the module's zero_gradients()");
  CHECK(std::equal(a.data(), a.data() + a.size(), grad_a.data()));
  CHECK(std::equal(b.data(), b.data() + b.size(), grad_b.data()));
  CHECK(std::equal(c.data(), c.data() + c.size(), grad_c.data()));
}

TEST_CASE("a mask of another shape is refused by who was called", "[attention]") {
  const auto tested = make_under_test<double>(Scheme::identity, 1, 1);
  const auto in = Tensors<double>::numbers({1, 2, 3, 1, 1, 1, 1});
  MaskCase mask(MaskCase::Type::bools, {2, 1}, {1, 1});
  CHECK(message_of<ShapeError>([&] { (void)tested->attend(in, {.mask = mask.mask()}); }) ==
        "posbias::attention: mask has shape (2, 1); q and k need (B, *, NH, L1, L2) with B, * = (1), NH = 1, L1 = 2, "
        "L2 = 3, of which all but L2 may be 1 or missing from the left");
}
