// SPDX-License-Identifier: MIT
/// \file
/// Plans of hooks (see `Module`): those of several modules, made one after another and then run.
#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

namespace posbias::detail {

/// Calls `visit(i)` for i = 0 .. N-1, each a constant that can be a template argument.
template <std::size_t N, class Visit>
void for_each_constant(const Visit& visit) {
  const auto call = [&]<std::size_t... I>(std::index_sequence<I...>) {
    (visit(std::integral_constant<std::size_t, I>()), ...);
  };
  call(std::make_index_sequence<N>());
}

/// Hooks, checked and still to be run, one after another.
template <class... Plans>
class PlanList {
 public:
  explicit PlanList(std::tuple<Plans...> plans) : plans_(std::move(plans)) {}

  void operator()() {
    for_each_constant<sizeof...(Plans)>([&](auto i) { std::get<i>(plans_)(); });
  }
  void in_reverse() {
    for_each_constant<sizeof...(Plans)>([&](auto i) { std::get<sizeof...(Plans) - 1 - i>(plans_)(); });
  }

 private:
  std::tuple<Plans...> plans_;
};

/// A list to be run from its end.
template <class... Plans>
auto in_reverse(PlanList<Plans...> list) {
  return [list = std::move(list)]() mutable { list.in_reverse(); };
}

/// The plans of a module's hooks: its own, or, of a hook that has none, the hook itself.
template <class M>
struct Plans {
  const M& module;

  [[nodiscard]] auto plan_mod_x(auto&... args) const {
    if constexpr (requires { module.plan_mod_x(args...); })
      return module.plan_mod_x(args...);
    else
      return [&of = module, &args...] { of.mod_x(args...); };
  }
  [[nodiscard]] auto plan_mod_qkv(auto&... args) const {
    if constexpr (requires { module.plan_mod_qkv(args...); })
      return module.plan_mod_qkv(args...);
    else
      return [&of = module, &args...] { of.mod_qkv(args...); };
  }
  [[nodiscard]] auto plan_mod_mask(auto&... args) const {
    if constexpr (requires { module.plan_mod_mask(args...); })
      return module.plan_mod_mask(args...);
    else
      return [&of = module, &args...] { of.mod_mask(args...); };
  }
  [[nodiscard]] auto plan_mod_x_backward(auto&... args) const {
    if constexpr (requires { module.plan_mod_x_backward(args...); })
      return module.plan_mod_x_backward(args...);
    else
      return [&of = module, &args...] { of.mod_x_backward(args...); };
  }
  [[nodiscard]] auto plan_mod_qkv_backward(auto&... args) const {
    if constexpr (requires { module.plan_mod_qkv_backward(args...); })
      return module.plan_mod_qkv_backward(args...);
    else
      return [&of = module, &args...] { of.mod_qkv_backward(args...); };
  }
  [[nodiscard]] auto plan_mod_mask_backward(auto&... args) const {
    if constexpr (requires { module.plan_mod_mask_backward(args...); })
      return module.plan_mod_mask_backward(args...);
    else
      return [&of = module, &args...] { of.mod_mask_backward(args...); };
  }
};

}  // namespace posbias::detail
