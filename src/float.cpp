// SPDX-License-Identifier: MIT
/// \file
/// posbias::compiled for float.
#include <posbias/posbias.hpp>

namespace posbias::detail {
template <int alignment>
void compiled_for_alignment() {}
template void compiled_for_alignment<EIGEN_MAX_ALIGN_BYTES>();
}  // namespace posbias::detail

#define POSBIAS_TEMPLATE template
#define POSBIAS_SCALAR float
#include <posbias/instances.hpp>
