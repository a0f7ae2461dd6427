// SPDX-License-Identifier: MIT
/// \file
/// The results, as a table for people and as comma-separated values for programs.
#pragma once

#include <cstdio>
#include <iomanip>
#include <optional>
#include <ostream>
#include <sstream>
#include <string>

#include "transformer/experiment.hpp"
#include "transformer/parameters.hpp"

namespace demo {

/// The heading of the i-th test length.
inline std::string column_title(const Experiment& experiment, std::size_t i) {
  const Index length = experiment.test_lengths[i];
  std::string title = i == 0 ? "bits/char at " : "  ";
  title += std::to_string(length);
  if (length == experiment.budget.length) title += " (trained)";
  return title;
}

/// What was trained on what, and the table's heading.
inline void print_heading(const Experiment& experiment, const std::string& path, const char* note) {
  const auto& [corpus, shape, budget, test_lengths, stretch, stretches] = experiment;
  Random random(budget.seed);
  Transformer<float, posbias::Identity> model(shape, posbias::Identity(), random);
  std::printf("Text: %s, %td file%s without the comments at the top (licences);\n", path.c_str(), corpus.files,
              corpus.files == 1 ? "" : "s");
  std::printf("      %zu characters to train on, %zu held out, %td symbols.\n", corpus.training.size(),
              corpus.held_out.size(), corpus.symbols);
  std::printf("Model: %td layers, %td heads, width %td; %td parameters besides those of the scheme.\n", shape.layers,
              shape.heads, shape.width(), count_values(parameter_views(model)));
  std::printf("Training: %td steps of %td windows of %td characters, seed %llu; the same for every scheme.\n",
              budget.steps, budget.batch, budget.length, static_cast<unsigned long long>(budget.seed));
  std::printf(
      "Test: %td held-out characters, the same at every length, in windows that are read independently;\n"
      "      the mean over all positions of the windows; – where a scheme has no positions that far.\n%s\n",
      experiment.tested_characters(), note);

  std::printf("%-20s  %6s  %8s", "scheme", "params", "ms/step");
  for (std::size_t i = 0; i < test_lengths.size(); ++i) std::printf("  %s", column_title(experiment, i).c_str());
  std::printf("\n");
  std::fflush(stdout);
}

/// Right-aligned in a column; a dash, which is three bytes but one character, where there is no number.
inline std::string table_cell(const std::optional<double>& bits, std::size_t width) {
  if (!bits) return std::string(width - 1, ' ') + "–";
  std::ostringstream cell;
  cell << std::setw(static_cast<int>(width)) << std::fixed << std::setprecision(3) << *bits;
  return cell.str();
}

inline void print_row(const Experiment& experiment, const Result& result) {
  std::printf("%-20s  %6td  %8.2f", result.scheme.c_str(), result.parameters, result.milliseconds_per_step);
  for (std::size_t i = 0; i < result.bits_per_character.size(); ++i)
    std::printf("  %s", table_cell(result.bits_per_character[i], column_title(experiment, i).size()).c_str());
  std::printf("\n");
  std::fflush(stdout);
}

inline void write_csv_heading(std::ostream& csv, const Experiment& experiment) {
  csv << "scheme,params,ms_per_step";
  for (const Index length : experiment.test_lengths) csv << ",bits_per_char_" << length;
  csv << std::endl;
}

/// The field of a length that the scheme has no positions for is empty.
inline void write_csv_row(std::ostream& csv, const Result& result) {
  csv << result.scheme << ',' << result.parameters << ',' << result.milliseconds_per_step;
  for (const auto& bits : result.bits_per_character) {
    csv << ',';
    if (bits) csv << *bits;
  }
  csv << std::endl;
}

}  // namespace demo
