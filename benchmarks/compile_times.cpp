// SPDX-License-Identifier: MIT
/// \file
/// What including posbias costs a user's compiler, beside including Eigen's tensors alone, at -O2. The compiler and the
/// paths are those that compiled this.
#include <sys/resource.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "suite.hpp"
#include "tensors.hpp"

namespace posbias_benchmarks {
namespace {

/// Compiles a file that only includes `header`.
Run compile(const std::string& header) {
  const auto source = std::filesystem::path(POSBIAS_BENCHMARKS_SCRATCH) / "include_only.cpp";
  const std::string command = POSBIAS_BENCHMARKS_COMPILE " -c -o /dev/null " + source.string();
  return [=] {
    std::ofstream(source) << "#include <" << header << ">\n";
    if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
  };
}

/// Processor time of the compilers so far.
double compilers_time() {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// What the headers took, in turn, Eigen's first: measured once for all rows.
const Rounds& all_times(const std::vector<std::string>& headers) {
  static const Rounds rounds = [&] {
    std::vector<Run> pieces{compile("unsupported/Eigen/CXX11/Tensor")};
    for (const std::string& header : headers) pieces.push_back(compile(header));
    return in_turn(pieces, compilers_time);
  }();
  return rounds;
}

}  // namespace

void add_compile_times() {
  const std::vector<std::string> headers = {
      "posbias/posbias.hpp",
      "posbias/embedding/sinusoidal.hpp",
      "posbias/embedding/learned_vocab.hpp",
      "posbias/embedding/learned_continuous.hpp",
      "posbias/rotation/rotary.hpp",
      "posbias/bias/alibi.hpp",
      "posbias/bias/relative_position_bias.hpp",
      "posbias/bias/dynamic_position_bias.hpp",
      "posbias/bias/transformer_xl.hpp",
      "posbias/bias/disentangled_bias.hpp",
      "posbias/attention/scaled_dot_product.hpp",
      "posbias/attention/relative_attention.hpp",
  };
  for (std::size_t i = 0; i < headers.size(); ++i)
    add({"compile time", std::filesystem::path(headers[i]).filename(), "-O2 -c", "Eigen's tensors alone",
         at_most(i == 0 ? 1.0 : 0.5)},
        [=](State& state, const Row& row) {
          show(
              state, "seconds_more", all_times(headers), i + 1, [=](const auto& t) { return t[i + 1] - t[0]; },
              row.target);
        });
}

}  // namespace posbias_benchmarks
