// SPDX-License-Identifier: MIT
/// \file
/// The index of a checkpoint in several files: which file, a shard, holds which tensor.
///
///     {"metadata": {"total_size": 28}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": ...}}
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace posbias::io::detail {

/// From the name of a tensor to the name of its shard.
using WeightMap = std::map<std::string, std::string, std::less<>>;

/// The weight_map of an index. Throws FormatError unless it is one, and its shards are files beside it. A template, so that
/// posbias::compiled may hold it.
template <class = void>
WeightMap parse_index(std::string_view text);

}  // namespace posbias::io::detail
