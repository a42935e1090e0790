# cmake -DUNIT=<name> -DALIGNMENT=<bytes> -DFOLDER=<folder> -DCOMPILER= -DOBJCOPY= -DREADELF=
#   -P dispatch_link.cmake -- <isa> <object>... <isa> <object>...
#
# Links the objects of each instruction set into FOLDER/<isa>.o, in which all is local but the functions that others
# call, by the names f.<isa>; and writes FOLDER/choice.cpp, which defines f and chooses. attnDispatch.cmake says what
# for.
cmake_minimum_required(VERSION 3.22)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(failed)
    list(JOIN ARGN " " line)
    message(FATAL_ERROR "attn_dispatch: ${line}\n${output}")
  endif()
endfunction()

# Of the global symbols that an object defines: <functions> that others call; <types>, the names of types, by which
# what is thrown is recognised on the other side; and <hidden>, those functions that do not leave their library.
function(read_symbols object functions types hidden)
  execute_process(COMMAND ${READELF} --symbols --wide ${object}
    OUTPUT_FILE "${object}.symbols" COMMAND_ERROR_IS_FATAL ANY)
  file(STRINGS "${object}.symbols" lines REGEX " (GLOBAL|WEAK|UNIQUE) ")
  set(found_functions "")
  set(found_types "")
  set(found_hidden "")
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "([A-Z_]+) +([A-Z]+) +([A-Z]+) .*[0-9]+ ([^ ]+)$")
      continue()  # undefined: "UND" stands where a section's number would
    endif()
    set(type ${CMAKE_MATCH_1})
    set(binding ${CMAKE_MATCH_2})
    set(visibility ${CMAKE_MATCH_3})
    set(name ${CMAKE_MATCH_4})
    if(type STREQUAL "FUNC" AND binding STREQUAL "GLOBAL")
      list(APPEND found_functions ${name})
      if(NOT visibility STREQUAL "DEFAULT")
        list(APPEND found_hidden ${name})
      endif()
    elseif(name MATCHES "^_ZT[IS]")
      list(APPEND found_types ${name})
    elseif(binding STREQUAL "GLOBAL" AND NOT name MATCHES "^attn_(begin|end)_")
      message(FATAL_ERROR "attn_dispatch: ${UNIT} defines ${name}, which is no function: a variable that other "
        "sources use, or the table of a class with virtual functions. Each variant would have its own: define it in "
        "a source that is not dispatched, or, where nobody else uses it, in an unnamed namespace")
    endif()
  endforeach()
  list(SORT found_functions)
  set(${functions} "${found_functions}" PARENT_SCOPE)
  set(${types} "${found_types}" PARENT_SCOPE)
  set(${hidden} "${found_hidden}" PARENT_SCOPE)
endfunction()

# Initialisers of namespace-scope objects, in the order of their priorities, where the chosen variant's are found; the
# same for what runs at the end. (The discarded section numbers symbols, which objcopy moves.)
set(script "/DISCARD/ : { *(.llvm_addrsig) }\n")
foreach(name IN ITEMS init fini)
  string(APPEND script "attn_${name} : { attn_begin_${name} = .;\n"
    "KEEP(*(SORT_BY_INIT_PRIORITY(.${name}_array.*))) KEEP(*(.${name}_array)) attn_end_${name} = .; }\n")
endforeach()
file(WRITE "${FOLDER}/linker_script" "SECTIONS {\n${script}}\n")
set(bounds attn_begin_init attn_end_init attn_begin_fini attn_end_fini)

set(VARIANTS "")
foreach(i RANGE ${CMAKE_ARGC})
  set(argument "${CMAKE_ARGV${i}}")
  if(argument MATCHES "^(baseline|avx2|avx512)$")
    set(isa ${argument})
    list(APPEND VARIANTS ${isa})
  elseif(VARIANTS AND argument)
    list(APPEND objects_${isa} "${argument}")
  endif()
endforeach()

foreach(isa IN LISTS VARIANTS)
  set(whole "${FOLDER}/${isa}_whole.o")
  run(${COMPILER} -r -nostdlib -fuse-ld=bfd -Wl,--force-group-allocation "-Wl,-T,${FOLDER}/linker_script"
    ${objects_${isa}} -o ${whole})
  read_symbols(${whole} functions_${isa} types hidden)
  if(NOT functions_${isa} STREQUAL functions_baseline)
    message(FATAL_ERROR "attn_dispatch: the variants of ${UNIT} define different functions. (attn's own types are "
      "other types in each: let no function that others call have them as arguments.) baseline: "
      "${functions_baseline}; ${isa}: ${functions_${isa}}")
  endif()

  set(renamed "")
  foreach(name IN LISTS functions_baseline)
    string(APPEND renamed "${name} ${name}.${isa}\n")
  endforeach()
  foreach(name IN LISTS bounds)
    string(APPEND renamed "${name} ${name}.${UNIT}.${isa}\n")
  endforeach()
  file(WRITE "${FOLDER}/renamed" "${renamed}")
  list(JOIN functions_baseline "\n" kept)
  list(JOIN types "\n" kept_types)
  list(JOIN bounds "\n" kept_bounds)
  file(WRITE "${FOLDER}/kept" "${kept}\n${kept_types}\n${kept_bounds}\n")
  run(${OBJCOPY} --keep-global-symbols=${FOLDER}/kept ${whole})
  # With flags: what is a list of initialisers by its type is taken for the program's own by gold.
  set(sections "")
  foreach(name IN ITEMS attn_init attn_fini)
    list(APPEND sections --rename-section ${name}=.data.rel.ro.${name},alloc,load,data,contents)
  endforeach()
  run(${OBJCOPY} --redefine-syms=${FOLDER}/renamed ${sections} ${whole} ${FOLDER}/${isa}.o)
endforeach()
if(NOT functions_baseline)
  message(FATAL_ERROR "attn_dispatch: the sources of ${UNIT} define no function that others can call")
endif()

# What dispatch_choice.cpp.in leaves open: a line for each variant, a row and an entry for each function.
set(DECLARATIONS "")
function(declare what symbol)  # a symbol of this library, or program, alone
  set(DECLARATIONS "${DECLARATIONS}extern ${what} asm(\"${symbol}\");\nasm(\".hidden ${symbol}\");\n" PARENT_SCOPE)
endfunction()
set(VARIANT_ROWS "")
set(FUNCTION_ROWS "")
set(SLOTS "")
set(ENTRIES "")
foreach(isa IN LISTS VARIANTS)
  foreach(name IN LISTS bounds)
    string(REGEX REPLACE "attn_(begin|end)_(init|fini)" "\\2_\\1_${isa}" variable ${name})
    declare("Routine* const ${variable}[]" ${name}.${UNIT}.${isa})
  endforeach()
  string(APPEND VARIANT_ROWS "    {\"${isa}\", runs_${isa}, {init_begin_${isa}, init_end_${isa}}, "
    "{fini_begin_${isa}, fini_end_${isa}}},\n")
endforeach()
set(index 0)
foreach(name IN LISTS functions_baseline)
  set(row "")
  foreach(isa IN LISTS VARIANTS)
    declare("Routine f${index}_${isa}" ${name}.${isa})
    list(APPEND row f${index}_${isa})
  endforeach()
  list(JOIN row ", " row)
  string(APPEND FUNCTION_ROWS "    {${row}},\n")
  string(APPEND SLOTS "    f${index}_baseline,\n")
  set(visible "")
  if(name IN_LIST hidden)
    set(visible "ATTN_ENTRY_HIDDEN(\"${name}\")")
  endif()
  string(APPEND ENTRIES "ATTN_ENTRY(\"${name}\", \"${index}\", ${visible})\n")
  math(EXPR index "${index} + 1")
endforeach()
list(LENGTH VARIANTS COUNT)
configure_file("${CMAKE_CURRENT_LIST_DIR}/dispatch_choice.cpp.in" "${FOLDER}/choice.cpp" @ONLY)
