// SPDX-License-Identifier: MIT
/// \file
/// A module of random options, behind virtual functions, with its truth and what it needs of tensors.
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
#include "laws/module_subject.hpp"
#include "laws/subject.hpp"
#include "laws/truths.hpp"
#include "posbias/core/error.hpp"

namespace posbias_fuzz {

using posbias_test::Held;
using posbias_test::Kind;
using posbias_test::Named;
using posbias_test::Truth;
namespace truths = posbias_test::truths;

/// A call's tensors: of float (B, ...), row-major; of double (B, *, ...), of both layouts, and maps.
template <class S>
struct Forms {
  static constexpr bool plain = std::is_same_v<S, float>;
  static constexpr int leading = plain ? 1 : 2;
  using X = Held<S, leading + 2, plain ? Kind::row : Kind::col_map>;
  using Q = Held<S, leading + 3, plain ? Kind::row : Kind::col_map>;
  using K = Held<S, leading + 3, plain ? Kind::row : Kind::row_map>;
  using V = Held<S, leading + 3, plain ? Kind::row : Kind::col>;
  using Mask = Held<S, leading + 3, plain ? Kind::row : Kind::col_map>;
};

template <class S>
class Hooks {
 public:
  virtual ~Hooks() = default;
  virtual void mod_x(typename Forms<S>::X& x, const posbias::TokenPositions& at) const = 0;
  virtual void mod_qkv(typename Forms<S>::Q& q, typename Forms<S>::K& k, typename Forms<S>::V& v,
                       const posbias::PairPositions& at) const = 0;
  virtual void mod_mask(typename Forms<S>::Mask& mask, const typename Forms<S>::Q& q, const typename Forms<S>::K& k,
                        const typename Forms<S>::V& v, const posbias::PairPositions& at) const = 0;
  [[nodiscard]] virtual Named<S> parameters() const = 0;
};

template <class Module, class S>
class HooksOf : public Hooks<S> {
 public:
  explicit HooksOf(Module module) : module_(std::move(module)) {}

  void mod_x(typename Forms<S>::X& x, const posbias::TokenPositions& at) const override {
    module_.mod_x(x.tensor(), at);
  }
  void mod_qkv(typename Forms<S>::Q& q, typename Forms<S>::K& k, typename Forms<S>::V& v,
               const posbias::PairPositions& at) const override {
    module_.mod_qkv(q.tensor(), k.tensor(), v.tensor(), at);
  }
  void mod_mask(typename Forms<S>::Mask& mask, const typename Forms<S>::Q& q, const typename Forms<S>::K& k,
                const typename Forms<S>::V& v, const posbias::PairPositions& at) const override {
    module_.mod_mask(mask.tensor(), q.tensor(), k.tensor(), v.tensor(), at);
  }
  [[nodiscard]] Named<S> parameters() const override {
    Named<S> values;
    posbias::for_each_parameter(module_, [&](std::string_view name, const auto& tensor) {
      values[std::string(name)] = std::vector<S>(tensor.data(), tensor.data() + tensor.size());
    });
    return values;
  }

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
};

template <class S>
struct Drawn {
  std::unique_ptr<Hooks<S>> hooks;  ///< none if the options were refused, as they must be
  Truth truth{};
  Needs needs{};
};

/// `make()`, which must throw OptionError unless the options are right.
template <class S, class Make>
Drawn<S> made(bool right, const Make& make, Truth truth, const Needs& needs) {
  std::unique_ptr<Hooks<S>> hooks;
  try {
    hooks = std::make_unique<HooksOf<decltype(make()), S>>(make());
  } catch (const posbias::OptionError&) {
  }
  require((hooks != nullptr) == right, right ? "right options are refused" : "hostile options are not refused");
  return {std::move(hooks), std::move(truth), needs};
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

template <class S>
using Draw = Drawn<S> (*)(FuzzedDataProvider&);

/// The modules of each file. A corpus knows them by their places: a new one comes last.
template <class S>
std::vector<Draw<S>> positions_of_tokens();
template <class S>
std::vector<Draw<S>> relative_biases();
template <class S>
std::vector<Draw<S>> content_biases();

}  // namespace posbias_fuzz
