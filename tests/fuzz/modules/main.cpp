// SPDX-License-Identifier: MIT
/// \file
/// Every module, of random options, on random shapes, positions and flags. What is right gives what the oracle says;
/// what is not throws ShapeError or PositionError and writes nothing, or OptionError before there is a module. Memory of
/// any order and any strides gives the same bits, and of 16 bits those of float, rounded.
#include <algorithm>
#include <string>
#include <vector>

#include "fuzz/modules/drawn.hpp"
#include "laws/oracle.hpp"
#include "support/modules.hpp"

namespace posbias_fuzz {
namespace {

using posbias_test::numbers;
using posbias_test::PositionCase;
using posbias_test::product;
using posbias_test::Shape;

/// Sizes of every tensor, right or not.
struct Sizes {
  BatchShape leading;  ///< of x and q, which say how many there are
  std::vector<Index> x, q, k, v, mask;
  bool flawed = false;  ///< one size may be another

  [[nodiscard]] Index L1() const { return q[leading.size()]; }
  [[nodiscard]] Index L2() const { return k[leading.size()]; }

  [[nodiscard]] BatchShape leading_of(const std::vector<Index>& shape) const {
    return {shape.begin(), shape.begin() + static_cast<std::ptrdiff_t>(leading.size())};
  }
  /// L, NH and H of q, k or v.
  [[nodiscard]] Index trailing(const std::vector<Index>& shape, std::size_t d) const {
    return shape[leading.size() + d];
  }

  [[nodiscard]] Placements whole() const { return {x, q, k, v, mask}; }

  [[nodiscard]] bool are_attention() const {
    const Index heads = trailing(q, 1), groups = trailing(k, 1);
    return leading_of(k) == leading_of(q) && leading_of(v) == leading_of(q) && trailing(k, 2) == trailing(q, 2) &&
           trailing(v, 0) == L2() && trailing(v, 1) == groups &&
           (groups == heads || (groups > 0 && heads % groups == 0));
  }
  [[nodiscard]] bool have_mask() const {
    std::vector<Index> wanted = leading_of(q);
    wanted.insert(wanted.end(), {trailing(q, 1), L1(), L2()});
    return mask == wanted;
  }
};

Sizes draw_sizes(FuzzedDataProvider& input, const Needs& needs, int rank, bool square) {
  const auto size = [&](Index wanted, Index most) {
    return wanted > 0 ? wanted : input.ConsumeIntegralInRange<Index>(1, most);
  };
  Sizes sizes;
  for (int d = 0; d < rank; ++d)
    sizes.leading.push_back(input.ConsumeIntegralInRange<Index>(one_in(input, 8) ? 0 : 1, 3));
  const Index longest = one_in(input, 12) ? 70 : 12;
  const Index L1 = input.ConsumeIntegralInRange<Index>(0, longest);
  const Index L2 = square ? L1 : input.ConsumeIntegralInRange<Index>(0, longest);
  const Index NH = size(needs.mask_heads, 4), H = size(std::max(needs.qkv_features, needs.mask_features), 8);
  const auto shaped = [&](std::initializer_list<Index> trailing) {
    std::vector<Index> shape = sizes.leading;
    shape.insert(shape.end(), trailing);
    return shape;
  };
  sizes.x = shaped({L1, size(needs.dim, 8)});
  sizes.q = shaped({L1, NH, H});
  sizes.k = sizes.v = shaped({L2, NH, H});
  sizes.mask = shaped({NH, L1, L2});
  sizes.flawed = one_in(input, 4);
  if (sizes.flawed) {
    // One size of one tensor; or the heads, or the features of a head, wherever they are.
    std::vector<Index>* const all[] = {&sizes.x, &sizes.q, &sizes.k, &sizes.v, &sizes.mask};
    const std::size_t which = input.ConsumeIntegralInRange<std::size_t>(0, 6), first = sizes.leading.size();
    std::vector<Index*> flaws;
    if (which < 5)
      flaws = {&(*all[which])[input.ConsumeIntegralInRange<std::size_t>(0, all[which]->size() - 1)]};
    else if (which == 5)
      flaws = {&sizes.q[first + 1], &sizes.k[first + 1], &sizes.v[first + 1], &sizes.mask[first]};
    else
      flaws = {&sizes.q[first + 2], &sizes.k[first + 2]};
    const Index flaw = one_in(input, 2) ? *flaws[0] + 1 : input.ConsumeIntegralInRange<Index>(0, 3);
    for (Index* one : flaws) *one = flaw;
  }
  return sizes;
}

/// How tensors lie: whole, as one of the forms that the laws know, or anyhow.
Placements draw_placements(FuzzedDataProvider& input, const Sizes& sizes) {
  Placements result = sizes.whole();
  const auto storage = input.PickValueInArray(
      {Storage::row_major, Storage::heads_first, Storage::narrowed, Storage::fused, Storage::mixed});
  if (storage != Storage::mixed) {
    if (storage != Storage::fused || !sizes.flawed) result.lie(storage, sizes.leading.size());
    return result;
  }
  for (Placement* tensor : {&result.x, &result.q, &result.k, &result.v, &result.mask}) {
    for (Placement::Dimension& dimension : tensor->dimensions) {
      dimension.before = input.ConsumeIntegralInRange<Index>(0, 1);
      dimension.after = input.ConsumeIntegralInRange<Index>(0, 1);
      dimension.step = input.PickValueInArray({Index{1}, Index{-1}});
    }
    tensor->dimensions.back().step *= input.ConsumeIntegralInRange<Index>(1, 2);
    for (std::size_t last = tensor->order.size(); last > 1; --last)
      std::swap(tensor->order[last - 1], tensor->order[input.ConsumeIntegralInRange<std::size_t>(0, last - 1)]);
  }
  return result;
}

/// A tensor of which elements share memory.
bool repeats(const Placement& tensor) {
  const auto any_of = [&](auto predicate) { return std::ranges::any_of(tensor.dimensions, predicate); };
  return any_of([](const Placement::Dimension& d) { return d.step == 0 && d.size > 1; }) &&
         !any_of([](const Placement::Dimension& d) { return d.size == 0; });
}

template <class S>
class Call {
 public:
  Call(FuzzedDataProvider& input, const Drawn<S>& module)
      : module_(module),
        together_(one_in(input, 4)),
        sizes_(draw_sizes(input, module.needs, leading_rank<S>, together_ && !one_in(input, 8))),
        place_q_(draw_place(input, sizes_.leading, sizes_.L1())),
        place_k_(together_ ? place_q_ : draw_place(input, sizes_.leading, sizes_.L2())) {
    draw_flags(input);
    if (together_ && one_in(input, 16))
      (input.ConsumeBool() ? place_too_.q : place_too_.k) = posbias::Positions::range();
    draw_memory(input);
  }

  void check() {
    const bool x = check_x(), qkv = check_qkv(), mask = check_mask();
    if (x && qkv && mask && !sizes_.flawed && stored_.elements == Elements::scalar) check_values();
  }

 private:
  void draw_flags(FuzzedDataProvider& input) {
    if (!one_in(input, 3)) return;
    const Index tokens = sizes_.x[sizes_.leading.size()];
    flags_.flag_count = one_in(input, 2) ? tokens : input.ConsumeIntegralInRange<Index>(0, tokens + 1);
    flag_leading_ = sizes_.leading_of(sizes_.x);
    if (one_in(input, 16)) flag_leading_[0] += 1;
    if (one_in(input, 2)) flags_.flag_rows = product(flag_leading_);
    const Index count = std::max<Index>(flags_.flag_rows, 1) * flags_.flag_count;
    for (Index i = 0; i < count; ++i) flags_.flags.push_back(input.ConsumeBool());
    if (flags_.flag_rows == 0) flag_leading_ = {};
    if (flags_.flags.empty()) flags_.flag_count = 0;
  }

  void draw_memory(FuzzedDataProvider& input) {
    Placements& at = stored_.at;
    at = draw_placements(input, sizes_);
    if (std::is_same_v<S, float>)
      stored_.elements =
          input.PickValueInArray({Elements::scalar, Elements::bfloat16, Elements::half, Elements::several});
    if (at.fused && stored_.elements != Elements::several && one_in(input, 2)) {  // k is where q is
      const std::size_t heads = sizes_.leading.size() + 1;
      at.k.dimensions[heads] = at.q.dimensions[heads];
      share_ = product(sizes_.q) > 0 && product(sizes_.k) > 0;
    }
    if (!at.fused && one_in(input, 4)) {
      Placement* const all[] = {&at.x, &at.q, &at.k, &at.v, &at.mask};
      auto& dimensions = all[input.ConsumeIntegralInRange<std::size_t>(0, 4)]->dimensions;
      dimensions[input.ConsumeIntegralInRange<std::size_t>(0, dimensions.size() - 1)].step = 0;
    }
    tensors_.x = numbers<S>(product(sizes_.x), 1);
    tensors_.q = numbers<S>(product(sizes_.q), 2);
    tensors_.k = numbers<S>(product(sizes_.k), 3);
    tensors_.v = numbers<S>(product(sizes_.v), 4);
    tensors_.mask = numbers<S>(product(sizes_.mask), 5);
    if (!is_plain())  // rounded, and repeated where elements share memory
      posbias_test::with_elements<S, leading_rank<S>>(
          stored_.elements, [&](auto type) { typename decltype(type)::type(tensors_, at).give_back(tensors_); });
    in_ = tensors_;
  }

  /// Whole tensors of S.
  [[nodiscard]] bool is_plain() const { return stored_.elements == Elements::scalar && stored_.at == sizes_.whole(); }

  [[nodiscard]] bool flags_are_right() const {
    return flags_.flags.empty() || (flags_.flag_count <= sizes_.x[sizes_.leading.size()] &&
                                    (flags_.flag_rows == 0 || broadcasts(flag_leading_, sizes_.leading_of(sizes_.x))));
  }

  bool check_x() {
    posbias::TokenPositions at = flags_.token_positions(flag_leading_, {});
    at.pos = place_q_.positions();
    const Index tokens = sizes_.x[sizes_.leading.size()];
    const BatchShape leading = sizes_.leading_of(sizes_.x);
    const bool right =
        !module_.needs.uses_x ||
        (sizes_.x.back() == module_.needs.dim && flags_are_right() && place_q_.right(leading, tokens, flags_) &&
         (!module_.reference_model.ids_below ||
          place_q_.ids_below(*module_.reference_model.ids_below, leading, tokens, flags_)));
    return check_hook(Hook::mod_x, "mod_x", right && !(module_.needs.uses_x && repeats(stored_.at.x)), at);
  }

  [[nodiscard]] posbias::PairPositions pair() const {
    posbias::PairPositions at = place_too_;
    if (together_) {
      at.q_k = place_q_.positions();
    } else {
      at.q = place_q_.positions();
      at.k = place_k_.positions();
    }
    return at;
  }

  [[nodiscard]] bool pair_is_right() const {
    const BatchShape leading = sizes_.leading_of(sizes_.q);
    const bool q_k = together_ && place_q_.positions().given();
    if (q_k && (place_too_.q.given() || place_too_.k.given() || sizes_.L1() != sizes_.L2())) return false;
    return place_q_.right(leading, sizes_.L1()) && place_k_.right(leading, sizes_.L2());
  }

  bool check_qkv() {
    const Needs& needs = module_.needs;
    const auto fits = [](Index need, Index size) { return need == 0 || need == size; };
    const bool right =
        !needs.uses_qkv ||
        (sizes_.are_attention() && fits(needs.qkv_heads, sizes_.trailing(sizes_.q, 1)) &&
         fits(needs.qkv_features, sizes_.trailing(sizes_.q, 2)) && (!needs.qkv_has_positions || pair_is_right()));
    const auto refuses_memory = [&] {
      if (repeats(stored_.at.q) || (needs.changes_k && repeats(stored_.at.k))) return true;
      // One tensor, at the same positions, may be changed as both.
      const posbias::PairPositions at = pair();
      return share_ && !(needs.changes_k && sizes_.L1() == sizes_.L2() && !at.q.given() && !at.k.given());
    };
    return check_hook(Hook::mod_qkv, "mod_qkv", right && !(needs.uses_qkv && refuses_memory()), {});
  }

  bool check_mask() {
    const Needs& needs = module_.needs;
    const auto fits = [](Index need, Index size) { return need == 0 || need == size; };
    const bool integers = !module_.reference_model.integers_only || (!place_q_.reals() && !place_k_.reals());
    const bool right =
        !needs.uses_mask ||
        (sizes_.are_attention() && sizes_.have_mask() && fits(needs.mask_heads, sizes_.trailing(sizes_.q, 1)) &&
         fits(needs.mask_features, sizes_.trailing(sizes_.q, 2)) && pair_is_right() && integers);
    return check_hook(Hook::mod_mask, "mod_mask", right && !(needs.uses_mask && repeats(stored_.at.mask)), {});
  }

  /// The hook must take what is right, and else throw and leave everything as it was. On whole tensors of S it gives the
  /// same bits, but for rounding.
  bool check_hook(Hook hook, const std::string& name, bool right, const posbias::TokenPositions& token) {
    HookInputs<S> expected = tensors_;
    require(module_.hooks->call(hook, tensors_, stored_, token, pair()) == right,
            name + (right ? " refuses what is right" : " takes what is not right"));
    if (right && is_plain()) return true;
    if (right) {
      require(module_.hooks->call(hook, expected, {sizes_.whole()}, token, pair()), name + " depends on memory");
      if constexpr (std::is_same_v<S, float>) posbias_test::round_to(stored_.elements, expected);
    }
    require(posbias_test::differing(tensors_, expected).empty(),
            name + (right ? " gives other values in other memory" : " wrote and then threw"));
    return right;
  }

  void check_values() {
    const std::size_t rank = sizes_.leading.size();
    const Shape shape{product(sizes_.leading), sizes_.q[rank + 1], sizes_.L1(), sizes_.L2(),
                      sizes_.q[rank + 2],      sizes_.x[rank + 1]};
    in_.shape = tensors_.shape = shape;
    PositionCase position_case = flags_;
    position_case.q = place_q_.where;
    position_case.k = place_k_.where;
    if (place_q_.reals() || place_k_.reals()) {
      position_case.q = place_q_.rounded(shape.L1);
      position_case.k = place_k_.rounded(shape.L2);
    }
    // The variance of a layer norm is infinite there, in double, and its output the bias.
    if (module_.needs.squares && position_case.furthest() > 0x1p490L) return;
    const std::string difference = posbias_test::Oracle<S>(module_.reference_model, module_.hooks->parameters(),
                                                           position_case, in_, std::move(tensors_))
                                       .difference();
    require(difference.empty(), difference);
  }

  const Drawn<S>& module_;
  bool together_;
  Sizes sizes_;
  Place place_q_, place_k_;
  posbias::PairPositions place_too_;
  PositionCase flags_;
  BatchShape flag_leading_;
  Stored stored_{sizes_.whole()};
  bool share_ = false;  ///< q and k do, elements
  HookInputs<S> in_{Shape{0, 0, 0, 0, 0, 0}}, tensors_ = in_;
};

template <class S>
void run(FuzzedDataProvider& input) {
  static const std::vector<Draw<S>> draws = [] {
    std::vector<Draw<S>> all = positions_of_tokens<S>();
    for (const auto& more : {relative_biases<S>(), content_biases<S>()})
      all.insert(all.end(), more.begin(), more.end());
    posbias_test::for_each_module_type<S>([&]<class Module>(std::type_identity<Module>) {
      const auto is_of_module = [](const Draw<S>& draw) { return draw.module == Module::name; };
      require(std::ranges::any_of(all, is_of_module), "nothing draws " + std::string(Module::name));
    });
    return all;
  }();
  const Drawn<S> module = draws[input.ConsumeIntegralInRange<std::size_t>(0, draws.size() - 1)].draw(input);
  if (module.hooks) Call<S>(input, module).check();
}

}  // namespace
}  // namespace posbias_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  FuzzedDataProvider input(data, size);
  input.ConsumeBool() ? posbias_fuzz::run<float>(input) : posbias_fuzz::run<double>(input);
  return 0;
}
