// SPDX-License-Identifier: MIT
/// \file
/// Watches what operator new hands out, in the whole test program.
#pragma once

#include <cstddef>
#include <functional>

namespace posbias_test {

/// The most bytes that were in use at once during a call, beyond those in use before it.
std::size_t peak_bytes_of(const std::function<void()>& call);

}  // namespace posbias_test
