// SPDX-License-Identifier: MIT
/// \file
/// The tables that the gallery's pictures are drawn from: numbers of the papers' formulas, and what was learned.
#include "gallery/tables.hpp"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <posbias/io/safetensors.hpp>
#include <posbias/posbias.hpp>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "transformer/schemes.hpp"

namespace {

using Rows = std::vector<std::vector<double>>;
using posbias_test::Approx;

/// The matrices of a table.
std::vector<Rows> read(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<Rows> matrices(1);
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) {
      if (!matrices.back().empty()) matrices.emplace_back();
      continue;
    }
    auto& row = matrices.back().emplace_back();
    std::istringstream fields(line);
    for (std::string field; std::getline(fields, field, '\t');) row.push_back(std::strtod(field.c_str(), nullptr));
  }
  if (matrices.back().empty()) matrices.pop_back();
  return matrices;
}

/// Saves a module of the demo as the demo does, with 2 in all its parameters.
template <class Module>
void save_learned(Module module, const std::filesystem::path& folder) {
  posbias::for_each_parameter(module, [](std::string_view, auto& parameter) { parameter.setConstant(2); });
  posbias::io::save_parameters(folder / (std::string(Module::name) + ".safetensors"), module);
}

}  // namespace

TEST_CASE("gallery: tables hold what the papers say, and what was learned", "[examples][gallery]") {
  const auto folder =
      std::filesystem::temp_directory_path() / ("posbias-gallery-" + std::to_string(std::random_device{}()));
  std::filesystem::create_directory(folder);
  const demo::Experiment experiment;
  save_learned(demo::learned_vocab<float>(experiment), folder);
  save_learned(demo::learned_continuous<float>(experiment), folder);
  save_learned(demo::relative_position_bias<float>(experiment), folder);
  save_learned(demo::dynamic_position_bias<float>(experiment), folder);
  save_learned(demo::transformer_xl<float>(experiment), folder);
  gallery::write_tables(folder, folder);
  const auto near = [](double value) { return Approx(value).margin(1e-5); };

  const auto sinusoidal = read(folder / "sinusoidal.tsv");
  REQUIRE(sinusoidal.size() == 2);
  REQUIRE(sinusoidal[0].size() == 128);
  REQUIRE(sinusoidal[0][101].size() == 64);
  CHECK(sinusoidal[0][101][6] == near(std::sin(101 * std::pow(10000, -6.0 / 64))));
  CHECK(sinusoidal[0][101][7] == near(std::cos(101 * std::pow(10000, -6.0 / 64))));
  CHECK(sinusoidal[1][101][3] == near(std::sin(101 * std::pow(10000, -6.0 / 64))));

  const auto rotary = read(folder / "rotary.tsv");
  REQUIRE(rotary.size() == 4);
  REQUIRE(rotary[0][101].size() == 32);
  CHECK(rotary[0][101][3] == near(std::cos(101 * std::pow(10000, -6.0 / 64))));
  CHECK(rotary[1][101][3] == near(std::cos(101 * std::pow(500000, -6.0 / 64))));
  CHECK(rotary[2][101][15] == near(std::cos(101 * std::pow(10000, -30.0 / 64))));
  CHECK(rotary[2][101][16] == 1);
  CHECK(rotary[3][101][15] == near(std::cos(101 * std::pow(10000, -30.0 / 32))));

  const auto alibi = read(folder / "alibi.tsv");
  REQUIRE(alibi.size() == 8);
  CHECK(alibi[1][100][93] == -7.0 / 16);
  CHECK(alibi[1][93][100] == -7.0 / 16);
  CHECK(alibi[5][100][93] == -7.0 / 4);  // asymmetric: pairs of heads share a slope, odd ones look back
  CHECK(alibi[5][93][100] == -HUGE_VAL);

  const auto t5 = read(folder / "relative_position_bias.tsv");
  const auto initial = demo::relative_position_bias<float>(experiment).bias(128, 128);
  REQUIRE(t5.size() == 8);
  CHECK(t5[3][100][93] == near(static_cast<double>(initial(3, 100, 93))));
  CHECK(t5[7][100][93] == 2);
  CHECK(t5[7][93][100] == -HUGE_VAL);

  const auto buckets = read(folder / "t5_buckets.tsv");
  REQUIRE(buckets.size() == 1);
  CHECK(buckets[0][160 - 7] == std::vector<double>{-7, 7, 7});
  CHECK(buckets[0][160 + 7] == std::vector<double>{7, 23, 0});
  CHECK(buckets[0][160 - 130] == std::vector<double>{-130, 15, 31});

  const auto vocab = read(folder / "learned_vocab.tsv");
  REQUIRE(vocab.size() == 2);
  CHECK(vocab[1][63][63] == 2);

  // Without content a query meets its v alone: 16 products of v and r, where r is 2 · (32 sines + 32 cosines).
  const auto xl = read(folder / "transformer_xl.tsv");
  REQUIRE(xl.size() == 8);
  double sum = 0;
  for (int i = 0; i < 32; ++i) {
    const double angle = 7 * std::pow(10000, -i / 32.0);
    sum += std::sin(angle) + std::cos(angle);
  }
  CHECK(xl[4][100][93] == Approx(16 * 2 * 2 * sum / 4).epsilon(1e-5));

  // Beyond the table, 16 tokens away, a query meets one value of position, and so does a key.
  const auto disentangled = read(folder / "disentangled_bias.tsv");
  REQUIRE(disentangled.size() == 3);
  CHECK(disentangled[0][40][2] == disentangled[0][40][24]);
  CHECK(disentangled[1][2][40] == disentangled[1][24][40]);
  CHECK(disentangled[2][40][30] == near(disentangled[0][40][30] + disentangled[1][40][30]));
  CHECK(read(folder / "dynamic_position_bias.tsv").size() == 8);
  CHECK(read(folder / "learned_continuous.tsv").size() == 2);
  std::filesystem::remove_all(folder);
}
