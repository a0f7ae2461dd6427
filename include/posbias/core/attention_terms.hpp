// SPDX-License-Identifier: MIT
/// \file
/// The terms of disentangled attention (He et al., 2020, arXiv 2006.03654).
#pragma once

#include <concepts>
#include <initializer_list>
#include <iterator>

namespace posbias {

/// What a logit consists of: content to content, content to position, position to content.
enum class AttentionTerm { c2c, c2p, p2c };
using enum AttentionTerm;

/// A set of terms, written {c2c, p2c}, or made from a range or term by term.
class AttentionTerms {
 public:
  constexpr AttentionTerms() = default;
  /// Of the terms in a list, in any order.
  constexpr AttentionTerms(std::initializer_list<AttentionTerm> terms) {
    for (const AttentionTerm term : terms) insert(term);
  }
  /// The same, of a vector, a span or another range, in any order.
  template <class Terms>
  requires requires(const Terms& terms) {
    { *std::begin(terms) } -> std::convertible_to<AttentionTerm>;
    std::end(terms);
  }
  constexpr AttentionTerms(const Terms& terms) {
    for (const AttentionTerm term : terms) insert(term);
  }

  /// Adds a term; one that is there already stays.
  constexpr void insert(AttentionTerm term) { terms_ |= bit(term); }
  /// Whether a term is among them.
  [[nodiscard]] constexpr bool contains(AttentionTerm term) const { return (terms_ & bit(term)) != 0; }

 private:
  static constexpr unsigned bit(AttentionTerm term) { return 1U << static_cast<unsigned>(term); }

  unsigned terms_ = 0;
};

}  // namespace posbias
