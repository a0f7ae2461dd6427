// SPDX-License-Identifier: MIT
/// \file
/// Loads three modules by the names of their parameters and prints them: safetensors_loader DIRECTORY. DIRECTORY holds
/// recorded runs, whose outputs the modules must give again.
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <posbias/io/safetensors.hpp>
#include <posbias/posbias.hpp>
#include <string>
#include <string_view>

namespace {

using posbias::Index;
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;

/// Sets the module's parameters from those of the file and prints them.
template <class Module>
void load(Module& module, const posbias::io::SafeTensors& file) {
  const std::string prefix = "param.";
  posbias::io::load_parameters(module, file, prefix);
  posbias::for_each_parameter(module, [&](std::string_view name, const auto& tensor) {
    std::printf("  %s, %s:", std::string(name).c_str(), std::string(file.dtype(prefix + std::string(name))).c_str());
    for (Index i = 0; i < tensor.size() && i < 4; ++i) std::printf(" %.4f", tensor.data()[i]);
    std::printf(tensor.size() > 4 ? " ... of %td\n" : "\n", tensor.size());
  });
}

/// Whether the tensors have the same values, to rounding.
template <class A, class B>
bool agree(const A& a, const B& b) {
  bool result = a.size() == b.size() && a.size() > 0;
  for (Index i = 0; result && i < a.size(); ++i) result = std::abs(a.data()[i] - b.data()[i]) < 1e-5F;
  std::printf("  %s the recorded run\n", result ? "gives" : "does not give");
  return result;
}

posbias::io::SafeTensors open(const std::filesystem::path& path) {
  std::printf("%s\n", path.filename().string().c_str());
  return posbias::io::SafeTensors::read(path);
}

bool load_all(const std::filesystem::path& directory) {
  const auto t5_file = open(directory / "t5_hf__encoder.safetensors");
  posbias::RelativePositionBias<float> t5({.n_heads = 4});
  load(t5, t5_file);
  bool good = agree(t5.bias(6, 8), t5_file.tensor<float, 4>("f32.out.bias"));

  const auto mlp_file = open(directory / "bio_dpb__default.safetensors");
  posbias::DynamicPositionBias<float> mlp({.dim = 4, .n_heads = 2});
  load(mlp, mlp_file);
  const Tensor4 q = mlp_file.tensor<float, 4>("in.q"), k = mlp_file.tensor<float, 4>("in.k");
  good &= agree(mlp.make_mask(q, k, k), mlp_file.tensor<float, 4>("f32.out.mask"));

  const auto table_file = open(directory / "bio_learnedvocab__default.safetensors");
  posbias::LearnedVocab<float> table({.dim = 4, .max_seq_len = 10});
  load(table, table_file);
  auto x = table_file.tensor<float, 3>("in.x");
  table.mod_x(x);
  return agree(x, table_file.tensor<float, 3>("f32.out.x")) && good;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: safetensors_loader DIRECTORY\n");
    return 2;
  }
  try {
    return load_all(argv[1]) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "safetensors_loader: %s\n", error.what());
    return 1;
  }
}
