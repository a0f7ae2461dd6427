// SPDX-License-Identifier: MIT
/// \file
/// The terms of disentangled attention (He et al., 2020, arXiv 2006.03654).
#pragma once

#include <initializer_list>

namespace posbias {

/// What a logit consists of: content to content, content to position, position to content.
enum class AttentionTerm { c2c, c2p, p2c };
using enum AttentionTerm;

/// A set of terms, written {c2c, p2c}.
class AttentionTerms {
 public:
  constexpr AttentionTerms() = default;
  /// Of the terms in a list, in any order.
  constexpr AttentionTerms(std::initializer_list<AttentionTerm> terms) {
    for (const AttentionTerm term : terms) terms_ |= bit(term);
  }
  /// Whether a term is among them.
  [[nodiscard]] constexpr bool contains(AttentionTerm term) const { return (terms_ & bit(term)) != 0; }

 private:
  static constexpr unsigned bit(AttentionTerm term) { return 1U << static_cast<unsigned>(term); }

  unsigned terms_ = 0;
};

}  // namespace posbias
