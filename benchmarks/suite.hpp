// SPDX-License-Identifier: MIT
/// \file
/// All that is measured, in the order it runs.
#pragma once

namespace posbias_benchmarks {

void add_biases();
void add_rotary();
void add_embeddings();
void add_attention();
void add_relative_attention();
void add_memory();
void add_growth();
void add_compile_times();

}  // namespace posbias_benchmarks
