// SPDX-License-Identifier: MIT
#include "laws/module_subject.hpp"
#include "laws/truths.hpp"
#include "posbias/embedding/learned_vocab.hpp"

namespace posbias_test {
namespace {

using posbias::LearnedVocab;

/// As long as the laws' own positions and most scenes need.
constexpr Index max_seq_len = 311;

const bool added_learned_vocab = add_case(
    "LearnedVocab", []<class S>() { return LearnedVocab<S>({.dim = 8, .max_seq_len = max_seq_len}, 3); },
    truths::learned_vocab(8, max_seq_len));

}  // namespace
}  // namespace posbias_test
