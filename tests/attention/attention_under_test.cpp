// SPDX-License-Identifier: MIT
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "attention/attention_under_test.hpp"
#include "posbias/attention/attention.hpp"
#include "posbias/bias/alibi.hpp"
#include "posbias/bias/disentangled_bias.hpp"
#include "posbias/bias/dynamic_position_bias.hpp"
#include "posbias/bias/relative_position_bias.hpp"
#include "posbias/bias/transformer_xl.hpp"
#include "posbias/core/compose.hpp"
#include "posbias/embedding/sinusoidal.hpp"
#include "posbias/rotation/rotary.hpp"
#include "support/allocations.hpp"

namespace posbias_test {
namespace {

using posbias::AttentionOptions;
using posbias::PairPositions;

template <class S>
Map<S> map(std::vector<S>& values, Index a, Index b, Index c, Index d) {
  return {values.data(), a, b, c, d};
}
template <class S>
ConstMap<S> map(const std::vector<S>& values, Index a, Index b, Index c, Index d) {
  return {values.data(), a, b, c, d};
}

/// Maps of q, k and v, or of their gradients.
template <class Q>
auto map_q(Q& values, const AttentionSizes& s) {
  return map(values, s.B, s.L1, s.NH, s.H);
}
template <class K>
auto map_k(K& values, const AttentionSizes& s) {
  return map(values, s.B, s.L2, s.NHk, s.H);
}
template <class V>
auto map_v(V& values, const AttentionSizes& s) {
  return map(values, s.B, s.L2, s.NHk, s.Hv);
}

template <class Module, class S>
class AttentionOf final : public AttentionUnderTest<S> {
 public:
  explicit AttentionOf(Module module) : module_(std::move(module)) {}

  std::size_t attend(Map<S> out, ConstMap<S> q, ConstMap<S> k, ConstMap<S> v, const AttentionOptions& options,
                     Map<S, 3>* log_sum_exp) const override {
    return peak_bytes_of([&] {
      if (log_sum_exp != nullptr)
        attention(out, q, k, v, module_, options, *log_sum_exp);
      else
        attention(out, q, k, v, module_, options);
    });
  }

  std::size_t attend_backward(Map<S> grad_q, Map<S> grad_k, Map<S> grad_v, ConstMap<S> grad_out, ConstMap<S> out,
                              ConstMap<S> q, ConstMap<S> k, ConstMap<S> v, const AttentionOptions& options,
                              const Map<S, 3>* log_sum_exp, Named<S>& parameters) const override {
    auto grads = module_.zero_gradients();
    write_parameters<S>(grads, parameters);
    const std::size_t peak = peak_bytes_of([&] {
      if (log_sum_exp != nullptr)
        attention_backward(grad_q, grad_k, grad_v, grad_out, out, q, k, v, module_, options, grads, *log_sum_exp);
      else
        attention_backward(grad_q, grad_k, grad_v, grad_out, out, q, k, v, module_, options, grads);
    });
    parameters = read_parameters<S>(grads);
    return peak;
  }

  void modify(Tensors<S>& in, const PairPositions& at) const override {
    module_.mod_qkv(map_q(in.q, in.sizes), map_k(in.k, in.sizes), map_v(in.v, in.sizes), at);
  }

  std::vector<S> bias(const Tensors<S>& modified, const PairPositions& at) const override {
    const auto mask = module_.make_mask(map_q(modified.q, modified.sizes), map_k(modified.k, modified.sizes),
                                        map_v(modified.v, modified.sizes), at);
    return {mask.data(), mask.data() + mask.size()};
  }

  void hooks_backward(std::vector<S> grad_logits, Differentiated<S>& gradients, const Tensors<S>& modified,
                      const PairPositions& at) const override {
    const AttentionSizes& s = modified.sizes;
    const auto q = map_q(modified.q, s), k = map_k(modified.k, s), v = map_v(modified.v, s);
    const auto grad_mask = map(grad_logits, s.B, s.NH, s.L1, s.L2);
    auto grad_q = map_q(gradients.q, s), grad_k = map_k(gradients.k, s), grad_v = map_v(gradients.v, s);
    auto grads = module_.zero_gradients();
    write_parameters<S>(grads, gradients.parameters);
    module_.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, v, at, grads);
    module_.mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, grads);
    gradients.parameters = read_parameters<S>(grads);
  }

  Named<S> parameters() const override { return read_parameters<S>(module_); }
  void set_parameters(const Named<S>& values) override { write_parameters<S>(module_, values); }

 private:
  Module module_;
};

}  // namespace

template <class S>
Attended<S> AttentionUnderTest<S>::attend(const Tensors<S>& in, const AttentionOptions& options, bool with_sums) const {
  const AttentionSizes& s = in.sizes;
  constexpr S nan = std::numeric_limits<S>::quiet_NaN();
  Attended<S> result;
  result.out.assign(static_cast<std::size_t>(s.out()), nan);
  if (with_sums) result.log_sum_exp.assign(static_cast<std::size_t>(s.sums()), nan);
  Map<S, 3> sums(result.log_sum_exp.data(), s.B, s.NH, s.L1);
  result.peak_bytes = attend(map(result.out, s.B, s.L1, s.NH, s.Hv), map_q(in.q, s), map_k(in.k, s), map_v(in.v, s),
                             options, with_sums ? &sums : nullptr);
  return result;
}

template <class S>
Differentiated<S> AttentionUnderTest<S>::backward(const Tensors<S>& in, const Attended<S>& attended,
                                                  const std::vector<S>& grad_out, const AttentionOptions& options,
                                                  const Named<S>& start) const {
  const AttentionSizes& s = in.sizes;
  constexpr S nan = std::numeric_limits<S>::quiet_NaN();
  Differentiated<S> result{std::vector<S>(in.q.size(), nan), std::vector<S>(in.k.size(), nan),
                           std::vector<S>(in.v.size(), nan), start};
  std::vector<S> log_sum_exp = attended.log_sum_exp;
  const Map<S, 3> sums(log_sum_exp.data(), s.B, s.NH, s.L1);
  result.peak_bytes =
      attend_backward(map_q(result.q, s), map_k(result.k, s), map_v(result.v, s), map(grad_out, s.B, s.L1, s.NH, s.Hv),
                      map(attended.out, s.B, s.L1, s.NH, s.Hv), map_q(in.q, s), map_k(in.k, s), map_v(in.v, s), options,
                      log_sum_exp.empty() ? nullptr : &sums, result.parameters);
  return result;
}

std::string name_of(Scheme scheme) {
  static constexpr const char* names[] = {"Identity",
                                          "Sinusoidal",
                                          "ALiBi",
                                          "ALiBi, learned_div",
                                          "ALiBi, asymmetric",
                                          "RelativePositionBias",
                                          "DynamicPositionBias",
                                          "TransformerXL",
                                          "TransformerXL, bio_attention",
                                          "Rotary",
                                          "Rotary, learned_div",
                                          "Compose of Rotary, ALiBi",
                                          "Compose of RelativePositionBias, TransformerXL",
                                          "Compose of Rotary, DisentangledBias"};
  return names[static_cast<int>(scheme)];
}

bool integers_only(Scheme scheme) {
  return scheme == Scheme::t5 || scheme == Scheme::t5_xl || scheme == Scheme::rotary_disentangled;
}

bool takes(Scheme scheme, Index heads, Index features) {
  switch (scheme) {
    case Scheme::rotary:
    case Scheme::rotary_learned:
    case Scheme::rotary_alibi:
    case Scheme::rotary_disentangled:
      return features % 2 == 0;
    case Scheme::xl:
    case Scheme::xl_bio:
    case Scheme::t5_xl:
      return heads * features % 2 == 0;
    default:
      return true;
  }
}

template <class S>
std::unique_ptr<AttentionUnderTest<S>> make_under_test(Scheme scheme, Index heads, Index features) {
  using namespace posbias;
  const auto erased = []<class Module>(Module module) -> std::unique_ptr<AttentionUnderTest<S>> {
    return std::make_unique<AttentionOf<Module, S>>(std::move(module));
  };
  const auto alibi = [&](ALiBiOptions options) {
    options.n_heads = heads;
    return ALiBi<S>(options);
  };
  const auto xl = [&](XLForm form) {
    return TransformerXL<S>({.dim = heads * features, .n_heads = heads, .form = form}, 3);
  };
  const auto t5 = [&] { return RelativePositionBias<S>({.num_buckets = 8, .max_distance = 40, .n_heads = heads}, 2); };
  if (scheme == Scheme::alibi) return erased(alibi({}));
  if (scheme == Scheme::alibi_learned) return erased(alibi({.divide = 2.5, .learned_div = true}));
  if (scheme == Scheme::rotary_alibi)
    return erased(Compose(Rotary<S>({.head_dim = features}), alibi({.divide = 2.5, .learned_div = true})));
  // To compile less.
  if constexpr (std::is_same_v<S, float>)
    if (scheme == Scheme::sinusoidal) return erased(Sinusoidal<S>({.dim = 2}));
  if constexpr (std::is_same_v<S, double> || POSBIAS_TEST_FLOAT) {
    switch (scheme) {
      case Scheme::alibi_asymmetric:
        return erased(alibi({.use_n_heads = (heads + 1) / 2, .asymmetric = true, .divide = 4, .learned_div = true}));
      case Scheme::t5:
        return erased(t5());
      case Scheme::dynamic:
        return erased(DynamicPositionBias<S>(
            {.dim = 4, .n_heads = heads, .depth = 2, .norm = true, .divide = 10, .learned_div = true}, 1));
      case Scheme::xl:
        return erased(xl(XLForm::paper));
      case Scheme::xl_bio:
        return erased(xl(XLForm::bio_attention));
      case Scheme::rotary:
        return erased(Rotary<S>({.head_dim = features}));
      default:
        break;
    }
  }
  if constexpr (std::is_same_v<S, double>) {
    if (scheme == Scheme::identity) return erased(Identity());
    if (scheme == Scheme::rotary_learned)
      return erased(
          Rotary<S>({.head_dim = features, .pairing = RotaryPairing::half, .divide = 40, .learned_div = true}));
    if (scheme == Scheme::t5_xl) return erased(Compose(t5(), xl(XLForm::paper)));
    if (scheme == Scheme::rotary_disentangled)
      return erased(Compose(
          Rotary<S>({.head_dim = features}),
          DisentangledBias<S>(
              {.n_heads = heads, .head_dim = features, .n_positions = 24, .position_size = 2, .scale = 0.75}, 4)));
  }
  throw std::logic_error("no such scheme");
}

double MaskCase::at(Index n, Index h, Index i, Index j) const {
  if (type == Type::none) return 0;
  const Index index[] = {n, h, i, j};
  Index place = 0;
  for (std::size_t d = 0; d < shape.size(); ++d)
    place = place * shape[d] + (shape[d] == 1 ? 0 : index[4 - shape.size() + d]);
  const double entry = entries[static_cast<std::size_t>(place)];
  if (type != Type::bools) return entry;
  return entry != 0 ? 0 : -std::numeric_limits<double>::infinity();
}

namespace {

template <class Entry>
posbias::AttentionMask mask_of(const Entry* entries, const std::vector<Index>& shape) {
  const auto of_rank = [&]<int Rank>(std::integral_constant<int, Rank>) -> posbias::AttentionMask {
    Eigen::array<Index, Rank> sizes{};
    std::copy(shape.begin(), shape.end(), sizes.begin());
    return ConstMap<Entry, Rank>(entries, sizes);
  };
  switch (shape.size()) {
    case 1:
      return of_rank(std::integral_constant<int, 1>());
    case 2:
      return of_rank(std::integral_constant<int, 2>());
    case 3:
      return of_rank(std::integral_constant<int, 3>());
    default:
      return of_rank(std::integral_constant<int, 4>());
  }
}

}  // namespace

posbias::AttentionMask MaskCase::mask() {
  switch (type) {
    case Type::none:
      return {};
    case Type::doubles:
      return mask_of(entries.data(), shape);
    case Type::floats:
      floats_.assign(entries.begin(), entries.end());
      return mask_of(floats_.data(), shape);
    case Type::bools:
      bools_ = std::make_unique<bool[]>(entries.size() + 1);
      std::transform(entries.begin(), entries.end(), bools_.get(), [](double entry) { return entry != 0; });
      return mask_of(bools_.get(), shape);
  }
  return {};
}

template <>
std::vector<Scheme> schemes<float>() {
  using enum Scheme;
  if (!POSBIAS_TEST_FLOAT) return {sinusoidal, alibi_learned, rotary_alibi};
  return {sinusoidal, alibi, alibi_learned, alibi_asymmetric, t5, dynamic, xl, xl_bio, rotary, rotary_alibi};
}
template <>
std::vector<Scheme> schemes<double>() {
  using enum Scheme;
  return {identity,       alibi,        alibi_learned, alibi_asymmetric,   t5, dynamic, xl, xl_bio, rotary,
          rotary_learned, rotary_alibi, t5_xl,         rotary_disentangled};
}

template class AttentionUnderTest<float>;
template class AttentionUnderTest<double>;
template std::unique_ptr<AttentionUnderTest<float>> make_under_test<float>(Scheme, Index, Index);
template std::unique_ptr<AttentionUnderTest<double>> make_under_test<double>(Scheme, Index, Index);

}  // namespace posbias_test
