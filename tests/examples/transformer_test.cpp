// SPDX-License-Identifier: MIT
/// \file
/// The demo's transformer: its gradients with every scheme, both kinds of attention, causality, training, and reading
/// text.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <posbias/posbias.hpp>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "transformer/corpus.hpp"
#include "transformer/experiment.hpp"
#include "transformer/report.hpp"
#include "transformer/training.hpp"
#include "transformer/transformer.hpp"

namespace {

using demo::AttentionKind;
using demo::Index;
using demo::Symbol;
using posbias_test::contains;
using posbias_test::message_of;

constexpr demo::Architecture tiny{.symbols = 7, .layers = 2, .heads = 2, .head_width = 4, .mlp_factor = 2};

demo::Architecture tiny_with(AttentionKind attention) {
  auto shape = tiny;
  shape.attention = attention;
  return shape;
}

/// Symbols below `count` with some structure: each third one repeats the one before.
std::vector<Symbol> some_text(std::size_t size, Index count) {
  demo::Random random(3);
  std::vector<Symbol> text(size);
  for (std::size_t i = 0; i < size; ++i) text[i] = i % 3 == 2 ? text[i - 1] : static_cast<Symbol>(random.below(count));
  return text;
}

/// A model whose parameters are away from the ones and zeros that norms and biases start with.
template <class Module>
demo::Transformer<double, Module> some_model(const Module& module, AttentionKind attention) {
  demo::Random random(11);
  demo::Transformer<double, Module> model(tiny_with(attention), module, random);
  for (const auto& parameter : demo::parameter_views(model))
    for (double& value : parameter.values) value += 0.1 * random.symmetric();
  return model;
}

/// Compares the analytic gradient with central differences of the loss: every entry of small parameters, every
/// third of large ones.
template <class Module>
void check_differences(const Module& module, AttentionKind attention) {
  auto model = some_model(module, attention);
  const auto parameters = demo::parameter_views(model);
  const auto text = some_text(40, tiny.symbols);
  const std::vector<Index> starts{1, 17};
  const demo::Windows windows{text, starts, 5};
  constexpr double weight = 0.25, step = 1e-6;
  typename demo::Transformer<double, Module>::Trace trace;
  auto gradient = model.zero_gradients();
  model.forward(windows, trace);
  model.backward(trace, weight, gradient);

  const auto gradients = demo::parameter_views(gradient);
  REQUIRE(gradients.size() == parameters.size());
  double worst = 0;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    REQUIRE(gradients[p].values.size() == parameters[p].values.size());
    const std::size_t size = parameters[p].values.size();
    for (std::size_t i = 0; i<size; i += size> 20 ? 3 : 1) {
      double& value = parameters[p].values[i];
      const double start = value;
      value = start + step;
      const double above = model.forward(windows, trace);
      value = start - step;
      const double below = model.forward(windows, trace);
      value = start;
      const double difference = weight * (above - below) / (2 * step);
      worst = std::max(worst, std::abs(gradients[p].values[i] - difference));
    }
  }
  CHECK(worst < 1e-7);
}

using Runs = std::vector<std::span<const double>>;

/// The largest |a - b| over the largest |b|, of all numbers of several runs.
double relative_difference(const Runs& a, const Runs& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, largest = 0;
  for (std::size_t p = 0; p < a.size(); ++p) {
    REQUIRE(a[p].size() == b[p].size());
    for (std::size_t i = 0; i < a[p].size(); ++i) {
      REQUIRE(std::isfinite(a[p][i]));
      difference = std::max(difference, std::abs(a[p][i] - b[p][i]));
      largest = std::max(largest, std::abs(b[p][i]));
    }
  }
  return difference / largest;
}

/// Both kinds of attention give the same probabilities and gradients, in windows of more than one tile of queries.
template <class Module>
void check_kinds_agree(const Module& module) {
  const auto text = some_text(200, tiny.symbols);
  const std::vector<Index> starts{1, 97};
  const demo::Windows windows{text, starts, 71};
  typename demo::Transformer<double, Module>::Trace fused_trace, trace;
  const auto fused = some_model(module, AttentionKind::fused), model = some_model(module, AttentionKind::materialised);
  auto fused_gradient = fused.zero_gradients(), gradient = model.zero_gradients();
  const double fused_loss = fused.forward(windows, fused_trace), loss = model.forward(windows, trace);
  CHECK(std::abs(fused_loss - loss) < 1e-12 * loss);
  const auto probabilities = [](const auto& of) {
    return Runs{{of.probabilities.data(), static_cast<std::size_t>(of.probabilities.size())}};
  };
  CHECK(relative_difference(probabilities(fused_trace), probabilities(trace)) < 1e-12);

  fused.backward(fused_trace, 0.25, fused_gradient);
  model.backward(trace, 0.25, gradient);
  // All together: the gradient of a bias of k is 0 up to rounding, as a softmax ignores it.
  const auto runs = [](auto& of) {
    Runs result;
    for (const auto& view : demo::parameter_views(of)) result.push_back(view.values);
    return result;
  };
  CHECK(relative_difference(runs(fused_gradient), runs(gradient)) < 1e-12);
  // It was not one and the same.
  CHECK(fused_trace.blocks[0].attention.materialised.weights.size() == 0);
  CHECK(trace.blocks[0].attention.fused.log_sum_exp.size() == 0);
}

template <class Module>
void check_gradients(const Module& module) {
  for (const auto attention : {AttentionKind::fused, AttentionKind::materialised}) check_differences(module, attention);
  if constexpr (posbias::AttentionModule<Module, double>) check_kinds_agree(module);
}

/// A user's own module that reads the content: q <- 2 q, then mask(i, j) += j · q(i)[0].
class FirstFeatureBias : public posbias::Module<FirstFeatureBias> {
 public:
  static constexpr std::string_view name = "FirstFeatureBias";

  template <class Q, class K, class V>
  void mod_qkv(Q&& q, K&&, V&&, const posbias::PairPositions& = {}) const {
    for (Index i = 0; i < q.size(); ++i) q.data()[i] *= 2;
  }

  template <class M, class Q, class K, class V>
  void mod_mask(M&& mask, const Q& q, const K&, const V&, const posbias::PairPositions& = {}) const {
    for_each_logit(
        mask, [&](Index b, Index h, Index i, Index j) { mask(b, h, i, j) += static_cast<double>(j) * q(b, i, h, 0); });
  }

  template <class GQ, class GK, class GV, class Q, class K, class V>
  void mod_qkv_backward(GQ&& grad_q, GK&&, GV&&, const Q&, const K&, const V&, const posbias::PairPositions&,
                        Gradients&) const {
    for (Index i = 0; i < grad_q.size(); ++i) grad_q.data()[i] *= 2;
  }

  template <class M, class GQ, class GK, class GV, class Q, class K, class V>
  void mod_mask_backward(M&& grad_mask, GQ&& grad_q, GK&&, GV&&, const Q&, const K&, const V&,
                         const posbias::PairPositions&, Gradients&) const {
    for_each_logit(grad_mask, [&](Index b, Index h, Index i, Index j) {
      grad_q.data()[grad_q.dimensions().IndexOfRowMajor(Eigen::array<Index, 4>{b, i, h, 0})] +=
          static_cast<double>(j) * grad_mask(b, h, i, j);
    });
  }

 private:
  template <class Mask, class Visit>
  static void for_each_logit(const Mask& mask, const Visit& visit) {
    for (Index b = 0; b < mask.dimension(0); ++b)
      for (Index h = 0; h < mask.dimension(1); ++h)
        for (Index i = 0; i < mask.dimension(2); ++i)
          for (Index j = 0; j < mask.dimension(3); ++j) visit(b, h, i, j);
  }
};

/// A folder that is gone when the test is.
class TemporaryFolder {
 public:
  TemporaryFolder() { std::filesystem::create_directories(path_); }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  void write(const std::string& name, std::string_view text) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
  }

 private:
  static std::filesystem::path unused() {
    for (int number = 0;; ++number) {
      auto path = std::filesystem::temp_directory_path() / ("posbias_transformer_test_" + std::to_string(number));
      if (std::filesystem::create_directory(path)) return path;
    }
  }
  std::filesystem::path path_ = unused();
};

}  // namespace

TEST_CASE("transformer: gradients without positions", "[transformer]") {
  check_gradients(posbias::Identity());
}

TEST_CASE("transformer: gradients with Sinusoidal", "[transformer]") {
  check_gradients(posbias::Sinusoidal<double>({.dim = 8, .divide = 1.5, .learned_div = true}));
}

TEST_CASE("transformer: gradients with LearnedVocab", "[transformer]") {
  check_gradients(posbias::LearnedVocab<double>({.dim = 8, .max_seq_len = 71}));
}

TEST_CASE("transformer: gradients with Rotary", "[transformer]") {
  check_gradients(posbias::Rotary<double>({.head_dim = 4, .divide = 1.5, .learned_div = true}));
}

TEST_CASE("transformer: gradients with ALiBi", "[transformer]") {
  check_gradients(posbias::ALiBi<double>({.n_heads = 2, .divide = 1.5, .learned_div = true}));
}

TEST_CASE("transformer: gradients with RelativePositionBias", "[transformer]") {
  check_gradients(posbias::RelativePositionBias<double>(
      {.bidirectional = false, .num_buckets = 4, .max_distance = 4, .n_heads = 2}));
}

TEST_CASE("transformer: gradients with LearnedContinuous", "[transformer]") {
  check_gradients(posbias::LearnedContinuous<double>({.dim = 8, .depth = 2, .norm = true, .divide = 5}));
}

TEST_CASE("transformer: gradients with DynamicPositionBias", "[transformer]") {
  check_gradients(posbias::DynamicPositionBias<double>({.dim = 4, .n_heads = 2, .depth = 2, .divide = 5}));
}

TEST_CASE("transformer: gradients with TransformerXL", "[transformer]") {
  check_gradients(posbias::TransformerXL<double>({.dim = 8, .n_heads = 2, .linear_bias = false}));
}

TEST_CASE("transformer: gradients with a user's module that reads the content", "[transformer]") {
  check_gradients(FirstFeatureBias());
}

TEST_CASE("transformer: no character sees the ones after it", "[transformer]") {
  const auto attention = GENERATE(AttentionKind::fused, AttentionKind::materialised);
  demo::Random random(5);
  const demo::Transformer<float, posbias::ALiBi<float>> model(tiny_with(attention),
                                                              posbias::ALiBi<float>({.n_heads = 2}), random);
  auto text = some_text(30, tiny.symbols);
  const std::vector<Index> starts{2};
  const Index L = 20, changed = 13;
  decltype(model)::Trace before, after;
  model.forward({text, starts, L}, before);
  text[2 + changed] = static_cast<Symbol>((text[2 + changed] + 1) % 7);
  model.forward({text, starts, L}, after);
  REQUIRE(before.last.topRows(changed) == after.last.topRows(changed));
  REQUIRE(before.last.row(changed) != after.last.row(changed));
}

TEST_CASE("transformer: learns a text, alike on any number of threads", "[transformer]") {
  const auto attention = GENERATE(AttentionKind::fused, AttentionKind::materialised);
  const auto text = some_text(500, 3);
  const std::vector<Index> stretches{0, 100, 200};
  demo::Budget budget{.steps = 60, .batch = 5, .length = 16};
  const auto losses = [&](int threads, std::uint64_t seed) {
    budget.threads = threads;
    budget.seed = seed;
    demo::Random random(seed);
    const posbias::RelativePositionBias<float> bias({.bidirectional = false, .n_heads = 2});
    demo::Transformer<float, posbias::RelativePositionBias<float>> model(tiny_with(attention), bias, random);
    std::vector<double> bits;
    demo::train(model, text, budget, [&](Index, double loss) { bits.push_back(loss); });
    for (const Index length : {16, 32})
      bits.push_back(demo::bits_per_character(model, text, stretches, 32, length, threads));
    return bits;
  };
  const auto one = losses(1, 1);
  REQUIRE(one.size() == 62);
  REQUIRE(one[0] > std::log2(7.0) - 0.5);  // knows nothing yet
  REQUIRE(one[59] < 0.8 * one[0]);
  REQUIRE(one[60] < 1.4);  // two thirds of log2(3) are to be had, and the first characters have little to go by
  REQUIRE(one == losses(2, 1));
  REQUIRE(one == losses(7, 1));
  REQUIRE(one != losses(1, 2));
}

TEST_CASE("transformer: long gradients are clipped, the learning rate rises and falls", "[transformer]") {
  std::vector<double> a{3, 0}, b{4};
  const std::vector<demo::ParameterView<double>> views{{a}, {b}};
  demo::clip_norm(views, 10);
  REQUIRE(a == std::vector<double>{3, 0});
  demo::clip_norm(views, 1);
  REQUIRE(std::abs(a[0] - 0.6) < 1e-15);
  REQUIRE(std::abs(b[0] - 0.8) < 1e-15);

  const demo::LearningRate rate{.peak = 2, .warm_up = 0.1, .last = 0.5};
  REQUIRE(std::abs(rate.at(4, 100) - 1) < 1e-12);
  REQUIRE(std::abs(rate.at(9, 100) - 2) < 1e-12);
  REQUIRE(std::abs(rate.at(99, 100) - 1) < 1e-12);
}

TEST_CASE("transformer: an exception in a shard comes out", "[transformer]") {
  std::atomic<int> runs = 0;
  const auto task = [&](Index shard) {
    ++runs;
    if (shard == 1) throw demo::InputError("shard 1");
  };
  for (const int threads : {1, 3})
    REQUIRE(message_of<demo::InputError>([&] { demo::for_each_shard(3, threads, task); }) == "shard 1");
  REQUIRE(runs >= 4);
}

TEST_CASE("experiment: a length that the scheme has no positions for has no result", "[experiment]") {
  const demo::Experiment experiment{.corpus = {some_text(100, 7), some_text(65, 7), 7, 1},
                                    .shape = tiny,
                                    .budget = {.steps = 2, .batch = 3, .length = 8, .threads = 2},
                                    .test_lengths = {32, 4, 8, 16},
                                    .stretch = 32,
                                    .stretches = {0, 32}};
  demo::Progress progress(experiment.budget.steps);
  const auto measure = [&](auto module) { return demo::measure<float>("scheme", module, experiment, progress); };
  const auto vocab = [](Index max_seq_len) {
    return posbias::LearnedVocab<float>({.dim = 8, .max_seq_len = max_seq_len});
  };
  const auto has_result = [](const demo::Result& result) {
    std::vector<bool> lengths;
    for (const auto& bits : result.bits_per_character) lengths.push_back(bits.has_value());
    return lengths;
  };
  REQUIRE(has_result(measure(vocab(8))) == std::vector<bool>{false, true, true, false});
  REQUIRE(measure(vocab(8)).parameters == 64);
  auto module = vocab(8);
  const auto added = [&] {
    demo::Tensor<float, 2> x(8, 8);
    x.setZero();
    module.mod_x(x);
    return x(7, 7);
  };
  const float untrained = added();
  (void)demo::measure<float>("scheme", module, experiment, progress);
  REQUIRE(added() != untrained);
  REQUIRE(has_result(measure(vocab(31))) == std::vector<bool>{false, true, true, true});
  REQUIRE(has_result(measure(vocab(32))) == std::vector<bool>(4, true));
  REQUIRE(has_result(measure(posbias::Identity())) == std::vector<bool>(4, true));

  // Only a length without positions is left out; what training or another error says comes out.
  REQUIRE(message_of<posbias::PositionError>([&] { (void)measure(vocab(7)); }) ==
          "LearnedVocab::mod_x: pos at index 7 is 7; integers in [0, 7) are needed");
  REQUIRE(message_of<posbias::ShapeError>([&] { (void)measure(posbias::ALiBi<float>({.n_heads = 3})); }) ==
          "posbias::attention: ALiBi: q has 2 heads; n_heads = 3");
}

TEST_CASE("report: a length without a result is a dash in the table and an empty field in the CSV", "[report]") {
  REQUIRE(demo::table_cell(2.2184, 7) == "  2.218");
  REQUIRE(demo::table_cell(12.3456, 5) == "12.346");
  REQUIRE(demo::table_cell(std::nullopt, 5) == "    –");
  REQUIRE(demo::table_cell(std::nullopt, 1) == "–");

  const auto row = [](std::vector<std::optional<double>> bits) {
    std::ostringstream csv;
    demo::write_csv_row(csv, {"scheme", 64, 1.5, std::move(bits)});
    return csv.str();
  };
  REQUIRE(row({2.25, std::nullopt, 3.5}) == "scheme,64,1.5,2.25,,3.5\n");
  REQUIRE(row({std::nullopt, 2, std::nullopt}) == "scheme,64,1.5,,2,\n");
}

TEST_CASE("corpus: comments at the top are dropped, and only there", "[corpus]") {
  REQUIRE(demo::without_leading_comment("// a\n//\n\n/* b\n */ int x; // c\n") == "int x; // c\n");
  REQUIRE(demo::without_leading_comment("  text") == "text");
  REQUIRE(demo::without_leading_comment("// only").empty());
  REQUIRE(demo::without_leading_comment("/* open").empty());
  REQUIRE(demo::without_leading_comment("/").size() == 1);
  REQUIRE(demo::without_leading_comment("").empty());
}

TEST_CASE("corpus: a folder is read in order, without binary files, every tenth held out", "[corpus]") {
  const TemporaryFolder folder;
  for (int i = 19; i >= 0; --i) {
    const char letter = static_cast<char>('a' + i);
    folder.write((i % 2 == 0 ? "even/" : "odd/") + std::string(1, letter), std::string(30, letter));
  }
  folder.write("even/binary", std::string("text\0", 5));
  folder.write("even/licence", "// all rights\r\n");
  const auto corpus = demo::read_corpus(folder.path());
  REQUIRE(corpus.files == 20);
  REQUIRE(corpus.training.size() == 18 * 30);
  REQUIRE(corpus.held_out.size() == 2 * 30);
  REQUIRE(corpus.symbols == 19);  // 18 letters, and one for those that training never shows
  REQUIRE(std::count(corpus.held_out.begin(), corpus.held_out.end(), Symbol{0}) == 60);
  REQUIRE(corpus.training[0] == 1);   // 'a'
  REQUIRE(corpus.training[30] == 3);  // 'c', from even/c, which comes before odd/b
}

TEST_CASE("corpus: one file is split at nine tenths, rare bytes are alike", "[corpus]") {
  const TemporaryFolder folder;
  folder.write("text", std::string(50, 'x') + "q\xff" + std::string(38, 'y') + "z" + std::string(9, 'x'));
  const auto corpus = demo::read_corpus(folder.path() / "text");
  REQUIRE(corpus.training.size() == 90);
  REQUIRE(corpus.held_out.size() == 10);
  REQUIRE(corpus.symbols == 3);
  REQUIRE(corpus.training[50] == corpus.training[51]);
}

TEST_CASE("corpus: no file has more than four times the mean", "[corpus]") {
  const TemporaryFolder folder;
  for (char name = 'a'; name < 'j'; ++name) folder.write(std::string(1, name), std::string(20, 'x'));
  folder.write("0", std::string(820, 'y'));
  const auto corpus = demo::read_corpus(folder.path());
  REQUIRE(corpus.training.size() == 8 * 20 + 400);
}

TEST_CASE("corpus: what cannot be read is said in a line", "[corpus]") {
  const TemporaryFolder folder;
  const auto error = [&](const std::string& name) {
    return message_of<demo::InputError>([&] { demo::read_corpus(folder.path() / name); });
  };
  CHECK_THAT(error("nowhere"), contains("cannot read") && contains("nowhere"));
  CHECK_THAT(error(""), contains("no text in"));
  folder.write("binary", std::string(100, '\0'));
  folder.write("empty", "");
  CHECK_THAT(error(""), contains("no text in"));
  CHECK_THAT(error("binary"), contains("no text in"));

  folder.write("short", "some text of forty characters, not more.");
  const auto prepare = [&](Index length, const std::vector<Index>& test_lengths) {
    return message_of<demo::InputError>(
        [&] { demo::prepare(demo::read_corpus(folder.path() / "short"), {.length = length}, test_lengths); });
  };
  CHECK_THAT(prepare(64, {2}), contains("the training text has 36 characters") && contains("length 64"));
  CHECK_THAT(prepare(8, {8}), contains("the held-out text has 4 characters"));
  CHECK_THAT(prepare(2, {2, 3}), contains("test length 2 does not divide the longest, 3"));
}
