// SPDX-License-Identifier: MIT
/// \file
/// A module of random options, behind virtual functions, with its reference and what it needs of tensors.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "fuzz/modules/place.hpp"
#include "fuzz/require.hpp"
#include "laws/module_under_test.hpp"
#include "laws/placed_inputs.hpp"
#include "laws/reference_models.hpp"
#include "posbias/core/error.hpp"
#include "support/parameter_values.hpp"

namespace posbias_fuzz {

using posbias_test::Elements;
using posbias_test::Hook;
using posbias_test::HookInputs;
using posbias_test::Named;
using posbias_test::Placement;
using posbias_test::Placements;
using posbias_test::ReferenceModel;
using posbias_test::Storage;
namespace reference_models = posbias_test::reference_models;

/// Leading dimensions of a call's tensors.
template <class S>
inline constexpr int leading_rank = std::is_same_v<S, float> ? 1 : 2;

/// How a call's tensors lie in memory.
struct Stored {
  Placements at;
  Elements elements = Elements::scalar;
};

/// Calls a hook; true unless it throws what hooks may throw.
template <class Call>
bool accepted(const Call& call) {
  try {
    call();
    return true;
  } catch (const posbias::ShapeError&) {
    return false;
  } catch (const posbias::PositionError&) {
    return false;
  }
}

template <class S>
class Hooks {
 public:
  virtual ~Hooks() = default;
  /// Calls a hook on the tensors; false if it refuses them.
  virtual bool call(Hook hook, HookInputs<S>& tensors, const Stored& stored, const posbias::TokenPositions& token,
                    const posbias::PairPositions& pair) const = 0;
  [[nodiscard]] virtual Named<S> parameters() const = 0;
};

template <class Module, class S>
class HooksOf : public Hooks<S> {
 public:
  explicit HooksOf(Module module) : module_(std::move(module)) {}

  bool call(Hook hook, HookInputs<S>& tensors, const Stored& stored, const posbias::TokenPositions& token,
            const posbias::PairPositions& pair) const override {
    bool result = false;
    posbias_test::with_elements<S, leading_rank<S>>(stored.elements, [&](auto type) {
      typename decltype(type)::type copied(tensors, stored.at);
      result = accepted([&] {
        if (hook == Hook::mod_x) module_.mod_x(copied.x.tensor(), token);
        if (hook == Hook::mod_qkv) module_.mod_qkv(copied.q.tensor(), copied.k.tensor(), copied.v.tensor(), pair);
        if (hook == Hook::mod_mask)
          module_.mod_mask(copied.mask.tensor(), copied.q.tensor(), copied.k.tensor(), copied.v.tensor(), pair);
      });
      copied.give_back(tensors);
    });
    return result;
  }
  [[nodiscard]] Named<S> parameters() const override { return posbias_test::read_parameters<S>(module_); }

 private:
  Module module_;
};

/// What a hook asks of its tensors; 0: anything.
struct Needs {
  bool uses_x = false, uses_qkv = false, uses_mask = false;  ///< else the hook is the identity and checks nothing
  Index dim = 0;                                             ///< features of x
  Index qkv_heads = 0, qkv_features = 0;                     ///< of mod_qkv
  Index mask_heads = 0, mask_features = 0;                   ///< of mod_mask
  bool squares = false;                                      ///< of positions, in variances, which overflow
  bool qkv_has_positions = true;                             ///< mod_qkv looks at them
  bool changes_k = true;                                     ///< mod_qkv does, beside q
};

template <class S>
struct Drawn {
  std::unique_ptr<Hooks<S>> hooks;  ///< none if the options were refused, as they must be
  ReferenceModel reference_model{};
  Needs needs{};
};

/// `make()`, which must throw OptionError unless the options are right.
template <class S, class Make>
Drawn<S> made(bool right, const Make& make, ReferenceModel reference_model, const Needs& needs) {
  std::unique_ptr<Hooks<S>> hooks;
  try {
    hooks = std::make_unique<HooksOf<decltype(make()), S>>(make());
  } catch (const posbias::OptionError&) {
  }
  require((hooks != nullptr) == right, right ? "right options are refused" : "hostile options are not refused");
  return {std::move(hooks), std::move(reference_model), needs};
}

/// A small size: positive, or now and then hostile.
inline Index draw_size(FuzzedDataProvider& input, Index most) {
  if (!one_in(input, 16)) return input.ConsumeIntegralInRange<Index>(1, most);
  return input.PickValueInArray({Index{0}, Index{-1}, Index{-1000}});
}

struct Divisor {
  double divide = 1;
  bool learned = false;
  [[nodiscard]] bool right() const { return std::isfinite(divide) && divide > 0; }
};

inline Divisor draw_divisor(FuzzedDataProvider& input) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const double hostile[] = {0, -1, infinity, -infinity, std::numeric_limits<double>::quiet_NaN()};
  const double divide =
      one_in(input, 16) ? input.PickValueInArray(hostile) : input.PickValueInArray({1.0, 1.0, 2.5, 40.0, 0.125, 1e6});
  return {divide, one_in(input, 4)};
}

/// A module's name and how it is drawn.
template <class S>
struct Draw {
  std::string_view module;
  Drawn<S> (*draw)(FuzzedDataProvider&);
};

/// The modules of each file. A corpus knows them by their places: a new one comes last.
template <class S>
std::vector<Draw<S>> positions_of_tokens();
template <class S>
std::vector<Draw<S>> relative_biases();
template <class S>
std::vector<Draw<S>> content_biases();

}  // namespace posbias_fuzz
