// SPDX-License-Identifier: MIT
/// \file
/// How far the library is from the reference, which is plain loops in long double (tests/reference/reference.hpp), and
/// how far the code is that one usually meets. Prints the tables of docs/accuracy.md.
#include "accuracy/accuracy.hpp"

int main() {
  using namespace posbias_accuracy;
  static_assert(std::numeric_limits<Real>::digits >= 64, "long double must be longer than double here");
  print_angles();
  print_biases();
  print_attention();
  print_gradients();
  print_bits();
}
