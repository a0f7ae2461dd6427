// SPDX-License-Identifier: MIT
/// \file
/// Standard headers in which libstdc++ has functions named min and max, included where these are macros, too.
#pragma once

#pragma push_macro("min")
#pragma push_macro("max")
#undef min
#undef max
#include <memory>
#include <ranges>
#pragma pop_macro("max")
#pragma pop_macro("min")
