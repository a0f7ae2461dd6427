// SPDX-License-Identifier: MIT
/// \file
/// JSON that comes from a file and may hold anything: how it is shown in messages, and how long it may be.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "posbias/core/error.hpp"

namespace posbias::io::detail {
using posbias::detail::fail;

/// The reference implementation's limit for a header; here also for an index.
inline constexpr std::uint64_t max_json_size = 100'000'000;

/// Text as a JSON string.
inline std::string json_string(std::string_view text) {
  std::string json = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      json.append("\\u00").append(1, c < 0x10 ? '0' : '1').append(1, "0123456789abcdef"[c & 15]);
    } else {
      if (c == '"' || c == '\\') json += '\\';
      json += c;
    }
  }
  return json += '"';
}

/// A name for a message. It comes from the file, so it may hold anything and be megabytes long.
inline std::string shown(std::string_view name) {
  std::size_t length = 80;
  if (name.size() <= length) return json_string(name);
  while ((name[length] & 0xC0) == 0x80) --length;  // never cut a UTF-8 sequence
  return json_string(name.substr(0, length)) + "...";
}

/// Throws FormatError for a header or an index that is too long; `part` says which of them.
inline void check_json_size(std::string_view part, std::uint64_t size) {
  if (size > max_json_size)
    fail<FormatError>("SafeTensors: the ", part, " has ", size, " bytes; allowed are ", max_json_size);
}

}  // namespace posbias::io::detail
