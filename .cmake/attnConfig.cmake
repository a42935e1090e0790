# find_package(attn): the target attn::attn, which brings Eigen with it, and attn_dispatch().

include("${CMAKE_CURRENT_LIST_DIR}/attnEigen.cmake")
if(attn_eigen_problem)
  set(attn_FOUND FALSE)
  set(attn_NOT_FOUND_MESSAGE "${attn_eigen_problem}")
  return()
endif()

if(NOT TARGET attn::attn)
  include("${CMAKE_CURRENT_LIST_DIR}/attnTargets.cmake")
  target_link_libraries(attn::attn INTERFACE Eigen3::Eigen)
endif()

include("${CMAKE_CURRENT_LIST_DIR}/attnDispatch.cmake")
