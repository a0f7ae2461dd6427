// SPDX-License-Identifier: MIT
/// \file
/// The numbers of the gallery's pictures, one file for each.
#pragma once

#include <filesystem>

namespace gallery {

/// Writes a table <picture>.tsv for every picture into `folder`. `trained` is where the demo has saved what its schemes
/// have learned.
void write_tables(const std::filesystem::path& trained, const std::filesystem::path& folder);

}  // namespace gallery
