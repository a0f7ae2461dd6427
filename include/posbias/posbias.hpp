// SPDX-License-Identifier: MIT
/// \file
/// Positional-bias modules for transformers on Eigen tensors: includes every module, and attention with them. Opt-in
/// headers, which need more than Eigen, are not included: posbias/io/safetensors.hpp, posbias/parallel/thread_pool.hpp.
#pragma once

#include "posbias/attention/attention.hpp"
#include "posbias/bias/alibi.hpp"
#include "posbias/bias/disentangled_bias.hpp"
#include "posbias/bias/dynamic_position_bias.hpp"
#include "posbias/bias/relative_position_bias.hpp"
#include "posbias/bias/transformer_xl.hpp"
#include "posbias/core/compose.hpp"
#include "posbias/core/module.hpp"
#include "posbias/embedding/learned_continuous.hpp"
#include "posbias/embedding/learned_vocab.hpp"
#include "posbias/embedding/sinusoidal.hpp"
#include "posbias/layers/relative_attention.hpp"
#include "posbias/rotation/rotary.hpp"
#include "posbias/version.hpp"

#ifdef POSBIAS_COMPILED
namespace posbias::detail {
/// Defined for the alignment that posbias::compiled was built with: code for processors whose vectors are of another length
/// does not link.
template <int alignment>
void compiled_for_alignment();
extern template void compiled_for_alignment<EIGEN_MAX_ALIGN_BYTES>();
[[gnu::used]] inline void (*const alignment_of_the_library)() = compiled_for_alignment<EIGEN_MAX_ALIGN_BYTES>;
}  // namespace posbias::detail

#define POSBIAS_TEMPLATE extern template
#define POSBIAS_SCALAR float
#include "posbias/instances.hpp"
#undef POSBIAS_SCALAR
#define POSBIAS_SCALAR double
#undef POSBIAS_SCALAR
#undef POSBIAS_TEMPLATE
#endif
