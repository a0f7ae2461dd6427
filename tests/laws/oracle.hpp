// SPDX-License-Identifier: MIT
/// \file
/// Whether what a module's hooks made of a set of inputs is what the oracle says; a hook that it does not use is the identity.
#pragma once

#include <cmath>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "laws/module_under_test.hpp"

namespace posbias_test {

/// One rounding of a result of size 1, and how many of them a sum of products may take.
template <class S>
constexpr Real rounding = std::is_same_v<S, float> ? 0x1p-24L : 0x1p-53L;
template <class S>
constexpr Real roundings = std::is_same_v<S, float> ? 2 : 8;

/// What a double angle of this size may be off by: the promise for huge positions.
inline Real angle_error(Real angle) {
  return 4 * 0x1p-52L * std::abs(angle);
}

template <class S>
std::vector<Real> as_reals(const std::vector<S>& values) {
  return {values.begin(), values.end()};
}

template <class S>
class Oracle {
 public:
  /// All hooks of a module with these parameters turned `in` into `out`.
  Oracle(const ReferenceModel& reference_model, const Named<S>& parameters, const PositionCase& position_case,
         const HookInputs<S>& in, HookInputs<S> out)
      : reference_model_(reference_model),
        position_case_(position_case),
        in_(in),
        shape_(in.shape),
        out_(std::move(out)) {
    for (const auto& [name, values] : parameters) parameters_[name] = as_reals(values);
  }

  /// What is wrong, or nothing.
  std::string difference() {
    if (!same_bits(out_.v, in_.v)) return "v is not untouched";
    check_x();
    check_heads("q", in_.q, out_.q, shape_.L1, position_case_.q, reference_model_.change_query,
                reference_model_.query_addend);
    check_heads("k", in_.k, out_.k, shape_.L2, position_case_.k, reference_model_.change_key, {});
    check_mask();
    return difference_;
  }

 private:
  void check_x() {
    if (!reference_model_.addend && !same_bits(in_.x, out_.x)) return differs("x is not untouched");
    if (!reference_model_.addend) return;
    for (Index n = 0; n < shape_.B; ++n)
      for (Index l = 0; l < shape_.L1; ++l) {
        const auto p = position_case_.q.at(n, l, shape_.L1);
        const bool encoded = p && position_case_.flag(n, l, shape_.L1);
        const auto row = encoded ? reference_model_.addend(*p, parameters_) : std::vector<Real>();
        const Real terms =
            encoded && reference_model_.addend_terms ? reference_model_.addend_terms(*p, parameters_) : 0;
        for (Index f = 0; f < shape_.D; ++f) {
          const auto i = static_cast<std::size_t>((n * shape_.L1 + l) * shape_.D + f);
          const Real before = in_.x[i];
          const Real addend = encoded ? row[static_cast<std::size_t>(f)] : 0;
          if (encoded)
            check("x", i, out_.x[i], before + addend,
                  roundings<S> * rounding<S> * (std::abs(before) + std::max<Real>(1, std::abs(addend))) +
                      sum_error(terms) + angle_error(*p / angle_divisor()));
          else
            check("x without position", i, out_.x[i], before, 0);
        }
      }
  }

  template <class Change>
  void check_heads(const char* name, const std::vector<S>& in, const std::vector<S>& out, Index tokens,
                   const Where& where, const Change& change, const decltype(ReferenceModel::query_addend)& addend) {
    if (!change && !addend && !same_bits(in, out)) return differs(std::string(name) + " is not untouched");
    if (!change && !addend) return;
    for (Index n = 0; n < shape_.B; ++n)
      for (Index l = 0; l < tokens; ++l)
        for (Index h = 0; h < shape_.NH; ++h) {
          const auto first = static_cast<std::size_t>(((n * tokens + l) * shape_.NH + h) * shape_.H);
          const auto p = where.at(n, l, tokens);
          std::vector<Real> head;
          Real largest = 0;
          for (std::size_t f = 0; f < static_cast<std::size_t>(shape_.H); ++f) {
            head.push_back(in[first + f]);
            if (addend) head.back() += addend(static_cast<int>(h), static_cast<int>(f), parameters_);
            largest = std::max(largest, std::abs(head.back()));
          }
          if (change && p) change(head, *p, parameters_);
          const Real angle = change && p ? *p / angle_divisor() : 0;
          for (std::size_t f = 0; f < head.size(); ++f)
            check(name, first + f, out[first + f], head[f],
                  addend || p ? 2 * largest * (roundings<S> * rounding<S> + angle_error(angle)) : 0);
        }
  }

  void check_mask() {
    if (!reference_model_.bias && !same_bits(in_.mask, out_.mask)) return differs("mask is not untouched");
    if (!reference_model_.bias) return;
    const std::vector<Real> query = as_reals(out_.q);
    const std::vector<Real> key = as_reals(out_.k);
    const auto head = [&](const std::vector<Real>& from, Index tokens, Index n, Index l, Index h) {
      return std::span(from).subspan(static_cast<std::size_t>(((n * tokens + l) * shape_.NH + h) * shape_.H),
                                     static_cast<std::size_t>(shape_.H));
    };
    std::size_t place = 0;
    for (Index n = 0; n < shape_.B; ++n)
      for (Index h = 0; h < shape_.NH; ++h)
        for (Index i = 0; i < shape_.L1; ++i)
          for (Index j = 0; j < shape_.L2; ++j, ++place) {
            const auto q = position_case_.q.at(n, i, shape_.L1);
            const auto k = position_case_.k.at(n, j, shape_.L2);
            const Real before = in_.mask[place];
            if (!q || !k) {
              check("mask without position", place, out_.mask[place], before, 0);
              continue;
            }
            const ReferenceModel::Logit at{
                static_cast<int>(h), *q, *k, head(query, shape_.L1, n, i, h), head(key, shape_.L2, n, j, h),
                relative(*q - *k)};
            const Real bias = reference_model_.bias(at, parameters_);
            const Real terms = reference_model_.bias_terms ? reference_model_.bias_terms(at, parameters_) : 0;
            Real expected = before + bias;
            Real allowed = roundings<S> * rounding<S> * (std::abs(before) + std::abs(bias)) + sum_error(terms) +
                           terms * angle_error((*q - *k) / angle_divisor());
            for (const auto& further : reference_model_.further_biases) {
              const Real next = further(at, parameters_);
              allowed += roundings<S> * rounding<S> * (std::abs(expected) + std::abs(next));
              expected += next;
            }
            check("mask", place, out_.mask[place], expected, allowed);
          }
  }

  const reference::Row& relative(Real q_minus_k) {
    const auto [found, is_new] = relative_.try_emplace(reference_model_.relative ? q_minus_k : 0);
    if (is_new && reference_model_.relative) found->second = reference_model_.relative(q_minus_k, parameters_);
    return found->second;
  }

  Real sum_error(Real terms) const {
    return 8 * (reference_model_.sums_in_scalar ? rounding<S> : rounding<double>)*terms;
  }

  void check(const char* what, std::size_t place, S value, Real expected, Real tolerance) {
    const bool overflows = std::abs(expected) + tolerance > static_cast<Real>(std::numeric_limits<S>::max());
    const bool right = std::isinf(expected) ? static_cast<Real>(value) == expected
                                            : std::abs(static_cast<Real>(value) - expected) <= tolerance ||
                                                  (overflows && std::isinf(value));
    if (!right)
      differs(std::string(what) + "[" + std::to_string(place) + "] = " + std::to_string(value) + ", not " +
              std::to_string(expected) + "; allowed: " + std::to_string(static_cast<double>(tolerance) * 1e12) +
              "e-12");
  }

  void differs(const std::string& text) {
    if (difference_.empty()) difference_ = text;
  }

  Real angle_divisor() const { return reference_model_.angle_divisor(parameters_); }

  const ReferenceModel& reference_model_;
  const PositionCase& position_case_;
  const HookInputs<S>& in_;
  Shape shape_;
  HookInputs<S> out_;
  ReferenceModel::Parameters parameters_;
  std::map<Real, reference::Row> relative_;  // by q - k
  std::string difference_;
};

}  // namespace posbias_test
