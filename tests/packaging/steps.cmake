# cmake -DFOLDER=<folder> -P steps.cmake -- <command>... [THEN <command>...]...
# Empties the folder and runs the commands in it, one after another, until one fails.

file(REMOVE_RECURSE "${FOLDER}")
file(MAKE_DIRECTORY "${FOLDER}")

set(command "")
set(after_dashes FALSE)
math(EXPR end "${CMAKE_ARGC}")  # one past the last argument: closes the last command
foreach(i RANGE ${end})
  set(argument "${CMAKE_ARGV${i}}")
  if(NOT after_dashes)
    if(argument STREQUAL "--")
      set(after_dashes TRUE)
    endif()
  elseif(i EQUAL end OR argument STREQUAL "THEN")
    list(JOIN command " " line)
    message(STATUS "${line}")
    execute_process(COMMAND ${command} WORKING_DIRECTORY "${FOLDER}" RESULT_VARIABLE result)
    if(NOT result EQUAL 0)
      message(FATAL_ERROR "failed (${result}): ${line}")
    endif()
    set(command "")
  else()
    list(APPEND command "${argument}")
  endif()
endforeach()
