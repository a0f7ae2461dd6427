// SPDX-License-Identifier: MIT
/// \file
/// Rotary position embedding, RoPE (Su et al., 2021, arXiv 2104.09864).
///
/// Pairs of features of every query and key are rotated by an angle that grows with the position, so that q·k
/// depends on the difference of positions only:
///
///     angle(p, i) = p / divide · base^(-2i / spectrum)
///     (a, b)  ->  (a·cos - b·sin, a·sin + b·cos)
///
/// What is a pair is a convention of the checkpoint, and the two must not be mixed up:
///
///     interleaved  [a0 b0 a1 b1 a2 b2 a3 b3]    RoFormer, GPT-J, bio-attention
///     half         [a0 a1 a2 a3 b0 b1 b2 b3]    GPT-NeoX, Llama in Hugging Face's form
///
/// `n_dims` < head_dim rotates a part only. With `spectrum = head_dim` it is a prefix of the full spectrum: the
/// pairs from n_dims / 2 on stay, where they stand and how fast the others turn is unchanged. With
/// `spectrum = n_dims` the first n_dims features are treated as a whole head and the others stay:
///
///                            n_dims = 4 of 8, interleaved        half
///     spectrum = head_dim    [a0 b0 a1 b1  .  .  .  . ]          [a0 a1  .  . b0 b1  .  . ]
///     spectrum = n_dims      [a0 b0 a1 b1  .  .  .  . ]          [a0 a1 b0 b1  .  .  .  . ]
///
/// Shapes: q (B, *, L1, NH, H), k (B, *, L2, NHk, H) with H = head_dim; v is not touched; L1 may differ from L2. Cost:
/// O(L·n_dims) sines and cosines, one pass over q and k. Accuracy: sines and cosines are rounded once from double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/core/module.hpp"
#include "posbias/kernel/divide.hpp"
#include "posbias/kernel/frequencies.hpp"

namespace posbias {

/// Which features form a pair.
enum class RotaryPairing {
  interleaved,  ///< features 2i and 2i + 1
  half,         ///< features i and i + half
};

/// Which width the frequencies belong to when only n_dims of head_dim features are rotated.
enum class RotarySpectrum {
  head_dim,  ///< base^(-2i / head_dim): a prefix of the full spectrum
  n_dims,    ///< base^(-2i / n_dims): the rotated features are a head of their own
};

/// Options of `Rotary`.
struct RotaryOptions {
  Index head_dim = 0;                                  ///< features per head, H; required, even
  Index n_dims = all;                                  ///< how many of them are rotated; even, 0 .. head_dim
  RotaryPairing pairing = RotaryPairing::interleaved;  ///< which features form a pair
  RotarySpectrum spectrum = RotarySpectrum::head_dim;  ///< whose frequencies they are
  double base = 10000;                                 ///< frequencies are base^(-2i / width); > 0
  double divide = 1;                                   ///< positions are divided by this; > 0
  bool learned_div = false;                            ///< learn the divisor, from `divide` on; at least 1e-8
};

/// Rotates queries and keys by their positions (hook `mod_qkv`).
/// Parameters: "div" (), the logarithm of the divisor, if learned_div.
template <class Scalar_>
class Rotary : public Module<Rotary<Scalar_>, Divide<Scalar_>> {
  using Base = Module<Rotary, Divide<Scalar_>>;

 public:
  using Scalar = Scalar_;
  using Options = RotaryOptions;
  using typename Base::Gradients;
  static constexpr std::string_view name = "Rotary";
  static constexpr QKVChanges changes{.v = false};

  /// Throws OptionError. Nothing is random, so the seed is not used.
  explicit Rotary(const Options& options, std::uint64_t /*seed*/ = 0)
      : Base(Divide<Scalar>(name, options.divide, options.learned_div)), options_(options) {
    if (options.head_dim < 2 || options.head_dim % 2 != 0)
      detail::fail<OptionError>(name, ": head_dim = ", options.head_dim,
                                "; it is required, and must be even and positive");
    if (options.n_dims == all) options_.n_dims = options.head_dim;
    if (options_.n_dims < 0 || options_.n_dims > options.head_dim || options_.n_dims % 2 != 0)
      detail::fail<OptionError>(name, ": n_dims = ", options.n_dims,
                                "; it must be even, from 0 to head_dim = ", options.head_dim);
    if (!detail::is_finite(options.base) || options.base <= 0)
      detail::fail<OptionError>(name, ": base = ", options.base, "; it must be positive and finite");
    frequencies_ = detail::inverse_frequencies(options_.n_dims / 2, width(), options.base);
  }

  [[nodiscard]] const Options& options() const { return options_; }

  /// Rotates q and k in place, once if they are one and the same tensor. Tokens without a position stay as they are.
  /// Throws ShapeError, PositionError.
  template <WritableTensorOf<Scalar, 3> Q, WritableTensorOf<Scalar, 3> K, HeadsTensor V>
  void mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    turn<+1>("mod_qkv", q, k, v, at);
  }

  /// Adjoint of `mod_qkv`: gradients are rotated back. The angle's own gradient at a pair that became (a, b) is
  /// grad_b·a - grad_a·b. Throws ShapeError, PositionError.
  template <WritableTensorOf<Scalar, 3> GQ, WritableTensorOf<Scalar, 3> GK, HeadsTensor GV, TensorOf<Scalar, 3> Q,
            TensorOf<Scalar, 3> K, HeadsTensor V>
  void mod_qkv_backward(GQ&& grad_q, GK&& grad_k, GV&& grad_v, const Q& q, const K& k, const V& v,
                        const PairPositions& at, Gradients& grads) const {
    const std::vector<Side> grad_sides = backward_sides(grad_q, grad_k, grad_v, q, k, v, at, grads);
    const detail::TensorView<const Scalar, 3> values[] = {detail::view<3>(q), detail::view<3>(k)};
    for (std::size_t i = 0; i < grad_sides.size(); ++i) backward(grad_sides[i], values[i], at.executor, grads);
  }

  template <WritableTensorOf<Scalar, 3> Q, WritableTensorOf<Scalar, 3> K, HeadsTensor V>
  void check_mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    (void)sides("mod_qkv", q, k, v, at);
  }
  template <WritableTensorOf<Scalar, 3> GQ, WritableTensorOf<Scalar, 3> GK, HeadsTensor GV, TensorOf<Scalar, 3> Q,
            TensorOf<Scalar, 3> K, HeadsTensor V>
  void check_mod_qkv_backward(GQ&& grad_q, GK&& grad_k, GV&& grad_v, const Q& q, const K& k, const V& v,
                              const PairPositions& at, const Gradients& grads) const {
    (void)backward_sides(grad_q, grad_k, grad_v, q, k, v, at, grads);
  }

  /// Rotates back.
  template <WritableTensorOf<Scalar, 3> Q, WritableTensorOf<Scalar, 3> K, HeadsTensor V>
  void undo_mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    turn<-1>("undo_mod_qkv", q, k, v, at);
  }

 private:
  /// Where the two features of pair i stand in a head: at i·step and i·step + partner.
  struct PairStrides {
    Index step, partner;
  };

  /// Queries or keys, checked, with where their tokens are.
  struct Side {
    detail::TensorView<Scalar, 3> view;
    TokenLocations locations;
  };

  template <int Direction, class Q, class K, class V>
  void turn(std::string_view hook, Q& q, K& k, const V& v, const PairPositions& at) const {
    for (const Side& side : sides(hook, q, k, v, at)) {
      at.executor.parallel_for(detail::token_blocks(side.locations), [&](Index index) {
        for_each_head(side, index, [](Index, std::span<const Scalar> row, Scalar* head, PairStrides strides) {
          rotate<Direction>(row, head, strides);
        });
      });
    }
  }

  /// q and k, checked; only one of them if they are the same tensor.
  template <class Q, class K, class V>
  [[nodiscard]] std::vector<Side> sides(std::string_view hook, Q& q, K& k, const V& v, const PairPositions& at) const {
    const detail::AttentionShape shape = detail::attention_shape(name, hook, q, k, v);
    PairLocations locations(name, hook, at, shape.leading, shape.queries, shape.keys);
    const detail::TensorView<Scalar, 3> query = detail::view<3>(q), key = detail::view<3>(k);
    if (query.shape[2] != options_.head_dim)
      detail::fail<ShapeError>(name, "::", hook, ": q has ", query.shape[2],
                               " features per head; head_dim = ", options_.head_dim);
    const bool same = detail::overlap(q, k);
    const bool one = query.data == key.data && query.shape == key.shape && query.strides == key.strides;
    if (same && (!one || at.q.given() || at.k.given()))
      detail::fail<ShapeError>(name, "::", hook,
                               ": q and k share memory; they must be one tensor, at the same positions");
    std::vector<Side> result;
    result.push_back({query, std::move(locations.q)});
    if (!same) result.push_back({key, std::move(locations.k)});
    return result;
  }

  /// The gradients of q and k, checked with all else that the adjoint is given.
  template <class GQ, class GK, class GV, class Q, class K, class V>
  [[nodiscard]] std::vector<Side> backward_sides(GQ& grad_q, GK& grad_k, const GV& grad_v, const Q& q, const K& k,
                                                 const V& v, const PairPositions& at, const Gradients& grads) const {
    detail::check_gradient_shapes(name, "mod_qkv_backward", grad_q, grad_k, grad_v, q, k, v);
    std::vector<Side> result = sides("mod_qkv_backward", grad_q, grad_k, grad_v, at);
    this->check_gradients("mod_qkv_backward", grads);
    return result;
  }

  [[nodiscard]] Index width() const {
    return options_.spectrum == RotarySpectrum::head_dim ? options_.head_dim : options_.n_dims;
  }

  [[nodiscard]] PairStrides pair_strides(Index feature_stride) const {
    if (options_.pairing == RotaryPairing::interleaved) return {2 * feature_stride, feature_stride};
    return {feature_stride, width() / 2 * feature_stride};
  }

  /// Calls `visit(row of the block, [sines | cosines], head, strides)` for every head of every token of a block.
  template <class Visit>
  void for_each_head(const Side& side, Index index, const Visit& visit) const {
    if (side.view.shape[1] == 0) return;  // no heads: no memory to point into
    detail::visit_token_block(side.locations, side.view.batches(), index, [&](const detail::TokenBlock& block) {
      const Index pairs = options_.n_dims / 2;
      std::vector<Scalar> rows(block.positions.size() * static_cast<std::size_t>(2 * pairs));
      detail::fill_sines_and_cosines<Scalar>(block.positions, this->parameters_.divisor(), frequencies_, {1, pairs},
                                             2 * pairs, rows.data());
      const auto& strides = side.view.strides;
      for (Index n = block.first_batch; n < block.end_batch; ++n)
        for (Index row = 0; row < static_cast<Index>(block.positions.size()); ++row) {
          Scalar* token = side.view.batch(n) + (block.first_token + row) * strides[0];
          const std::span<const Scalar> sines_cosines(rows.data() + row * 2 * pairs,
                                                      static_cast<std::size_t>(2 * pairs));
          for (Index h = 0; h < side.view.shape[1]; ++h)
            visit(row, sines_cosines, token + h * strides[1], pair_strides(strides[2]));
        }
    });
  }

  template <int Direction>
  static void rotate(std::span<const Scalar> row, Scalar* head, PairStrides strides) {
    const std::size_t pairs = row.size() / 2;
    const Scalar* sines = row.data();
    const Scalar* cosines = sines + pairs;
    for (std::size_t i = 0; i < pairs; ++i, head += strides.step) {
      const Scalar a = head[0];
      const Scalar b = head[strides.partner];
      const Scalar sine = Direction * sines[i];
      head[0] = a * cosines[i] - b * sine;
      head[strides.partner] = a * sine + b * cosines[i];
    }
  }

  void backward(const Side& grad, const detail::TensorView<const Scalar, 3>& value, const Executor& executor,
                Gradients& grads) const {
    // One partial sum per block, added up in order: the same result for any number of threads.
    const bool learned = this->parameters_.learned();
    const Index blocks = detail::token_blocks(grad.locations);
    std::vector<double> sums(learned ? static_cast<std::size_t>(blocks) : 0);
    executor.parallel_for(blocks, [&](Index index) {
      if (learned) sums[static_cast<std::size_t>(index)] = angle_gradient(grad, value, index);
      for_each_head(grad, index, [](Index, std::span<const Scalar> row, Scalar* head, PairStrides strides) {
        rotate<-1>(row, head, strides);
      });
    });
    double sum = 0;
    for (double part : sums) sum += part;
    this->parameters_.backward(sum, grads);
  }

  /// Sum of gradient times angle over the pairs of a block.
  [[nodiscard]] double angle_gradient(const Side& grad, const detail::TensorView<const Scalar, 3>& value,
                                      Index index) const {
    const double divisor = this->parameters_.divisor();
    double sum = 0;
    detail::visit_token_block(grad.locations, grad.view.batches(), index, [&](const detail::TokenBlock& block) {
      const PairStrides grad_strides = pair_strides(grad.view.strides[2]);
      const PairStrides value_strides = pair_strides(value.strides[2]);
      for (Index n = block.first_batch; n < block.end_batch; ++n)
        for (Index row = 0; row < static_cast<Index>(block.positions.size()); ++row)
          for (Index h = 0; h < grad.view.shape[1]; ++h) {
            const Index token = block.first_token + row;
            const Scalar* g = grad.view.batch(n) + token * grad.view.strides[0] + h * grad.view.strides[1];
            const Scalar* x = value.batch(n) + token * value.strides[0] + h * value.strides[1];
            const double scaled = block.positions[static_cast<std::size_t>(row)] / divisor;
            for (const double frequency : frequencies_) {
              const double turn = static_cast<double>(g[grad_strides.partner]) * static_cast<double>(x[0]) -
                                  static_cast<double>(g[0]) * static_cast<double>(x[value_strides.partner]);
              sum += turn * scaled * frequency;
              g += grad_strides.step;
              x += value_strides.step;
            }
          }
    });
    return sum;
  }

  Options options_;
  std::vector<double> frequencies_;
};

}  // namespace posbias
