// SPDX-License-Identifier: MIT
#include "posbias/kernel/divide.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <string_view>

#include "support/catch.hpp"

using posbias::Divide;
using posbias::OptionError;
using posbias_test::message_of;

namespace {

template <class Scalar>
Scalar* find_div(Divide<Scalar>& divide) {
  Scalar* found = nullptr;
  posbias::for_each_parameter(divide, [&](std::string_view name, auto& tensor) {
    CHECK(name == "div");
    CHECK(tensor.size() == 1);
    CHECK(tensor.rank() == 0);
    found = tensor.data();
  });
  return found;
}

double gradient_at(double div, double sum) {
  Divide<double> divide("M", 1, true);
  Divide<double> gradients = divide;
  *find_div(divide) = div;
  *find_div(gradients) = 0;
  divide.backward(sum, gradients);
  return *find_div(gradients);
}

}  // namespace

TEST_CASE("a constant divisor is what was asked for", "[divide]") {
  CHECK(Divide<double>().divisor() == 1);
  for (const double value : {1.0, 2.5, 1e-9, 1e-300, 1e300}) {
    Divide<float> divide("M", value, false);
    CHECK(divide.divisor() == value);
    CHECK_FALSE(divide.learned());
    CHECK(find_div(divide) == nullptr);
    Divide<float> gradients = divide;
    divide.backward(3, gradients);
    CHECK(gradients.divisor() == value);
  }
}

TEST_CASE("a learned divisor is stored as its logarithm", "[divide]") {
  Divide<double> divide("M", 2.5, true);
  CHECK(divide.learned());
  REQUIRE(find_div(divide) != nullptr);
  CHECK(*find_div(divide) == std::log(2.5));
  CHECK(std::abs(divide.divisor() - 2.5) <= 2.5 * 0x1p-51);
  *find_div(divide) = 3;
  CHECK(divide.divisor() == std::exp(3.0));

  Divide<float> single("M", 2.5, true);
  CHECK(*find_div(single) == static_cast<float>(std::log(2.5)));
  CHECK(single.divisor() == std::exp(static_cast<double>(static_cast<float>(std::log(2.5)))));
}

TEST_CASE("a learned divisor is held at 1e-8", "[divide]") {
  Divide<double> divide("M", 1e-12, true);
  CHECK(divide.divisor() == 1e-8);
  *find_div(divide) = -1000;
  CHECK(divide.divisor() == 1e-8);
  *find_div(divide) = std::log(1e-8) + 0.01;
  CHECK(divide.divisor() > 1e-8);
  CHECK(divide.divisor() < 1.02e-8);
  *find_div(divide) = std::log(1e-8) - 0.01;
  CHECK(divide.divisor() == 1e-8);
}

TEST_CASE("the gradient of the logarithm is minus the sum, and adds up", "[divide]") {
  CHECK(gradient_at(0.5, 3) == -3);
  CHECK(gradient_at(-7, -0.25) == 0.25);

  Divide<double> divide("M", 4, true);
  Divide<double> gradients = divide;
  *find_div(gradients) = 10;
  divide.backward(3, gradients);
  divide.backward(3, gradients);
  CHECK(*find_div(gradients) == 4);
  CHECK(*find_div(divide) == std::log(4.0));
}

TEST_CASE("the gradient agrees with differences", "[divide]") {
  // Loss g · p / exp(div) with g·y = 3·100/exp(div).
  const double div = 0.7;
  const double step = 1e-4;
  const auto loss = [](double at) { return 3 * 100 / std::exp(at); };
  const double difference = (loss(div + step) - loss(div - step)) / (2 * step);
  CHECK(std::abs(gradient_at(div, loss(div)) - difference) <= 1e-7 * std::abs(difference));
}

TEST_CASE("the gradient is zero where the divisor is held", "[divide]") {
  CHECK(gradient_at(std::log(1e-8) - 0.01, 3) == 0);
  CHECK(gradient_at(-1000, 3) == 0);
  CHECK(gradient_at(std::log(1e-8) + 0.01, 3) == -3);
}

TEST_CASE("a divisor is positive and finite", "[divide]") {
  const auto message = [](double divide, bool learned) {
    return message_of<OptionError>([&] { Divide<float>("M", divide, learned); });
  };
  for (const bool learned : {false, true}) {
    CHECK(message(0, learned) == "M: divide = 0; it must be positive and finite");
    CHECK(message(-2.5, learned) == "M: divide = -2.5; it must be positive and finite");
    CHECK(message(std::numeric_limits<double>::infinity(), learned) ==
          "M: divide = inf; it must be positive and finite");
    CHECK(message(std::numeric_limits<double>::quiet_NaN(), learned) ==
          "M: divide = nan; it must be positive and finite");
  }
}
