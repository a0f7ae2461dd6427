// SPDX-License-Identifier: MIT
/// \file
/// Attention with any module behind virtual functions, so that its tests are compiled once and not once for each
/// module. Tensors are (B, L, heads, features), row-major; other forms are a law of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "posbias/core/positions.hpp"
#include "posbias/tile/mask_term.hpp"
#include "support/numbers.hpp"
#include "support/parameter_values.hpp"

namespace posbias {
struct AttentionOptions;
}  // namespace posbias

namespace posbias_test {

using posbias::Index;

template <class S, int Rank = 4>
using Map = Eigen::TensorMap<Eigen::Tensor<S, Rank, Eigen::RowMajor>>;
template <class S, int Rank = 4>
using ConstMap = Eigen::TensorMap<const Eigen::Tensor<S, Rank, Eigen::RowMajor>>;

/// Sizes of q (B, L1, NH, H), k (B, L2, NHk, H), v (B, L2, NHk, Hv).
struct AttentionSizes {
  Index B = 2, L1 = 5, L2 = 7, NH = 3, NHk = 3, H = 8, Hv = 8;

  [[nodiscard]] Index q() const { return B * L1 * NH * H; }
  [[nodiscard]] Index k() const { return B * L2 * NHk * H; }
  [[nodiscard]] Index v() const { return B * L2 * NHk * Hv; }
  [[nodiscard]] Index out() const { return B * L1 * NH * Hv; }
  [[nodiscard]] Index sums() const { return B * NH * L1; }
};

/// q, k and v.
template <class S>
struct Tensors {
  AttentionSizes sizes;
  std::vector<S> q, k, v;

  static Tensors numbers(const AttentionSizes& sizes, std::uint64_t seed = 1) {
    return {sizes, posbias_test::numbers<S>(sizes.q(), 3 * seed), posbias_test::numbers<S>(sizes.k(), 3 * seed + 1),
            posbias_test::numbers<S>(sizes.v(), 3 * seed + 2)};
  }

  friend bool operator==(const Tensors& a, const Tensors& b) { return a.q == b.q && a.k == b.k && a.v == b.v; }
};

/// out (B, L1, NH, Hv) and log_sum_exp (B, NH, L1).
template <class S>
struct Attended {
  std::vector<S> out, log_sum_exp;
  std::size_t peak_bytes = 0;  ///< beside these
};

/// Gradients of q, k, v and of the parameters.
template <class S>
struct Differentiated {
  std::vector<S> q, k, v;
  Named<S> parameters;
  std::size_t peak_bytes = 0;
};

template <class S>
class AttentionUnderTest {
 public:
  virtual ~AttentionUnderTest() = default;

  /// `attention`, with log_sum_exp or without; returns how much memory it used at most.
  virtual std::size_t attend(Map<S> out, ConstMap<S> q, ConstMap<S> k, ConstMap<S> v,
                             const posbias::AttentionOptions& options, Map<S, 3>* log_sum_exp) const = 0;
  /// `attention_backward`; what it adds to the parameters' gradients is added to `parameters`.
  virtual std::size_t attend_backward(Map<S> grad_q, Map<S> grad_k, Map<S> grad_v, ConstMap<S> grad_out,
                                      ConstMap<S> out, ConstMap<S> q, ConstMap<S> k, ConstMap<S> v,
                                      const posbias::AttentionOptions& options, const Map<S, 3>* log_sum_exp,
                                      Named<S>& parameters) const = 0;

  /// mod_qkv, in place.
  virtual void modify(Tensors<S>& tensors, const posbias::PairPositions& at) const = 0;
  /// make_mask of what `modify` left: (B, NH, L1, L2).
  [[nodiscard]] virtual std::vector<S> bias(const Tensors<S>& modified, const posbias::PairPositions& at) const = 0;
  /// mod_mask_backward and then mod_qkv_backward: gradients of the modified q, k, v become those of the given.
  virtual void hooks_backward(std::vector<S> grad_logits, Differentiated<S>& gradients, const Tensors<S>& modified,
                              const posbias::PairPositions& at) const = 0;

  [[nodiscard]] virtual Named<S> parameters() const = 0;
  virtual void set_parameters(const Named<S>& values) = 0;

  /// `attend` of vectors. Results start as NaN.
  [[nodiscard]] Attended<S> attend(const Tensors<S>& in, const posbias::AttentionOptions& options,
                                   bool with_sums = true) const;
  /// `attend_backward` of vectors. Gradients of q, k and v start as NaN, those of parameters as `start`; without
  /// log_sum_exp if `attended` has none.
  [[nodiscard]] Differentiated<S> backward(const Tensors<S>& in, const Attended<S>& attended,
                                           const std::vector<S>& grad_out, const posbias::AttentionOptions& options,
                                           const Named<S>& start) const;
  /// Gradients of the parameters to start from: all `value`.
  [[nodiscard]] Named<S> gradients_of(double value) const {
    Named<S> result = parameters();
    for (auto& [name, values] : result) values.assign(values.size(), static_cast<S>(value));
    return result;
  }
};

/// The modules that attention is tested with.
enum class Scheme {
  identity,
  sinusoidal,  ///< has no part in attention
  alibi,
  alibi_learned,     ///< learns its divisor
  alibi_asymmetric,  ///< -inf in its bias
  t5,                ///< integers only
  dynamic,
  xl,
  xl_bio,
  rotary,
  rotary_learned,  ///< learns its divisor
  rotary_alibi,
  t5_xl,                ///< integers only
  rotary_disentangled,  ///< integers only; its bias looks at keys too
};

/// Those for tensors of `S`: all but one for double, most for float. Without POSBIAS_TEST_FLOAT, float has no module, one
/// that adds to logits, and one that also changes q and k.
template <class S>
[[nodiscard]] std::vector<Scheme> schemes();

[[nodiscard]] std::string name_of(Scheme scheme);
[[nodiscard]] bool integers_only(Scheme scheme);
/// Rotations need pairs of features, and Transformer-XL an even number in all heads.
[[nodiscard]] bool takes(Scheme scheme, Index heads, Index features);

template <class S>
[[nodiscard]] std::unique_ptr<AttentionUnderTest<S>> make_under_test(Scheme scheme, Index heads, Index features);

/// A mask that a caller brings along, of any of its types.
struct MaskCase {
  enum class Type { none, floats, doubles, bools };
  Type type = Type::none;
  std::vector<Index> shape{};     ///< 1 to 4 dimensions, the last of (B, NH, L1, L2) or 1
  std::vector<double> entries{};  ///< row-major; bools as 0 and 1

  MaskCase() = default;
  MaskCase(Type of, std::vector<Index> sizes, std::vector<double> values)
      : type(of), shape(std::move(sizes)), entries(std::move(values)) {}

  /// What it adds to a logit, by definition.
  [[nodiscard]] double at(Index n, Index h, Index i, Index j) const;
  /// For the library; valid as long as this object is neither changed nor moved.
  [[nodiscard]] posbias::AttentionMask mask();

 private:
  std::vector<float> floats_;
  std::unique_ptr<bool[]> bools_;
};

}  // namespace posbias_test
