// SPDX-License-Identifier: MIT
/// \file
/// The index of a checkpoint in several files: which file, a shard, holds which tensor.
///
///     {"metadata": {"total_size": 28}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": ...}}
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "posbias/core/error.hpp"
#include "posbias/io/json_text.hpp"

namespace posbias::io::detail {

/// From the name of a tensor to the name of its shard.
using WeightMap = std::map<std::string, std::string, std::less<>>;

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

/// The weight_map of an index. Throws FormatError unless it is one, and its shards are files beside it.
inline WeightMap parse_index(std::string_view text) {
  IndexReader index;
  parse_json("index", text, index);
  index.finish();
  return std::move(index.weight_map);
}

}  // namespace posbias::io::detail
