// SPDX-License-Identifier: MIT
/// \file
/// A module as a `Subject`: hands sets of inputs to its hooks as tensors of every rank, layout and kind, and as views.
#pragma once

#include <array>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "laws/module_under_test.hpp"
#include "laws/placed_inputs.hpp"
#include "support/allocations.hpp"
#include "support/parameter_values.hpp"
#include "support/placed.hpp"

namespace posbias_test {

/// What a tensor of a form is.
enum class Kind { row, col, row_map, col_map };

/// Values in row-major order as an Eigen tensor or map; what a hook did to it is read back by `values()`.
template <class S, int Rank, Kind kind>
class TensorCopy {
  static constexpr bool is_map = kind == Kind::row_map || kind == Kind::col_map;
  static constexpr int layout = kind == Kind::row || kind == Kind::row_map ? Eigen::RowMajor : Eigen::ColMajor;
  using Plain = Eigen::Tensor<S, Rank, layout>;
  using Sizes = Eigen::array<Index, static_cast<std::size_t>(Rank)>;

 public:
  TensorCopy(const std::vector<S>& values, const BatchShape& leading, std::initializer_list<Index> trailing)
      : sizes_(sizes(leading, trailing)), memory_(values.size() + 1), tensor_(make()) {
    for (std::size_t i = 0; i < values.size(); ++i) tensor_.data()[place(i)] = values[i];
  }
  TensorCopy(const TensorCopy&) = delete;
  TensorCopy& operator=(const TensorCopy&) = delete;

  auto& tensor() { return tensor_; }
  const auto& tensor() const { return tensor_; }

  [[nodiscard]] std::vector<S> values() const {
    std::vector<S> result(memory_.size() - 1);
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = tensor_.data()[place(i)];
    return result;
  }

 private:
  static Sizes sizes(const BatchShape& leading, std::initializer_list<Index> trailing) {
    Sizes result{};
    std::ranges::copy(joined(leading, trailing), result.begin());
    return result;
  }

  auto make() {
    if constexpr (is_map)
      return Eigen::TensorMap<Plain>(memory_.data() + 1, sizes_);
    else
      return Plain(sizes_);
  }

  /// Where the i-th value in row-major order is stored.
  [[nodiscard]] std::size_t place(std::size_t i) const {
    if constexpr (layout == Eigen::RowMajor) return i;
    std::array<std::size_t, static_cast<std::size_t>(Rank)> index{};
    for (std::size_t d = index.size(); d-- > 0;) {
      index[d] = i % static_cast<std::size_t>(sizes_[d]);
      i /= static_cast<std::size_t>(sizes_[d]);
    }
    std::size_t offset = 0;
    for (std::size_t d = index.size(); d-- > 0;) offset = offset * static_cast<std::size_t>(sizes_[d]) + index[d];
    return offset;
  }

  Sizes sizes_;
  std::vector<S> memory_;
  std::conditional_t<is_map, Eigen::TensorMap<Plain>, Plain> tensor_;
};

/// The tensors of a set of inputs with `Rank` leading dimensions.
template <class S, int Rank, Kind X, Kind Q, Kind K, Kind V, Kind M>
struct CopiedInputs {
  TensorCopy<S, Rank + 2, X> x;
  TensorCopy<S, Rank + 3, Q> q;
  TensorCopy<S, Rank + 3, K> k;
  TensorCopy<S, Rank + 3, V> v;
  TensorCopy<S, Rank + 3, M> mask;

  CopiedInputs(const HookInputs<S>& b, const LayoutCase& layout_case)
      : x(b.x, layout_case.leading, {b.shape.L1, b.shape.D}),
        q(b.q, layout_case.leading, {b.shape.L1, b.shape.NH, b.shape.H}),
        k(b.k, layout_case.leading, {b.shape.L2, b.shape.NH, b.shape.H}),
        v(b.v, layout_case.leading, {b.shape.L2, b.shape.NH, b.shape.H}),
        mask(b.mask, layout_case.leading, {b.shape.NH, b.shape.L1, b.shape.L2}) {}

  void give_back(HookInputs<S>& b) const {
    b.x = x.values();
    b.q = q.values();
    b.k = k.values();
    b.v = v.values();
    b.mask = mask.values();
  }
  void check_rest() const {}
};

template <class Module, class S>
class ModuleUnderTestOf : public ModuleUnderTest<S> {
 public:
  explicit ModuleUnderTestOf(Module module) : module_(std::move(module)) {}

  void forward(HookInputs<S>& inputs, const PositionCase& position_case, const LayoutCase& layout_case,
               posbias::Executor executor) const override {
    const auto token = position_case.token_positions(layout_case.leading, executor);
    const auto pair = position_case.pair_positions(layout_case.leading, executor);
    in_layout_case(inputs, layout_case, [&](auto type) {
      typename decltype(type)::type copied(inputs, layout_case);
      call_hooks(copied, token, pair, layout_case);
      copied.give_back(inputs);
    });
  }

  void backward(HookInputs<S>& gradients, const HookInputs<S>& outputs, const PositionCase& position_case,
                const LayoutCase& layout_case, Named<S>& parameter_gradients,
                posbias::Executor executor) const override {
    const auto token = position_case.token_positions(layout_case.leading, executor);
    const auto pair = position_case.pair_positions(layout_case.leading, executor);
    auto grads = module_.zero_gradients();
    write_parameters<S>(grads, parameter_gradients);
    in_layout_case(gradients, layout_case, [&](auto type) {
      typename decltype(type)::type grad(gradients, layout_case);
      const typename decltype(type)::type out(outputs, layout_case);
      call_adjoints(grad, out, token, pair, grads, layout_case);
      grad.give_back(gradients);
      out.check_rest();
    });
    parameter_gradients = read_parameters<S>(grads);
  }

  [[nodiscard]] std::size_t peak_bytes(const HookInputs<S>& inputs, const posbias::Positions& q_k) const override {
    const LayoutCase layout_case{.leading = {inputs.shape.B}};
    const posbias::TokenPositions token{.pos = q_k};
    const posbias::PairPositions pair{.q_k = q_k};
    std::size_t peak = 0;
    in_layout_case(inputs, layout_case, [&](auto type) {
      typename decltype(type)::type copied(inputs, layout_case), grad(inputs, layout_case);
      auto grads = module_.zero_gradients();
      peak = peak_bytes_of([&] {
        call_hooks(copied, token, pair, layout_case);
        call_adjoints(grad, std::as_const(copied), token, pair, grads, layout_case);
      });
    });
    return peak;
  }

  [[nodiscard]] Named<S> parameters() const override { return read_parameters<S>(module_); }
  void set_parameters(const Named<S>& values) override { write_parameters<S>(module_, values); }
  [[nodiscard]] Named<S> zero_gradients() const override { return read_parameters<S>(module_.zero_gradients()); }

  [[nodiscard]] std::unique_ptr<ModuleUnderTest<S>> copy() const override {
    return std::make_unique<ModuleUnderTestOf>(*this);
  }
  [[nodiscard]] std::unique_ptr<ModuleUnderTest<S>> move() override {
    return std::make_unique<ModuleUnderTestOf>(std::move(*this));
  }
  void assign(const ModuleUnderTest<S>& other) override {
    module_ = dynamic_cast<const ModuleUnderTestOf&>(other).module_;
  }

 private:
  template <class Tensors>
  void call_hooks(Tensors& to, const posbias::TokenPositions& token, const posbias::PairPositions& pair,
                  const LayoutCase& layout_case) const {
    if (layout_case.calls(Hook::mod_x)) module_.mod_x(to.x.tensor(), token);
    if (layout_case.calls(Hook::mod_qkv)) module_.mod_qkv(to.q.tensor(), to.k.tensor(), to.v.tensor(), pair);
    if (layout_case.calls(Hook::mod_mask))
      module_.mod_mask(to.mask.tensor(), to.q.tensor(), to.k.tensor(), to.v.tensor(), pair);
  }

  template <class Tensors, class Gradients>
  void call_adjoints(Tensors& grad, const Tensors& out, const posbias::TokenPositions& token,
                     const posbias::PairPositions& pair, Gradients& grads, const LayoutCase& layout_case) const {
    if (layout_case.calls(Hook::mod_mask))
      module_.mod_mask_backward(grad.mask.tensor(), grad.q.tensor(), grad.k.tensor(), grad.v.tensor(), out.q.tensor(),
                                out.k.tensor(), out.v.tensor(), pair, grads);
    if (layout_case.calls(Hook::mod_qkv))
      module_.mod_qkv_backward(grad.q.tensor(), grad.k.tensor(), grad.v.tensor(), out.q.tensor(), out.k.tensor(),
                               out.v.tensor(), pair, grads);
    if (layout_case.calls(Hook::mod_x)) module_.mod_x_backward(grad.x.tensor(), token, grads);
  }

  template <int Rank, Kind X, Kind Q = X, Kind K = X, Kind V = X, Kind M = X>
  using CopiedAs = std::type_identity<CopiedInputs<S, Rank, X, Q, K, V, M>>;

  template <class Run>
  static void in_layout_case(const HookInputs<S>& inputs, const LayoutCase& layout_case, const Run& run) {
    if (product(layout_case.leading) != inputs.shape.B) throw std::logic_error("the form is of another batch");
    if (layout_case.leading.size() == 2 && layout_case.storage >= Storage::heads_first)
      return with_elements<S, 2>(layout_case.elements, run);
    const std::pair rank_and_storage(layout_case.leading.size(), layout_case.storage);
    const auto is = [&](std::size_t rank, Storage storage) { return rank_and_storage == std::pair(rank, storage); };
    using enum Kind;
    if (is(1, Storage::row_major)) return run(CopiedAs<1, row>());
    if (is(2, Storage::mixed)) return run(CopiedAs<2, col_map, col_map, row_map, col, col_map>());
    if constexpr (all_layout_cases)
      if (is(1, Storage::col_major)) return run(CopiedAs<1, col>());
    if constexpr (all_layout_cases && std::is_same_v<S, double>) {
      if (is(0, Storage::row_major)) return run(CopiedAs<0, row>());
      if (is(2, Storage::row_major)) return run(CopiedAs<2, row>());
      if (is(3, Storage::row_major)) return run(CopiedAs<3, row>());
      if (is(1, Storage::maps)) return run(CopiedAs<1, row_map, row_map, col_map, row, row_map>());
    }
    throw std::logic_error("no such form");
  }

  Module module_;
};

/// Makes every law hold for this module: `make.template operator()<S>()` makes it, `reference` is what it computes. `heads`
/// is NH; heads and tokens have 8 features. Call it from the initialiser of a constant.
template <class Make>
bool add_case(const std::string& name, const Make& make, const ReferenceModel& reference_model, Index heads = 3) {
  const auto add = [&]<class S>(std::type_identity<S>) {
    using Module = decltype(make.template operator()<S>());
    cases<S>().push_back(
        {name, heads, std::make_shared<ModuleUnderTestOf<Module, S>>(make.template operator()<S>()), reference_model});
  };
  const auto add_each = [&]<class... S>(std::type_identity<std::tuple<S...>>) { (add(std::type_identity<S>()), ...); };
  add_each(std::type_identity<std::tuple<POSBIAS_LAW_SCALARS>>());
  return true;
}

}  // namespace posbias_test
