// SPDX-License-Identifier: MIT
/// \file
/// What a fuzzer finds wrong ends the process, which is how libFuzzer learns of it.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace posbias_fuzz {

inline void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "Fuzzing found: %s\n", what.c_str());
  std::abort();
}

}  // namespace posbias_fuzz
