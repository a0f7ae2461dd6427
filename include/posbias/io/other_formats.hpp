// SPDX-License-Identifier: MIT
/// \file
/// Formats that are taken for safetensors, told by their first bytes.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <string_view>

namespace posbias::io::detail {

struct OtherFormat {
  std::string_view begins_with;
  std::string_view name;
};

inline constexpr OtherFormat other_formats[] = {
    {"PK\x03\x04", "a zip archive, as torch.save (.pt, .pth, .bin) and numpy.savez write it"},
    {"\x80\x02", "a pickle, as torch.save of PyTorch before 1.6 (.pt, .pth, .bin) writes it"},
    {"\x80\x03", "a pickle"},
    {"\x80\x04", "a pickle"},
    {"\x80\x05", "a pickle"},
    {"GGUF", "a GGUF file, as llama.cpp reads it"},
    {"\x89HDF", "an HDF5 file"},
    {"\x93NUMPY", "a NumPy array (.npy)"},
    {"version ", "a pointer of Git LFS; git lfs pull fetches the file"},
    {"{", "JSON; SafeTensors::open opens an index of shards if its name ends in .json"},
};

/// Which of them begins with these bytes; empty if none does. As the length of a header these bytes must be larger than
/// any that is allowed, else it may be one.
inline std::string_view other_format(std::string_view first_bytes) {
  for (const OtherFormat& format : other_formats)
    if (first_bytes.starts_with(format.begins_with)) return format.name;
  return {};
}

}  // namespace posbias::io::detail
