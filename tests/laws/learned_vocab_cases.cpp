// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/embedding/learned_vocab.hpp"

namespace posbias_test {
namespace {

using posbias::LearnedVocab;

/// As long as the laws' own positions and most cases need.
constexpr Index max_seq_len = 311;

const bool added_learned_vocab = add_case(
    "LearnedVocab", []<class S>() { return LearnedVocab<S>({.dim = 8, .max_seq_len = max_seq_len}, 3); },
    reference_models::learned_vocab(8, max_seq_len));

}  // namespace
}  // namespace posbias_test
