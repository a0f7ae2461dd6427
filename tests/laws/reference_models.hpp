// SPDX-License-Identifier: MIT
/// \file
/// What each module computes, as a `Truth` of its options, in the words of reference/reference.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "laws/module_under_test.hpp"
#include "reference/reference.hpp"

namespace posbias_test::reference_models {

using Parameters = ReferenceModel::Parameters;
using Divisor = std::function<Real(const Parameters&)>;

/// `divide`, or what the parameter "div" says where there is one.
inline Divisor divided_by(Real divide) {
  return [=](const Parameters& w) { return w.contains("div") ? reference::learned_divisor(w.at("div")[0]) : divide; };
}

/// No sines and cosines are taken of positions.
inline Real no_angles(const Parameters&) {
  return std::numeric_limits<Real>::infinity();
}

inline ReferenceModel sinusoidal(int dim, bool half, Real divide) {
  const Divisor divisor = divided_by(divide);
  return {.addend = [=](Real p, const Parameters& w) { return reference::sinusoid(p, divisor(w), dim, half); },
          .angle_divisor = divisor};
}

/// x(f) += weight(p, f)
inline ReferenceModel learned_vocab(int dim, Index max_seq_len) {
  return {.addend =
              [=](Real p, const Parameters& w) {
                const auto first = w.at("emb.weight").begin() + static_cast<std::ptrdiff_t>(p) * dim;
                return std::vector<Real>(first, first + dim);
              },
          .ids_below = max_seq_len};
}

inline ReferenceModel learned_continuous(int depth, bool norm, Real divide) {
  const auto row = [=, divisor = divided_by(divide)](Real p, const Parameters& w) {
    return reference::mlp(p / divisor(w), w, depth, norm);
  };
  return {.addend =
              [=](Real p, const Parameters& w) {
                std::vector<Real> values;
                for (const reference::Sum& feature : row(p, w)) values.push_back(feature.value);
                return values;
              },
          .addend_terms =
              [=](Real p, const Parameters& w) {
                Real largest = 0;
                for (const reference::Sum& feature : row(p, w)) largest = std::max(largest, feature.terms);
                return largest;
              },
          .angle_divisor = no_angles};
}

inline ReferenceModel rotary(const reference::RotaryHead& shape, Real divide) {
  const Divisor divisor = divided_by(divide);
  const auto change = [=](std::span<Real> head, Real p, const Parameters& w) {
    reference::rotate(head, p, divisor(w), shape);
  };
  return {.change_query = change, .change_key = change, .angle_divisor = divisor};
}

struct ALiBiHeads {
  int NH = 0;
  int used = 0;
  bool asymmetric = false;
};

inline ReferenceModel alibi(const ALiBiHeads& heads, Real divide) {
  const std::vector<Real> slopes = reference::alibi_slopes(heads.NH, heads.used, heads.asymmetric);
  return {.bias = [=, divisor = divided_by(divide)](const ReferenceModel::Logit& at, const Parameters& w) {
    const Real slope = slopes[static_cast<std::size_t>(at.h)];
    return heads.asymmetric && at.h < heads.used ? reference::asymmetric_alibi(at.h, slope, at.q, at.k, divisor(w))
                                                 : reference::alibi(slope, at.q, at.k, divisor(w));
  }};
}

inline ReferenceModel relative_position_bias(const reference::BucketShape& buckets) {
  const auto bias = [=](const ReferenceModel::Logit& at, const Parameters& w) {
    const auto relative = static_cast<std::int64_t>(at.k - at.q);
    const std::int64_t bucket = reference::t5_bucket(relative, buckets);
    const std::vector<Real>& weight = w.at("relative_attention_bias.weight");
    const auto heads = static_cast<std::int64_t>(weight.size()) / buckets.num_buckets;
    return weight[static_cast<std::size_t>(bucket * heads + at.h)];
  };
  return {.bias = bias, .integers_only = true};
}

inline ReferenceModel dynamic_position_bias(int depth, bool norm, Real divide) {
  const auto of_head = [](const ReferenceModel::Logit& at) { return at.relative[static_cast<std::size_t>(at.h)]; };
  return {.bias = [=](const ReferenceModel::Logit& at, const Parameters&) { return -of_head(at).value; },
          .relative =
              [=, divisor = divided_by(divide)](Real q_minus_k, const Parameters& w) {
                return reference::dynamic_bias(q_minus_k / divisor(w), w, depth, norm);
              },
          .bias_terms = [=](const ReferenceModel::Logit& at, const Parameters&) { return of_head(at).terms; },
          .angle_divisor = no_angles};
}

struct XLHeads {
  int H = 8;
  bool half = false;
  bool bio_attention = false;
};

inline ReferenceModel transformer_xl(const XLHeads& heads, Real divide) {
  const Divisor divisor = divided_by(divide);
  const auto logit = [=](const ReferenceModel::Logit& at, const Parameters& w) {
    return reference::xl(at.h, at.query, at.relative, w, heads.bio_attention);
  };
  const auto add_u = [=](int h, int f, const Parameters& w) {
    return w.at("bias_r_w")[static_cast<std::size_t>(heads.H * h + f)];
  };
  return {.query_addend = add_u,
          .bias = [=](const ReferenceModel::Logit& at, const Parameters& w) { return logit(at, w).value; },
          .relative = [=](Real q_minus_k,
                          const Parameters& w) { return reference::xl_row(q_minus_k, divisor(w), w, heads.half); },
          .bias_terms = [=](const ReferenceModel::Logit& at, const Parameters& w) { return logit(at, w).terms; },
          .sums_in_scalar = true,
          .angle_divisor = divisor};
}

// ---- DisentangledBias

/// logit(h, q, k) += scale · (query·K(h)[index of c2p] + key·Q(h)[index of p2c]), K and Q the projected table.
struct DisentangledHeads {
  int n_positions = 0;
  Real scale = 1;
  bool c2p = true, p2c = true;
  int c2p_sign = -1, p2c_sign = -1;  ///< of q - k, that picks the row
};

/// Appends the table's row at this index, projected, all NH·H features.
inline void append_row(reference::Row& to, int n_positions, Real relative, const std::string& projection,
                       const Parameters& w) {
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

/// K's row and then Q's; that of a term that is not there is as if it were.
inline reference::Row rows(const DisentangledHeads& heads, Real q_minus_k, const Parameters& w) {
  const bool same = !w.contains("position_query_proj.weight");
  reference::Row result;
  append_row(result, heads.n_positions, static_cast<Real>(heads.c2p_sign) * q_minus_k, "position_key_proj", w);
  append_row(result, heads.n_positions, static_cast<Real>(heads.p2c_sign) * q_minus_k,
             same ? "position_key_proj" : "position_query_proj", w);
  return result;
}

inline reference::Sum logit(const DisentangledHeads& heads, const ReferenceModel::Logit& at) {
  const std::size_t features = at.query.size();
  const reference::Sum* keys = at.relative.data() + static_cast<std::size_t>(at.h) * features;
  const reference::Sum* queries = keys + at.relative.size() / 2;
  const Real c2p = heads.c2p ? heads.scale : 0, p2c = heads.p2c ? heads.scale : 0;
  reference::Sum sum;
  for (std::size_t f = 0; f < features; ++f) {
    sum.value += c2p * at.query[f] * keys[f].value + p2c * at.key[f] * queries[f].value;
    sum.terms += std::abs(c2p * at.query[f]) * keys[f].terms + std::abs(p2c * at.key[f]) * queries[f].terms;
  }
  return sum;
}

inline ReferenceModel disentangled_bias(const DisentangledHeads& heads) {
  return {.bias = [=](const ReferenceModel::Logit& at, const Parameters&) { return logit(heads, at).value; },
          .relative = [=](Real q_minus_k, const Parameters& w) { return rows(heads, q_minus_k, w); },
          .bias_terms = [=](const ReferenceModel::Logit& at, const Parameters&) { return logit(heads, at).terms; },
          .sums_in_scalar = true,
          .angle_divisor = no_angles,
          .integers_only = true};
}

}  // namespace posbias_test::reference_models
