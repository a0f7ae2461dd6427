// SPDX-License-Identifier: MIT
/// \file
/// What every module computes, as a reader would write it down: one position, one formula, plain loops, in long
/// double where the module works in double. Nothing of the library is used here; that is what makes it an oracle.
///
/// Letters: H features of a token or head, NH heads, h a head, i a pair of features, p a position.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace posbias_test::reference {

using Real = long double;

/// What a position is divided by, from a parameter "div" that holds a logarithm.
inline Real learned_divisor(Real div) {
  return std::max(std::exp(div), Real(1e-8L));
}

/// base^(-2i / width), the speed of pair i.
inline Real frequency(int i, int width, Real base = 10000) {
  return std::pow(base, -2 * static_cast<Real>(i) / static_cast<Real>(width));
}

// ---- Sinusoidal: x(f) += row(f)

/// interleaved [s c s c s c s c], half [s s s s c c c c].
inline std::vector<Real> sinusoid(Real p, Real divisor, int H, bool half) {
  std::vector<Real> row(static_cast<std::size_t>(H));
  for (int i = 0; i < H / 2; ++i) {
    const Real angle = p / divisor * frequency(i, H);
    const int sine = half ? i : 2 * i;
    const int cosine = half ? i + H / 2 : 2 * i + 1;
    row[static_cast<std::size_t>(sine)] = std::sin(angle);
    row[static_cast<std::size_t>(cosine)] = std::cos(angle);
  }
  return row;
}

// ---- Rotary: every pair (a, b) of a head becomes (a cos - b sin, a sin + b cos)

struct RotaryHead {
  int H = 0;
  int rotated = 0;            ///< how many of the H features turn
  bool half = false;          ///< pairs (i, i + width/2), not (2i, 2i + 1)
  bool own_spectrum = false;  ///< width = rotated, not H
  Real base = 10000;

  int width() const { return own_spectrum ? rotated : H; }
  int first(int i) const { return half ? i : 2 * i; }
  int second(int i) const { return half ? i + width() / 2 : 2 * i + 1; }
};

inline void rotate(std::span<Real> head, Real p, Real divisor, const RotaryHead& shape) {
  for (int i = 0; i < shape.rotated / 2; ++i) {
    const Real angle = p / divisor * frequency(i, shape.width(), shape.base);
    Real& a = head[static_cast<std::size_t>(shape.first(i))];
    Real& b = head[static_cast<std::size_t>(shape.second(i))];
    const Real turned_a = a * std::cos(angle) - b * std::sin(angle);
    const Real turned_b = a * std::sin(angle) + b * std::cos(angle);
    a = turned_a;
    b = turned_b;
  }
}

// ---- ALiBi: logit(h, q, k) += -slope(h) · |q - k| / divisor

/// 2^(-8/n), 2^(-16/n), ... for n a power of two; else the slopes of the power of two below, n', and then every
/// other one of those of 2n'.
inline std::vector<Real> alibi_slopes(int NH) {
  if ((NH & (NH - 1)) == 0) {
    std::vector<Real> slopes;
    for (int h = 1; h <= NH; ++h) slopes.push_back(std::pow(Real(2), Real(-8) * h / NH));
    return slopes;
  }
  int below = 1;
  while (below * 2 < NH) below *= 2;
  std::vector<Real> slopes = alibi_slopes(below);
  const std::vector<Real> twice = alibi_slopes(2 * below);
  for (int h = 0; below + h < NH; ++h) slopes.push_back(twice[static_cast<std::size_t>(2 * h)]);
  return slopes;
}

/// `used` heads have a slope, from there on it is 0. With asymmetric heads two share one.
inline std::vector<Real> alibi_slopes(int NH, int used, bool asymmetric) {
  std::vector<Real> slopes(static_cast<std::size_t>(NH), 0);
  const std::vector<Real> distinct = alibi_slopes(used);
  for (int h = 0; h < used; ++h)
    slopes[static_cast<std::size_t>(h)] = distinct[static_cast<std::size_t>(asymmetric ? h - h % 2 : h)];
  return slopes;
}

inline Real alibi(Real slope, Real q, Real k, Real divisor) {
  return -slope * std::abs(q - k) / divisor;
}

/// The same, but even heads do not look back and odd ones not ahead.
inline Real asymmetric_alibi(int h, Real slope, Real q, Real k, Real divisor) {
  const bool blocked = h % 2 == 0 ? q > k : q < k;
  return blocked ? -std::numeric_limits<Real>::infinity() : alibi(slope, q, k, divisor);
}

// ---- T5: logit(h, q, k) += weight(bucket(k - q), h)

struct BucketShape {
  bool bidirectional = true;
  std::int64_t num_buckets = 32;
  std::int64_t max_distance = 128;
};

/// The bucket in the float arithmetic that the weights were trained with, a logarithm for every pair.
inline std::int64_t t5_bucket(std::int64_t relative, const BucketShape& shape) {
  std::int64_t buckets = shape.num_buckets;
  std::int64_t offset = 0;
  std::uint64_t distance = 0;
  if (shape.bidirectional) {
    buckets /= 2;
    if (relative > 0) offset = buckets;
    distance = relative > 0 ? static_cast<std::uint64_t>(relative) : 0 - static_cast<std::uint64_t>(relative);
  } else if (relative < 0) {
    distance = 0 - static_cast<std::uint64_t>(relative);
  }
  const std::int64_t max_exact = buckets / 2;
  if (distance < static_cast<std::uint64_t>(max_exact)) return offset + static_cast<std::int64_t>(distance);

  float large = static_cast<float>(distance) / static_cast<float>(max_exact);
  large = std::log(large);
  large =
      large / static_cast<float>(std::log(static_cast<double>(shape.max_distance) / static_cast<double>(max_exact)));
  large = large * static_cast<float>(buckets - max_exact);
  return offset + std::min(max_exact + static_cast<std::int64_t>(large), buckets - 1);
}

// ---- Sums of many terms

/// A value and how large the terms are that it was summed from: its roundings are relative to them, not to it.
struct Sum {
  Real value = 0;
  Real terms = 0;
};

using Row = std::vector<Sum>;
using Weights = std::map<std::string, std::vector<Real>>;

/// y(o) = sum over i of weight(o, i) x(i), + bias(o)
inline Row linear(const Row& x, const std::vector<Real>& weight, const std::vector<Real>& bias) {
  Row y;
  auto w = weight.begin();
  for (Real b : bias) {
    y.push_back({b, std::abs(b)});
    for (const Sum& feature : x) {
      y.back().value += *w * feature.value;
      y.back().terms += std::abs(*w++) * feature.terms;
    }
  }
  return y;
}

// ---- MLP of a position: Linear(1, dim), LayerNorm, and depth - 1 times Swish, Linear(dim, dim), LayerNorm

/// x / (1 + exp(-x)); what x is off by counts as much as the curve is steep there.
inline Sum swish(const Sum& x) {
  const Real sigmoid = 1 / (1 + std::exp(-x.value));
  const Real y = x.value * sigmoid;
  const Real slope = sigmoid + y * (1 - sigmoid);
  return {y, std::abs(y) + std::abs(slope) * x.terms};
}

/// y = weight (x - mean) / sqrt(variance + 1e-5) + bias. Terms go where the derivative of y sends them.
inline Row layer_norm(const Row& x, const std::vector<Real>& weight, const std::vector<Real>& bias) {
  const Real n = static_cast<Real>(x.size());
  Real mean = 0, mean_terms = 0;
  for (const Sum& feature : x) {
    mean += feature.value / n;
    mean_terms += feature.terms / n;
  }
  Real variance = 0;
  for (const Sum& feature : x) variance += (feature.value - mean) * (feature.value - mean) / n;
  const Real deviation = std::sqrt(variance + 1e-5L);
  Real terms_of_deviation = 0;
  for (const Sum& feature : x)
    terms_of_deviation += std::abs(feature.value - mean) / deviation * (feature.terms + mean_terms) / n;
  Row y;
  for (std::size_t f = 0; f < x.size(); ++f) {
    const Real normal = (x[f].value - mean) / deviation;
    const Real terms = (x[f].terms + mean_terms + std::abs(normal) * terms_of_deviation) / deviation;
    y.push_back({weight[f] * normal + bias[f], std::abs(weight[f]) * terms + std::abs(bias[f])});
  }
  return y;
}

/// The features of p, which is divided already. Names as in the state dict: layer i is "mlp.i.".
inline Row mlp(Real p, const Weights& weights, int depth, bool norm) {
  Row x{{p, std::abs(p)}};
  for (int layer = 0; layer < depth; ++layer) {
    // A Swish without parameters is number 0 of every layer but the first.
    const int first = layer == 0 ? 0 : 1;
    const auto parameter = [&](int number, const char* name) -> const std::vector<Real>& {
      return weights.at("mlp." + std::to_string(layer) + "." + std::to_string(number) + "." + name);
    };
    if (layer > 0) std::transform(x.begin(), x.end(), x.begin(), swish);
    x = linear(x, parameter(first, "weight"), parameter(first, "bias"));
    if (norm) x = layer_norm(x, parameter(first + 1, "weight"), parameter(first + 1, "bias"));
  }
  return x;
}

// ---- Dynamic position bias: logit(h, q, k) -= last(mlp((q - k) / divisor))(h), last a Linear(dim, NH)

inline Row dynamic_bias(Real p, const Weights& weights, int depth, bool norm) {
  const std::string last = "mlp." + std::to_string(depth);
  return linear(mlp(p, weights, depth, norm), weights.at(last + ".weight"), weights.at(last + ".bias"));
}

// ---- Transformer-XL: logit(h, q, k) += (query + v - u)(h) · r(h) / sqrt(H), with r of the position q - k, and
// query as mod_qkv left it, u added; or as bio-attention has it, (query + u)(h) · r(h)

/// r, all NH·H features. A sine counts as 1: so much is the angle's error worth.
inline Row xl_row(Real relative, Real divisor, const Weights& weights, bool half) {
  const auto dim = weights.at("bias_r_w").size();
  Row sines;
  for (Real value : sinusoid(relative, divisor, static_cast<int>(dim), half)) sines.push_back({value, 1});
  const auto bias = weights.find("embed_lin.bias");
  return linear(sines, weights.at("embed_lin.weight"), bias == weights.end() ? std::vector<Real>(dim) : bias->second);
}

inline Sum xl(int h, std::span<const Real> query, const Row& r, const Weights& weights, bool bio_attention) {
  const std::size_t first = static_cast<std::size_t>(h) * query.size();
  const Real* u = weights.at("bias_r_w").data() + first;
  const Real* v = weights.at("bias_r_r").data() + first;
  const Real scale = bio_attention ? 1 : 1 / std::sqrt(static_cast<Real>(query.size()));
  Sum logit;
  for (std::size_t f = 0; f < query.size(); ++f) {
    logit.value += scale * (bio_attention ? query[f] + u[f] : query[f] + v[f] - u[f]) * r[first + f].value;
    logit.terms += scale * (std::abs(query[f]) + std::abs(u[f]) + std::abs(v[f])) * r[first + f].terms;
  }
  return logit;
}

}  // namespace posbias_test::reference
