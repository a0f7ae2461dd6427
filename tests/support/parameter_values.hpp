// SPDX-License-Identifier: MIT
/// \file
/// Parameters, or their gradients, as vectors by name.
#pragma once

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "posbias/core/parameters.hpp"

namespace posbias_test {

template <class S>
using Named = std::map<std::string, std::vector<S>>;

template <class S, class Owner>
Named<S> read_parameters(const Owner& owner) {
  Named<S> values;
  posbias::for_each_parameter(owner, [&](std::string_view name, const auto& tensor) {
    values[std::string(name)].assign(tensor.data(), tensor.data() + tensor.size());
  });
  return values;
}

template <class S, class Owner>
void write_parameters(Owner& owner, const Named<S>& values) {
  posbias::for_each_parameter(owner, [&](std::string_view name, auto& tensor) {
    const std::vector<S>& from = values.at(std::string(name));
    if (static_cast<posbias::Index>(from.size()) != tensor.size())
      throw std::logic_error("parameters of another module");
    std::copy(from.begin(), from.end(), tensor.data());
  });
}

}  // namespace posbias_test
