// SPDX-License-Identifier: MIT
/// \file
/// How far each module is from what the hardware allows. Options are those of Google Benchmark.
#include <benchmark/benchmark.h>

#include "report.hpp"
#include "suite.hpp"

int main(int argc, char** argv) {
  using namespace posbias_benchmarks;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_biases();
  add_rotary();
  add_embeddings();
  add_attention();
  add_relative_attention();
  add_memory();
  add_growth();
  add_compile_times();
  Report report;
  benchmark::RunSpecifiedBenchmarks(&report);
  benchmark::Shutdown();
}
