// SPDX-License-Identifier: MIT
/// \file
/// A table is one matrix or several, with two empty lines between: gnuplot's `index` counts them. Minus infinity stays
/// grey in a picture.
#include "gallery/tables.hpp"

#include <fstream>
#include <initializer_list>
#include <limits>
#include <posbias/io/safetensors.hpp>
#include <posbias/posbias.hpp>
#include <stdexcept>
#include <string>

#include "transformer/schemes.hpp"

namespace gallery {

namespace {

using posbias::Index;
using Matrices = Eigen::Tensor<float, 3, Eigen::RowMajor>;  // (matrices, rows, columns), or (L, NH, H)

void close(std::ofstream& file, const std::filesystem::path& path) {
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path.string());
}

void write(const std::filesystem::path& path, std::initializer_list<Matrices> groups) {
  std::ofstream file(path);
  for (const Matrices& matrices : groups)
    for (Index m = 0; m < matrices.dimension(0); ++m) {
      for (Index i = 0; i < matrices.dimension(1); ++i)
        for (Index j = 0; j < matrices.dimension(2); ++j)
          file << matrices(m, i, j) << (j + 1 < matrices.dimension(2) ? '\t' : '\n');
      file << "\n\n";
    }
  close(file, path);
}

/// T5's buckets of relative positions, with both of its conventions.
void write_buckets(const std::filesystem::path& path) {
  std::ofstream file(path);
  for (Index relative = -160; relative <= 160; ++relative)
    file << relative << '\t' << posbias::t5_bucket(relative) << '\t'
         << posbias::t5_bucket(relative, {.bidirectional = false}) << '\n';
  close(file, path);
}

/// The module with what it has learned in the demo.
template <class Module>
Module trained(Module module, const std::filesystem::path& folder) {
  posbias::io::load_parameters(module, folder / (std::string(Module::name) + ".safetensors"));
  return module;
}

/// What is added to tokens 0 .. length-1: (1, length, features).
template <class Module>
Matrices added(const Module& module, Index length) {
  Matrices x(1, length, module.dim());
  x.setZero();
  module.mod_x(x);
  return x;
}

/// What becomes of the first feature of each pair of a query 1 0 1 0 ..: (1, length, pairs).
Matrices turned(const posbias::RotaryOptions& options, Index length) {
  Matrices q(length, 1, options.head_dim), k = q, v = q;
  for (Index i = 0; i < q.size(); ++i) q.data()[i] = i % 2 == 0 ? 1.0F : 0.0F;
  k.setZero();
  posbias::Rotary<float>(options).mod_qkv(q, k, v);
  return q.reshape(Eigen::array<Index, 3>{1, length, options.head_dim}).stride(Eigen::array<Index, 3>{1, 1, 2});
}

/// What is added to the logits of queries and keys (L, NH, H): (NH, L, L).
template <class Module>
Matrices bias(const Module& module, Matrices q, Matrices k) {
  Matrices v = k;
  module.mod_qkv(q, k, v);
  return module.make_mask(q, k, v);
}

/// As causal attention meets it: keys after the query are hidden.
Matrices causal(Matrices bias) {
  for (Index h = 0; h < bias.dimension(0); ++h)
    for (Index i = 0; i < bias.dimension(1); ++i)
      for (Index j = i + 1; j < bias.dimension(2); ++j) bias(h, i, j) = -std::numeric_limits<float>::infinity();
  return bias;
}

}  // namespace

void write_tables(const std::filesystem::path& learned, const std::filesystem::path& folder) {
  const demo::Experiment experiment;  // the demo's transformer and budget
  const auto& shape = experiment.shape;
  const Index length = 2 * experiment.budget.length;  // as far again as was trained

  using posbias::SinusoidLayout, posbias::RotarySpectrum;
  write(folder / "sinusoidal.tsv",
        {added(posbias::Sinusoidal<float>({.dim = 64}), length),
         added(posbias::Sinusoidal<float>({.dim = 64, .layout = SinusoidLayout::half}), length)});
  write(folder / "rotary.tsv", {turned({.head_dim = 64}, length), turned({.head_dim = 64, .base = 500000}, length),
                                turned({.head_dim = 64, .n_dims = 32}, length),
                                turned({.head_dim = 64, .n_dims = 32, .spectrum = RotarySpectrum::n_dims}, length)});

  // Embeddings, as they start and as they are when trained.
  const auto vocab = demo::learned_vocab<float>(experiment);
  const Index rows = experiment.budget.length;
  write(folder / "learned_vocab.tsv", {added(vocab, rows), added(trained(vocab, learned), rows)});
  const auto continuous = demo::learned_continuous<float>(experiment);
  write(folder / "learned_continuous.tsv", {added(continuous, length), added(trained(continuous, learned), length)});

  // Biases that are learned, likewise: what a query without content meets.
  Matrices nothing(length, shape.heads, shape.head_width);
  nothing.setZero();
  const auto write_bias = [&](const char* table, const auto& module) {
    write(folder / table,
          {causal(bias(module, nothing, nothing)), causal(bias(trained(module, learned), nothing, nothing))});
  };
  write_bias("relative_position_bias.tsv", demo::relative_position_bias<float>(experiment));
  write_bias("dynamic_position_bias.tsv", demo::dynamic_position_bias<float>(experiment));
  write_bias("transformer_xl.tsv", demo::transformer_xl<float>(experiment));
  write(folder / "alibi.tsv",
        {bias(posbias::ALiBi<float>({.n_heads = shape.heads}), nothing, nothing),
         bias(posbias::ALiBi<float>({.n_heads = shape.heads, .asymmetric = true}), nothing, nothing)});
  write_buckets(folder / "t5_buckets.tsv");

  // Both terms look at content: here every token has some of its own.
  demo::Random random(0);
  constexpr Index tokens = 48, features = 16;
  const auto content = [&] {
    auto numbers = random.matrix<float>(tokens, features, 1);
    return Matrices(Eigen::TensorMap<Matrices>(numbers.data(), tokens, 1, features));
  };
  const auto q = content(), k = content();
  const posbias::DisentangledBiasOptions both{.n_heads = 1, .head_dim = features, .n_positions = 32};
  auto to_position = both, to_content = both;
  to_position.mode = {posbias::c2p};
  to_content.mode = {posbias::p2c};
  using Disentangled = posbias::DisentangledBias<float>;
  write(folder / "disentangled_bias.tsv",
        {bias(Disentangled(to_position), q, k), bias(Disentangled(to_content), q, k), bias(Disentangled(both), q, k)});
}

}  // namespace gallery
