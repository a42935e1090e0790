# cmake -DSOURCE=<file> -DCASE=<k> -P check.cmake -- <compiler and flags>
# CASE 0 must compile. Any other must fail, with an error line that matches the file's expectation.

set(compile "")
set(after_dashes FALSE)
foreach(i RANGE ${CMAKE_ARGC})
  if(after_dashes)
    list(APPEND compile "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(after_dashes TRUE)
  endif()
endforeach()

set(should_fail 1)
if(CASE EQUAL 0)
  set(should_fail 0)
endif()
# English, whatever the user's locale.
set(ENV{LC_ALL} C)
execute_process(
  COMMAND ${compile} -DCASE=${CASE} -DSHOULD_FAIL=${should_fail} "${SOURCE}"
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)

if(CASE EQUAL 0)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "The positive twins must compile:\n${output}")
  endif()
  return()
endif()

if(result EQUAL 0)
  message(FATAL_ERROR "Case ${CASE} compiles, but must not")
endif()
file(READ "${SOURCE}" text)
string(REGEX MATCH "// expect( ${CASE})?: ([^\n]+)" line "${text}")
set(expected "${CMAKE_MATCH_2}")
if(expected STREQUAL "")
  message(FATAL_ERROR "No line `// expect ${CASE}: <regular expression>` in ${SOURCE}")
endif()
# Only lines with "error:"; notes quote the source, which may quote the message.
string(REGEX MATCHALL "[^\n]*error:[^\n]*" errors "${output}")
list(JOIN errors "\n" errors)
if(NOT errors MATCHES "${expected}")
  message(FATAL_ERROR "Case ${CASE} fails as it must, but no error matches\n  ${expected}\n${output}")
endif()
