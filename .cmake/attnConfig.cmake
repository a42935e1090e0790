# find_package(attn [COMPONENTS mpi]): the target attn::attn, which brings Eigen with it, and attn_dispatch(); with mpi the
# target attn::mpi, which brings an MPI library as well.

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

foreach(component IN LISTS attn_FIND_COMPONENTS)
  set(attn_${component}_FOUND FALSE)
  if(component STREQUAL "mpi")
    include("${CMAKE_CURRENT_LIST_DIR}/attnMpi.cmake")
    attn_add_mpi()
  else()
    set(attn_mpi_problem "there is no component ${component}; there is mpi")
  endif()
  if(NOT attn_mpi_problem)
    set(attn_${component}_FOUND TRUE)
  elseif(attn_FIND_REQUIRED_${component})
    set(attn_FOUND FALSE)
    set(attn_NOT_FOUND_MESSAGE "${attn_mpi_problem}")
  endif()
endforeach()
