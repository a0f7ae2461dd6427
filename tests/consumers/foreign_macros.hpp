// SPDX-License-Identifier: MIT
/// \file
/// The macros of windows.h that are also names in C++. The standard library does not compile under them, so its headers come
/// first, those that Eigen includes for threads among them.
#pragma once

#include <atomic>
#include <deque>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <ranges>
#include <set>
#include <span>
#include <unsupported/Eigen/CXX11/Tensor>

#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define near
#define far
