// SPDX-License-Identifier: MIT
/// \file
/// Text for a character-level model: from a file or folder to numbers, training and held-out.
///
/// The result depends on the bytes read and on nothing else: files come in the order of their relative paths.
/// - Files with a NUL byte are not text and are skipped; carriage returns are dropped.
/// - A comment at the top of a file is dropped: in source code that is the licence, the same in every file.
/// - A file is cut to four times the mean length, so that no single one, machine-written perhaps, sets the tone.
/// - Of ten or more files every tenth is held out; of fewer, the last tenth of the text.
/// - The symbols are the bytes that occur ten times or more in the training text, and one for all the others.
#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "transformer/layers.hpp"

namespace demo {

/// Something the user asked for cannot be had; the message is one line.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Corpus {
  std::vector<Symbol> training, held_out;
  Index symbols = 0;  ///< size of the vocabulary
  Index files = 0;    ///< read
};

/// The text after any comments (//, /* */) and white space that it starts with.
inline std::string_view without_leading_comment(std::string_view text) {
  for (;;) {
    text.remove_prefix(std::min(text.find_first_not_of(" \t\n"), text.size()));
    const std::string_view end = text.starts_with("//") ? "\n" : text.starts_with("/*") ? "*/" : "";
    if (end.empty()) return text;
    const auto found = text.find(end, 2);
    text.remove_prefix(found == std::string_view::npos ? text.size() : found + end.size());
  }
}

/// The text of a file as the model gets to see it; empty for a binary file.
inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(stream), {});
  if (!stream.is_open() || stream.bad()) throw InputError("cannot read " + path.string());
  if (text.find('\0') != std::string::npos) return {};
  std::erase(text, '\r');
  return std::string(without_leading_comment(text));
}

/// All files at or below `path`, ordered by relative path.
inline std::vector<std::filesystem::path> list_files(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto status = fs::status(path, error);
  if (!fs::exists(status)) throw InputError("cannot read " + path.string() + ": " + error.message());
  if (!fs::is_directory(status)) return {path};

  std::vector<fs::path> files;
  fs::recursive_directory_iterator entry(path, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error))
    if (std::error_code unknown; entry->is_regular_file(unknown)) files.push_back(entry->path());
  if (error) throw InputError("cannot read " + path.string() + ": " + error.message());
  std::sort(files.begin(), files.end(),
            [](const fs::path& a, const fs::path& b) { return a.generic_string() < b.generic_string(); });
  return files;
}

/// A number for every byte, by its frequency in `text`.
class Vocabulary {
 public:
  explicit Vocabulary(std::string_view text) {
    constexpr Index common = 10;
    std::array<Index, 256> counts{};
    for (const char c : text) ++counts[byte(c)];
    for (std::size_t b = 0; b < counts.size(); ++b)
      if (counts[b] >= common) symbols_[b] = size_++;
  }

  /// The number of symbols; 0 is what all rare bytes are.
  [[nodiscard]] Index size() const { return size_; }

  [[nodiscard]] std::vector<Symbol> encode(std::string_view text) const {
    std::vector<Symbol> result(text.size());
    std::transform(text.begin(), text.end(), result.begin(), [this](char c) { return symbols_[byte(c)]; });
    return result;
  }

 private:
  static std::size_t byte(char c) { return static_cast<unsigned char>(c); }
  std::array<Symbol, 256> symbols_{};
  Symbol size_ = 1;
};

inline Corpus read_corpus(const std::filesystem::path& path) {
  std::vector<std::string> texts;
  std::size_t total = 0;
  for (const auto& file : list_files(path)) {
    std::string text = read_text(file);
    if (text.empty()) continue;
    total += text.size();
    texts.push_back(std::move(text));
  }
  if (texts.empty()) throw InputError("no text in " + path.string());

  std::string training, held_out;
  const std::size_t longest = 4 * total / texts.size();
  for (std::size_t i = 0; i < texts.size(); ++i)
    (texts.size() >= 10 && i % 10 == 9 ? held_out : training) += texts[i].substr(0, longest);
  if (held_out.empty()) {
    held_out = training.substr(training.size() - training.size() / 10);
    training.resize(training.size() - held_out.size());
  }

  const Vocabulary vocabulary(training);
  return {vocabulary.encode(training), vocabulary.encode(held_out), vocabulary.size(),
          static_cast<Index>(texts.size())};
}

}  // namespace demo
