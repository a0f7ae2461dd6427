// SPDX-License-Identifier: MIT
/// \file
/// Catch2, version 2 or 3, under one spelling; tests include this and never Catch itself.
#pragma once

#include <exception>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>

// Version 3 has no catch2/catch.hpp and version 2 no catch2/catch_all.hpp, so the files tell which one is
// here.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

namespace posbias_test {

#if __has_include(<catch2/catch_all.hpp>)
using Catch::Approx;
inline auto contains(const std::string& text) {
  return Catch::Matchers::ContainsSubstring(text);
}
#else
using Catch::Detail::Approx;
inline auto contains(const std::string& text) {
  return Catch::Matchers::Contains(text);
}
#endif

/// The message of the exception that a call throws, if it is exactly an `Exception`: a derived or another
/// type, or no exception, gives a text that names what came instead. One call, and both type and text are
/// known:
///
///     CHECK_THAT(message_of<ShapeError>([&] { alibi.mod_mask(mask); }), contains("n_heads = 12"));
template <class Exception, class Call>
[[nodiscard]] std::string message_of(Call&& call) {
  try {
    std::forward<Call>(call)();
  } catch (const std::exception& error) {
    if (typeid(error) == typeid(Exception)) return error.what();
    return std::string("<another type: ") + typeid(error).name() + ">";
  }
  return "<nothing thrown>";
}

}  // namespace posbias_test
