// SPDX-License-Identifier: MIT
/// \file
/// Counts what operator new hands out, in the whole test program.
#pragma once

#include <cstddef>

namespace posbias_test {

/// Bytes that were asked of operator new since the program began.
std::size_t allocated_bytes();

}  // namespace posbias_test
