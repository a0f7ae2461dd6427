// SPDX-License-Identifier: MIT
/// \file
/// What is hidden from RelativeAttention has no influence: garbage in the memory of a key that is masked, or whose
/// base_attn is -inf, leaves all else the same to the last bit, forward and backward.
#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "posbias/layers/relative_attention.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using posbias::Index;
using posbias_test::Numbers;
using Layer = posbias::RelativeAttention<float>;
using Tokens = Eigen::Tensor<float, 3, Eigen::RowMajor>;
using Pairs = Eigen::Tensor<float, 4, Eigen::RowMajor>;

namespace {

constexpr Index B = 2, L1 = 37, L2 = 41, size = 8;  // more than a block of queries and of keys
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::array<double, 3> garbage{std::numeric_limits<double>::quiet_NaN(), infinity, -3e38};

Tokens tokens(Index count, std::uint64_t seed) {
  Tokens result(B, count, size);
  Numbers numbers(seed);
  std::generate_n(result.data(), result.size(), [&] { return static_cast<float>(numbers.value()); });
  return result;
}

void spoil(Tokens& x, Index n, Index token, double value) {
  std::fill_n(&x(n, token, 0), size, static_cast<float>(value));
}

struct Inputs {
  Tokens queries = tokens(L1, 1), keys = tokens(L2, 2), values = tokens(L2, 3), grad_pooled = tokens(L1, 4);
};

/// Everything that a call gives, by name.
struct Results {
  Tokens pooled{}, grad_queries = tokens(L1, 5), grad_keys = tokens(L2, 6), grad_values = tokens(L2, 7);
  Pairs logits{};
  Layer::Gradients grads;

  Results(const Layer& layer, const Inputs& in, const Layer::Call& call) : grads(layer.zero_gradients()) {
    auto result = layer(in.queries, in.keys, in.values, call);
    pooled = result.pooled;
    logits = result.logits;
    layer.backward(grad_queries, grad_keys, grad_values, in.grad_pooled, logits, in.queries, in.keys, in.values, call,
                   grads);
  }
};

template <class T>
bool same(const T& a, const T& b) {
  return std::equal(a.data(), a.data() + a.size(), b.data(), b.data() + b.size());
}

/// Names of the results that differ; logits are those of hidden pairs too.
std::string differing(const Results& a, const Results& b) {
  std::string names = std::string(same(a.pooled, b.pooled) ? "" : "pooled ") +
                      (same(a.grad_queries, b.grad_queries) ? "" : "grad_queries ") +
                      (same(a.grad_keys, b.grad_keys) ? "" : "grad_keys ") +
                      (same(a.grad_values, b.grad_values) ? "" : "grad_values ");
  std::vector<std::vector<float>> before;
  posbias::for_each_parameter(a.grads, [&](std::string_view, const auto& tensor) {
    before.emplace_back(tensor.data(), tensor.data() + tensor.size());
  });
  auto next = before.begin();
  posbias::for_each_parameter(b.grads, [&](std::string_view name, const auto& tensor) {
    if (!std::equal(next->begin(), next->end(), tensor.data())) names += std::string(name) + " ";
    ++next;
  });
  return names;
}

const Layer layer({.size = size, .n_heads = 2, .n_positions = 16, .n_additional_heads = 1}, /*seed=*/3);

/// Keys that are hidden from all queries of both entries.
bool hidden_from_all(Index j) {
  return j % 4 == 1 || j > 38;
}
/// Of the others a query sees some, itself not less than one.
bool sees(Index n, Index i, Index j) {
  return !hidden_from_all(j) && (i + j + n) % 3 != 0;
}

Layer::Call with_positions(posbias::PairPositions at) {
  Layer::Call call;
  call.positions = {at};
  return call;
}

}  // namespace

TEST_CASE("keys masked from all queries have no influence on RelativeAttention", "[relative_attention]") {
  Eigen::Tensor<bool, 4, Eigen::RowMajor> mask(B, L1, L2, 1);
  for (Index n = 0; n < B; ++n)
    for (Index i = 0; i < L1; ++i)
      for (Index j = 0; j < L2; ++j) mask(n, i, j, 0) = sees(n, i, j);
  Layer::Call call = with_positions({.q = posbias::Positions::range(100), .k = posbias::Positions::range(90)});
  call.mask = mask;
  const Inputs in;
  const Results clean(layer, in, call);
  for (const double value : garbage) {
    Inputs spoilt;
    for (Index n = 0; n < B; ++n)
      for (Index j = 0; j < L2; ++j)
        if (hidden_from_all(j)) spoil(spoilt.keys, n, j, value), spoil(spoilt.values, n, j, value);
    INFO("garbage " << value);
    CHECK(differing(clean, Results(layer, spoilt, call)) == "");
  }
  // A value that some see shows there, and nowhere else.
  Inputs spoilt;
  spoil(spoilt.values, 0, 12, garbage[0]);
  const Results seen(layer, spoilt, call);
  for (Index n = 0; n < B; ++n)
    for (Index i = 0; i < L1; ++i)
      for (Index d = 0; d < size; ++d) {
        const bool nan = n == 0 && sees(0, i, 12);
        const float found = seen.pooled(n, i, d);
        if (nan ? found == found : found != clean.pooled(n, i, d)) FAIL_CHECK("pooled of query " << i);
        if (!nan && seen.grad_queries(n, i, d) != clean.grad_queries(n, i, d)) FAIL_CHECK("grad of query " << i);
      }
  CHECK(same(seen.grad_values, clean.grad_values));
  for (Index j = 0; j < L2; ++j)
    if (hidden_from_all(j) && seen.grad_keys(0, j, 0) != clean.grad_keys(0, j, 0)) FAIL_CHECK("grad of key " << j);
}

TEST_CASE("keys and queries whose base_attn is -inf have no influence on RelativeAttention", "[relative_attention]") {
  Eigen::Tensor<double, 4, Eigen::RowMajor> base(B, L1, L2, 1);
  for (Index n = 0; n < B; ++n)
    for (Index i = 0; i < L1; ++i)
      for (Index j = 0; j < L2; ++j)
        base(n, i, j, 0) = sees(n, i, j) && i != 5 ? 0.25 : j % 2 == 0 ? -infinity : -1e300;
  Layer::Call call = with_positions({.q = posbias::Positions::range(100), .k = posbias::Positions::range(90)});
  call.base_attn = base;
  const Inputs in;
  const Results clean(layer, in, call);
  CHECK(clean.pooled(0, 5, 0) == 0);
  CHECK(clean.logits(1, 5, 0, 2) == -infinity);
  for (const double value : garbage) {
    Inputs spoilt;
    for (Index n = 0; n < B; ++n) {
      spoil(spoilt.queries, n, 5, value), spoil(spoilt.grad_pooled, n, 5, value);
      for (Index j = 0; j < L2; ++j)
        if (hidden_from_all(j)) spoil(spoilt.keys, n, j, value), spoil(spoilt.values, n, j, value);
    }
    INFO("garbage " << value);
    const Results results(layer, spoilt, call);
    CHECK(differing(clean, results) == "");
    CHECK(same(clean.logits, results.logits));
  }
}

TEST_CASE("tokens without a position have no influence on the table of RelativeAttention", "[relative_attention]") {
  // Terms with positions only, so that all that is left of such keys is their value.
  const Layer positional({.size = size, .n_heads = 2, .n_positions = 16, .mode = {posbias::p2c, posbias::c2p}}, 3);
  Eigen::Tensor<std::int64_t, 1> last(L2 - 3);  // three keys have none
  for (Index j = 0; j < L2 - 3; ++j) last(j) = 90 + j;
  const Layer::Call call = with_positions({.q = posbias::Positions::range(100), .k = last});
  const Inputs in;
  const Results clean(positional, in, call);
  for (const double value : garbage) {
    Inputs spoilt;
    for (Index n = 0; n < B; ++n)
      for (Index j = 0; j < 3; ++j) spoil(spoilt.keys, n, j, value);
    CHECK(differing(clean, Results(positional, spoilt, call)) == "");
  }
}
