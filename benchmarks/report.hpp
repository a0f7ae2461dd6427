// SPDX-License-Identifier: MIT
/// \file
/// One table of all that ran, for people, when all is done; progress meanwhile.
#pragma once

#include <benchmark/benchmark.h>

#include <string>
#include <utility>
#include <vector>

namespace posbias_benchmarks {

class Report : public benchmark::BenchmarkReporter {
 public:
  Report();
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override;
  void Finalize() override;

 private:
  using Runs = std::vector<Run>;

  void print_rows() const;
  void print_growth() const;

  std::vector<std::pair<std::string, Runs>> kinds_;  // in the order of the first of each
  int done_ = 0;
};

}  // namespace posbias_benchmarks
