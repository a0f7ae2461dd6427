// SPDX-License-Identifier: MIT
/// \file
/// The integer of sizes and indices.
#pragma once

#include <Eigen/Core>

namespace posbias {

/// Sizes and indices everywhere.
using Index = Eigen::Index;

/// Option value: "all of them" (`Rotary::n_dims`, `ALiBi::use_n_heads`).
inline constexpr Index all = -1;

}  // namespace posbias
