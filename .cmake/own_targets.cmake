# attn_own: what the library's own tests, benchmarks and examples link to. Users link attn::attn and
# get no flags.

option(ATTN_WERROR "Treat warnings in attn's own tests, benchmarks and examples as errors" OFF)
set(CMAKE_CXX_EXTENSIONS OFF)

add_library(attn_own INTERFACE)
target_link_libraries(attn_own INTERFACE attn::attn)
if(MSVC)
  target_compile_options(attn_own INTERFACE /W4 /bigobj $<$<BOOL:${ATTN_WERROR}>:/WX>)
else()
  target_compile_options(attn_own INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion $<$<BOOL:${ATTN_WERROR}>:-Werror>)
endif()
