// SPDX-License-Identifier: MIT
/// \file
/// Writes what the modules do as tables, which gnuplot draws: see `./run gallery`.
///
///     train_short_test_long --csv build/gallery/extrapolation.csv --save build/gallery
///     gallery build/gallery build/gallery
#include "gallery/tables.hpp"

#include <cstdio>
#include <exception>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::fprintf(stderr, "usage: gallery TRAINED TABLES\nTwo folders: what the demo's --save wrote, where to write.\n");
    return 2;
  }
  gallery::write_tables(argv[1], argv[2]);
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "gallery: %s\n", problem.what());
  return 1;
}
