// SPDX-License-Identifier: MIT
/// \file
/// posbias::compiled for double.
#include <posbias/posbias.hpp>

#define POSBIAS_TEMPLATE template
#define POSBIAS_SCALAR double
#include <posbias/instances.hpp>
