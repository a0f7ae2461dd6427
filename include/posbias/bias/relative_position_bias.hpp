// SPDX-License-Identifier: MIT
/// \file
/// T5's relative position bias (Raffel et al., 2020, arXiv 1910.10683).
///
///     mask(h, i, j) += relative_attention_bias.weight(bucket(pos_k(j) - pos_q(i)), h)
///
/// Buckets are those of kernel/bucketing.hpp. Positions must be integers.
///
/// Shapes: mask (B, *, NH, L1, L2). Cost: L1+L2-1 buckets and look-ups a head, one pass over the mask. The
/// bias is not scaled: for x-transformers' variant multiply the weights by its scale.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "posbias/bias/relative_bias.hpp"
#include "posbias/kernel/bucketing.hpp"

namespace posbias {

/// Options of `RelativePositionBias`.
struct RelativePositionBiasOptions {
  bool bidirectional = true;  ///< the upper half of the buckets is for keys after the query
  Index num_buckets = 32;     ///< buckets in all; at least 4, or 2 if not bidirectional
  Index max_distance = 128;   ///< tokens; from about here on distances share the last bucket
  Index n_heads = 12;         ///< heads, NH
};

/// The learned values of the buckets.
template <class Scalar>
struct BucketWeights {
  ParameterTensor<Scalar, 2> weight;  ///< (num_buckets, NH)

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    visitor("relative_attention_bias.weight", self.weight);
  }
};

/// Adds a learned value per bucket of relative positions and head (hook `mod_mask`).
/// Parameters: "relative_attention_bias.weight" (num_buckets, NH), starting as N(0, 1).
template <class Scalar>
class RelativePositionBias : public RelativeBias<RelativePositionBias<Scalar>, Scalar, BucketWeights<Scalar>> {
  using Base = RelativeBias<RelativePositionBias, Scalar, BucketWeights<Scalar>>;

 public:
  using Options = RelativePositionBiasOptions;  ///< what it is made from
  using typename Base::Gradients;
  static constexpr std::string_view name = "RelativePositionBias";  ///< in messages
  static constexpr bool integers_only = true;                       ///< positions must be integers

  /// Throws OptionError.
  explicit RelativePositionBias(const Options& options, std::uint64_t seed = 0);

  [[nodiscard]] const Options& options() const { return options_; }  ///< with defaults filled in
  [[nodiscard]] Index n_heads() const { return options_.n_heads; }   ///< NH

  /// The bias (1, NH, q_len, k_len) of queries at step, step + 1, ..., as in zeta.
  [[nodiscard]] auto compute_bias(Index q_len, Index k_len, Index step = 0) const {
    return repeated<4>(1, q_len, k_len, step);
  }

  /// The bias (batch·NH, q_len, k_len), repeated for each batch entry, as in zeta.
  [[nodiscard]] auto operator()(Index batch, Index q_len, Index k_len, Index step = 0) const {
    return repeated<3>(batch, q_len, k_len, step);
  }

  /// The bias (heads, relative.size()) of some heads at key minus query positions, which are integers. `TabulatedBias` asks
  /// for it, once for each distinct offset of a call.
  void evaluate(std::span<const double> relative, Index head, Index heads, Scalar* values) const {
    const auto& weight = this->parameters_.weight;
    const auto count = static_cast<Index>(relative.size());
    for_each_bucket_range(relative, [&](Index bucket, Index begin, Index end) {
      for (Index h = 0; h < heads; ++h)
        std::fill(values + h * count + begin, values + h * count + end, weight(bucket, head + h));
    });
  }

  /// Adjoint of `evaluate`: each bucket's weight gets the gradients of the positions in it.
  void evaluate_backward(std::span<const double> relative, Index head, Index heads, const double* grad_values,
                         Gradients& grads) const {
    const auto count = static_cast<Index>(relative.size());
    std::vector<double> sums(static_cast<std::size_t>(options_.num_buckets * heads));
    for_each_bucket_range(relative, [&](Index bucket, Index begin, Index end) {
      for (Index h = 0; h < heads; ++h)
        for (Index d = begin; d < end; ++d)
          sums[static_cast<std::size_t>(bucket * heads + h)] += grad_values[h * count + d];
    });
    for (Index bucket = 0; bucket < options_.num_buckets; ++bucket)
      for (Index h = 0; h < heads; ++h)
        grads.weight(bucket, head + h) += static_cast<Scalar>(sums[static_cast<std::size_t>(bucket * heads + h)]);
  }

 private:
  /// Calls `visit(bucket, begin, end)` for neighbours that share a bucket, which most do where positions ascend.
  template <class Visit>
  void for_each_bucket_range(std::span<const double> relative, const Visit& visit) const {
    std::size_t begin = 0;
    Index bucket = relative.empty() ? 0 : bucket_of(relative[0]);
    for (std::size_t d = 1; d <= relative.size(); ++d) {
      const Index next = d < relative.size() ? bucket_of(relative[d]) : -1;
      if (next == bucket) continue;
      visit(bucket, static_cast<Index>(begin), static_cast<Index>(d));
      begin = d;
      bucket = next;
    }
  }

  [[nodiscard]] Index bucket_of(double relative) const {
    // Beyond 2^62 a difference no longer converts to 64 bits, and every bucket has been the last for long.
    constexpr double last = 0x1p62;
    return buckets_(static_cast<std::int64_t>(std::clamp(relative, -last, last)));
  }

  /// The bias `batch` times over, (batch, NH, q_len, k_len) in memory.
  template <int Rank>
  [[nodiscard]] Eigen::Tensor<Scalar, Rank, Eigen::RowMajor> repeated(Index batch, Index q_len, Index k_len,
                                                                      Index step) const {
    if (batch < 0) detail::fail<ShapeError>(name, ": batch = ", batch, "; it must not be negative");
    const auto one = this->bias(q_len, k_len, {.q = Positions::range(step)});
    Eigen::Tensor<Scalar, Rank, Eigen::RowMajor> result;
    if constexpr (Rank == 4)
      result.resize(batch, n_heads(), q_len, k_len);
    else
      result.resize(batch * n_heads(), q_len, k_len);
    for (Index b = 0; b < batch; ++b) std::copy_n(one.data(), one.size(), result.data() + b * one.size());
    return result;
  }

  Options options_;
  T5Buckets buckets_;
};

template <class Scalar>
RelativePositionBias<Scalar>::RelativePositionBias(const Options& options, std::uint64_t seed)
    : options_(options), buckets_(name, {options.bidirectional, options.num_buckets, options.max_distance}) {
  if (options.n_heads < 1) detail::fail<OptionError>(name, ": n_heads = ", options.n_heads, "; it must be positive");
  this->parameters_.weight.resize(options.num_buckets, options.n_heads);
  detail::Random random(seed);
  detail::fill_normal(this->parameters_.weight, random);
}

}  // namespace posbias
