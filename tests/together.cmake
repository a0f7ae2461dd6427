# SPDX-License-Identifier: MIT
# Several sources as one translation unit: they share headers and everything that they instantiate.

# posbias_together(LIST NAME REGEX): those of the list's sources that match become one unit, NAME.cpp.
#
# Each source keeps its names to itself, in a namespace, so headers are included before. Sources of `namespace
# posbias_test` or `posbias_fuzz` stay outside; of their unnamed namespaces no two may use the same name.
function(posbias_together variable name regex)
  set(sources ${${variable}})
  set(others ${${variable}})
  list(FILTER sources INCLUDE REGEX ${regex})
  list(FILTER others EXCLUDE REGEX ${regex})
  set(headers "")
  set(outside "")
  set(apart "")
  foreach(source IN LISTS sources)
    set(path ${CMAKE_CURRENT_SOURCE_DIR}/${source})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
    file(STRINGS ${path} includes REGEX "^#include ")
    list(APPEND headers ${includes})
    file(STRINGS ${path} reopened REGEX "^namespace posbias_(test|fuzz) {")
    if(reopened)
      string(APPEND outside "#include \"${path}\"\n")
    else()
      string(REGEX REPLACE "[^A-Za-z0-9]+" "_" identifier "in_${source}")
      string(APPEND apart "namespace ${identifier} {\n#include \"${path}\"\n}\n")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES headers)
  list(JOIN headers "\n" headers)
  set(unit ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  file(CONFIGURE OUTPUT ${unit} CONTENT "${headers}\n${outside}${apart}" @ONLY)
  set(${variable} ${others} ${unit} PARENT_SCOPE)
endfunction()
