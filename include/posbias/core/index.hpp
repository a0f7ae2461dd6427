// SPDX-License-Identifier: MIT
/// \file
/// The integer of sizes and indices.
#pragma once

#include <Eigen/Core>
#include <concepts>

namespace posbias {

/// Sizes and indices everywhere.
using Index = Eigen::Index;

/// Option value: "all of them" (`Rotary::n_dims`, `ALiBi::use_n_heads`). It is Eigen's own `all`, so that the name stays
/// unambiguous beside `using namespace Eigen`.
#if EIGEN_VERSION_AT_LEAST(3, 4, 90)
using Eigen::placeholders::all;
#else
using Eigen::all;
#endif

/// The value of an option that takes a number or `all`. Reads as an `Index`, -1 for `all`.
class IndexOrAll {
 public:
  constexpr IndexOrAll() = default;        ///< all
  constexpr IndexOrAll(decltype(all)&) {}  ///< all
  /// A number; -1 is `all`.
  template <std::integral Integer>
  constexpr IndexOrAll(Integer value) : value_(static_cast<Index>(value)) {}

  constexpr operator Index() const { return value_; }  ///< the number, -1 for `all`

  /// The number, or `total` for `all`.
  [[nodiscard]] constexpr Index of(Index total) const { return value_ == -1 ? total : value_; }

 private:
  Index value_ = -1;
};

/// Whether an option is `all`.
constexpr bool operator==(IndexOrAll value, decltype(all)&) {
  return value == Index(-1);
}

}  // namespace posbias
