# SPDX-License-Identifier: MIT
# cmake -DONE=program -DOTHER=program -P same_output.cmake: two programs print the same.
foreach(program ONE OTHER)
  execute_process(COMMAND ${${program}} OUTPUT_VARIABLE of_${program} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
string(LENGTH "${of_ONE}" length)
if(length EQUAL 0 OR NOT of_ONE STREQUAL of_OTHER)
  message(FATAL_ERROR "${ONE} and ${OTHER} print other numbers")
endif()
message("${length} characters are the same")
