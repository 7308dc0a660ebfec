# spear_library(NAME DEPS ...): a static library spear_NAME of every .cc below src/NAME.
function(spear_library name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cc)
  add_library(spear_${name} STATIC ${sources})
  target_include_directories(spear_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
  list(TRANSFORM ARG_DEPS REPLACE "^spear_torch_dependency$" "spear_libtorch" OUTPUT_VARIABLE deps)
  target_link_libraries(spear_${name} PUBLIC ${deps})
  spear_flags(spear_${name})
endfunction()

# Warnings as errors and sanitizers, for every target of ours.
function(spear_flags target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror -Wno-error=maybe-uninitialized)
  if(SPEAR_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${SPEAR_SANITIZE} -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${SPEAR_SANITIZE})
  endif()
endfunction()
