// SPDX-License-Identifier: MIT
/// \file
/// What everything that learns has in common: parameters to visit, gradients like them, and a check of the latter.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/core/parameters.hpp"

namespace posbias {

/// Base of modules and layers (CRTP). `Derived` has a `static constexpr std::string_view name`; `Parameters`, if it
/// learns, a static `visit(self, visitor)`.
template <class Derived, class Parameters = NoParameters>
class ParameterOwner {
 public:
  /// Same names and shapes as the parameters, visited the same way.
  using Gradients = Parameters;

  /// Gradients of zero, for the adjoints to add to.
  [[nodiscard]] Gradients zero_gradients() const {
    Gradients gradients = parameters_;
    for_each_parameter(gradients, [](std::string_view, auto& tensor) { std::fill_n(tensor.data(), tensor.size(), 0); });
    return gradients;
  }

  /// True if there is anything to learn.
  [[nodiscard]] bool has_parameters() const {
    bool any = false;
    for_each_parameter(derived(), [&](std::string_view, const auto&) { any = true; });
    return any;
  }

  /// Throws ShapeError, naming the caller, unless `gradients` has the parameters' names and shapes: those of another module
  /// do not.
  [[gnu::cold]] void check_gradients(const Caller& caller, const Gradients& gradients) const {
    struct Entry {
      std::string name;
      std::vector<Index> shape;
    };
    const auto entries = [](const Parameters& owner) {
      std::vector<Entry> result;
      for_each_parameter(owner, [&](std::string_view name, const auto& tensor) {
        result.push_back({std::string(name), {tensor.dimensions().begin(), tensor.dimensions().end()}});
      });
      return result;
    };
    const std::vector<Entry> learned = entries(parameters_);
    const std::vector<Entry> given = entries(gradients);
    const auto reject = [&](const auto&... parts) {
      detail::fail<ShapeError>(detail::Hook(Derived::name, caller.function, caller), ": grads ", parts...,
                               "; use the module's zero_gradients()");
    };
    for (std::size_t i = 0; i < (std::max)(learned.size(), given.size()); ++i) {
      if (i >= given.size()) reject("lacks an entry ", learned[i].name);
      if (i >= learned.size()) reject("has an entry ", given[i].name, " that the module does not learn");
      if (given[i].name != learned[i].name)
        reject("has an entry ", given[i].name, " in the place of ", learned[i].name);
      if (given[i].shape != learned[i].shape)
        reject("entry ", given[i].name, " has shape ", std::span(given[i].shape), "; the parameter has ",
               std::span(learned[i].shape));
    }
  }

  /// Use `for_each_parameter(module, visitor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    if constexpr (std::is_const_v<Self>)
      Parameters::visit(static_cast<const ParameterOwner&>(self).parameters_, visitor);
    else
      Parameters::visit(static_cast<ParameterOwner&>(self).parameters_, visitor);
  }

 protected:
  ParameterOwner() = default;
  /// Takes the parameters as they start.
  explicit ParameterOwner(Parameters parameters) : parameters_(std::move(parameters)) {}

  /// This object, as the class that derives from it.
  [[nodiscard]] const Derived& derived() const { return static_cast<const Derived&>(*this); }

  Parameters parameters_;  ///< what is learned
};

}  // namespace posbias
