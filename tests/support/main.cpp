// SPDX-License-Identifier: MIT
/// \file
/// The main of every test program: compiled once, since Catch's own takes most of a small test's compile
/// time.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>

int main(int argc, char* argv[]) {
  return Catch::Session().run(argc, argv);
}
#else
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
