// SPDX-License-Identifier: MIT
/// \file
/// The terms of disentangled attention (He et al., 2020, arXiv 2006.03654).
#pragma once

#include <concepts>
#include <initializer_list>
#include <ranges>

namespace posbias {

/// What a logit consists of: content to content, content to position, position to content.
enum class AttentionTerm { c2c, c2p, p2c };
using enum AttentionTerm;

/// A set of terms, written {c2c, p2c}, or made from a range or term by term.
class AttentionTerms {
 public:
  constexpr AttentionTerms() = default;
  /// Of the terms in a list, in any order.
  constexpr AttentionTerms(std::initializer_list<AttentionTerm> terms) { insert_all(terms); }
  /// The same, of a vector, a span or another range, in any order.
  template <std::ranges::input_range Terms>
  requires std::same_as<std::ranges::range_value_t<Terms>, AttentionTerm>
  constexpr AttentionTerms(Terms&& terms) { insert_all(terms); }

  /// Adds a term; one that is there already stays.
  constexpr void insert(AttentionTerm term) { terms_ |= bit(term); }
  /// Whether a term is among them.
  [[nodiscard]] constexpr bool contains(AttentionTerm term) const { return (terms_ & bit(term)) != 0; }

 private:
  constexpr void insert_all(auto&& terms) {
    for (const AttentionTerm term : terms) insert(term);
  }
  static constexpr unsigned bit(AttentionTerm term) { return 1U << static_cast<unsigned>(term); }

  unsigned terms_ = 0;
};

}  // namespace posbias
