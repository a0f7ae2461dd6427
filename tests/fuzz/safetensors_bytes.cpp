// SPDX-License-Identifier: MIT
/// \file
/// Any bytes as a safetensors file, and as the index of a sharded checkpoint.
#include <span>

#include "fuzz/safetensors_properties.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  posbias_fuzz::check_file({bytes.begin(), bytes.end()});
  posbias_fuzz::check_index({reinterpret_cast<const char*>(data), size});
  return 0;
}
