// SPDX-License-Identifier: MIT
/// \file
/// State dicts in and out: a strict reader and writer of safetensors files.
///
///     [n: 8 bytes][header: n bytes of JSON, padded with spaces][values: row-major, without a gap]
///     {"__metadata__": {"key": "text"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
///
/// Everything is little-endian. The reader refuses what the reference implementation (Hugging Face) refuses,
/// and also keys that occur twice or that it does not know. It allocates no more than a constant times the
/// bytes that came, whatever they claim. Every failure, also of opening or writing a file, throws
/// `posbias::FormatError`.
///
///     io::save_parameters("alibi.safetensors", module);
///     io::load_parameters(module, "checkpoint.safetensors", "encoder.layers.0.bias.");
///     io::load_parameters(module, "model.safetensors.index.json", "encoder.layers.0.bias.");
///
/// Opt-in: needs nlohmann-json (3.11 or later), which no other header of the library includes; where posbias::compiled is
/// linked, only the library needs it.
#pragma once

#include <concepts>
#include <filesystem>
#include <string>
#include <string_view>

#include "posbias/core/parameters.hpp"
#include "posbias/io/safetensors_file.hpp"
#include "posbias/io/safetensors_writer.hpp"

namespace posbias::io {

/// Sets every parameter of a module from the tensor that name_in_file(its name) names. All must be there in their
/// exact shapes; what else is in the file does not matter. All are checked before the first is written.
template <class Module, std::invocable<std::string_view> NameInFile>
void load_parameters(Module& module, const SafeTensors& file, NameInFile name_in_file) {
  const auto for_each = [&](auto act) {
    for_each_parameter(module,
                       [&](std::string_view name, auto& tensor) { act(std::string(name_in_file(name)), tensor); });
  };
  for_each([&](const std::string& name, const auto& tensor) { file.check_fits(name, tensor); });
  for_each([&](const std::string& name, auto& tensor) { file.copy_to(name, tensor); });
}

/// The same from the tensors `prefix` + the parameter's name.
template <class Module>
void load_parameters(Module& module, const SafeTensors& file, std::string_view prefix = "") {
  load_parameters(module, file, [&](std::string_view name) { return std::string(prefix).append(name); });
}

/// Both from what SafeTensors::open opens: a file, of which no more is read than needed, or the index of shards.
template <class Module, std::invocable<std::string_view> NameInFile>
void load_parameters(Module& module, const std::filesystem::path& path, NameInFile name_in_file) {
  load_parameters(module, SafeTensors::open(path), name_in_file);
}
/// With a prefix.
template <class Module>
void load_parameters(Module& module, const std::filesystem::path& path, std::string_view prefix = "") {
  load_parameters(module, SafeTensors::open(path), prefix);
}

/// Adds every parameter of a module as `prefix` + its name.
template <class Module>
void save_parameters(SafeTensorsWriter& writer, const Module& module, std::string_view prefix = "") {
  for_each_parameter(
      module, [&](std::string_view name, const auto& tensor) { writer.add(std::string(prefix).append(name), tensor); });
}

/// Writes a file of a module's parameters alone.
template <class Module>
void save_parameters(const std::filesystem::path& path, const Module& module, std::string_view prefix = "") {
  SafeTensorsWriter writer;
  save_parameters(writer, module, prefix);
  writer.write(path);
}

}  // namespace posbias::io

#ifdef POSBIAS_COMPILED_IO
#define POSBIAS_TEMPLATE extern template
#include "posbias/io/instances.hpp"
#undef POSBIAS_TEMPLATE
#else
#include "posbias/io/safetensors_json.hpp"
#endif
