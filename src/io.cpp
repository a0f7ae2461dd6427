// SPDX-License-Identifier: MIT
/// \file
/// posbias::compiled for posbias/io/safetensors.hpp.
#include <posbias/io/safetensors.hpp>
#include <posbias/io/safetensors_json.hpp>

#define POSBIAS_TEMPLATE template
#include <posbias/io/instances.hpp>
