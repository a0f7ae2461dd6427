// SPDX-License-Identifier: MIT
/// \file
/// Positional-bias modules for transformers on Eigen tensors: includes every module, and attention with them. Opt-in
/// headers, which need more than Eigen, are not included: posbias/io/safetensors.hpp, posbias/parallel/thread_pool.hpp.
#pragma once

#include "posbias/attention/relative_attention.hpp"
#include "posbias/attention/scaled_dot_product.hpp"
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
#include "posbias/rotation/rotary.hpp"
#include "posbias/version.hpp"
