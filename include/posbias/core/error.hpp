// SPDX-License-Identifier: MIT
/// \file
/// What the library throws, and the one place it throws from.
///
/// Every check runs in every build and before anything is written; NDEBUG changes nothing. A message names the
/// function, the argument, what was expected and what came:
///
///     ALiBi::mod_mask: mask has 8 heads; n_heads = 12
///     posbias::attention: ALiBi: q has 8 heads; n_heads = 12
///
/// Catch the standard base (`std::invalid_argument`, `std::runtime_error`) or the tag `posbias::Error`, which is a
/// base of them all.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "posbias/core/index.hpp"

namespace posbias {

/// Base of everything this library throws on purpose.
class Error {
 public:
  /// The message; the same text as the standard exception's.
  [[nodiscard]] virtual const char* what() const noexcept = 0;

 protected:
  Error() = default;
  /// Copies nothing: there is only the tag.
  Error(const Error&) = default;
  /// The same.
  Error& operator=(const Error&) = default;
  ~Error() = default;
};

namespace detail {
template <class Base>
class TaggedError : public Base, public Error {
 public:
  explicit TaggedError(const std::string& message) : Base(message) {}
  [[nodiscard]] const char* what() const noexcept override { return Base::what(); }
};
}  // namespace detail

/// A tensor's shape does not fit the module or the other arguments.
class ShapeError : public detail::TaggedError<std::invalid_argument> {
  using TaggedError::TaggedError;
};

/// An option of a module is missing or out of its range.
class OptionError : public detail::TaggedError<std::invalid_argument> {
  using TaggedError::TaggedError;
};

/// A position is NaN, infinite, out of range, or not an integer where one is needed.
class PositionError : public detail::TaggedError<std::invalid_argument> {
  using TaggedError::TaggedError;
};

/// A file or buffer is not what its format promises.
class FormatError : public detail::TaggedError<std::runtime_error> {
  using TaggedError::TaggedError;
};

/// The function that a user called, for messages of modules that it calls in turn. Refers to both names.
struct Caller {
  std::string_view function{};  ///< its name; default: the hook that finds the error
  std::string_view scope{};     ///< its namespace or layer; default: the module that finds the error

  /// None.
  constexpr Caller() = default;
  /// A function of a scope, or of the module itself.
  template <std::convertible_to<std::string_view> Name>
  constexpr Caller(const Name& name, std::string_view of = {}) : function(name), scope(of) {}
};

namespace detail {

/// A hook of a module, as messages begin: "ALiBi::mod_mask", or "posbias::attention: ALiBi" if that is who called it.
struct Hook {
  std::string_view module, function, scope;

  constexpr Hook(std::string_view of_module, std::string_view hook, const Caller& caller = {})
      : module(of_module), function(caller.function.empty() ? hook : caller.function), scope(caller.scope) {}
};

/// Neither NaN nor infinite, told from the bits: -ffast-math lets compilers assume it of any number.
inline bool is_finite(double value) {
  constexpr std::uint64_t exponent = 0x7ff0000000000000U;
  return (std::bit_cast<std::uint64_t>(value) & exponent) != exponent;
}

// Messages are made once, before a throw: compilers need not make this fast, and users' programs compile sooner.

[[gnu::cold]] inline void append(std::string& text, std::string_view part) {
  text += part;
}

[[gnu::cold]] inline void append(std::string& text, const Hook& hook) {
  append(text, hook.scope.empty() ? hook.module : hook.scope);
  append(text, "::");
  append(text, hook.function);
  if (hook.scope.empty()) return;
  append(text, ": ");
  append(text, hook.module);
}

[[gnu::cold]] inline void append(std::string& text, std::int64_t part) {
  text += std::to_string(part);
}
[[gnu::cold]] inline void append(std::string& text, std::uint64_t part) {
  text += std::to_string(part);
}
template <std::integral Integer>
void append(std::string& text, Integer part) {
  if constexpr (std::signed_integral<Integer>)
    append(text, std::int64_t{part});
  else
    append(text, std::uint64_t{part});
}

[[gnu::cold]] inline void append(std::string& text, double part) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.9g", part);
  text += digits;
}

/// A shape prints as "(2, 3, 5)".
[[gnu::cold]] inline void append(std::string& text, std::span<const Index> shape) {
  text += '(';
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    append(text, shape[i]);
  }
  text += ')';
}

/// The single throw point: joins the parts and throws. Kept out of line, so that a check costs a compare and a jump
/// that is never taken.
template <class Exception, class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  std::string message;
  (append(message, parts), ...);
  throw Exception(message);
}

}  // namespace detail
}  // namespace posbias
