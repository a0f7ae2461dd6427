// SPDX-License-Identifier: MIT
/// \file
/// How a result is written.
#pragma once

namespace posbias {

/// What is written to logits: the bias and what is there, or the bias alone, so that whatever is there does not matter.
enum class Write { add, assign };

}  // namespace posbias
