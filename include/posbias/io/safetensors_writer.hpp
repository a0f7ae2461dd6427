// SPDX-License-Identifier: MIT
/// \file
/// Writes safetensors files.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ios>
#include <map>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"
#include "posbias/io/safetensors_header.hpp"

namespace posbias::io {

/// Collects tensors and writes them as one file. Larger scalars come first, then names in byte order: every
/// value is aligned, and the bytes do not depend on the order of the calls.
class SafeTensorsWriter {
 public:
  /// Copies a tensor of either layout; the file is row-major.
  template <detail::StorableTensor Tensor>
  void add(std::string_view name, const Tensor& tensor) {
    using Scalar = std::remove_const_t<typename Tensor::Scalar>;
    Item item{{std::string(name), detail::stored_as<Scalar>(), detail::shape_of(tensor)}, {}};
    item.entry.end = detail::stored_size(item.entry);
    item.bytes.resize(static_cast<std::size_t>(item.entry.end));
    const auto count = static_cast<Index>(item.bytes.size() / sizeof(Scalar));
    for (Index n = 0; n < count; ++n)
      std::memcpy(&item.bytes[static_cast<std::size_t>(n) * sizeof(Scalar)],
                  tensor.data() + detail::memory_index<Tensor::Layout>(n, item.entry.shape), sizeof(Scalar));
    if (name == detail::metadata_key || items_.contains(item.entry.name))
      detail::fail<FormatError>("SafeTensorsWriter::add: the name ", detail::shown(name), " is taken");
    items_.emplace(name, std::move(item));
  }

  /// Keeps a text beside the tensors. Throws FormatError if there is one of this key.
  void add_metadata(std::string_view key, std::string_view value) {
    if (!metadata_.emplace(key, value).second)
      detail::fail<FormatError>("SafeTensorsWriter::add_metadata: the key ", detail::shown(key), " is taken");
  }

  /// The file.
  [[nodiscard]] std::vector<std::byte> bytes() const {
    using detail::json_string;
    std::vector<const Item*> order;
    for (const auto& [name, item] : items_) order.push_back(&item);
    std::ranges::stable_sort(order, std::greater<>{},
                             [](const Item* item) { return detail::find_stored_type(item->entry.dtype)->bits; });
    std::string header = "{";
    const auto member = [&header](std::string_view key) -> std::string& {
      if (!header.ends_with('{')) header += ',';
      return header += json_string(key) + ':';
    };
    if (!metadata_.empty()) {
      member(detail::metadata_key) += '{';
      for (const auto& [key, value] : metadata_) member(key) += json_string(value);
      header += '}';
    }
    std::uint64_t size = 0;
    for (const Item* item : order) {
      std::string shape;
      for (const Index n : item->entry.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
      member(item->entry.name) += '{';
      member("dtype") += json_string(item->entry.dtype);
      member("shape") += '[' + shape + ']';
      member("data_offsets") += '[' + std::to_string(size) + ',' + std::to_string(size + item->entry.end) + "]}";
      size += item->entry.end;
    }
    header += '}';
    header.resize((header.size() + 7) / 8 * 8, ' ');
    detail::parse_header(header, size);  // refuses what the reader would, say a name that is not UTF-8

    std::vector<std::byte> file;
    const auto append = [&file](std::span<const std::byte> part) { file.insert(file.end(), part.begin(), part.end()); };
    const std::uint64_t length[] = {header.size()};
    append(std::as_bytes(std::span(length)));
    append(std::as_bytes(std::span(header)));
    for (const Item* item : order) append(item->bytes);
    return file;
  }

  /// Writes beside `path` and renames: whoever reads `path`, at any time, finds the old file or the new one.
  void write(const std::filesystem::path& path) const {
    const std::vector<std::byte> file = bytes();
    std::filesystem::path temporary = path;
    temporary += ".partial-" + std::to_string(std::random_device{}());
    std::ofstream stream(temporary, std::ios::binary | std::ios::trunc);
    stream.write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
    stream.close();
    std::error_code error;
    if (stream) std::filesystem::rename(temporary, path, error);
    if (stream && !error) return;
    std::filesystem::remove(temporary, error);
    detail::fail<FormatError>("SafeTensorsWriter::write: cannot write ", path.string());
  }

 private:
  struct Item {
    SafeTensorsEntry entry;  // begins at 0: the place in the file depends on tensors still to come
    std::vector<std::byte> bytes;
  };

  std::map<std::string, Item, std::less<>> items_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

}  // namespace posbias::io
