// SPDX-License-Identifier: MIT
/// \file
/// Several modules as one: their hooks in turn, their adjoints in reverse.
///
///     Compose(Sinusoidal<S>({.dim = 64}), Rotary<S>({.head_dim = 16}), ALiBi<S>({.n_heads = 4}))
///
/// Parameters and gradients are named by the place of their module: "1.div", or "0.2.div" where modules are composed of
/// modules.
///
/// The adjoint of a module's `mod_qkv` needs q, k and v as that module returned them, but the caller has those of the
/// last one. So where several modules change them `mod_qkv_backward` takes copies, O(L·NH·H), and undoes one module
/// after the other on its way back. x, q, k, v and gradients of 16 bits that several modules change are copied to float and
/// rounded once. All else works in place.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/core/module.hpp"
#include "posbias/core/plans.hpp"
#include "posbias/core/summed_terms.hpp"
#include "posbias/core/tensor_copies.hpp"

namespace posbias {

template <class... Modules>
class Compose;

namespace detail {

/// Calls `visitor` for the parameters of every element of a tuple, their names behind its place: "1.div".
template <class Parts, class Visitor>
void visit_parts(Parts& parts, Visitor& visitor) {
  for_each_constant<std::tuple_size_v<Parts>>([&](auto i) {
    const std::string prefix = std::to_string(i()) + '.';
    for_each_parameter(std::get<i>(parts), [&](std::string_view name, auto& tensor) {
      visitor(std::string_view(prefix + std::string(name)), tensor);
    });
  });
}

/// Tensors that every module's hook takes.
template <class X, class... Modules>
concept TokensOfAll = TokensTensor<X> && requires(const Modules&... m, X&& x, const TokenPositions& at) {
  (m.mod_x(std::forward<X>(x), at), ...);
};
template <class Q, class K, class V, class... Modules>
concept HeadsOfAll = requires(const Modules&... m, Q&& q, K&& k, V&& v, const PairPositions& at) {
  (m.mod_qkv(std::forward<Q>(q), std::forward<K>(k), std::forward<V>(v), at), ...);
};
template <class M, class Q, class K, class V, class... Modules>
concept LogitsOfAll = requires(const Modules&... m, M&& mask, const Q& q, const K& k, const V& v,
                               const PairPositions& at) {
  (m.mod_mask(std::forward<M>(mask), q, k, v, at), ...);
};
template <class Q, class K, class... Modules>
concept PreparedByAll = requires(const Modules&... m, const Q& q, const K& k, const PairPositions& at) {
  (static_cast<void>(m.prepare(q, k, at)), ...);
};

/// A mask of 16 bits that prepared biases can be added to, tile by tile, each rounded once. Biases bring the function along.
template <class M, class Q, class K, class Module>
concept TakesTiles = Storage16<ScalarOf<M>> &&
    requires(const Module& module, M& mask, const Q& q, const K& k, const PairPositions& at) {
  add_to_mask(view<3>(mask), module.prepare(q, k, at), at.executor);
};

template <class... Modules>
inline constexpr bool leaves_qkv_alone<Compose<Modules...>> = (leaves_qkv_alone<Modules> && ...);

}  // namespace detail

/// Modules one after another, of any class that is a `PositionalModule`. Those that derive from `Module` are checked
/// before the first hook writes, and undone where the adjoints of those before them need it; so a module that changes
/// q, k or v after another did must derive from `Module` and have `undo_mod_qkv`. `prepare` is there if every module
/// has it.
template <class... Modules>
class Compose : public Module<Compose<Modules...>> {
 public:
  using HooksWithoutV<Compose>::mod_qkv;
  using HooksWithoutV<Compose>::mod_qkv_backward;
  static constexpr std::string_view name = "Compose";  ///< in messages
  /// What any of the modules may change.
  static constexpr QKVChanges changes{(detail::changes_of<Modules>.q || ...), (detail::changes_of<Modules>.k || ...),
                                      (detail::changes_of<Modules>.v || ...)};

  /// Those of the modules, in order.
  struct Gradients {
    std::tuple<typename Modules::Gradients...> parts;  ///< in the order of the modules

    /// Shows each parameter to `visitor(name, tensor)`.
    template <class Self, class Visitor>
    static void visit(Self& self, Visitor& visitor) {
      detail::visit_parts(self.parts, visitor);
    }
  };

  /// Takes the modules, in the order in which they modify.
  explicit Compose(Modules... modules) : modules_(std::move(modules)...) {}

  /// The module at place I, counted from 0.
  template <std::size_t I>
  [[nodiscard]] auto& get() {
    return std::get<I>(modules_);
  }
  /// The same, to be read.
  template <std::size_t I>
  [[nodiscard]] const auto& get() const {
    return std::get<I>(modules_);
  }

  /// All hooks throw what the modules' throw: where these have plans (see `Module`), before any of them writes.
  template <detail::TokensOfAll<Modules...> X>
  void mod_x(X&& x, const TokenPositions& at = {}) const {
    plan_mod_x(x, at)();
  }

  /// As `mod_qkv` of the first module, then of the next.
  template <HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  requires detail::HeadsOfAll<Q, K, V, Modules...>
  void mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const { plan_mod_qkv(q, k, v, at)(); }

  /// Every module sees q, k, v as the last one's `mod_qkv` left them.
  template <LogitsTensor M, HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  requires detail::LogitsOfAll<M, Q, K, V, Modules...>
  void mod_mask(M&& mask, const Q& q, const K& k, const V& v, const PairPositions& at = {}) const {
    plan_mod_mask(mask, q, k, v, at)();
  }

  /// Adjoints, in reverse order.
  template <TokensTensor G>
  void mod_x_backward(G&& grad_x, const TokenPositions& at, Gradients& grads) const {
    plan_mod_x_backward(grad_x, at, grads)();
  }

  /// q, k, v are those that the last module returned.
  template <HeadsTensor GQ, HeadsTensor GK, HeadsTensor GV, HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  void mod_qkv_backward(GQ&& grad_q, GK&& grad_k, GV&& grad_v, const Q& q, const K& k, const V& v,
                        const PairPositions& at, Gradients& grads) const {
    plan_mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, grads)();
  }

  /// Adjoint of `mod_mask`: every module adds to grad_q, grad_k and grad_v, and to its own gradients.
  template <LogitsTensor GM, HeadsTensor GQ, HeadsTensor GK, HeadsTensor GV, HeadsTensor Q, HeadsTensor K,
            HeadsTensor V>
  void mod_mask_backward(GM&& grad_mask, GQ&& grad_q, GK&& grad_k, GV&& grad_v, const Q& q, const K& k, const V& v,
                         const PairPositions& at, Gradients& grads) const {
    plan_mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, v, at, grads)();
  }

  /// `mod_x`, checked, to be called: the plans of all modules.
  template <class X>
  [[nodiscard]] auto plan_mod_x(X& x, const TokenPositions& at = {}) const {
    const auto hooks = [this, &at](auto& x_) {
      return this->plan_each([&](const auto& m) { return m.plan_mod_x(x_, at); });
    };
    return rounded_once<embeddings>(hooks, x);
  }
  /// `mod_qkv`, checked, to be called.
  template <class Q, class K, class V>
  [[nodiscard]] auto plan_mod_qkv(Q& q, K& k, V& v, const PairPositions& at = {}) const {
    const auto hooks = [this, &at](auto& q_, auto& k_, auto& v_) {
      return this->plan_each([&](const auto& m) { return m.plan_mod_qkv(q_, k_, v_, at); });
    };
    return rounded_once<changing(sizeof...(Modules))>(hooks, q, k, v);
  }
  /// `mod_mask`, checked, to be called.
  template <class M, class Q, class K, class V>
  [[nodiscard]] auto plan_mod_mask(M& mask, const Q& q, const K& k, const V& v, const PairPositions& at = {}) const {
    const auto hooks = [this, &q, &k, &v, &at](auto& mask_) {
      return this->plan_each([&](const auto& m) { return m.plan_mod_mask(mask_, q, k, v, at); });
    };
    if constexpr (biases > 1 && detail::TakesTiles<M, Q, K, Compose>) {
      (void)hooks(mask);
      return [this, &mask, &q, &k, &at] { add_to_mask(detail::view<3>(mask), prepare(q, k, at), at.executor); };
    } else {
      return rounded_once<biases>(hooks, mask);
    }
  }
  /// `mod_x_backward`, checked, to be called.
  template <class G>
  [[nodiscard]] auto plan_mod_x_backward(G& grad_x, const TokenPositions& at, Gradients& grads) const {
    return this->plan_each_backwards(
        grads, [&](const auto& m, auto& part) { return m.plan_mod_x_backward(grad_x, at, part); });
  }
  /// `mod_qkv_backward`, checked, to be called.
  template <class GQ, class GK, class GV, class Q, class K, class V>
  [[nodiscard]] auto plan_mod_qkv_backward(GQ& grad_q, GK& grad_k, GV& grad_v, const Q& q, const K& k, const V& v,
                                           const PairPositions& at, Gradients& grads) const {
    auto plan = plan_each_backwards(grads, [&](const auto& m, auto& part) {
      return m.plan_mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, part);
    });
    if constexpr (changing(sizeof...(Modules)) < 2)
      return plan;
    else
      return [this, &grad_q, &grad_k, &grad_v, &q, &k, &v, &at, &grads] {
        const auto backward = [&](auto&& to_q, auto&& to_k, auto&& to_v) {
          undo_and_differentiate(to_q, to_k, to_v, q, k, v, at, grads);
        };
        detail::rounded_once(backward, grad_q, grad_k, grad_v);
      };
  }
  /// `mod_mask_backward`, checked, to be called.
  template <class GM, class GQ, class GK, class GV, class Q, class K, class V>
  [[nodiscard]] auto plan_mod_mask_backward(GM& grad_mask, GQ& grad_q, GK& grad_k, GV& grad_v, const Q& q, const K& k,
                                            const V& v, const PairPositions& at, Gradients& grads) const {
    const auto adjoints = [this, &grad_mask, &q, &k, &v, &at, &grads](auto& to_q, auto& to_k, auto& to_v) {
      return this->plan_each_backwards(grads, [&](const auto& m, auto& part) {
        return m.plan_mod_mask_backward(grad_mask, to_q, to_k, to_v, q, k, v, at, part);
      });
    };
    return rounded_once<biases>(adjoints, grad_q, grad_k, grad_v);
  }

  /// What all modules add to logits, given q and k as `mod_qkv` left them, ready for tiles. Refers to the modules and,
  /// where a bias looks at queries, to q. Throws what their `prepare` throws.
  template <HeadsTensor Q, HeadsTensor K>
  requires detail::PreparedByAll<Q, K, Modules...>
  [[nodiscard]] auto prepare(const Q& q, const K& k, const PairPositions& at = {}) const& {
    return detail::SummedTerms(
        std::apply([&](const auto&... module) { return std::make_tuple(module.prepare(q, k, at)...); }, modules_));
  }
  template <HeadsTensor Q, HeadsTensor K>
  void prepare(const Q& q, const K& k, const PairPositions& at = {}) && = delete;
  template <class S, int Rank, int Layout, class I, HeadsTensor K>
  void prepare(const Eigen::Tensor<S, Rank, Layout, I>&& q, const K& k, const PairPositions& = {}) const& = delete;

  /// Undoes what all modules did, the last one's first.
  template <HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  void undo_mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    (void)plan_mod_qkv(q, k, v, at);  // what can be modified can be undone
    for_each_backwards([&](auto i) { undo<i>(q, k, v, at); });
  }

  /// Zeros for the adjoints of all modules to add to.
  [[nodiscard]] Gradients zero_gradients() const {
    return std::apply([](const auto&... module) { return Gradients{{module.zero_gradients()...}}; }, modules_);
  }

  /// Throws ShapeError unless the gradients are those of these modules.
  void check_gradients(const Caller& caller, const Gradients& grads) const {
    for_each_derived([&](auto i) { get<i>().check_gradients(caller, std::get<i>(grads.parts)); });
  }

  /// Use `for_each_parameter(compose, visitor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    detail::visit_parts(self.modules_, visitor);
  }

 private:
  /// How many modules change x, and how many logits.
  static constexpr int embeddings = (0 + ... + int{!detail::leaves_x_alone<Modules>}),
                       biases = (0 + ... + int{!detail::leaves_mask_alone<Modules>});

  /// How many of the first `count` modules may change q, k or v.
  static constexpr auto changing(std::size_t count) {
    constexpr std::array<bool, sizeof...(Modules)> alone{detail::leaves_qkv_alone<Modules>...};
    return std::count(alone.begin(), alone.begin() + count, false);
  }

  /// The plans of all modules, `plan(module)`, made and run in order.
  [[nodiscard]] auto plan_each(const auto& plan) const {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return detail::PlanList(std::tuple{plan(detail::Plans<Modules>{get<I>()})...});
    }
    (std::index_sequence_for<Modules...>());
  }
  /// The plans of all adjoints, `plan(module, its gradients)`, made in order and run in reverse.
  [[nodiscard]] auto plan_each_backwards(Gradients& grads, const auto& plan) const {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return detail::in_reverse(
          detail::PlanList(std::tuple{plan(detail::Plans<Modules>{get<I>()}, std::get<I>(grads.parts))...}));
    }
    (std::index_sequence_for<Modules...>());
  }

  /// `plans(tensors...)`, in which `count` modules change them. Of 16 bits, what several change is changed in float, and
  /// rounded once.
  template <auto count, class Plans, class... T>
  [[nodiscard]] static auto rounded_once(const Plans& plans, T&... tensors) {
    auto plan = plans(tensors...);
    if constexpr (count < 2 || !(detail::Storage16<detail::ScalarOf<T>> || ...))
      return plan;
    else
      return
          [plans, &tensors...] { detail::rounded_once([&](auto&&... widened) { plans(widened...)(); }, tensors...); };
  }

  /// `mod_qkv_backward` where several modules change q, k and v: copies of them become those of each module in turn.
  void undo_and_differentiate(auto& to_q, auto& to_k, auto& to_v, const auto& q, const auto& k, const auto& v,
                              const PairPositions& at, Gradients& grads) const {
    detail::TensorCopies copy;
    auto q_i = copy(q);
    auto k_i = copy(k);
    auto v_i = copy(v);
    (void)plan_mod_qkv(q_i, k_i, v_i, at);  // what can be modified can be undone
    for_each_backwards([&](auto i) {
      get<i>().mod_qkv_backward(to_q, to_k, to_v, q_i, k_i, v_i, at, std::get<i>(grads.parts));
      if constexpr (changing(i) > 0) undo<i>(q_i, k_i, v_i, at);
    });
  }

  static constexpr bool derived(std::size_t place) {
    return std::array<bool, sizeof...(Modules)>{detail::DerivesFromModule<Modules>...}[place];
  }

  template <std::size_t I>
  void undo(auto& q, auto& k, auto& v, const PairPositions& at) const {
    if constexpr (derived(I) || requires { get<I>().undo_mod_qkv(q, k, v, at); }) get<I>().undo_mod_qkv(q, k, v, at);
  }

  static void for_each(const auto& visit) { detail::for_each_constant<sizeof...(Modules)>(visit); }

  /// The modules that have checks.
  static void for_each_derived(const auto& visit) {
    for_each([&](auto i) {
      if constexpr (derived(i)) visit(i);
    });
  }

  static void for_each_backwards(const auto& visit) {
    constexpr std::size_t count = sizeof...(Modules);
    detail::for_each_constant<count>([&](auto i) { visit(std::integral_constant<std::size_t, count - 1 - i>()); });
  }

  std::tuple<Modules...> modules_;
};

/// Its modules say what it is.
template <class... Modules>
Compose(Modules...) -> Compose<Modules...>;

}  // namespace posbias
