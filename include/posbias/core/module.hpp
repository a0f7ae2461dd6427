// SPDX-License-Identifier: MIT
/// \file
/// The hooks every positional module has, so that an attention layer is written once and takes any of them.
///
///     tokens x ──► q, k, v ──► logits = scale·q·kᵀ + mask ──► softmax ──► ·v
///        ▲            ▲                            ▲
///      mod_x       mod_qkv                      mod_mask
///
/// A hook that a module does not use is the identity. Hooks work in place and are const; their adjoints transform
/// gradients in place and add the parameters' gradients to `grads`.
#pragma once

#include <algorithm>
#include <concepts>
#include <string_view>
#include <type_traits>

#include "posbias/core/checks.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/core/optional_tensor.hpp"
#include "posbias/core/parameter_owner.hpp"
#include "posbias/core/positions.hpp"
#include "posbias/core/view.hpp"
#include "posbias/core/write.hpp"

namespace posbias {

namespace detail {

/// A new mask (B, *, NH, L1, L2) of q's scalar and layout, with anything in it.
template <HeadsTensor Q, HeadsTensor K, HeadsTensor V>
auto new_mask(std::string_view module, const Q& q, const K& k, const V& v) {
  const AttentionShape shape = attention_shape({module, "make_mask"}, q, k, v);
  using Scalar = typename Traits<Q>::Scalar;
  constexpr auto rank = static_cast<std::size_t>(Traits<Q>::rank);
  Eigen::array<Index, rank> sizes;
  std::copy_n(shape.leading.sizes.begin(), rank - 3, sizes.begin());
  sizes[rank - 3] = shape.heads;
  sizes[rank - 2] = shape.queries;
  sizes[rank - 1] = shape.keys;
  return Eigen::Tensor<Scalar, Traits<Q>::rank, Traits<Q>::layout>(sizes);
}

/// A mask that `make_mask` takes for q: of bools or of numbers that go with q, and of no more dimensions than the logits.
template <class M, class Q>
concept MaskFor = TensorLike<M> &&(Traits<M>::rank >= 1) && (Traits<Q>::rank >= Traits<M>::rank) &&
                  (TensorOf<M, bool> || StoredTensorOf<M, Computed<ScalarOf<Q>>>);

/// Puts `smaller` (B, *, NH, l1, l2) at the right and bottom of `mask`, bools as 0 (true: may attend) and -inf. Of its
/// dimensions those that are missing from the left are repeated, and those of 1; l1 = 1 only if l2 is whole.
template <TensorLike Mask, TensorLike Smaller>
void copy_bottom_right(std::string_view module, Mask& mask, const Smaller& smaller) {
  using Scalar = Computed<ScalarOf<Mask>>;
  const auto to = view<3>(mask);
  TensorView<const Computed<ScalarOf<Smaller>>, 0> entries = view<0>(smaller);
  for (int dimensions = Traits<Smaller>::rank; dimensions < Traits<Mask>::rank; ++dimensions)
    insert_dimension(entries, 0);
  TensorView<const Computed<ScalarOf<Smaller>>, 3> from;
  from.data = entries.data;
  from.leading = to.leading;
  from.shape = to.shape;
  const Index queries = entries.leading.sizes[to.leading.rank + 1], keys = entries.leading.sizes[to.leading.rank + 2];
  const bool repeats = queries == 1 && (Traits<Smaller>::rank == 1 || keys == to.shape[2]);
  if (!repeats) from.shape[1] = (std::min)(queries, to.shape[1]);
  from.shape[2] = (std::min)(keys, to.shape[2]);
  if (!broadcast(entries, {true, true, false}, from))
    fail<ShapeError>(
        module, "::make_mask: mask has shape ", shape_of(smaller), "; q and k make one of shape ", shape_of(mask),
        ", of which the last two dimensions may be smaller and all but the last 1 or missing from the left");
  const Index top = to.shape[1] - from.shape[1];
  const Index left = to.shape[2] - from.shape[2];
  for (Index n = 0; n < from.batches(); ++n)
    for (Index h = 0; h < from.shape[0]; ++h)
      for (Index i = 0; i < from.shape[1]; ++i)
        for (Index j = 0; j < from.shape[2]; ++j) {
          const Index place = h * from.strides[0] + i * from.strides[1] + j * from.strides[2];
          const Index target = h * to.strides[0] + (i + top) * to.strides[1] + (j + left) * to.strides[2];
          Scalar value;
          if constexpr (TensorOf<Smaller, bool>)
            value = visible_or_hidden(from.batch(n).data()[place], Scalar(0));
          else
            load<Scalar>(from.batch(n) + place, 1, 1, &value);
          store<Scalar>(&value, 1, to.batch(n) + target, 1);
        }
}

}  // namespace detail

template <class Derived, class Parameters = NoParameters>
class Module;

namespace detail {

/// Declared only: takes pointers to the hooks of `Module` itself, not to those of a module.
template <class Derived, class Parameters, class... Args>
void of_module(void (Module<Derived, Parameters>::*)(Args...) const);

/// True if a module has no `mod_x`, no `mod_qkv`, or no `mod_mask`, but the identity.
template <class M, class T = Eigen::Tensor<float, 3>&>
inline constexpr bool leaves_x_alone = requires {
  of_module(&M::template mod_x<T>);
};
template <class M, class T = Eigen::Tensor<float, 3>&>
inline constexpr bool leaves_qkv_alone = requires {
  of_module(&M::template mod_qkv<T, T, T>);
};
template <class M, class T = Eigen::Tensor<float, 3>&>
inline constexpr bool leaves_mask_alone = requires {
  of_module(&M::template mod_mask<T, T, T, T>);
};

/// Declared only: takes what derives from `Module`.
template <class Derived, class Parameters>
void derives_from_module(const Module<Derived, Parameters>&);

template <class M>
concept DerivesFromModule = requires(const M& m) {
  derives_from_module(m);
};

}  // namespace detail

/// Which of q, k and v a module's own `mod_qkv` may change. A module says so with `static constexpr QKVChanges changes`,
/// or all are taken to change.
struct QKVChanges {
  bool q = true,  ///< q may change
      k = true,   ///< k may change
      v = true;   ///< v may change
};

namespace detail {

template <class M>
inline constexpr QKVChanges changes_of = [] {
  if constexpr (leaves_qkv_alone<M>)
    return QKVChanges{false, false, false};
  else if constexpr (requires { M::changes; })
    return QKVChanges{M::changes};
  else
    return QKVChanges{};
}();

}  // namespace detail

/// A module that leaves logits alone, prepared: there is nothing to add to a tile, and nothing to sum up.
struct NoTerm {
  struct Accumulator {};
  /// Adds nothing.
  void add_to(const auto& /*tile*/) const {}
  [[nodiscard]] bool heads_are_independent() const { return true; }  ///< they are
  [[nodiscard]] bool accumulates() const { return false; }           ///< it does not
  /// Nothing to add up.
  [[nodiscard]] Accumulator accumulator(const auto&... /*grad_q, grad_k*/) const { return {}; }
  /// Leaves gradients of tiles alone.
  void accumulate(const auto& /*tile*/, Accumulator&) const {}
  /// Adds nothing to gradients.
  void finish(const Accumulator&, auto& /*grads*/) const {}
};

/// `mod_qkv` and its adjoint without v, for modules that leave it alone. A module that has a `mod_qkv` of its own takes
/// these with `using HooksWithoutV<Derived>::mod_qkv`, and so with the adjoint.
template <class Derived>
class HooksWithoutV {
 public:
  /// `mod_qkv` of q (B, *, L1, NH, H) and k (B, *, L2, NHk, H), as where keys come alone or v is still to be computed.
  template <HeadsTensor Q, HeadsTensor K>
  requires(!detail::changes_of<Derived>.v) void mod_qkv(Q&& q, K&& k, const PairPositions& at = {}) const {
    static_cast<const Derived&>(*this).mod_qkv(q, k, k, at);
  }

  /// Its adjoint.
  template <HeadsTensor GQ, HeadsTensor GK, HeadsTensor Q, HeadsTensor K, class Gradients>
  requires(!detail::changes_of<Derived>.v) void mod_qkv_backward(GQ&& grad_q, GK&& grad_k, const Q& q, const K& k,
                                                                 const PairPositions& at, Gradients& grads) const {
    static_cast<const Derived&>(*this).mod_qkv_backward(grad_q, grad_k, grad_k, q, k, k, at, grads);
  }
};

/// Base of all modules (CRTP): the identity at every hook until `Derived` says otherwise. `Derived` has a `static
/// constexpr std::string_view name`.
///
/// A hook that can throw is a plan, which is then run: beside `mod_x(x, at)` stands `plan_mod_x(x, at)`, which throws all
/// that the hook throws, writes nothing, and returns what is left to do, to be called once; and so for each hook and
/// adjoint. `Compose` makes the plans of all its modules before it runs the first; of a hook without a plan it cannot know
/// beforehand whether it throws. A plan refers to the module and to all that it was given.
template <class Derived, class Parameters>
class Module : public ParameterOwner<Derived, Parameters>, public HooksWithoutV<Derived> {
  using Owner = ParameterOwner<Derived, Parameters>;

 public:
  using typename Owner::Gradients;
  using HooksWithoutV<Derived>::mod_qkv;
  using HooksWithoutV<Derived>::mod_qkv_backward;

  Module() = default;

  /// Modifies the token embeddings x (B, *, L, H).
  template <TokensTensor X>
  void mod_x(X&&, const TokenPositions& = {}) const {}

  /// Modifies q (B, *, L1, NH, H), k (B, *, L2, NH, H) and v (B, *, L2, NH, H).
  template <HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  void mod_qkv(Q&&, K&&, V&&, const PairPositions& = {}) const {}

  /// Modifies the additive mask (B, *, NH, L1, L2), given q, k, v as `mod_qkv` left them.
  template <LogitsTensor M, HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  void mod_mask(M&&, const Q&, const K&, const V&, const PairPositions& = {}) const {}

  /// `mod_mask` for "no mask yet": a new mask (B, *, NH, L1, L2) of q's scalar and layout. Throws as `mod_mask`
  /// does.
  template <HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  [[nodiscard]] auto make_mask(const Q& q, const K& k, const V& v, const PairPositions& at = {}) const {
    auto mask = detail::new_mask(Derived::name, q, k, v);
    const PairPositions called = detail::called_by("make_mask", at);
    if constexpr (requires { derived().template plan_mod_mask<Write::assign>(mask, q, k, v, called); }) {
      derived().template plan_mod_mask<Write::assign>(mask, q, k, v, called)();
    } else {
      detail::fill_zero(detail::view<0>(mask));
      derived().mod_mask(mask, q, k, v, called);
    }
    return mask;
  }

  /// `mod_mask` of an additive or bool mask (true: may attend). It broadcasts as a mask of `attention` does: dimensions
  /// may be missing from the left, and all but L2 may be 1. And its last two may be smaller than L1 and L2: then it is
  /// aligned right and bottom, what is missing is 0. L1 = 1 is aligned, too, if L2 is smaller. Throws ShapeError.
  template <HeadsTensor Q, HeadsTensor K, HeadsTensor V, detail::MaskFor<Q> Smaller>
  [[nodiscard]] auto make_mask(const Q& q, const K& k, const V& v, const PairPositions& at,
                               const Smaller& smaller) const {
    auto mask = detail::new_mask(Derived::name, q, k, v);
    detail::fill_zero(detail::view<0>(mask));
    detail::copy_bottom_right(Derived::name, mask, smaller);
    derived().mod_mask(mask, q, k, v, detail::called_by("make_mask", at));
    return mask;
  }

  /// Adjoint of `mod_x`: grad_x is the gradient of the modified x, and becomes that of the original.
  template <TokensTensor G>
  void mod_x_backward(G&&, const TokenPositions&, Gradients&) const {}

  /// Adjoint of `mod_qkv`, with q, k, v as the forward hook returned them.
  template <HeadsTensor Q, HeadsTensor K, HeadsTensor V, HeadsTensor Q1, HeadsTensor K1, HeadsTensor V1>
  void mod_qkv_backward(Q&&, K&&, V&&, const Q1&, const K1&, const V1&, const PairPositions&, Gradients&) const {}

  /// Adjoint of `mod_mask`: grad_mask stays as it is (the bias is added), what q and k contributed is added to
  /// grad_q and grad_k.
  template <LogitsTensor M, HeadsTensor Q, HeadsTensor K, HeadsTensor V, HeadsTensor Q1, HeadsTensor K1, HeadsTensor V1>
  void mod_mask_backward(M&&, Q&&, K&&, V&&, const Q1&, const K1&, const V1&, const PairPositions&, Gradients&) const {}

  /// What `mod_mask` adds, given q and k as `mod_qkv` left them, ready for tiles of logits. It may refer to the module
  /// and to q, and has
  ///   - `add_to(tile)`, for any tiles, from any thread;
  ///   - `accumulator(grad_q, grad_k)`: what gradients of tiles add up to, and where those of q and k are added;
  ///   - `accumulate(tile of the gradient, sums)`: its tiles come one after another, unless they are of different heads
  ///     and `heads_are_independent()`;
  ///   - `accumulates()`: whether anything comes of that; if not it may be left out;
  ///   - `finish(sums, grads)`, which adds to the parameters' gradients;
  ///   - `hides()`, if it may be -inf, which hides keys.
  /// A module with a `mod_mask` of its own also has a `prepare` of its own, or none.
  template <HeadsTensor Q, HeadsTensor K>
  requires detail::leaves_mask_alone<Derived>
  [[nodiscard]] NoTerm prepare(const Q&, const K&, const PairPositions& = {}) const { return {}; }

  /// Turns q, k and v back into what `mod_qkv(q, k, v, at)` was given, up to rounding: from the outputs of all its
  /// modules `Compose` finds those of each. A module with a `mod_qkv` of its own also has an `undo_mod_qkv`, or none.
  void undo_mod_qkv(const auto&...) const requires detail::leaves_qkv_alone<Derived> {}

 protected:
  /// This object, as the module that derives from it.
  using Owner::derived;
  using Owner::Owner;

  /// How messages of a hook begin.
  [[nodiscard]] static detail::Hook hook_of(std::string_view function, const PairPositions& at) {
    return {Derived::name, function, at.caller};
  }
};

/// No positional information: every hook is the identity.
class Identity : public Module<Identity> {
 public:
  static constexpr std::string_view name = "Identity";  ///< in messages
};

/// What a transformer may ask of a module for tensors of `Scalar`.
template <class M, class Scalar>
concept PositionalModule = requires(const M& m, typename M::Gradients& grads,
                                    Eigen::Tensor<Scalar, 3, Eigen::RowMajor>& x,
                                    Eigen::Tensor<Scalar, 4, Eigen::RowMajor>& t, const TokenPositions& token,
                                    const PairPositions& pair) {
  m.mod_x(x, token);
  m.mod_qkv(t, t, t, pair);
  m.mod_mask(t, t, t, t, pair);
  m.make_mask(t, t, t, pair);
  m.mod_x_backward(x, token, grads);
  m.mod_qkv_backward(t, t, t, t, t, t, pair, grads);
  m.mod_mask_backward(t, t, t, t, t, t, t, pair, grads);
  { m.zero_gradients() } -> std::same_as<typename std::remove_cvref_t<M>::Gradients>;
};

}  // namespace posbias
