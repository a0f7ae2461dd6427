// SPDX-License-Identifier: MIT
#include "posbias/core/error.hpp"

#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "support/catch.hpp"

using posbias::Error;
using posbias::FormatError;
using posbias::OptionError;
using posbias::PositionError;
using posbias::ShapeError;
using posbias::detail::fail;
using posbias_test::message_of;

namespace {

template <class Exception, class Standard>
void check_bases() {
  static_assert(std::is_base_of_v<Error, Exception>);
  static_assert(std::is_base_of_v<Standard, Exception>);
  static_assert(std::is_nothrow_copy_constructible_v<Exception>);

  const std::string text = "Some::hook: x has 3 features; dim = 8";
  const Exception error(text);
  CHECK(error.what() == text);
  CHECK(static_cast<const Error&>(error).what() == text);
  CHECK(static_cast<const Standard&>(error).what() == text);
  CHECK(static_cast<const std::exception&>(error).what() == text);

  const auto throw_it = [&] { fail<Exception>(text); };
  REQUIRE_THROWS_AS(throw_it(), Exception);
  REQUIRE_THROWS_AS(throw_it(), Error);
  REQUIRE_THROWS_AS(throw_it(), Standard);
  REQUIRE_THROWS_AS(throw_it(), std::exception);
  CHECK(message_of<Exception>(throw_it) == text);
}

template <class... Parts>
std::string joined(const Parts&... parts) {
  return message_of<ShapeError>([&] { fail<ShapeError>(parts...); });
}

}  // namespace

TEST_CASE("errors derive from a standard exception and from the tag", "[error]") {
  check_bases<ShapeError, std::invalid_argument>();
  check_bases<OptionError, std::invalid_argument>();
  check_bases<PositionError, std::invalid_argument>();
  check_bases<FormatError, std::runtime_error>();
}

TEST_CASE("errors of different kinds are not each other", "[error]") {
  static_assert(!std::is_base_of_v<std::invalid_argument, FormatError>);
  static_assert(!std::is_base_of_v<ShapeError, PositionError>);
  static_assert(!std::is_base_of_v<ShapeError, OptionError>);
  static_assert(!std::is_base_of_v<OptionError, PositionError>);
  static_assert(!std::is_base_of_v<std::exception, Error>, "a tag, so that no catch is ambiguous");
  SUCCEED();
}

TEST_CASE("a message outlives the copy it came from", "[error]") {
  std::string text;
  try {
    fail<PositionError>("pos at index ", 3, " is ", -7);
  } catch (const Error& error) {
    text = error.what();
  }
  CHECK(text == "pos at index 3 is -7");
}

TEST_CASE("messages are joined from text, numbers and shapes", "[error]") {
  CHECK(joined("a", std::string("b"), std::string_view("c")) == "abc");
  CHECK(joined("n = ", -3, ", ", 4U, ", ", std::size_t{5}) == "n = -3, 4, 5");
  CHECK(joined(std::numeric_limits<std::int64_t>::min()) == "-9223372036854775808");
  CHECK(joined(std::numeric_limits<std::uint64_t>::max()) == "18446744073709551615");
  CHECK(joined(2.5, ", ", 0.1F) == "2.5, 0.100000001");
  CHECK(joined(std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()) == "inf-inf");
  CHECK(joined(std::numeric_limits<double>::quiet_NaN()) == "nan");
  CHECK(joined(std::array<posbias::Index, 3>{2, 3, 5}) == "(2, 3, 5)");
  CHECK(joined(std::array<posbias::Index, 0>{}) == "()");
  const std::array<posbias::Index, 3> sizes{7, 11, 13};
  CHECK(joined(std::span(sizes).first(2)) == "(7, 11)");
  CHECK(joined(std::span(sizes).first(1)) == "(7)");
}
