// SPDX-License-Identifier: MIT
/// \file
/// One of two translation units that both use posbias: they must link.
#include <cstdio>

#include "units.hpp"

bool other_unit_works();

int main() {
  const bool here = units_work(), there = other_unit_works();
  std::printf("works: %s in one unit, %s in the other\n", here ? "yes" : "no", there ? "yes" : "no");
  return here && there ? 0 : 1;
}
