// SPDX-License-Identifier: MIT
/// \file
/// What is hidden has no influence: garbage in the memory of a hidden key, or of a query that sees nothing, leaves every
/// other result the same to the last bit, forward and backward.
#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "attention/attention_under_test.hpp"
#include "laws/module_under_test.hpp"
#include "laws/position_case.hpp"
#include "posbias/attention/attention.hpp"
#include "support/catch.hpp"

using posbias::AttentionOptions;
using posbias::Index;
using namespace posbias_test;

namespace {

constexpr std::array<double, 3> garbage{std::numeric_limits<double>::quiet_NaN(),
                                        std::numeric_limits<double>::infinity(),
                                        -3e38};  // products with it are beyond float

/// More than a block of queries and of keys; two heads share one of keys.
constexpr AttentionSizes sizes{2, 67, 261, 2, 1, 4, 3};

/// Who hides: a mask (B, 1, L1, L2) of either kind, positions, or the bias.
enum class By { bools, floats, doubles, causal };

/// Hidden from all queries of both entries: every third key of these, and more of the last block. Query 5 sees nothing.
bool hidden_from_all(Index j) {
  return j % 3 == 1 || j > 258;
}
bool sees_nothing(By by, Index i) {
  return by != By::causal && i == 5;
}

struct Hiding {
  By by;
  MaskCase mask{};
  PositionCase position_case{"", Where::range(100), Where::range(100)};

  explicit Hiding(By who) : by(who) {
    if (by == By::causal) {  // free slots anywhere, at a position ahead of all queries
      position_case.q = Where::range(1000);
      position_case.k =
          Where::listed(0, sizes.L2, [](Index, Index j) { return hidden_from_all(j) ? 100000 + j : 900 + j; });
      return;
    }
    const bool bools = by == By::bools;
    // A double below the range of float counts as -inf.
    const double hidden = bools ? 0 : by == By::doubles ? -1e300 : -std::numeric_limits<double>::infinity();
    mask = {bools               ? MaskCase::Type::bools
            : by == By::doubles ? MaskCase::Type::doubles
                                : MaskCase::Type::floats,
            {sizes.B, 1, sizes.L1, sizes.L2},
            {}};
    for (Index n = 0; n < sizes.B; ++n)
      for (Index i = 0; i < sizes.L1; ++i)
        for (Index j = 0; j < sizes.L2; ++j) mask.entries.push_back(sees(n, i, j) ? (bools ? 1 : 0.25) : hidden);
  }

  /// By mask or positions, whatever the bias hides.
  [[nodiscard]] bool sees(Index n, Index i, Index j) const {
    if (hidden_from_all(j)) return false;
    if (by == By::causal) return 900 + j <= 1000 + i;
    return !sees_nothing(by, i) && (i + 2 * j + n) % 5 != 0;
  }

  AttentionOptions options() {
    return {.causal = by == By::causal, .at = position_case.pair_positions({sizes.B}, {}), .mask = mask.mask()};
  }
};

template <class S>
struct Results {
  Attended<S> forward;
  Differentiated<S> backward;

  Results(const AttentionUnderTest<S>& tested, const Tensors<S>& in, const std::vector<S>& grad_out,
          const AttentionOptions& options)
      : forward(tested.attend(in, options)),
        backward(tested.backward(in, forward, grad_out, options, tested.gradients_of(0))) {}
};

template <class S>
std::string differing(const Results<S>& a, const Results<S>& b) {
  std::string names;
  const auto compare = [&](const char* name, const std::vector<S>& x, const std::vector<S>& y) {
    if (!same_bits(x, y)) names += name;
  };
  compare("out ", a.forward.out, b.forward.out);
  compare("log_sum_exp ", a.forward.log_sum_exp, b.forward.log_sum_exp);
  compare("grad_q ", a.backward.q, b.backward.q);
  compare("grad_k ", a.backward.k, b.backward.k);
  compare("grad_v ", a.backward.v, b.backward.v);
  return names + posbias_test::differing(a.backward.parameters, b.backward.parameters);
}

/// The values of one token in all heads; `features` of them in all.
template <class S>
void spoil(std::vector<S>& values, Index token, Index features, double value) {
  std::fill_n(values.begin() + token * features, features, static_cast<S>(value));
}

template <class S>
bool is_nan(S value) {
  return value != value;
}

}  // namespace

TEMPLATE_TEST_CASE("keys hidden from all queries have no influence, nor have queries that see nothing", "[attention]",
                   float, double) {
  using S = TestType;
  for (const Scheme scheme : schemes<S>()) {
    const auto tested = make_under_test<S>(scheme, sizes.NH, sizes.H);
    for (const By by : {By::bools, By::floats, By::doubles, By::causal}) {
      if (by == By::doubles && std::is_same_v<S, double>) continue;  // -1e300 is a number there
      INFO(name_of(scheme) << ", hidden by " << static_cast<int>(by));
      Hiding hiding(by);
      const AttentionOptions options = hiding.options();
      const auto in = Tensors<S>::numbers(sizes);
      const auto grad_out = numbers<S>(sizes.out(), 7);
      const Results<S> clean(*tested, in, grad_out, options);
      for (const double value : garbage) {
        Tensors<S> spoilt = in;
        std::vector<S> spoilt_grad_out = grad_out;
        for (Index n = 0; n < sizes.B; ++n) {
          for (Index j = 0; j < sizes.L2; ++j) {
            if (!hidden_from_all(j)) continue;
            spoil(spoilt.k, n * sizes.L2 + j, sizes.NHk * sizes.H, value);
            spoil(spoilt.v, n * sizes.L2 + j, sizes.NHk * sizes.Hv, value);
          }
          for (Index i = 0; i < sizes.L1; ++i) {
            if (!sees_nothing(by, i)) continue;
            spoil(spoilt.q, n * sizes.L1 + i, sizes.NH * sizes.H, value);
            spoil(spoilt_grad_out, n * sizes.L1 + i, sizes.NH * sizes.Hv, value);
          }
        }
        INFO("garbage " << value);
        CHECK(differing(clean, Results<S>(*tested, spoilt, spoilt_grad_out, options)) == "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("a value of NaN shows in the queries that see it, and in nothing that belongs to others",
                   "[attention]", float, double) {
  using S = TestType;
  const auto tested = make_under_test<S>(schemes<S>().front(), sizes.NH, sizes.H);
  for (const By by : {By::bools, By::floats, By::causal}) {
    INFO("hidden by " << static_cast<int>(by));
    Hiding hiding(by);
    const AttentionOptions options = hiding.options();
    const auto in = Tensors<S>::numbers(sizes);
    const auto grad_out = numbers<S>(sizes.out(), 7);
    const Results<S> clean(*tested, in, grad_out, options);
    const Index key = 128;  // of the first entry; some queries see it, some do not
    Tensors<S> spoilt = in;
    spoil(spoilt.v, key, sizes.NHk * sizes.Hv, garbage[0]);
    const Results<S> results(*tested, spoilt, grad_out, options);
    Index seeing = 0, not_seeing = 0;
    for (Index i = 0; i < sizes.B * sizes.L1; ++i) {
      const bool sees = i < sizes.L1 && hiding.sees(0, i, key);
      ++(sees ? seeing : not_seeing);
      bool right = true;
      for (Index d = i * sizes.NH * sizes.Hv; d < (i + 1) * sizes.NH * sizes.Hv; ++d) {
        const auto place = static_cast<std::size_t>(d);
        right = right &&
                (sees ? is_nan(results.forward.out[place]) : results.forward.out[place] == clean.forward.out[place]);
      }
      for (Index d = i * sizes.NH * sizes.H; d < (i + 1) * sizes.NH * sizes.H; ++d) {
        const auto place = static_cast<std::size_t>(d);
        right = right && (sees || results.backward.q[place] == clean.backward.q[place]);
      }
      if (!right) FAIL_CHECK("query " << i);
    }
    CHECK((seeing > 0 && not_seeing > sizes.L1));
    CHECK(same_bits(results.forward.log_sum_exp, clean.forward.log_sum_exp));
    CHECK(same_bits(results.backward.v, clean.backward.v));
    // grad_k of hidden keys is 0, also beside gradients that are NaN.
    for (Index j = 0; j < sizes.L2; ++j)
      for (Index d = 0; d < sizes.H; ++d)
        if (hidden_from_all(j) && results.backward.k[static_cast<std::size_t>(j * sizes.H + d)] != 0)
          FAIL_CHECK("grad_k of key " << j);
  }
}

TEMPLATE_TEST_CASE("a query of NaN has no influence on the gradients of keys that it does not see", "[attention]",
                   float, double) {
  using S = TestType;
  for (const Scheme scheme : schemes<S>()) {
    INFO(name_of(scheme));
    const auto tested = make_under_test<S>(scheme, sizes.NH, sizes.H);
    Hiding hiding(By::causal);
    const AttentionOptions options = hiding.options();
    const auto in = Tensors<S>::numbers(sizes);
    const auto grad_out = numbers<S>(sizes.out(), 7);
    const Results<S> clean(*tested, in, grad_out, options);
    const Index query = 30;
    Tensors<S> spoilt = in;
    std::vector<S> spoilt_grad_out = grad_out;
    spoil(spoilt.q, query, sizes.NH * sizes.H, garbage[0]);
    spoil(spoilt_grad_out, query, sizes.NH * sizes.Hv, garbage[0]);
    const Results<S> results(*tested, spoilt, spoilt_grad_out, options);
    for (Index j = 0; j < sizes.B * sizes.L2; ++j) {
      const bool seen = j < sizes.L2 && hiding.sees(0, query, j);
      bool right = true;
      for (Index d = j * sizes.H; d < (j + 1) * sizes.H; ++d) {
        const auto place = static_cast<std::size_t>(d);
        right = right && (seen || results.backward.k[place] == clean.backward.k[place]);
      }
      for (Index d = j * sizes.Hv; d < (j + 1) * sizes.Hv; ++d) {
        const auto place = static_cast<std::size_t>(d);
        right = right && (seen || results.backward.v[place] == clean.backward.v[place]);
      }
      if (!right) FAIL_CHECK("key " << j);
    }
  }
}
