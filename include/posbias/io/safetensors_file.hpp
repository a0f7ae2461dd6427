// SPDX-License-Identifier: MIT
/// \file
/// Reads safetensors files.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"
#include "posbias/io/file_bytes.hpp"
#include "posbias/io/json_text.hpp"
#include "posbias/io/other_formats.hpp"
#include "posbias/io/safetensors_header.hpp"
#include "posbias/io/safetensors_index.hpp"
#include "posbias/io/stored_values.hpp"

namespace posbias::io {

/// The tensors of a file, or of all shards of a checkpoint. Copies share the bytes; const calls are thread-safe.
class SafeTensors {
 public:
  /// Of bytes that may be in memory, mapped or on disk; `parse`, `read` and `open` make them.
  explicit SafeTensors(detail::FileBytes file) { add(std::move(file)); }

  /// Takes a whole file's bytes.
  static SafeTensors parse(std::vector<std::byte> file) { return SafeTensors(detail::FileBytes(std::move(file))); }

  /// Reads a whole file into memory; then the file may change.
  static SafeTensors read(const std::filesystem::path& path) { return opened(path, true); }

  /// Reads no more than a file's header. Values are mapped into memory; where that cannot be (Windows, say) they are
  /// read from disk as they are asked for. While it is open a file may be replaced or removed, but must not be cut
  /// or written over in place.
  ///
  /// A path that ends in .json is the index of a sharded checkpoint ("model.safetensors.index.json"). It names the
  /// shard of every tensor, a file beside the index; all shards are opened. Tensors that it does not name are left out.
  static SafeTensors open(const std::filesystem::path& path) { return opened(path, false); }

  /// All tensors, in order of offset; shard by shard, in order of the shards' names.
  [[nodiscard]] const std::vector<SafeTensorsEntry>& entries() const { return entries_; }
  /// The texts that are kept beside the tensors; of shards that differ, those of the first.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// Whether a tensor has this name.
  [[nodiscard]] bool contains(std::string_view name) const { return places_.find(name) != places_.end(); }
  /// The shape of a tensor. Throws FormatError if there is none of this name; so do the next.
  [[nodiscard]] const std::vector<Index>& shape(std::string_view name) const { return entry(name).shape; }
  /// What its values are stored as: "F32", "BF16", "I64", "BOOL", ...
  [[nodiscard]] std::string_view dtype(std::string_view name) const { return entry(name).dtype; }
  /// Where and what a tensor is.
  [[nodiscard]] const SafeTensorsEntry& entry(std::string_view name) const { return entries_[place(name).entry]; }

  /// A copy of a tensor's values. F16, BF16, F32 and F64 come as float or double, rounded once; F16 as Eigen::half
  /// and BF16 as Eigen::bfloat16, as they are; integers of any size as 32- or 64-bit ones, if all of them fit; BOOL
  /// as bool. There is no other conversion.
  template <detail::StorableScalar Scalar, int Rank, int Layout = Eigen::RowMajor>
  [[nodiscard]] Eigen::Tensor<Scalar, Rank, Layout> tensor(std::string_view name) const {
    Eigen::Tensor<Scalar, Rank, Layout> result(sizes_of<Rank>("tensor", name));
    copy_to(name, result);
    return result;
  }

  /// A tensor's values where they lie; valid as long as this object or a copy of it. Throws FormatError where only
  /// `tensor` can give them: they are of another type, they lie at an address that their type does not allow (the
  /// usual writers align them), or the file cannot be mapped.
  template <detail::StorableScalar Scalar, int Rank>
  [[nodiscard]] Eigen::TensorMap<const Eigen::Tensor<Scalar, Rank, Eigen::RowMajor>> view(
      std::string_view name) const& {
    const Place& at = place(name);
    const auto check = [&](bool right, const auto&... message) {
      if (!right)
        detail::fail<FormatError>("SafeTensors::view: ", detail::shown(name), message...,
                                  "; SafeTensors::tensor copies the values");
    };
    const std::array<Index, static_cast<std::size_t>(Rank)> sizes = sizes_of<Rank>("view", name);
    check(dtype(name) == detail::stored_as<Scalar>(), " has dtype ", dtype(name), "; expected ",
          detail::stored_as<Scalar>());
    const std::byte* bytes = parts_[at.part].file.data();
    check(bytes != nullptr, " is on disk, and not mapped");
    bytes += first_byte(at);
    check(reinterpret_cast<std::uintptr_t>(bytes) % alignof(Scalar) == 0, " is not aligned to ", alignof(Scalar),
          " bytes");
    check_values<Scalar>(at);
    return {static_cast<const Scalar*>(static_cast<const void*>(bytes)), sizes};
  }
  /// The view would outlive its values.
  template <detail::StorableScalar Scalar, int Rank>
  void view(std::string_view name) const&& = delete;

  /// Throws unless `copy_to` would succeed: the shape is the same and every value converts.
  template <detail::StorableTensor Tensor>
  void check_fits(std::string_view name, const Tensor& tensor) const {
    check_fits<typename Tensor::Scalar>(name, detail::shape_of(tensor));
  }

  /// Overwrites a tensor of exactly the stored shape; on failure it is as it was, unless the disk fails.
  template <detail::StorableTensor Tensor>
  void copy_to(std::string_view name, Tensor& tensor) const {
    check_fits(name, tensor);
    copy_values<Tensor::Layout>(name, tensor.data());
  }

 private:
  struct Part {
    detail::FileBytes file;
    std::uint64_t values;  // their first byte
  };
  struct Place {
    std::size_t entry, part;
  };
  struct Shard {
    const detail::WeightMap* index;
    const std::string* name;
    std::map<std::string, std::string>* elsewhere;  // tensors that were not taken, and the last shard of each
  };

  SafeTensors() = default;

  template <class = void>
  static SafeTensors opened(const std::filesystem::path& path, bool whole);
  /// Adds the tensors of a file, or those that an index says are in this shard; others' names go to `elsewhere`. These
  /// members are templates so that posbias::compiled may hold them.
  template <class = void>
  void add(detail::FileBytes file, const Shard* shard = nullptr);
  /// The same for a file that messages name.
  template <class = void>
  void add_file(const std::filesystem::path& path, detail::FileBytes file, const Shard* shard = nullptr);
  /// Adds each tensor of an index from its shard.
  template <class = void>
  void add_shards(const std::filesystem::path& path);

  template <class Scalar>
  void check_fits(std::string_view name, const std::vector<Index>& wanted) const;
  template <int Layout, class Scalar>
  void copy_values(std::string_view name, Scalar* to) const;

  /// Does what throws no FormatError that leaves out the path.
  template <class Act>
  static void naming(const std::filesystem::path& path, Act act) {
    try {
      act();
    } catch (const FormatError& reason) {
      detail::fail<FormatError>(reason.what(), " (", path.string(), ")");
    }
  }

  [[nodiscard]] const Place& place(std::string_view name) const {
    const auto found = places_.find(name);
    if (found == places_.end()) detail::fail<FormatError>("SafeTensors: no tensor is named ", detail::shown(name));
    return found->second;
  }

  [[nodiscard]] std::uint64_t first_byte(const Place& at) const {
    return parts_[at.part].values + entries_[at.entry].begin;
  }

  template <int Rank>
  [[nodiscard]] std::array<Index, static_cast<std::size_t>(Rank)> sizes_of(std::string_view caller,
                                                                           std::string_view name) const {
    const std::vector<Index>& from = shape(name);
    if (from.size() != static_cast<std::size_t>(Rank))
      detail::fail<FormatError>("SafeTensors::", caller, ": ", detail::shown(name), " has shape ", std::span(from),
                                "; expected rank ", Rank);
    std::array<Index, static_cast<std::size_t>(Rank)> sizes;
    for (std::size_t d = 0; d < sizes.size(); ++d) sizes[d] = from[d];
    return sizes;
  }

  /// Throws unless every value converts.
  template <class Scalar>
  void check_values(const Place& at) const {
    detail::with_stored<Scalar>(entries_[at.entry], [&]<class Stored>(Stored) {
      if constexpr (!detail::always_converts<Scalar, Stored>) visit_values_of<Scalar, Stored>(at, [](Index, Scalar) {});
    });
  }

  /// Calls sink(n, value) for all values in row-major order.
  template <class Scalar, class Sink>
  void visit_values(const Place& at, Sink sink) const {
    detail::with_stored<Scalar>(entries_[at.entry],
                                [&]<class Stored>(Stored) { visit_values_of<Scalar, Stored>(at, sink); });
  }

  template <class Scalar, class Stored, class Sink>
  void visit_values_of(const Place& at, Sink sink) const {
    const SafeTensorsEntry& from = entries_[at.entry];
    Index n = 0;
    parts_[at.part].file.for_each_block(first_byte(at), from.end - from.begin, [&](std::span<const std::byte> block) {
      const auto end = n + static_cast<Index>(block.size() / sizeof(Stored));
      for (const std::byte* bytes = block.data(); n < end; ++n, bytes += sizeof(Stored))
        sink(n, detail::convert<Scalar>(detail::load<Stored>(bytes), from));
    });
  }

  std::vector<Part> parts_;
  std::vector<SafeTensorsEntry> entries_;
  std::map<std::string, Place, std::less<>> places_;
  std::map<std::string, std::string> metadata_;
};

template <class>
SafeTensors SafeTensors::opened(const std::filesystem::path& path, bool whole) {
  SafeTensors result;
  if (whole)
    result.add_file(path, detail::FileBytes::read(path));
  else if (path.extension() == ".json")
    result.add_shards(path);
  else
    result.add_file(path, detail::FileBytes::open(path));
  return result;
}

template <class>
void SafeTensors::add(detail::FileBytes file, const Shard* shard) {
  using detail::fail;
  constexpr std::uint64_t prefix = sizeof(std::uint64_t);
  if (file.size() < prefix)
    fail<FormatError>("SafeTensors: expected 8 bytes for the header's length; the file has ", file.size());
  const std::string first = file.text(0, prefix);
  const auto length = detail::load<std::uint64_t>(std::as_bytes(std::span(first)).data());
  if (const std::string_view format = detail::other_format(first); length > detail::max_json_size && !format.empty())
    fail<FormatError>("SafeTensors: expected a safetensors file; this is ", format);
  if (length > file.size() - prefix)
    fail<FormatError>("SafeTensors: the header has ", length, " bytes; the file has ", file.size() - prefix,
                      " after its length");
  detail::check_json_size("header", length);
  const std::uint64_t values = prefix + length;
  detail::Header header = detail::parse_header(file.text(prefix, length), file.size() - values);
  for (SafeTensorsEntry& entry : header.entries) {
    if (shard != nullptr) {
      const auto found = shard->index->find(entry.name);
      if (found == shard->index->end() || found->second != *shard->name) {
        (*shard->elsewhere)[entry.name] = *shard->name;
        continue;
      }
    }
    places_[entry.name] = {entries_.size(), parts_.size()};
    entries_.push_back(std::move(entry));
  }
  metadata_.merge(std::move(header.metadata));
  parts_.push_back({std::move(file), values});
}

template <class>
void SafeTensors::add_file(const std::filesystem::path& path, detail::FileBytes file, const Shard* shard) {
  naming(path, [&] { add(std::move(file), shard); });
}

template <class>
void SafeTensors::add_shards(const std::filesystem::path& path) {
  const auto index_file = detail::FileBytes::open(path);
  naming(path, [&] {
    detail::check_json_size("index", index_file.size());
    const detail::WeightMap index = detail::parse_index(index_file.text(0, index_file.size()));
    std::set<std::string> shards;
    for (const auto& [name, shard] : index) shards.insert(shard);
    std::map<std::string, std::string> elsewhere;
    for (const std::string& shard : shards) {
      const std::filesystem::path beside = path.parent_path() / std::u8string(shard.begin(), shard.end());
      const Shard wanted{&index, &shard, &elsewhere};
      add_file(beside, detail::FileBytes::open(beside), &wanted);
    }
    for (const auto& [name, shard] : index) {
      if (contains(name)) continue;
      const auto other = elsewhere.find(name);
      detail::fail<FormatError>("SafeTensors: the index: tensor ", detail::shown(name), " is not in the shard ",
                                detail::shown(shard), other == elsewhere.end() ? "" : " but in ",
                                other == elsewhere.end() ? "" : detail::shown(other->second));
    }
  });
}

template <class Scalar>
void SafeTensors::check_fits(std::string_view name, const std::vector<Index>& wanted) const {
  if (shape(name) != wanted)
    detail::fail<FormatError>("SafeTensors: ", detail::shown(name), " has shape ", std::span(shape(name)),
                              "; expected ", std::span(wanted));
  check_values<Scalar>(place(name));
}

template <int Layout, class Scalar>
void SafeTensors::copy_values(std::string_view name, Scalar* to) const {
  const std::vector<Index>& sizes = shape(name);
  visit_values<Scalar>(place(name), [&](Index n, auto value) { to[detail::memory_index<Layout>(n, sizes)] = value; });
}

}  // namespace posbias::io
