// SPDX-License-Identifier: MIT
/// \file
/// Train short, test long: trains a small character-level transformer on real text, once per positional scheme, and
/// measures it on held-out text in windows of the trained length and of longer ones, as Press et al. did (arXiv
/// 2108.12409).
///
///     train_short_test_long --text my_project/ --steps 2000 --schemes ALiBi,Rotary --csv results.csv
///
/// All schemes start from the same weights, see the same batches and have the same budget. Bits per character are
/// the mean of -log2 p(character | those before it in its window) over every position of the test windows; all
/// lengths are tested on the same characters. A scheme that has no positions for the characters of a window, as a
/// learned table beyond its last row, has no number there. The numbers depend on the seed, not on the number of
/// threads.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <posbias/io/safetensors.hpp>
#include <posbias/posbias.hpp>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "transformer/experiment.hpp"
#include "transformer/report.hpp"
#include "transformer/schemes.hpp"

namespace {

using demo::Experiment;
using demo::Index;
using demo::Progress;
using demo::Result;

struct Scheme {
  std::string name;
  /// Writes what the scheme has learned to a folder, unless that is empty.
  std::function<Result(const Experiment&, Progress&, const std::filesystem::path& save_to)> measure;
};

/// `make(experiment)` is the positional module for the experiment's transformer.
template <class Make>
Scheme scheme(const std::string& name, const Make& make) {
  return {name, [=](const Experiment& experiment, Progress& progress, const std::filesystem::path& save_to) {
            auto module = make(experiment);
            const Result result = demo::measure<float>(name, module, experiment, progress);
            if (!save_to.empty()) posbias::io::save_parameters(save_to / (name + ".safetensors"), module);
            return result;
          }};
}

/// What has a row or a bucket of its own ends where the training windows do: beyond, it would keep its random start.
constexpr const char* note =
    "Note: LearnedVocab's max_seq_len and RelativePositionBias' max_distance (128 by default) are the training\n"
    "      length, so that every row and every bucket is trained. LearnedContinuous and DynamicPositionBias divide\n"
    "      positions by it.\n";

std::vector<Scheme> all_schemes() {
  return {
      scheme("none", [](const Experiment&) { return posbias::Identity(); }),
      scheme("Sinusoidal", demo::sinusoidal<float>),
      scheme("LearnedVocab", demo::learned_vocab<float>),
      scheme("LearnedContinuous", demo::learned_continuous<float>),
      scheme("Rotary", demo::rotary<float>),
      scheme("ALiBi", demo::alibi<float>),
      scheme("RelativePositionBias", demo::relative_position_bias<float>),
      scheme("DynamicPositionBias", demo::dynamic_position_bias<float>),
      scheme("TransformerXL", demo::transformer_xl<float>),
  };
}

/// What the user asks for.
struct Options {
  demo::Budget budget;
  std::string attention = "fused";
  std::string text = POSBIAS_DEMO_TEXT;
  std::string csv;
  std::string save_to;
  std::vector<std::string> schemes;
  std::vector<Index> test_lengths;
};

void declare(CLI::App& app, Options& options) {
  auto positive = CLI::Range(Index{1}, Index{1'000'000'000}).description("");
  auto& budget = options.budget;
  const auto number = [&](const std::string& name, Index& value, const std::string& help) {
    app.add_option(name, value, help)->type_name("N")->check(positive)->capture_default_str();
  };
  number("--steps", budget.steps, "Training steps per scheme");
  number("--length", budget.length, "Characters in a training window");
  number("--batch", budget.batch, "Training windows in a step");
  app.add_option("--test-lengths", options.test_lengths,
                 "Characters in a test window, separated by commas; each divides the longest")
      ->type_name("N")
      ->delimiter(',')
      ->check(positive)
      ->default_str("1, 2, 4 and 8 times --length");
  app.add_option("--schemes", options.schemes, "Which schemes to run, separated by commas")
      ->type_name("")
      ->delimiter(',')
      ->check(CLI::IsMember(options.schemes))
      ->default_str("all");
  app.add_option("--attention", options.attention,
                 "The same numbers, up to rounding, by less memory or by plainer code")
      ->type_name("")
      ->check(CLI::IsMember({"fused", "materialised"}))
      ->capture_default_str();
  app.add_option("--text", options.text, "A file, or a folder with everything in it")
      ->type_name("PATH")
      ->capture_default_str();
  app.add_option("--csv", options.csv, "Also write the table to this file; - writes it, and only it, to stdout")
      ->type_name("FILE");
  app.add_option("--save", options.save_to, "Also write what each scheme has learned to FOLDER/<scheme>.safetensors")
      ->type_name("FOLDER");
  app.add_option("--seed", budget.seed, "Of the weights and the batches")->type_name("N")->capture_default_str();
  app.add_option("--threads", budget.threads, "They change the time, not the numbers")
      ->type_name("N")
      ->check(CLI::Range(1, 1024).description(""))
      ->capture_default_str();
}

void run(const Options& options, const std::vector<Scheme>& schemes) {
  Experiment experiment = demo::prepare(demo::read_corpus(options.text), options.budget, options.test_lengths);
  if (options.attention == "materialised") experiment.shape.attention = demo::AttentionKind::materialised;
  if (!options.save_to.empty()) {
    std::error_code problem;
    std::filesystem::create_directories(options.save_to, problem);
    if (problem) throw demo::InputError("cannot make the folder " + options.save_to);
  }
  const bool csv_to_stdout = options.csv == "-";
  std::ofstream csv_file;
  std::ostream& csv = csv_to_stdout ? std::cout : csv_file;
  if (!options.csv.empty() && !csv_to_stdout) {
    csv_file.open(options.csv);
    if (!csv_file) throw demo::InputError("cannot write " + options.csv);
  }

  if (!csv_to_stdout) demo::print_heading(experiment, options.text, note);
  if (!options.csv.empty()) demo::write_csv_heading(csv, experiment);
  Progress progress(options.budget.steps * static_cast<Index>(options.schemes.size()));
  for (const auto& name : options.schemes) {
    const auto& scheme = *std::find_if(schemes.begin(), schemes.end(), [&](auto& s) { return s.name == name; });
    const Result result = scheme.measure(experiment, progress, options.save_to);
    progress.clear();
    if (!csv_to_stdout) demo::print_row(experiment, result);
    if (!options.csv.empty()) demo::write_csv_row(csv, result);
  }
  if (!options.csv.empty() && !csv) throw demo::InputError("cannot write " + options.csv);
}

}  // namespace

int main(int argc, char** argv) {
  const auto schemes = all_schemes();
  Options options;
  for (const auto& scheme : schemes) options.schemes.push_back(scheme.name);
  options.budget.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  CLI::App app(
      "Trains a small character-level transformer once per positional scheme, and tests it on held-out text\n"
      "in longer windows than it was trained on.");
  declare(app, options);
  try {
    app.parse(argc, argv);
    if (options.test_lengths.empty())
      for (const Index times : {1, 2, 4, 8}) options.test_lengths.push_back(times * options.budget.length);
    run(options, schemes);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_short_test_long: %s\n", error.what());
    return dynamic_cast<const demo::InputError*>(&error) != nullptr ? 2 : 1;
  }
  return 0;
}
