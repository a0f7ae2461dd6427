// SPDX-License-Identifier: MIT
#include "posbias/core/attention_terms.hpp"

#include <array>
#include <span>
#include <vector>

#include "support/catch.hpp"

using namespace posbias;

namespace {

constexpr bool has(const AttentionTerms& terms, bool c2c_, bool c2p_, bool p2c_) {
  return terms.contains(c2c) == c2c_ && terms.contains(c2p) == c2p_ && terms.contains(p2c) == p2c_;
}

constexpr AttentionTerms inserted() {
  AttentionTerms terms;
  terms.insert(p2c);
  terms.insert(p2c);
  return terms;
}

static_assert(has({}, false, false, false) && has({p2c, c2c, p2c}, true, false, true));
static_assert(has(inserted(), false, false, true));
static_assert(!std::is_convertible_v<std::vector<int>, AttentionTerms>);

}  // namespace

TEST_CASE("attention terms are made from lists known at run time", "[attention_terms]") {
  std::vector<AttentionTerm> terms;
  CHECK(has(terms, false, false, false));
  terms.push_back(c2p);
  terms.push_back(c2c);
  CHECK(has(terms, true, true, false));
  CHECK(has(std::span(terms).first(1), false, true, false));
  CHECK(has(std::array{p2c, c2c}, true, false, true));
  AttentionTerms copy = AttentionTerms(terms);
  AttentionTerms again(copy);  // a copy, no range
  again.insert(p2c);
  CHECK(has(copy, true, true, false));
  CHECK(has(again, true, true, true));
}
