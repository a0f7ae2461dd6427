// SPDX-License-Identifier: MIT
/// \file
/// The other of two translation units that both use posbias.
#include "units.hpp"

bool other_unit_works();

bool other_unit_works() {
  return units_work();
}
