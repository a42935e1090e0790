# cmake -DREADME=<file> -P readme.cmake: writes the README's first C++ program to readme.cpp, and the
# output that its last comment promises to expected.txt.
file(READ "${README}" text)
string(REGEX MATCH "```cpp\n([^`]*)```" block "${text}")
set(program "${CMAKE_MATCH_1}")
if(NOT program MATCHES "int main")
  message(FATAL_ERROR "the first C++ block of ${README} is no program")
endif()
file(WRITE readme.cpp "${program}")
string(REGEX MATCH "// ([-0-9. ]+)\n}" last "${program}")
if(NOT last)
  message(FATAL_ERROR "the program does not say in its last comment what it prints")
endif()
file(WRITE expected.txt "${CMAKE_MATCH_1}\n")
