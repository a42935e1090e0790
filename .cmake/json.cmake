# nlohmann-json, which the examples read safetensors files with: an installed one, else a download of the headers.
include_guard(DIRECTORY)  # a directory has its own imported targets
find_package(nlohmann_json CONFIG QUIET)
if(NOT nlohmann_json_FOUND)
  if(NOT FETCHCONTENT_SOURCE_DIR_NLOHMANN_JSON)
    message(NOTICE "attn: nlohmann-json was not found; downloading 3.11.2 for the examples. Without a network: "
      "install it (Debian, Ubuntu: apt install nlohmann-json3-dev)")
  endif()
  include(FetchContent)
  FetchContent_Declare(nlohmann_json
    URL https://github.com/nlohmann/json/releases/download/v3.11.2/json.tar.xz
    URL_HASH SHA256=8c4b26bf4b422252e13f332bc5e388ec0ab5c3443d24399acb675e68278d341f
    SOURCE_SUBDIR headers-only)  # a folder that does not exist: only the headers, as system headers
  FetchContent_MakeAvailable(nlohmann_json)
  add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
  target_include_directories(nlohmann_json::nlohmann_json INTERFACE "${nlohmann_json_SOURCE_DIR}/include")
endif()
