// SPDX-License-Identifier: MIT
/// \file
/// ONNX's own tests of its operators Attention, FlexAttention and RotaryEmbedding (onnx 1.23.2, opsets 23 to 25), recorded
/// from the package's reference implementation: inputs, attributes and outputs, in onnx/.
///
/// Q, K and V of rank 4 are (B, NH, L, H), of rank 3 (B, L, NH·H): `heads_first` and `unflatten` view them as they are.
///
/// Operators have more outputs: scores and the concatenated cache, which a fused attention does not have. Not recorded here,
/// because `attention` has neither a soft cap on logits nor a window: attention_3d_diff_heads_sizes_softcap,
/// attention_3d_local_window, attention_3d_softcap, attention_3d_with_past_and_present_qk_matmul_softcap,
/// attention_4d_diff_heads_sizes_softcap, attention_4d_softcap_neginf_mask_poison, attention_4d_with_qk_matmul_softcap,
/// attention_bidirectional_window, attention_local_window_ext_cache_rank2_mask, attention_local_window_gqa_rank4_mask,
/// attention_local_window_with_past.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <posbias/io/safetensors.hpp>
#include <posbias/posbias.hpp>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/golden.hpp"

using posbias::AttentionMask;
using posbias::AttentionOptions;
using posbias::Index;
using posbias::Positions;
using posbias::StridedMap;
using posbias::io::SafeTensors;

namespace {

template <class S, int Rank>
using Tensor = Eigen::Tensor<S, Rank, Eigen::RowMajor>;
using Ids = Tensor<std::int64_t, 2>;

struct Case {
  const char* name;
  const char* shows;
};

constexpr Case attention_cases[] = {
    {"attention_23_boolmask_fullymasked_row_nan_robustness", "a row without visible keys gives zeros"},
    {"attention_24_fullymasked_qk_matmul_output_mode3_zero", "the same"},
    {"attention_3d_attn_mask", "rank 3, a mask (L1, L2)"},
    {"attention_3d_causal_bf16", "rank 3, bfloat16, causal from 0 with L1 < L2"},
    {"attention_3d_diff_heads_sizes_causal", "rank 3, Hv differs from H"},
    {"attention_3d_gqa_attn_mask", "rank 3, grouped queries and a mask"},
    {"attention_3d_gqa_scaled", "rank 3, grouped queries, a scale"},
    {"attention_3d_with_past_and_present_qk_matmul", "rank 3, keys from a cache with heads first"},
    {"attention_4d_attn_mask", "heads first, a mask (L1, L2)"},
    {"attention_4d_attn_mask_3d_causal", "a mask (B, 1, L1, L2) beside causal"},
    {"attention_4d_attn_mask_bool", "a bool mask"},
    {"attention_4d_attn_mask_causal_bf16", "tensors and mask of bfloat16"},
    {"attention_4d_causal_fp16", "tensors of half"},
    {"attention_4d_causal_nonpad_batch_prefill", "each sequence of the batch fills its cache to another length"},
    {"attention_4d_causal_padded_kv_bf16", "the same with a mask narrower than the cache, bfloat16"},
    {"attention_4d_diff_heads_mask4d_padded_kv", "the same, not causal, Hv differs from H"},
    {"attention_4d_diff_heads_sizes_causal", "heads first, Hv differs from H"},
    {"attention_4d_diff_heads_with_past_and_present_mask4d", "a cache, a mask (B, NH, L1, L2)"},
    {"attention_4d_gqa", "heads first, grouped queries"},
    {"attention_4d_gqa_causal_nonpad_decode", "a token per sequence, caches filled to different lengths"},
    {"attention_4d_gqa_scaled", "heads first, grouped queries, a scale"},
    {"attention_4d_gqa_with_past_and_present_fp16", "cache, mask and tensors of half"},
    {"attention_4d_scaled", "heads first, a scale"},
    {"attention_4d_with_past_and_present_qk_matmul", "a cache with heads first"},
    {"attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal", "causal: queries stand after the cache"},
    {"attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal", "the same with a mask per head"},
    {"attention_local_window_default", "a window of -1 is none"},
    {"flexattention_diff_head_sizes", "FlexAttention without modifications, Hv differs from H"},
    {"flexattention_fp16", "the same of half"},
};

constexpr Case rotary_cases[] = {
    {"rotary_embedding_3d_input", "rank 3, halves, ids per token"},
    {"rotary_embedding_no_position_ids", "heads first, halves, tables per token"},
    {"rotary_embedding_with_interleaved_rotary_dim", "interleaved, 4 features of 8"},
};

SafeTensors recorded(const std::string& name) {
  return SafeTensors::read(std::string(POSBIAS_CONFORMANCE_DIR) + "/onnx/" + name + ".safetensors");
}

/// A recorded tensor of its own type; exact, since every number of 16 bits is a float.
template <class S, int Rank>
Tensor<S, Rank> tensor_of(const SafeTensors& file, const std::string& name) {
  if constexpr (posbias::detail::Storage16<S>)
    return file.tensor<float, Rank>(name).template cast<S>();
  else
    return file.tensor<S, Rank>(name);
}

/// A tensor of the operators, of rank 3 or 4, as (B, L, NH, H).
template <class S>
class Heads {
 public:
  /// `heads` counts only where the last dimension has all of them.
  Heads(const SafeTensors& file, const std::string& name, Index heads) : heads_(heads) {
    if (file.shape(name).size() == 3)
      together_ = tensor_of<S, 3>(file, name);
    else
      apart_ = tensor_of<S, 4>(file, name);
  }

  [[nodiscard]] StridedMap<S, 4> view() {
    if (together_.size() > 0) return posbias::unflatten(together_, 2, {heads_, -1});
    return posbias::heads_first(apart_);
  }

 private:
  Index heads_;
  Tensor<S, 3> together_;
  Tensor<S, 4> apart_;
};

template <class S>
std::vector<double> values(const StridedMap<S, 4>& heads) {
  std::vector<double> result;
  for (Index b = 0; b < heads.dimension(0); ++b)
    for (Index l = 0; l < heads.dimension(1); ++l)
      for (Index h = 0; h < heads.dimension(2); ++h)
        for (Index f = 0; f < heads.dimension(3); ++f) result.push_back(static_cast<double>(heads(b, l, h, f)));
  return result;
}

/// Calls `use` with the mask of a case, of the recorded type and rank.
template <class S, class Use>
void with_mask(const SafeTensors& file, const Use& use) {
  const std::string name = "in.attn_mask";
  if (!file.contains(name)) return use(AttentionMask());
  const auto of = [&]<class Entry, int Rank>(Entry, std::integral_constant<int, Rank>) {
    const auto mask = tensor_of<Entry, Rank>(file, name);
    use(AttentionMask(mask));
  };
  const auto of_rank = [&](auto rank) { file.dtype(name) == "BOOL" ? of(bool(), rank) : of(S(), rank); };
  REQUIRE((file.shape(name).size() == 2 || file.shape(name).size() == 4));
  if (file.shape(name).size() == 2)
    of_rank(std::integral_constant<int, 2>());
  else
    of_rank(std::integral_constant<int, 4>());
}

/// Where queries stand, so that `causal` hides slots that are not filled: at the end of the filled ones; all at the last
/// if each may see all of them.
Positions at_end_of(const std::vector<std::int64_t>& filled, Index queries, bool causal) {
  Ids ids(static_cast<Index>(filled.size()), queries);
  for (Index b = 0; b < ids.dimension(0); ++b)
    for (Index i = 0; i < queries; ++i) ids(b, i) = filled[static_cast<std::size_t>(b)] - (causal ? queries - i : 1);
  return ids;
}

template <class S>
void check_attention(const SafeTensors& file) {
  const auto attributes = nlohmann::json::parse(file.metadata().at("attributes"));
  const auto number = [&](const char* name, auto fallback) { return attributes.value(name, fallback); };
  REQUIRE((number("softcap", 0.0) == 0 && number("left_window_size", -1) == -1));
  const Index heads = number("q_num_heads", 0), kv_heads = number("kv_num_heads", 0);
  const bool has_past = file.contains("in.past_key");
  Heads<S> q(file, "in.Q", heads), out(file, "out.Y", heads), expected = out;
  Heads<S> keys(file, has_past ? "out.present_key" : "in.K", kv_heads);  // the cache and the new keys behind it
  Heads<S> values_of_keys(file, has_past ? "out.present_value" : "in.V", kv_heads);

  auto k = keys.view(), v = values_of_keys.view();
  const Index queries = q.view().dimension(1);
  AttentionOptions options{.causal = number("is_causal", 0) != 0};
  if (attributes.contains("scale")) options.scale = number("scale", 0.0);
  const std::vector<Index>& new_keys = file.shape("in.K");
  options.at.q = Positions::range(k.dimension(1) - new_keys[new_keys.size() - 2]);  // queries begin where new keys do
  if (file.contains("in.nonpad_kv_seqlen")) {
    const auto filled = file.tensor<std::int64_t, 1>("in.nonpad_kv_seqlen");
    options.at.q = at_end_of({filled.data(), filled.data() + filled.size()}, queries, options.causal);
    options.causal = true;
  }
  if (file.contains("in.attn_mask")) {  // what it does not reach is hidden
    const Index visible = file.shape("in.attn_mask").back();
    k = narrow(k, 1, 0, visible);
    v = narrow(v, 1, 0, visible);
  }

  auto result = out.view();
  std::fill_n(result.data(), result.size(), std::numeric_limits<S>::quiet_NaN());
  with_mask<S>(file, [&](const AttentionMask& mask) {
    options.mask = mask;
    posbias::attention(result, q.view(), k, v, posbias::Identity(), options);
  });

  // Float: both round the sums of a few products. 16 bits: a unit in the last place of the largest value.
  const std::vector<double> wanted = values(expected.view());
  constexpr int digits = std::is_same_v<S, float> ? 24 : std::is_same_v<S, Eigen::half> ? 11 : 8;
  const double unit = std::ldexp(1.0, std::ilogb(posbias_test::largest(wanted)) + 1 - digits);
  posbias_test::check_close(values(result), wanted, 0, std::is_same_v<S, float> ? 8 * unit : unit);
}

/// The operator takes any table of cosines and sines, of any length: (c, s) = r·(cos a, sin a). With base 1 all pairs turn
/// by the position, so each pair of features is found in a rotation of the whole tensor by that pair's angles.
void check_rotary(const SafeTensors& file) {
  const auto attributes = nlohmann::json::parse(file.metadata().at("attributes"));
  const bool interleaved = attributes.value("interleaved", 0) != 0;
  Heads<float> in(file, "in.input", attributes.value("num_heads", 0));
  const auto input = in.view();
  const Index B = input.dimension(0), L = input.dimension(1), NH = input.dimension(2), H = input.dimension(3);
  const Index n_dims = attributes.value("rotary_embedding_dim", H), pairs = n_dims / 2;

  Tensor<double, 3> radius(pairs, B, L), angle(pairs, B, L);
  const auto table = [&](const std::string& name) {  // (B, L, pairs)
    if (!file.contains("in.position_ids")) return file.tensor<float, 3>(name);
    const auto rows = file.tensor<float, 2>(name);
    const auto ids = file.tensor<std::int64_t, 2>("in.position_ids");
    Tensor<float, 3> result(B, L, pairs);
    for (Index b = 0; b < B; ++b)
      for (Index l = 0; l < L; ++l) result.chip(b, 0).chip(l, 0) = rows.chip(ids(b, l), 0);
    return result;
  };
  const auto cosines = table("in.cos_cache"), sines = table("in.sin_cache");
  Tensor<float, 5> rotated(pairs, B, L, NH, H);
  for (Index i = 0; i < pairs; ++i)
    for (Index b = 0; b < B; ++b)
      for (Index l = 0; l < L; ++l) {
        radius(i, b, l) = std::hypot(double{cosines(b, l, i)}, double{sines(b, l, i)});
        angle(i, b, l) = std::atan2(double{sines(b, l, i)}, double{cosines(b, l, i)});
        for (Index h = 0; h < NH; ++h)
          for (Index f = 0; f < H; ++f) rotated(i, b, l, h, f) = input(b, l, h, f);
      }

  const posbias::Rotary<float> rotary(
      {.head_dim = H,
       .n_dims = n_dims,
       .pairing = interleaved ? posbias::RotaryPairing::interleaved : posbias::RotaryPairing::half,
       .spectrum = posbias::RotarySpectrum::n_dims,
       .base = 1});
  Tensor<float, 5> k(pairs, B, L, NH, H);
  k.setZero();
  rotary.mod_qkv(rotated, k, k, {.q_k = angle});

  std::vector<double> actual;
  for (Index b = 0; b < B; ++b)
    for (Index l = 0; l < L; ++l)
      for (Index h = 0; h < NH; ++h)
        for (Index f = 0; f < H; ++f) {
          const Index pair = interleaved ? f / 2 : f % pairs;
          actual.push_back(f < n_dims ? radius(pair, b, l) * double{rotated(pair, b, l, h, f)}
                                      : double{input(b, l, h, f)});
        }
  Heads<float> expected(file, "out.output", attributes.value("num_heads", 0));
  posbias_test::check_close(actual, values(expected.view()), 0, 0x1p-22);  // sums of two products below 1
}

}  // namespace

TEST_CASE("attention gives the outputs of ONNX's tests", "[conformance]") {
  for (const Case& one : attention_cases) {
    INFO(one.name << ": " << one.shows);
    const SafeTensors file = recorded(one.name);
    const std::string_view type = file.dtype("in.Q");
    if (type == "F32")
      check_attention<float>(file);
    else if (type == "F16")
      check_attention<Eigen::half>(file);
    else
      check_attention<Eigen::bfloat16>(file);
  }
}

TEST_CASE("Rotary gives the outputs of ONNX's tests", "[conformance]") {
  for (const Case& one : rotary_cases) {
    INFO(one.name << ": " << one.shows);
    check_rotary(recorded(one.name));
  }
}

TEST_CASE("every case of ONNX that is recorded is run", "[conformance]") {
  for (const auto& file : std::filesystem::directory_iterator(std::string(POSBIAS_CONFORMANCE_DIR) + "/onnx")) {
    const std::string name = file.path().stem().string();
    INFO(name);
    const auto is_it = [&](const Case& one) { return one.name == name; };
    CHECK((std::ranges::any_of(attention_cases, is_it) || std::ranges::any_of(rotary_cases, is_it)));
  }
}
