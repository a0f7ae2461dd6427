// SPDX-License-Identifier: MIT
/// \file
/// Compile times at -O2, compared with including Eigen's tensors alone: of each header, by the compiler of this program,
/// and of whole programs, by g++ and clang++. Paths are those that compiled this.
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "compare.hpp"
#include "suite.hpp"

namespace posbias_benchmarks {
namespace {

using Path = std::filesystem::path;
const Path scratch = POSBIAS_BENCHMARKS_SCRATCH;
constexpr const char* eigen = "unsupported/Eigen/CXX11/Tensor";

void call(const std::string& command) {
  if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
}

Run compile(const std::string& compiler, const Path& source, const Path& object = "/dev/null",
            const std::string& options = "") {
  return [command = compiler + " -std=c++20 -O2 " POSBIAS_BENCHMARKS_INCLUDES " -c -o " + object.string() + ' ' +
                    options + ' ' + source.string()] { call(command); };
}

/// A file that only includes `header`.
Path include_only(const std::string& header) {
  const Path source = scratch / ("include_" + Path(header).filename().string() + ".cpp");
  std::ofstream(source) << "#include <" << header << ">\n";
  return source;
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
    std::vector<Run> pieces{compile(POSBIAS_BENCHMARKS_CXX, include_only(eigen))};
    for (const std::string& header : headers) pieces.push_back(compile(POSBIAS_BENCHMARKS_CXX, include_only(header)));
    return in_turn(pieces, compilers_time);
  }();
  return rounds;
}

/// The major version of a compiler; empty if there is no such command.
std::string version(const std::string& compiler) {
  const std::unique_ptr<FILE, int (*)(FILE*)> output(popen((compiler + " -dumpversion 2>/dev/null").c_str(), "r"),
                                                     pclose);
  int major = 0;
  return output != nullptr && std::fscanf(output.get(), "%d", &major) == 1 ? std::to_string(major) : "";
}

/// A program of programs/: its compile time without linking. It also runs, and must succeed.
void add_program(const std::string& compiler, const std::string& name, const std::string& arguments = "") {
  add({"compile time of programs", name, compiler + ' ' + version(compiler), "Eigen's tensors alone"},
      [=](State& state, const Row& row) {
        const Path source = Path(POSBIAS_BENCHMARKS_PROGRAMS) / (name + ".cpp");
        const Path object = scratch / (name + ".o"), program = scratch / name;
        const Rounds rounds =
            in_turn({compile(compiler, include_only(eigen)), compile(compiler, source, object)}, compilers_time, 2);
        call(compiler + " -o " + program.string() + ' ' + object.string());
        call(program.string() + ' ' + arguments + " > " + program.string() + ".log");
        show(
            state, "ratio", rounds, 1, [](const auto& t) { return t[1] / t[0]; }, row.target);
      });
}

/// The seconds that it takes against posbias::compiled, which is not linked: here it would be built for this machine's
/// processor.
void add_compiled_program(const std::string& compiler, const std::string& name) {
  add({"compile time with posbias::compiled", name, compiler + ' ' + version(compiler), "Eigen's tensors alone",
       at_most(7)},
      [=](State& state, const Row& row) {
        const Path source = Path(POSBIAS_BENCHMARKS_PROGRAMS) / (name + ".cpp");
        const Rounds rounds =
            in_turn({compile(compiler, include_only(eigen)),
                     compile(compiler, source, "/dev/null", "-DPOSBIAS_COMPILED -DPOSBIAS_COMPILED_IO")},
                    compilers_time, 2);
        show(
            state, "seconds", rounds, 1, [](const auto& t) { return t[1]; }, row.target);
      });
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
      "posbias/attention/attention.hpp",
      "posbias/layers/relative_attention.hpp",
  };
  for (std::size_t i = 0; i < headers.size(); ++i)
    add({"compile time", std::filesystem::path(headers[i]).filename(), "-O2 -c", "Eigen's tensors alone",
         at_most(i == 0 ? 1.0 : 0.5)},
        [=](State& state, const Row& row) {
          show(
              state, "seconds_more", all_times(headers), i + 1, [=](const auto& t) { return t[i + 1] - t[0]; },
              row.target);
        });
  for (const std::string compiler : {"g++", "clang++"}) {
    if (version(compiler).empty()) continue;
    add_program(compiler, "decoder_block");
    add_program(compiler, "t5");
    add_program(compiler, "training_step");
    add_program(compiler, "safetensors_loader", POSBIAS_BENCHMARKS_GOLDEN);
    for (const std::string name : {"decoder_block", "t5", "training_step", "safetensors_loader"})
      add_compiled_program(compiler, name);
  }
}

}  // namespace posbias_benchmarks
