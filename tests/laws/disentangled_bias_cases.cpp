// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>

#include "laws/module_subject.hpp"
#include "posbias/bias/disentangled_bias.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::DisentangledBias;
using posbias::DisentangledIndex;

/// logit(h, q, k) += scale · (query·K(h)[index of c2p] + key·Q(h)[index of p2c]), K and Q the projected table.
struct Heads {
  int n_positions;
  bool paper = false;
  Real scale = 1 / std::sqrt(Real(8));
};

/// Appends the table's row at this index, projected, all NH·H features.
void append_row(reference::Row& to, int n_positions, Real relative, const std::string& projection,
                const Truth::Parameters& w) {
  const std::vector<Real>& table = w.at("position_embedding");
  const std::vector<Real>& weight = w.at(projection + ".weight");
  const std::vector<Real>& bias = w.at(projection + ".bias");
  const std::size_t inputs = table.size() / static_cast<std::size_t>(n_positions);
  const auto row = static_cast<std::size_t>(
      std::clamp<Real>(relative + static_cast<Real>(n_positions / 2), 0, static_cast<Real>(n_positions - 1)));
  for (std::size_t o = 0; o < bias.size(); ++o) {
    reference::Sum sum{bias[o], std::abs(bias[o])};
    for (std::size_t d = 0; d < inputs; ++d) {
      const Real term = table[row * inputs + d] * weight[d * bias.size() + o];
      sum.value += term;
      sum.terms += std::abs(term);
    }
    to.push_back(sum);
  }
}

/// K's row and then Q's.
reference::Row rows(const Heads& heads, Real q_minus_k, const Truth::Parameters& w) {
  const bool same = !w.contains("position_query_proj.weight");
  reference::Row result;
  append_row(result, heads.n_positions, heads.paper ? q_minus_k : -q_minus_k, "position_key_proj", w);
  append_row(result, heads.n_positions, -q_minus_k, same ? "position_key_proj" : "position_query_proj", w);
  return result;
}

reference::Sum logit(const Heads& heads, const Truth::Logit& at) {
  const std::size_t features = at.query.size();
  const reference::Sum* keys = at.relative.data() + static_cast<std::size_t>(at.h) * features;
  const reference::Sum* queries = keys + at.relative.size() / 2;
  reference::Sum sum;
  for (std::size_t f = 0; f < features; ++f) {
    sum.value += heads.scale * (at.query[f] * keys[f].value + at.key[f] * queries[f].value);
    sum.terms += heads.scale * (std::abs(at.query[f]) * keys[f].terms + std::abs(at.key[f]) * queries[f].terms);
  }
  return sum;
}

Truth truth(const Heads& heads) {
  return {.bias = [=](const Truth::Logit& at, const Truth::Parameters&) { return logit(heads, at).value; },
          .relative = [=](Real q_minus_k, const Truth::Parameters& w) { return rows(heads, q_minus_k, w); },
          .bias_terms = [=](const Truth::Logit& at, const Truth::Parameters&) { return logit(heads, at).terms; },
          .sums_in_scalar = true,
          .angle_divisor = [](const Truth::Parameters&) { return std::numeric_limits<Real>::infinity(); },
          .integers_only = true};
}

const bool added[] = {
    add_case(
        "DisentangledBias",
        []<class S>() {
          return DisentangledBias<S>({.n_heads = 3, .head_dim = 8, .n_positions = 9, .position_size = 2}, 1);
        },
        truth({.n_positions = 9})),
    add_case(
        "DisentangledBias as in the paper, scaled, one projection",
        []<class S>() {
          return DisentangledBias<S>({.n_heads = 2,
                                      .head_dim = 8,
                                      .n_positions = 4,
                                      .position_size = 3,
                                      .same_positional_key_query_proj = true,
                                      .scale = 0.75,
                                      .index = DisentangledIndex::paper},
                                     2);
        },
        truth({.n_positions = 4, .paper = true, .scale = 0.75L}), 2),
};

}  // namespace
}  // namespace posbias_test
