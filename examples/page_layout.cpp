// SPDX-License-Identifier: MIT
/// \file
/// Which label of a form belongs to which value? RelativeAttention on the boxes of a page: page_layout [PICTURE]. A layer is
/// told the kinds of boxes and where they are, in two coordinates, and learns to look from values at their labels. Layers
/// with one coordinate, or none, cannot. PICTURE, an SVG, shows what two values look at on a page not seen before.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iomanip>
#include <posbias/posbias.hpp>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using posbias::Index;
using Layer = posbias::RelativeAttention<float>;
using Pairs = Eigen::Tensor<float, 4, Eigen::RowMajor>;  // (pages, queries, keys, 1): of one head

constexpr int columns = 6, lines = 6, boxes = 25;  // of every page
constexpr Index steps = 100, pages_a_step = 16, test_pages = 250;
constexpr float shown = 0.005F;  // smaller weights are not

enum Kind { label, value, text, kinds };
struct Box {
  Kind kind;
  int column, line;
  std::string words;    // for people; the layer does not get them
  Index its_label = 0;  // of a value: which box is its label
};
using Page = std::vector<Box>;

/// The numbers below `count` in random order; the same on every platform, as std::shuffle is not.
std::vector<int> shuffled(int count, std::mt19937& random) {
  std::vector<int> numbers;
  for (int i = 0; i < count; ++i)
    numbers.insert(numbers.begin() + static_cast<int>(random() % (numbers.size() + 1)), i);
  return numbers;
}

/// Three lines "label value label value" and a table of three columns with its labels on top, in any order, with any gaps,
/// and with text in some of them.
Page random_page(std::mt19937& random) {
  constexpr const char* fields[][4] = {{"Name", "Ada Byron", "Date", "1843-09-01"},
                                       {"City", "London", "Phone", "555 0143"},
                                       {"Order", "no. 17", "Paid by", "cheque"}};
  constexpr const char* table[][3] = {{"Item", "wheels", "cards"}, {"Pieces", "42", "600"}, {"Price", "3.50", "0.02"}};
  constexpr const char* texts[] = {"draft", "thank you", "page 1", "copy"};
  Page page;
  int line = 0;
  for (const int block : shuffled(4, random)) {
    std::vector<int> column = shuffled(columns, random);
    std::sort(column.begin(), column.begin() + (block < 3 ? 4 : 3));
    for (std::size_t i = 0; block < 3 && i < 4; i += 2) {
      page.push_back({label, column[i], line, fields[block][i]});
      page.push_back({value, column[i + 1], line, fields[block][i + 1], std::ssize(page) - 1});
    }
    for (std::size_t i = 0; block == 3 && i < 3; ++i) {
      page.push_back({label, column[i], line, table[i][0]});
      page.push_back({value, column[i], line + 1, table[i][1], std::ssize(page) - 1});
      page.push_back({value, column[i], line + 2, table[i][2], std::ssize(page) - 2});
    }
    page.push_back({text, column.back(), line, texts[block]});
    line += block < 3 ? 1 : 3;
  }
  return page;
}

/// Pages, what a layer may know of them, and what it is to find.
struct Batch {
  std::vector<Page> pages;
  Eigen::Tensor<float, 3, Eigen::RowMajor> content;             // (pages, boxes, kinds): 1 for a box's own kind
  Eigen::Tensor<int, 2, Eigen::RowMajor> lines_of, columns_of;  // (pages, boxes)
  std::vector<std::array<Index, 3>> answers;                    // a page, a value on it, the label of the value

  Batch(Index count, std::mt19937& random)
      : content(count, boxes, kinds), lines_of(count, boxes), columns_of(count, boxes) {
    content.setZero();
    for (Index n = 0; n < count; ++n) {
      Index i = 0;
      for (const Box& box : pages.emplace_back(random_page(random))) {
        content(n, i, box.kind) = 1;
        lines_of(n, i) = box.line;
        columns_of(n, i) = box.column;
        if (box.kind == value) answers.push_back({n, i, box.its_label});
        ++i;
      }
    }
  }
};

/// The numbers of all parameters of a layer or, in the same order, of their gradients.
template <class Owner>
std::vector<std::span<float>> numbers_of(Owner& owner) {
  std::vector<std::span<float>> numbers;
  posbias::for_each_parameter(owner, [&](std::string_view, auto& tensor) {
    numbers.emplace_back(tensor.data(), static_cast<std::size_t>(tensor.size()));
  });
  return numbers;
}

/// A layer that knows nothing of places, or lines, or lines and columns.
class Model {
 public:
  explicit Model(Index coordinates)
      : coordinates_(coordinates),
        layer_({.size = 32,
                .n_heads = 1,
                .query_size = kinds,
                .key_size = kinds,
                .head_size = 32,
                .n_positions = 16,  // -8 .. 7, key minus query
                .n_coordinates = std::max<Index>(coordinates, 1),
                .do_pooling = false}) {}  // logits will do

  /// How much each box looks at each: the softmax of its logits.
  [[nodiscard]] Pairs attention(const Batch& batch) const {
    Pairs weights = layer_(batch.content, batch.content, places(batch));
    for (Index row = 0; row < weights.size(); row += boxes) {
      Eigen::Map<Eigen::ArrayXf> keys(weights.data() + row, boxes);
      keys = (keys - keys.maxCoeff()).exp();
      keys /= keys.sum();
    }
    return weights;
  }

  /// A step of gradient descent with momentum, on the mean cross-entropy of what values look at: it is to be their labels.
  void learn(const Batch& batch) {
    constexpr float rate = 0.05F, momentum = 0.9F;
    const Pairs weights = attention(batch);
    Pairs grad_logits = weights.constant(0);
    for (const auto& [n, i, its_label] : batch.answers) {
      grad_logits.chip(n, 0).chip(i, 0) = weights.chip(n, 0).chip(i, 0);
      grad_logits(n, i, its_label, 0) -= 1;
    }
    grad_logits = grad_logits / static_cast<float>(batch.answers.size());
    auto grad_content = batch.content;  // of no use: nothing before the layer learns
    layer_.backward(grad_content, grad_content, grad_logits, batch.content, batch.content, places(batch), gradients_);

    const auto parameters = numbers_of(layer_), gradients = numbers_of(gradients_);
    for (std::size_t p = 0; p < parameters.size(); ++p)
      for (std::size_t x = 0; x < parameters[p].size(); ++x) {
        if (!std::isfinite(gradients[p][x])) throw std::runtime_error("a gradient is not finite");
        parameters[p][x] -= rate * gradients[p][x];
        gradients[p][x] *= momentum;  // backward adds to what is left
      }
  }

 private:
  [[nodiscard]] Layer::Call places(const Batch& batch) const {
    if (coordinates_ == 0) return {};  // content alone
    if (coordinates_ == 1) return {.positions = {{.q_k = batch.lines_of}}};
    return {.positions = {{.q_k = batch.lines_of}, {.q_k = batch.columns_of}}};
  }

  Index coordinates_;
  Layer layer_;
  Layer::Gradients gradients_ = layer_.zero_gradients();
};

/// The share of values that look at their label more than at any other box.
double accuracy(const Pairs& weights, const Batch& batch) {
  double found = 0;
  for (const auto& [n, i, its_label] : batch.answers) {
    const float* keys = &weights(n, i, 0, 0);
    found += std::max_element(keys, keys + boxes) == keys + its_label ? 1 : 0;
  }
  return found / static_cast<double>(batch.answers.size());
}

/// Draws the page once for each query, whose weights, rows of `attention`, shade the boxes.
void draw(const std::string& path, const Page& page, const std::vector<std::size_t>& queries, const float* attention) {
  constexpr int cell_width = 150, cell_height = 62, heading = 56, margin = 30;
  constexpr int width = columns * cell_width + 2 * margin, panel = lines * cell_height + heading + margin;
  constexpr const char* styles[] = {"font-weight='bold'", "", "font-style='italic' fill='#777'"};
  constexpr const char *thin = "'#aaa'", *thick = "'#d9480f' stroke-width='5'";
  const int end = static_cast<int>(queries.size()) * panel;
  std::ofstream svg(path);
  const auto write = [&](int x, int y, const auto& words, const char* style = "") {
    svg << "<text x='" << x << "' y='" << y << "' " << style << ">" << words << "</text>\n";
  };
  const auto rectangle = [&](int x, int y, int w, int h, float weight, const char* stroke) {
    svg << "<rect x='" << x << "' y='" << y << "' width='" << w << "' height='" << h
        << "' fill='#1f78d1' fill-opacity='" << 0.7F * weight << "' stroke=" << stroke << "/>\n";
  };
  svg << std::fixed << std::setprecision(2) << "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 " << width << " "
      << end + 80 << "' font-family='sans-serif' font-size='20' text-anchor='middle'>\n"
      << "<rect width='100%' height='100%' fill='white'/>\n";
  for (std::size_t q = 0; q < queries.size(); ++q) {
    const int top = static_cast<int>(q) * panel + heading;
    write(width / 2, top - 18, "What “" + page[queries[q]].words + "” looks at", "font-size='24'");
    rectangle(margin - 5, top - 5, width - 2 * margin + 10, lines * cell_height + 10, 0, thin);
    for (std::size_t j = 0; j < boxes; ++j) {
      const int x = margin + page[j].column * cell_width, y = top + page[j].line * cell_height;
      const float weight = attention[queries[q] * boxes + j];
      rectangle(x + 5, y + 4, cell_width - 10, cell_height - 8, weight, j == queries[q] ? thick : thin);
      write(x + cell_width / 2, y + (weight < shown ? 38 : 27), page[j].words, styles[page[j].kind]);
      if (weight >= shown) write(x + cell_width / 2, y + 50, weight);
    }
  }
  write(margin + 40, end + 35, "label", styles[label]);
  write(margin + 125, end + 35, "value", styles[value]);
  write(margin + 205, end + 35, "text", styles[text]);
  rectangle(margin + 265, end + 14, 50, 28, 0, thick);
  write(margin + 355, end + 35, "query");
  write(margin + 535, end + 35, "attention weight: 0");
  for (int i = 0; i < 20; ++i) rectangle(margin + 645 + 10 * i, end + 10, 10, 36, static_cast<float>(i) / 19, "'none'");
  write(margin + 860, end + 35, "1");
  svg << "</svg>\n";
  svg.close();
  if (!svg) throw std::runtime_error("cannot write " + path);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string path = argc > 1 ? argv[1] : "page_layout.svg";
  if (argc > 2 || path.empty() || path.front() == '-') {
    std::fprintf(stderr, "usage: page_layout [PICTURE]\nPICTURE is an SVG to write, page_layout.svg by default.\n");
    return 2;
  }
  std::mt19937 random;
  const Batch test(test_pages, random);
  Pairs weights;
  double found[3];
  for (const Index coordinates : {0, 1, 2}) {
    Model model(coordinates);
    for (Index step = 0; step < steps; ++step) model.learn(Batch(pages_a_step, random));
    weights = model.attention(test);
    found[coordinates] = accuracy(weights, test);
    constexpr const char* known[] = {"nothing", "lines", "lines and columns"};
    std::printf("knows %-17s  finds the label of %5.1f %% of values\n", known[coordinates], 100 * found[coordinates]);
  }

  const Page& page = test.pages.front();
  std::vector<std::size_t> queries;
  for (std::size_t i = 0; i < boxes; ++i) {
    if (page[i].words != "1843-09-01" && page[i].words != "600") continue;
    queries.push_back(i);
    std::printf("\n\"%s\" looks at\n", page[i].words.c_str());
    for (std::size_t j = 0; j < boxes; ++j)
      if (const float weight = weights.data()[i * boxes + j]; weight >= shown)
        std::printf("%6.2f  %-8s  line %+d, column %+d\n", static_cast<double>(weight), page[j].words.c_str(),
                    page[j].line - page[i].line, page[j].column - page[i].column);
  }
  draw(path, page, queries, weights.data());
  std::printf("\n%s shows it\n", path.c_str());
  // Content alone leaves nine labels, lines leave two or three; both together leave one.
  return found[2] > 0.98 && found[1] < 0.5 && found[0] < 0.2 ? 0 : 1;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "page_layout: %s\n", problem.what());
  return 1;
}
