// SPDX-License-Identifier: MIT
/// \file
/// Two pieces of work run in turn, so that what disturbs one disturbs the other.
///
/// Time is the work's, `limit` that of what it is compared with, `ratio` its median over the other's: that is what
/// counts, times on shared machines are noise.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

namespace posbias_benchmarks {

/// The time of one run.
template <class Run>
double seconds(const Run& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  benchmark::ClobberMemory();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Measures `work` and, in turn, `other`. Returns the ratio.
template <class Work, class Other>
double compare(benchmark::State& state, const Work& work, const Other& other) {
  std::vector<double> works, others;
  for (auto _ : state) {
    others.push_back(seconds(other));
    works.push_back(seconds(work));
    state.SetIterationTime(works.back());
  }
  const auto median = [](std::vector<double>& values) {
    std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
    return values[values.size() / 2];
  };
  const double limit = median(others);
  state.counters["limit"] = limit;
  return state.counters["ratio"] = median(works) / limit;
}

/// Registers a benchmark that measures its own time.
template <class Run>
auto* add(const std::string& name, const Run& run) {
  return benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond);
}

}  // namespace posbias_benchmarks
