// SPDX-License-Identifier: MIT
/// \file
/// Reads the JSON of safetensors files, the header and the index of shards, from the events of nlohmann-json. No other header
/// includes that; where posbias::compiled is linked, neither does this program.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/io/json_text.hpp"
#include "posbias/io/safetensors_header.hpp"
#include "posbias/io/safetensors_index.hpp"

namespace posbias::io::detail {

/// For a reader's parse_error.
[[noreturn]] inline void fail_json(std::string_view part, std::size_t byte, const std::exception& error) {
  std::string_view reason = error.what();  // ends in the offending text, which may be long and not UTF-8
  reason = reason.substr(0, (std::min)(reason.find("; last read"), std::size_t{200}));
  fail<FormatError>("SafeTensors: the ", part, " is not JSON in UTF-8, byte ", byte, ": ", reason);
}

/// Gives a text to a reader of SAX events.
template <class Reader>
void parse_json(std::string_view part, std::string_view text, Reader& reader) {
  if (text.find('\0') != text.npos)  // nlohmann-json would take it for the end of the input
    fail<FormatError>("SafeTensors: the ", part, " is not JSON, byte ", text.find('\0') + 1, " is NUL");
  nlohmann::json::sax_parse(text.data(), text.data() + text.size(), &reader);
}

/// Takes the header from nlohmann-json as SAX events: no document is built, duplicate keys are seen, and nesting
/// deeper than the format's ends the parse at once.
class HeaderReader : public Header {
 public:
  bool null() {
    if (in_ != In::top || key_ != metadata_key) wrong("null");
    return true;
  }
  bool boolean(bool) { wrong("a boolean"); }
  bool number_integer(std::int64_t) { wrong("a negative integer"); }
  bool number_float(double, const std::string& digits) { wrong("the number " + digits.substr(0, 40)); }
  bool binary(nlohmann::json::binary_t&) { wrong("binary"); }

  bool number_unsigned(std::uint64_t value) {
    if (in_ != In::shape && in_ != In::offsets) wrong("a number");
    numbers_.push_back(value);
    return true;
  }

  bool string(std::string& value) {
    if (in_ == In::metadata) {
      metadata[key_] = std::move(value);
    } else if (in_ == In::tensor && key_ == "dtype") {
      const StoredType* type = find_stored_type(value);
      if (type == nullptr) fail<FormatError>(place(), "unknown dtype ", shown(value));
      entries.back().dtype = type->name;
    } else {
      wrong("a string");
    }
    return true;
  }

  bool key(std::string& name) {
    if (!keys_[in_ == In::top ? 0 : 1].insert(name).second)
      fail<FormatError>(place(), "the key ", shown(name), " occurs twice");
    if (in_ == In::tensor && std::ranges::find(tensor_keys, name) == tensor_keys.end())
      fail<FormatError>(place(), "expected the keys dtype, shape and data_offsets; got ", shown(name));
    key_ = std::move(name);
    return true;
  }

  bool start_object(std::size_t) {
    if (in_ == In::file) {
      in_ = In::top;
    } else if (in_ == In::top) {
      keys_[1].clear();
      in_ = key_ == metadata_key ? In::metadata : In::tensor;
      if (in_ == In::tensor) entries.emplace_back().name = key_;
    } else {
      wrong("an object");
    }
    return true;
  }

  bool end_object() {
    if (in_ == In::tensor)
      for (const std::string_view needed : tensor_keys)
        if (!keys_[1].contains(needed)) fail<FormatError>(place(), "has no ", needed);
    in_ = In::top;
    return true;
  }

  bool start_array(std::size_t) {
    if (in_ != In::tensor || key_ == "dtype") wrong("an array");
    in_ = key_ == "shape" ? In::shape : In::offsets;
    numbers_.clear();
    return true;
  }

  bool end_array() {
    SafeTensorsEntry& entry = entries.back();
    if (in_ == In::shape) {
      for (const std::uint64_t size : numbers_) {
        if (!std::in_range<Index>(size)) wrong(std::to_string(size));
        entry.shape.push_back(static_cast<Index>(size));
      }
    } else {
      if (numbers_.size() != 2) wrong(std::to_string(numbers_.size()) + " of them");
      std::tie(entry.begin, entry.end) = std::tie(numbers_[0], numbers_[1]);
    }
    in_ = In::tensor;
    return true;
  }

  bool parse_error(std::size_t byte, const std::string&, const std::exception& error) {
    fail_json("header", byte, error);
  }

 private:
  enum class In { file, top, metadata, tensor, shape, offsets };
  static constexpr std::array<std::string_view, 3> tensor_keys{"dtype", "shape", "data_offsets"};

  [[nodiscard]] std::string place() const {
    if (in_ == In::file || in_ == In::top) return "SafeTensors: the header: ";
    if (in_ == In::metadata) return "SafeTensors: __metadata__: ";
    return "SafeTensors: tensor " + shown(entries.back().name) + ": ";
  }

  [[noreturn]] void wrong(const std::string& came) const {
    const std::string_view expected = in_ == In::top        ? "an object"
                                      : in_ == In::metadata ? "a string"
                                      : in_ == In::shape    ? "an array of integers from 0 to the largest Index"
                                      : in_ == In::offsets  ? "an array of two 64-bit unsigned integers"
                                      : key_ == "dtype"     ? "a string"
                                                            : "an array";
    fail<FormatError>(place(), shown(key_), " must be ", expected, "; got ", came);
  }

  In in_ = In::file;
  std::string key_;
  std::vector<std::uint64_t> numbers_;                      // of the array that is open
  std::array<std::set<std::string, std::less<>>, 2> keys_;  // of the header; of the object that is open in it
};

template <class>
Header parse_header(std::string_view text, std::uint64_t data_size) {
  check_json_size("header", text.size());
  if (!text.starts_with('{')) fail<FormatError>("SafeTensors: the header must start with '{'");
  text = text.substr(0, text.find_last_not_of(' ') + 1);
  if (!text.ends_with('}'))
    fail<FormatError>("SafeTensors: the header must be one JSON object, followed by nothing but spaces");

  HeaderReader header;
  parse_json("header", text, header);
  std::ranges::sort(header.entries, {}, [](const SafeTensorsEntry& e) { return std::tie(e.begin, e.end, e.name); });
  std::uint64_t next = 0;
  for (const SafeTensorsEntry& entry : header.entries) {
    const auto check = [&](bool right, const auto&... message) {
      if (!right)
        fail<FormatError>("SafeTensors: tensor ", shown(entry.name), ": data_offsets [", entry.begin, ", ", entry.end,
                          ") ", message...);
    };
    check(entry.begin <= entry.end, "end before they begin");
    check(entry.begin == next, entry.begin < next ? "overlap" : "leave a hole after", " the values before; ",
          "expected them to begin at ", next);
    const std::uint64_t needed = stored_size(entry);
    check(entry.end - entry.begin == needed, "are ", entry.end - entry.begin, " bytes; shape ", std::span(entry.shape),
          " of ", entry.dtype, " takes ", needed);
    next = entry.end;
  }
  if (next != data_size)
    fail<FormatError>("SafeTensors: the header describes ", next, " bytes of values; the file has ", data_size);
  return header;
}

/// A shard lies beside its index: no name leads into another folder.
inline bool is_file_name(std::string_view name) {
  using namespace std::string_view_literals;
  return !name.empty() && name != "." && name != ".." && name.find_first_of("/\\:\0"sv) == name.npos;
}

/// Takes an index from nlohmann-json as SAX events; everything but the weight_map is skipped.
class IndexReader {
 public:
  WeightMap weight_map;

  bool null() { return value(Kind::other); }
  bool boolean(bool) { return value(Kind::other); }
  bool number_integer(std::int64_t) { return value(Kind::other); }
  bool number_unsigned(std::uint64_t) { return value(Kind::other); }
  bool number_float(double, const std::string&) { return value(Kind::other); }
  bool binary(nlohmann::json::binary_t&) { return value(Kind::other); }

  bool string(std::string& text) {
    value(Kind::string);
    if (!in_map()) return true;
    if (!is_file_name(text))
      fail<FormatError>("SafeTensors: the index: tensor ", shown(key_), ": the shard ", shown(text),
                        " must be the name of a file beside the index");
    if (!weight_map.emplace(key_, std::move(text)).second)
      fail<FormatError>("SafeTensors: the index: tensor ", shown(key_), " occurs twice");
    return true;
  }

  bool key(std::string& name) {
    if (depth_ <= 2) key_ = std::move(name);
    return true;
  }

  bool start_object(std::size_t) {
    value(Kind::object);
    if (is_map() && ++maps_ > 1) fail<FormatError>("SafeTensors: the index: weight_map occurs twice");
    in_map_ = in_map_ || is_map();
    ++depth_;
    return true;
  }
  bool end_object() { return end_array(); }

  bool start_array(std::size_t) {
    value(Kind::other);
    ++depth_;
    return true;
  }
  bool end_array() {
    --depth_;
    in_map_ = in_map_ && depth_ > 1;
    return true;
  }

  bool parse_error(std::size_t byte, const std::string&, const std::exception& error) {
    fail_json("index", byte, error);
  }

  /// After the last event.
  void finish() const {
    if (maps_ == 0) fail<FormatError>("SafeTensors: the index has no weight_map");
  }

 private:
  enum class Kind { object, string, other };

  [[nodiscard]] bool is_map() const { return depth_ == 1 && key_ == "weight_map"; }
  [[nodiscard]] bool in_map() const { return in_map_ && depth_ == 2; }

  bool value(Kind kind) const {
    if (depth_ == 0 && kind != Kind::object) fail<FormatError>("SafeTensors: the index must be an object");
    if (is_map() && kind != Kind::object) fail<FormatError>("SafeTensors: the index: weight_map must be an object");
    if (in_map() && kind != Kind::string)
      fail<FormatError>("SafeTensors: the index: tensor ", shown(key_), ": its shard must be a string");
    return true;
  }

  std::uint64_t depth_ = 0;  // of objects and arrays that are open
  std::uint64_t maps_ = 0;
  bool in_map_ = false;
  std::string key_;  // the last of the outer object or of one in it
};

template <class>
WeightMap parse_index(std::string_view text) {
  IndexReader index;
  parse_json("index", text, index);
  index.finish();
  return std::move(index.weight_map);
}

}  // namespace posbias::io::detail
