// SPDX-License-Identifier: MIT
#include "laws/module_subject.hpp"
#include "posbias/embedding/learned_vocab.hpp"

namespace posbias_test {
namespace {

using posbias::LearnedVocab;

/// As long as the laws' own positions and most scenes need.
constexpr Index max_seq_len = 311;

/// x(f) += weight(p, f)
std::vector<Real> row(Real p, const Truth::Parameters& parameters) {
  const auto first = parameters.at("emb.weight").begin() + static_cast<std::ptrdiff_t>(p) * 8;
  return {first, first + 8};
}

const bool added =
    add_case("LearnedVocab", []<class S>() { return LearnedVocab<S>({.dim = 8, .max_seq_len = max_seq_len}, 3); },
             {.addend = row, .ids_below = max_seq_len});

}  // namespace
}  // namespace posbias_test
