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
/// pairs from n_dims / 2 on stay, where they stand and how fast the others rotate is unchanged. With
/// `spectrum = n_dims` the first n_dims features are treated as a whole head and the others stay:
///
///                            n_dims = 4 of 8, interleaved        half
///     spectrum = head_dim    [a0 b0 a1 b1  .  .  .  . ]          [a0 a1  .  . b0 b1  .  . ]
///     spectrum = n_dims      [a0 b0 a1 b1  .  .  .  . ]          [a0 a1 b0 b1  .  .  .  . ]
///
/// Shapes: q (B, *, L1, NH, H), k (B, *, L2, NHk, H) with H = head_dim; v is not touched; L1 may differ from L2. Cost:
/// a complex product for each pair of a position that the batch shares, one pass over q and k. Accuracy: sines and cosines are rounded once from double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/core/checked_positions.hpp"
#include "posbias/core/checks.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/core/module.hpp"
#include "posbias/kernel/cos_sin_cache.hpp"
#include "posbias/kernel/divide.hpp"
#include "posbias/kernel/pair_rotation.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/token_blocks.hpp"

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
  Index head_dim = 0;   ///< features per head, H; required, even
  IndexOrAll n_dims{};  ///< how many of them are rotated; even, 0 .. head_dim; default all
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
  using Scalar = Scalar_;         ///< of its tensors and parameters
  using Options = RotaryOptions;  ///< what it is made from
  using typename Base::Gradients;
  using HooksWithoutV<Rotary>::mod_qkv;
  using HooksWithoutV<Rotary>::mod_qkv_backward;
  static_assert(detail::is_float_or_double<Scalar>, "posbias: modules and tensors are of float or double");
  static constexpr std::string_view name = "Rotary";  ///< in messages
  static constexpr QKVChanges changes{.v = false};    ///< q and k

  /// Throws OptionError. Nothing is random, so the seed is not used.
  [[gnu::cold]] explicit Rotary(const Options& options, std::uint64_t seed = 0);

  [[nodiscard]] const Options& options() const { return options_; }  ///< with defaults filled in

  /// Makes the sines and cosines of positions 0 .. length - 1 ahead: (length, n_dims) scalars, which copies share.
  /// Results stay the same bits. With a learned divisor the table is of use until the divisor changes. Throws
  /// OptionError.
  void reserve(Index length);

  /// Rotates q and k in place, once if they are one and the same tensor. Tokens without a position stay as they are.
  /// Throws ShapeError, PositionError.
  template <WritableStoredTensorOf<Scalar, 3> Q, WritableStoredTensorOf<Scalar, 3> K, HeadsTensor V>
  void mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    plan_mod_qkv(q, k, v, at)();
  }

  /// Adjoint of `mod_qkv`: gradients are rotated back. The angle's own gradient at a pair that became (a, b) is
  /// grad_b·a - grad_a·b. Throws ShapeError, PositionError.
  template <WritableStoredTensorOf<Scalar, 3> GQ, WritableStoredTensorOf<Scalar, 3> GK, HeadsTensor GV,
            StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, HeadsTensor V>
  void mod_qkv_backward(GQ&& grad_q, GK&& grad_k, GV&& grad_v, const Q& q, const K& k, const V& v,
                        const PairPositions& at, Gradients& grads) const {
    plan_mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, grads)();
  }

  /// `mod_qkv`, checked, to be called (see `Module`).
  template <WritableStoredTensorOf<Scalar, 3> Q, WritableStoredTensorOf<Scalar, 3> K, HeadsTensor V>
  [[nodiscard]] auto plan_mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    return plan(Direction::forth, "mod_qkv", q, k, v, at);
  }
  /// `mod_qkv_backward`, checked, to be called.
  template <WritableStoredTensorOf<Scalar, 3> GQ, WritableStoredTensorOf<Scalar, 3> GK, HeadsTensor GV,
            StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, HeadsTensor V>
  [[nodiscard]] auto plan_mod_qkv_backward(GQ&& grad_q, GK&& grad_k, GV&& grad_v, const Q& q, const K& k, const V& v,
                                           const PairPositions& at, Gradients& grads) const {
    const ConstView values[] = {detail::view<3>(q), detail::view<3>(k)};
    return [this,
            both = backward_sides(detail::view<3>(grad_q), detail::view<3>(grad_k), detail::view<3>(grad_v), values[0],
                                  values[1], detail::view<3>(v), at, grads),
            q_view = values[0], k_view = values[1], executor = at.executor,
            &grads] { backward(both, q_view, k_view, executor, grads); };
  }

  /// Rotates back.
  template <WritableStoredTensorOf<Scalar, 3> Q, WritableStoredTensorOf<Scalar, 3> K, HeadsTensor V>
  void undo_mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    plan(Direction::back, "undo_mod_qkv", q, k, v, at)();
  }

 private:
  using View = detail::TensorView<Scalar, 3>;
  using ConstView = detail::TensorView<const Scalar, 3>;
  using Shape = detail::StridedShape<3>;

  enum class Direction { forth, back };

  /// Where the two features of pair i stand in a head: at i·step and i·step + partner.
  struct PairStrides {
    Index step, partner;
  };

  /// Queries, keys, or both if they have the same positions, checked, with where their tokens are.
  struct Side {
    CheckedPositions locations;
    View first;
    std::optional<View> second{};
  };

  /// One or two.
  struct Sides {
    Side first;
    std::optional<Side> second{};

    void for_each(const auto& use) const {
      use(first);
      if (second) use(*second);
    }
  };

  /// With n_dims resolved.
  static Options checked(Options options);

  [[nodiscard]] Index width() const {
    return options_.spectrum == RotarySpectrum::head_dim ? options_.head_dim : Index(options_.n_dims);
  }

  [[nodiscard]] PairStrides pair_strides(Index feature_stride) const {
    if (options_.pairing == RotaryPairing::interleaved) return {2 * feature_stride, feature_stride};
    return {feature_stride, width() / 2 * feature_stride};
  }

  /// q and k, checked; only one of them if they are the same tensor.
  [[nodiscard]] [[gnu::cold]] Sides sides(std::string_view function, const View& q, const View& k, const Shape& v,
                                          const PairPositions& at) const;
  /// The gradients of q and k, checked with all else that the adjoint is given.
  [[nodiscard]] Sides backward_sides(const View& grad_q, const View& grad_k, const Shape& grad_v, const Shape& q,
                                     const Shape& k, const Shape& v, const PairPositions& at,
                                     const Gradients& grads) const;

  template <class Q, class K, class V>
  [[nodiscard]] auto plan(Direction direction, std::string_view function, Q&& q, K&& k, V&& v,
                          const PairPositions& at) const {
    return [this, direction, both = sides(function, detail::view<3>(q), detail::view<3>(k), detail::view<3>(v), at),
            executor = at.executor] { rotate(direction, both, executor); };
  }

  /// The hooks, past the tensors.
  void rotate(Direction direction, const Sides& both, const Executor& executor) const;
  void backward(const Sides& both, const ConstView& q, const ConstView& k, const Executor& executor,
                Gradients& grads) const;

  /// Rotates the heads of a block of tokens of one tensor, or of two.
  void rotate_block(Direction direction, const CheckedPositions& locations, Index index, const auto& find,
                    const View& first, const View* second = nullptr) const {
    detail::visit_token_block(locations, first.batches(), index, [&](const detail::TokenBlock& block) {
      detail::TokenRows<Scalar> rows;
      find(block.positions, rows);
      if (direction == Direction::back) rows.negate_first_halves(block.positions.size(), options_.n_dims);
      for (const View* view : {&first, second})
        if (view != nullptr && view->shape[1] > 0)  // no heads: no memory to point into
          view->data.visit([&](auto* as_stored) { rotate_block(as_stored, *view, block, rows); });
    });
  }

  /// In the order of memory.
  template <class S>
  void rotate_block(S* first, const View& view, const detail::TokenBlock& block,
                    const detail::TokenRows<Scalar>& rows) const {
    const Index token_stride = view.strides[0], head_stride = view.strides[1];
    const Index heads = view.shape[1], pairs = options_.n_dims / 2, tokens = std::ssize(block.positions);
    const PairStrides strides = pair_strides(view.strides[2]);
    std::vector<S*> batches;
    for (Index n = block.first_batch; n < block.end_batch; ++n)
      batches.push_back(first + view.offset(n) + block.first_token * token_stride);
    std::vector<Scalar> duplicated(static_cast<std::size_t>(4 * pairs));
    const auto each_batch = [&](Index token, Index h, const auto& rotate) {
      for (S* batch : batches) rotate(batch + token * token_stride + h * head_stride);
    };
    // Tokens of a fused buffer are not next to each other, where processors would look ahead.
    const auto prefetch_next = [&](Index token, const S* head) {
      if (token + 1 < tokens) detail::prefetch(head + token_stride, options_.head_dim);
    };
    if (view.strides[2] != 1) {  // tokens lie together, features do not
      for (Index h = 0; h < heads; ++h)
        for (Index i = 0; i < pairs; ++i)
          for (Index token = 0; token < tokens; ++token)
            each_batch(token, h, [&, row = rows[token]](S* head) {
              S* a = head + i * strides.step;
              detail::rotate_pair<Scalar>(row[i], row[pairs + i], a[0], a[strides.partner]);
            });
    } else if (options_.pairing == RotaryPairing::interleaved) {
      for (Index token = 0; token < tokens; ++token) {
        detail::duplicate_pairs(rows[token], pairs, duplicated.data());
        for (Index h = 0; h < heads; ++h)
          each_batch(token, h, [&](S* head) {
            prefetch_next(token, head);
            detail::rotate_every_two(duplicated.data(), pairs, head);
          });
      }
    } else {
      for (Index token = 0; token < tokens; ++token)
        for (Index h = 0; h < heads; ++h)
          each_batch(token, h, [&, row = rows[token]](S* head) {
            prefetch_next(token, head);
            detail::rotate_half(row, pairs, head, head + strides.partner);
          });
    }
  }

  void backward_side(const View& grad, const CheckedPositions& locations, const ConstView& value, const auto& find,
                     const Executor& executor, Gradients& grads) const {
    // One partial sum per block, added up in order: the same result for any number of threads.
    const bool learned = this->parameters_.learned();
    const Index blocks = detail::token_blocks(locations);
    std::vector<double> sums(learned ? static_cast<std::size_t>(blocks) : 0);
    executor.parallel_for(blocks, [&](Index index) {
      if (learned) sums[static_cast<std::size_t>(index)] = angle_gradient(grad, locations, value, index);
      rotate_block(Direction::back, locations, index, find, grad);
    });
    double sum = 0;
    for (double part : sums) sum += part;
    this->parameters_.backward(sum, grads);
  }

  /// Sum of gradient times angle over the pairs of a block.
  [[nodiscard]] double angle_gradient(const View& grad, const CheckedPositions& locations, const ConstView& value,
                                      Index index) const {
    const std::span<const double> frequencies = sinusoids_.frequencies();
    std::vector<double> sums(frequencies.size());  // one for each frequency
    std::vector<Scalar> widened(static_cast<std::size_t>(2 * options_.head_dim));
    const auto head_of = [&](const auto& view, detail::Elements<const Scalar> token, Index h, Scalar* to) {
      const detail::Elements<const Scalar> head = token + h * view.strides[1];
      if (view.native()) return std::pair(head.data(), view.strides[2]);
      detail::load<Scalar>(head, view.strides[2], options_.head_dim, to);
      return std::pair(static_cast<const Scalar*>(to), Index{1});
    };
    detail::visit_token_block(locations, grad.batches(), index, [&](const detail::TokenBlock& block) {
      for (Index n = block.first_batch; n < block.end_batch; ++n)
        for (Index row = 0; row < static_cast<Index>(block.positions.size()); ++row) {
          const double scaled = block.positions[static_cast<std::size_t>(row)] / this->parameters_.divisor();
          const auto token = [&](const auto& view) {
            return view.batch(n) + (block.first_token + row) * view.strides[0];
          };
          for (Index h = 0; h < grad.shape[1]; ++h) {
            const auto [grads, grad_stride] = head_of(grad, token(grad), h, widened.data());
            const auto [values, value_stride] = head_of(value, token(value), h, widened.data() + options_.head_dim);
            add_angle_gradients(grads, grad_stride, values, value_stride, scaled, sums);
          }
        }
    });
    double sum = 0;
    for (std::size_t i = 0; i < sums.size(); ++i) sum += sums[i] * frequencies[i];
    return sum;
  }

  /// Adds `scaled` times the gradients by the angles of a head's pairs.
  void add_angle_gradients(const Scalar* grad, Index grad_stride, const Scalar* value, Index value_stride,
                           double scaled, std::vector<double>& sums) const {
    if (detail::all_zero(grad, options_.head_dim, grad_stride)) return;  // hidden, so that the value may be NaN
    const auto add = [&](auto grad_step, auto grad_partner, auto value_step, auto value_partner) {
      double* __restrict sum = sums.data();
      for (Index i = 0; i < std::ssize(sums); ++i) {
        const auto at = [i](const Scalar* head, Index step, Index offset) {
          return static_cast<double>(head[i * step + offset]);
        };
        sum[i] += (at(grad, grad_step, grad_partner) * at(value, value_step, 0) -
                   at(grad, grad_step, 0) * at(value, value_step, value_partner)) *
                  scaled;
      }
    };
    const PairStrides g = pair_strides(grad_stride), x = pair_strides(value_stride);
    constexpr std::integral_constant<Index, 1> one;
    constexpr std::integral_constant<Index, 2> two;
    if (grad_stride != 1 || value_stride != 1)
      add(g.step, g.partner, x.step, x.partner);
    else if (options_.pairing == RotaryPairing::interleaved)
      add(two, one, two, one);
    else
      add(one, g.partner, one, x.partner);
  }

  Options options_;
  detail::CosSinCache<Scalar> sinusoids_;
};

template <class Scalar>
Rotary<Scalar>::Rotary(const Options& options, std::uint64_t /*seed*/)
    : Base(Divide<Scalar>(name, options.divide, options.learned_div)),
      options_(checked(options)),
      sinusoids_(detail::inverse_frequencies(options_.n_dims / 2, width(), options_.base), this->parameters_.divisor(),
                 SinusoidLayout::half) {}

template <class Scalar>
RotaryOptions Rotary<Scalar>::checked(Options options) {
  if (options.head_dim < 2 || options.head_dim % 2 != 0)
    detail::fail<OptionError>(name, ": head_dim = ", options.head_dim,
                              "; it is required, and must be even and positive");
  const Index rotated = options.n_dims.of(options.head_dim);
  if (rotated < 0 || rotated > options.head_dim || rotated % 2 != 0)
    detail::fail<OptionError>(name, ": n_dims = ", rotated,
                              "; it must be even, from 0 to head_dim = ", options.head_dim);
  if (!detail::is_finite(options.base) || options.base <= 0)
    detail::fail<OptionError>(name, ": base = ", options.base, "; it must be positive and finite");
  options.n_dims = rotated;
  return options;
}

template <class Scalar>
void Rotary<Scalar>::reserve(Index length) {
  sinusoids_.reserve(name, length, this->parameters_.divisor());
}

template <class Scalar>
auto Rotary<Scalar>::sides(std::string_view function, const View& q, const View& k, const Shape& v,
                           const PairPositions& at) const -> Sides {
  const detail::Hook hook = this->hook_of(function, at);
  const detail::AttentionShape shape = detail::attention_shape(hook, q, k, v);
  CheckedPairPositions locations(hook, at, shape.leading, shape.queries, shape.keys);
  if (q.shape[2] != options_.head_dim)
    detail::fail<ShapeError>(hook, ": q has ", q.shape[2], " features per head; head_dim = ", options_.head_dim);
  detail::check_apart(hook, {"q", q});
  detail::check_apart(hook, {"k", k});
  const bool same = detail::share_element(q.region(), k.region());
  if (same && (!detail::same_tensor(q, k) || at.q.given() || at.k.given()))
    detail::fail<ShapeError>(hook, ": q and k share memory; they must be one tensor, at the same positions");
  Sides result{{std::move(locations.q), q}};
  if (same) return result;
  const bool same_positions = !at.q.given() && !at.k.given() && shape.queries == shape.keys;
  if (same_positions)
    result.first.second = k;
  else
    result.second.emplace(Side{std::move(locations.k), k});
  return result;
}

template <class Scalar>
auto Rotary<Scalar>::backward_sides(const View& grad_q, const View& grad_k, const Shape& grad_v, const Shape& q,
                                    const Shape& k, const Shape& v, const PairPositions& at,
                                    const Gradients& grads) const -> Sides {
  detail::check_gradient_shapes(this->hook_of("mod_qkv_backward", at), grad_q, grad_k, grad_v, q, k, v);
  Sides result = sides("mod_qkv_backward", grad_q, grad_k, grad_v, at);
  this->check_gradients("mod_qkv_backward", grads);
  return result;
}

template <class Scalar>
void Rotary<Scalar>::rotate(Direction direction, const Sides& both, const Executor& executor) const {
  const auto find = sinusoids_.in_call(this->parameters_.divisor());  // [sines | cosines]
  both.for_each([&](const Side& side) {
    executor.parallel_for(detail::token_blocks(side.locations), [&](Index index) {
      rotate_block(direction, side.locations, index, find, side.first, side.second ? &*side.second : nullptr);
    });
  });
}

template <class Scalar>
void Rotary<Scalar>::backward(const Sides& both, const ConstView& q, const ConstView& k, const Executor& executor,
                              Gradients& grads) const {
  const auto find = sinusoids_.in_call(this->parameters_.divisor());
  const ConstView* value = &q;
  both.for_each([&](const Side& side) {
    backward_side(side.first, side.locations, *value, find, executor, grads);
    value = &k;
    if (side.second) backward_side(*side.second, side.locations, *value, find, executor, grads);
  });
}

}  // namespace posbias
