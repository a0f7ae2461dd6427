// SPDX-License-Identifier: MIT
/// \file
/// The version, by semantic versioning; CMake reads it from here. The only macros of the library's own.
#pragma once

#define POSBIAS_VERSION_MAJOR 0  ///< incompatible changes
#define POSBIAS_VERSION_MINOR 1  ///< additions
#define POSBIAS_VERSION_PATCH 0  ///< corrections
