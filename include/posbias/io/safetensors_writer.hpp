// SPDX-License-Identifier: MIT
/// \file
/// Writes safetensors files.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ios>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"
#include "posbias/io/file_bytes.hpp"
#include "posbias/io/json_text.hpp"
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
    const std::vector<const Item*> order = items_in_order();
    const std::string head = head_of(order);
    std::size_t size = head.size();
    for (const Item* item : order) size += item->bytes.size();
    std::vector<std::byte> file(size);
    std::byte* to = file.data();
    for_each_part(head, order, [&](std::span<const std::byte> part) { to = std::ranges::copy(part, to).out; });
    return file;
  }

  /// Writes beside `path` and renames: whoever reads `path`, at any time, finds the old file or the new one. A file
  /// that was there leaves its mode; where `path` is a symbolic link, the file that it leads to is replaced.
  void write(const std::filesystem::path& path) const {
    const std::vector<const Item*> order = items_in_order();
    const std::string head = head_of(order);
    const bool written = detail::replace_file(path, [&](std::ofstream& stream) {
      for_each_part(head, order, [&](std::span<const std::byte> part) {
        stream.write(reinterpret_cast<const char*>(part.data()), static_cast<std::streamsize>(part.size()));
      });
    });
    if (!written) detail::fail<FormatError>("SafeTensorsWriter::write: cannot write ", path.string());
  }

 private:
  struct Item {
    SafeTensorsEntry entry;  // begins at 0: the place in the file depends on tensors still to come
    std::vector<std::byte> bytes;
  };

  [[nodiscard]] std::vector<const Item*> items_in_order() const {
    std::vector<const Item*> order;
    for (const auto& [name, item] : items_) order.push_back(&item);
    std::ranges::stable_sort(order, std::greater<>{},
                             [](const Item* item) { return detail::find_stored_type(item->entry.dtype)->bits; });
    return order;
  }

  /// The header's length, and the header.
  [[nodiscard]] std::string head_of(const std::vector<const Item*>& order) const {
    using detail::json_string;
    std::string header = "{";
    const auto member = [&header](std::string_view key) -> std::string& {
      if (!header.ends_with('{')) header += ',';
      return header.append(json_string(key)).append(1, ':');
    };
    if (!metadata_.empty()) {
      member(detail::metadata_key) += '{';
      for (const auto& [key, value] : metadata_) member(key) += json_string(value);
      header += '}';
    }
    std::uint64_t size = 0;
    for (const Item* item : order) {
      const std::uint64_t end = size + item->entry.end;
      member(item->entry.name) += '{';
      member("dtype") += json_string(item->entry.dtype);
      member("shape") += '[';
      for (const Index n : item->entry.shape) {
        if (!header.ends_with('[')) header += ',';
        header += std::to_string(n);
      }
      header += ']';
      member("data_offsets").append(1, '[').append(std::to_string(size)).append(1, ',').append(std::to_string(end));
      header += "]}";
      size = end;
    }
    header += '}';
    header.resize((header.size() + 7) / 8 * 8, ' ');
    detail::parse_header(header, size);  // refuses what the reader would, say a name that is not UTF-8

    const auto length = std::bit_cast<std::array<char, sizeof(std::uint64_t)>>(std::uint64_t{header.size()});
    return std::string(length.begin(), length.end()).append(header);
  }

  /// Calls act(bytes) for the parts of a file, in their order.
  template <class Act>
  static void for_each_part(const std::string& head, const std::vector<const Item*>& order, Act act) {
    act(std::as_bytes(std::span(head)));
    for (const Item* item : order) act(std::span(item->bytes));
  }

  std::map<std::string, Item, std::less<>> items_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

}  // namespace posbias::io
