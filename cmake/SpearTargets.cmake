# spear_library(NAME DEPS ...): a static library spear_NAME of every .cc below src/NAME.
function(spear_library name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cc)
  if(NOT sources)
    add_library(spear_${name} INTERFACE)
    return()
  endif()
  add_library(spear_${name} STATIC ${sources})
  target_include_directories(spear_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(spear_${name} PUBLIC ${ARG_DEPS})
  spear_flags(spear_${name})
endfunction()

# Warnings as errors and sanitizers, for every target of ours.
function(spear_flags target)
  target_compile_options(${target} PRIVATE -Wall -Wextra)
  # GCC is what the code is held to; clang makes the sanitizer builds.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Werror -Wno-error=maybe-uninitialized)
  endif()
  if(SPEAR_SANITIZE)
    target_compile_definitions(${target} PRIVATE SPEAR_SANITIZED)  # no functions that the loader chooses: it runs before sanitizers do
    target_compile_options(${target} PRIVATE -fsanitize=${SPEAR_SANITIZE} -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${SPEAR_SANITIZE})
  endif()
endfunction()
