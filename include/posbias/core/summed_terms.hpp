// SPDX-License-Identifier: MIT
/// \file
/// What several modules add to tiles of logits, as one.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "posbias/core/infinity.hpp"
#include "posbias/core/plans.hpp"
#include "posbias/core/storage.hpp"

namespace posbias::detail {

/// What several modules add to tiles of logits, one after another.
template <class... Parts>
class SummedTerms {
 public:
  explicit SummedTerms(std::tuple<Parts...> parts) : parts_(std::move(parts)) {}

  /// Not to 16 bits, which would be rounded by each part.
  template <class Tile>
  requires(!Storage16<std::remove_pointer_t<decltype(Tile::data)>>) void add_to(const Tile& tile) const {
    for_each_part([&](auto i) { std::get<i>(parts_).add_to(tile); });
  }

  [[nodiscard]] bool hides() const {
    return std::apply([](const auto&... part) { return (hides_keys(part) || ...); }, parts_);
  }

  void hide(const auto& tile) const {
    for_each_part([&](auto i) { hide_keys(std::get<i>(parts_), tile); });
  }

  [[nodiscard]] bool heads_are_independent() const {
    return std::apply([](const auto&... part) { return (part.heads_are_independent() && ...); }, parts_);
  }

  [[nodiscard]] bool accumulates() const {
    return std::apply([](const auto&... part) { return (part.accumulates() || ...); }, parts_);
  }

  [[nodiscard]] auto accumulator(auto&& grad_q, auto&& grad_k) const {
    return std::apply([&](const auto&... part) { return std::make_tuple(part.accumulator(grad_q, grad_k)...); },
                      parts_);
  }

  void accumulate(const auto& tile, auto& sums) const {
    for_each_part([&](auto i) {
      if (std::get<i>(parts_).accumulates()) std::get<i>(parts_).accumulate(tile, std::get<i>(sums));
    });
  }

  void finish(auto& sums, auto& grads) const {
    for_each_part([&](auto i) { std::get<i>(parts_).finish(std::get<i>(sums), std::get<i>(grads.parts)); });
  }

 private:
  static void for_each_part(const auto& visit) { for_each_constant<sizeof...(Parts)>(visit); }

  std::tuple<Parts...> parts_;
};

template <class... Parts>
SummedTerms(std::tuple<Parts...>) -> SummedTerms<Parts...>;

}  // namespace posbias::detail
