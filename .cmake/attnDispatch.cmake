# attn_dispatch(<target> SOURCES <source>... [ISA <name>...])
#
# Compiles the sources once for each instruction set, baseline (SSE2), avx2 (AVX2, FMA, F16C) and avx512 (AVX-512 F,
# DQ, BW, VL as well), links all of it into the target, and lets the processor choose when the program starts. ISA names
# some of them; baseline is always there. The sources are ordinary C++: every function that they define for others to
# call is called by its name, as ever. The environment's ATTN_MAX_ISA=avx2 chooses nothing above that one.
#
# WHAT    A call goes through one indirect jump to its variant, which is called f(int) [clone .avx2] by debuggers and
#         profilers. Whatever else a variant has is its own: inline functions and templates, attn's, Eigen's, the
#         standard library's and yours, and their static variables. So none runs where its instructions do not exist.
#         (A linker alone keeps one of several equal inline functions: perhaps that of AVX-512.)
# HOW     dispatch_link.cmake: `ld -r --force-group-allocation` dissolves the groups by which linkers merge inline
#         functions, objcopy then makes every symbol local but those of the functions that are called. Initialisers of
#         namespace-scope objects run for the chosen variant alone.
# CALLS   What crosses a call must be the same thing on both sides: numbers, pointers, types of your own and the
#         standard library's are, and Eigen's Map, Ref and `const MatrixXf&`: the variants align as the program around
#         them does (EIGEN_MAX_ALIGN_BYTES). A matrix that one side allocates and the other frees or resizes is not:
#         Eigen allocates by the instruction set. So results go into a Ref. attn's own types (layers, caches) are other
#         types in each variant, and refused in words: keep them inside, behind a pointer to a type of your own.
# LIMITS  Variables, classes with a virtual table and explicit instantiations that others use belong into other
#         sources; a variable is refused in words. An inline variable of a header is one in the program and one in each
#         variant. Each variant has its own bits, as builds have. No variant has AVX512_BF16: has_native_bfloat16 is
#         false.
# COST    Each source is compiled once for each instruction set, and each variant is in the program.
# WHERE   g++ and clang, x86-64 ELF (Linux, BSD), with GNU binutils 2.29 or later at build time; the program may be
#         linked by any linker. Elsewhere the sources are compiled once, as if they were the target's own.
#
# The target is one of the same directory. Its options, definitions, libraries and language standard are the variants';
# its properties, as CXX_STANDARD, are to be set before the call. Two calls on one target begin with sources of different
# names.
cmake_policy(VERSION 3.22)

function(attn_dispatch target)
  cmake_parse_arguments(PARSE_ARGV 1 asked "" "" "SOURCES;ISA")
  if(NOT TARGET ${target} OR NOT asked_SOURCES OR asked_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "attn_dispatch(<target> SOURCES <source>... [ISA baseline avx2 avx512]): "
      "${target} is ${ARGN}")
  endif()
  set(flags_baseline -march=x86-64)
  set(flags_avx2 ${flags_baseline} -mavx2 -mfma -mf16c)
  set(flags_avx512 ${flags_avx2} -mavx512f -mavx512dq -mavx512bw -mavx512vl)
  set(variants baseline avx2 avx512)  # from the least to the most
  foreach(isa IN LISTS asked_ISA)
    if(NOT isa IN_LIST variants)
      message(FATAL_ERROR "attn_dispatch: there is no instruction set ${isa}; there are baseline, avx2, avx512")
    endif()
  endforeach()
  if(asked_ISA)
    list(JOIN asked_ISA "|" names)
    list(FILTER variants INCLUDE REGEX "^(baseline|${names})$")
  endif()

  attn_dispatch_tools()
  if(problem)
    message(STATUS "attn_dispatch: ${target} has one variant, the build's own: ${problem}")
    target_sources(${target} PRIVATE ${asked_SOURCES})
    return()
  endif()

  list(GET asked_SOURCES 0 first)
  cmake_path(GET first STEM unit)
  string(MAKE_C_IDENTIFIER "${target}_${unit}" unit)
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/attn_dispatch/${unit}")
  if(CMAKE_CONFIGURATION_TYPES)
    string(APPEND folder "/$<CONFIG>")
  endif()
  attn_dispatch_alignment(alignment)
  set(objects "")  # of all variants
  set(named "")    # the same, each variant's behind its name
  set(linked "")
  foreach(isa IN LISTS variants)
    set(variant ${unit}_${isa})
    attn_dispatch_variant(${variant} ${target} "${asked_SOURCES}")
    target_compile_options(${variant} PRIVATE ${flags_${isa}})
    target_compile_definitions(${variant} PRIVATE EIGEN_MAX_ALIGN_BYTES=${alignment})
    add_dependencies(${target} ${variant})  # make knows objects of other targets only once they are there
    list(APPEND objects $<TARGET_OBJECTS:${variant}>)
    list(APPEND named ${isa} $<TARGET_OBJECTS:${variant}>)
    list(APPEND linked "${folder}/${isa}.o")
  endforeach()

  set(here "${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
  add_custom_command(OUTPUT ${linked} "${folder}/choice.cpp"
    COMMAND ${CMAKE_COMMAND} -DUNIT=${unit} -DALIGNMENT=${alignment} "-DFOLDER=${folder}"
      "-DCOMPILER=${CMAKE_CXX_COMPILER}" "-DOBJCOPY=${objcopy}" "-DREADELF=${readelf}"
      -P "${here}/dispatch_link.cmake" -- ${named}
    DEPENDS ${objects} "${here}/dispatch_link.cmake" "${here}/dispatch_choice.cpp.in"
    COMMENT "Linking the variants of ${target}: ${asked_SOURCES}"
    COMMAND_EXPAND_LISTS VERBATIM)
  target_sources(${target} PRIVATE ${linked} "${folder}/choice.cpp")
  # Its symbols are named by assembly.
  set_source_files_properties("${folder}/choice.cpp" PROPERTIES COMPILE_OPTIONS -fno-lto
    SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

# Sets in the caller <problem>: why there can be no variants here, or nothing; and GNU's <objcopy> and <readelf>.
# (LLVM's objcopy does not change a section's type.)
function(attn_dispatch_tools)
  set(problem "")
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" OR NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
    set(problem "the processor is no x86-64")
  elseif(NOT CMAKE_EXECUTABLE_FORMAT STREQUAL "ELF" OR NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    set(problem "it takes g++ or clang, and ELF")
  else()
    execute_process(COMMAND ${CMAKE_CXX_COMPILER} -fuse-ld=bfd -Wl,--help OUTPUT_VARIABLE ld ERROR_QUIET)
    foreach(tool IN ITEMS objcopy readelf)
      execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-prog-name=${tool}
        OUTPUT_VARIABLE ${tool} OUTPUT_STRIP_TRAILING_WHITESPACE)
      execute_process(COMMAND ${${tool}} --version OUTPUT_VARIABLE ${tool}_version ERROR_QUIET)
      set(${tool} "${${tool}}" PARENT_SCOPE)
    endforeach()
    if(NOT ld MATCHES "--force-group-allocation" OR NOT "${objcopy_version}" MATCHES "^GNU" OR
       NOT "${readelf_version}" MATCHES "^GNU")
      set(problem "there are no GNU binutils 2.29 or later")
    endif()
  endif()
  set(problem "${problem}" PARENT_SCOPE)
endfunction()

# EIGEN_MAX_ALIGN_BYTES by the build's own flags; dispatch_choice.cpp.in holds the target's to it.
function(attn_dispatch_alignment result)
  string(TOUPPER "${CMAKE_BUILD_TYPE}" config)
  separate_arguments(flags NATIVE_COMMAND "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${config}}")
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} ${flags} -dM -E -x c++ /dev/null OUTPUT_VARIABLE macros)
  set(alignment 16)
  if(macros MATCHES "#define EIGEN_MAX_ALIGN_BYTES ([0-9]+)")
    set(alignment ${CMAKE_MATCH_1})
  elseif(macros MATCHES "#define __AVX512F__ ")
    set(alignment 64)
  elseif(macros MATCHES "#define __AVX__ ")
    set(alignment 32)
  endif()
  set(${result} ${alignment} PARENT_SCOPE)
endfunction()

# An object library of the sources, compiled as the target would compile them.
function(attn_dispatch_variant variant target sources)
  add_library(${variant} OBJECT EXCLUDE_FROM_ALL ${sources})
  target_link_libraries(${variant} PRIVATE $<TARGET_PROPERTY:${target},LINK_LIBRARIES>)
  target_include_directories(${variant} PRIVATE $<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>)
  target_compile_definitions(${variant} PRIVATE $<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>)
  target_compile_features(${variant} PRIVATE $<TARGET_PROPERTY:${target},COMPILE_FEATURES>)
  # Machine code is what is linked next, and data that all variants share by name is not wanted.
  target_compile_options(${variant} PRIVATE $<TARGET_PROPERTY:${target},COMPILE_OPTIONS> -fno-lto
    $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
  foreach(property IN ITEMS CXX_STANDARD CXX_STANDARD_REQUIRED CXX_EXTENSIONS POSITION_INDEPENDENT_CODE
      CXX_VISIBILITY_PRESET VISIBILITY_INLINES_HIDDEN)
    get_target_property(value ${target} ${property})
    if(NOT value MATCHES "-NOTFOUND$")
      set_target_properties(${variant} PROPERTIES ${property} "${value}")
    endif()
  endforeach()
  get_target_property(type ${target} TYPE)
  if(type MATCHES "SHARED|MODULE")
    set_target_properties(${variant} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  endif()
  set_target_properties(${variant} PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
endfunction()
