// SPDX-License-Identifier: MIT
/// \file
/// Smart pointers, where `min` and `max` are macros, too: libstdc++'s <memory> has functions of these names.
#pragma once

#pragma push_macro("min")
#pragma push_macro("max")
#undef min
#undef max
#include <memory>
#pragma pop_macro("max")
#pragma pop_macro("min")
