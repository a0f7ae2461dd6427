// SPDX-License-Identifier: MIT
/// \file
/// What mutate.py writes in place of operators and literals: the same, and something else where the environment variable
/// POSBIAS_MUTANT is the mutant's number. So one build has all mutants in it.
///
/// Expressions of class types and constant expressions stay what they are.
#pragma once

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <type_traits>
#include <utility>

namespace posbias_mutants {

/// Which mutants were met, written to the file POSBIAS_MUTANTS_REACHED when the program ends.
struct Reached {
  std::array<char, 16384> by_number{};
  ~Reached() {
    const char* path = std::getenv("POSBIAS_MUTANTS_REACHED");
    std::FILE* file = path == nullptr ? nullptr : std::fopen(path, "wb");
    if (file == nullptr) return;
    std::fwrite(by_number.data(), 1, by_number.size(), file);
    std::fclose(file);
  }
};
inline Reached reached;
inline const int chosen = std::getenv("POSBIAS_MUTANT") == nullptr ? -1 : std::atoi(std::getenv("POSBIAS_MUTANT"));

[[gnu::always_inline]] constexpr bool on(int number) {
  if (std::is_constant_evaluated()) return false;
  reached.by_number[static_cast<std::size_t>(number)] = 1;
  return number == chosen;
}

/// The operator is of a class, so there is no mutant.
[[gnu::always_inline]] constexpr void none(int number) {
  if (!std::is_constant_evaluated()) reached.by_number[static_cast<std::size_t>(number)] = 2;
}

template <class T>
constexpr bool plain = !std::is_class_v<std::remove_cvref_t<T>>;

/// A binary operator, where the mutant's exists for the same operands.
template <class Original, class Mutant, class A, class B>
[[gnu::always_inline]] constexpr decltype(auto) either(int number, A&& a, B&& b) {
  if constexpr (plain<A> && plain<B> && std::is_invocable_v<Mutant, A, B>) {
    if (on(number)) return static_cast<std::invoke_result_t<Original, A, B>>(Mutant{}(a, b));
  } else {
    none(number);
  }
  return Original{}(std::forward<A>(a), std::forward<B>(b));
}

/// -value of a unary minus, or what is added or subtracted.
template <class T>
[[gnu::always_inline]] constexpr decltype(auto) minus(int number, const T& value) {
  if constexpr (std::is_arithmetic_v<T>) {
    if (on(number)) return static_cast<decltype(-value)>(value);
  } else {
    none(number);
  }
  return -value;
}
template <class T>
[[gnu::always_inline]] constexpr decltype(auto) term(int number, T&& value) {
  if constexpr (plain<T>) {
    return on(number) ? static_cast<std::remove_cvref_t<T>>(-value) : value;
  } else {
    none(number);
    return std::forward<T>(value);
  }
}

/// One more, or with the next number one less.
template <class T>
[[gnu::always_inline]] constexpr T literal(int number, T value) {
  if (on(number)) return value + 1;
  if (on(number + 1)) return value - 1;
  return value;
}

}  // namespace posbias_mutants
