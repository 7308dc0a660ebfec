# One translation unit per instruction set, each with its own flags (see src/ops/cpu/kernels.h).
set(kernels ${CMAKE_SOURCE_DIR}/src/ops/cpu)
set(arm_flags -march=armv8.2-a+dotprod)  # conversions from f16 are in every AArch64
set(flags -O3 -ffp-contract=fast)
set_source_files_properties(${kernels}/kernels_generic.cc PROPERTIES COMPILE_OPTIONS "${flags}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(flags ${flags} -mavx2 -mfma -mf16c)
  set_source_files_properties(${kernels}/kernels_avx2.cc PROPERTIES COMPILE_OPTIONS "${flags}")
  # g++ 12's own avx512fintrin.h warns (GCC bug 105593).
  set(flags ${flags} -mavx512f -Wno-uninitialized $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  set_source_files_properties(${kernels}/kernels_avx512.cc PROPERTIES COMPILE_OPTIONS "${flags}")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set_source_files_properties(${kernels}/kernels_neon.cc PROPERTIES COMPILE_OPTIONS "${flags};${arm_flags}")
endif()

# The packed kernels (src/ops/cpu/packed_impl.h) say themselves where a multiply-add is fused.
set(flags -O3 -ffp-contract=off)
set_source_files_properties(${kernels}/packed_generic.cc PROPERTIES COMPILE_OPTIONS "${flags}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(flags ${flags} -mavx2 -mfma -mf16c)
  # GCC would put all additions of a tile behind all its products, 100 registers' worth (substitution of single uses).
  set_source_files_properties(${kernels}/packed_avx2.cc PROPERTIES COMPILE_OPTIONS "${flags};$<$<CXX_COMPILER_ID:GNU>:-fno-tree-ter>")
  set(flags ${flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512bf16 -mprefer-vector-width=512
            -Wno-uninitialized $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  set_source_files_properties(${kernels}/packed_avx512.cc PROPERTIES COMPILE_OPTIONS "${flags}")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  # GCC would put the products of all tokens but the first behind the block's last step, and all its codes on the stack: it
  # sinks them past a branch, and schedules before it allocates registers (on x86 only after).
  set(arm_packed_flags $<$<CXX_COMPILER_ID:GNU>:-fno-tree-sink> $<$<CXX_COMPILER_ID:GNU>:-fno-schedule-insns>)
  set_source_files_properties(${kernels}/packed_neon.cc PROPERTIES COMPILE_OPTIONS "${flags};${arm_flags};${arm_packed_flags}")
endif()

# Attention has units of its own: bf16 instructions are worth one more there.
set(attention_flags -O3 -ffp-contract=fast)
set_source_files_properties(${kernels}/attention_generic.cc PROPERTIES COMPILE_OPTIONS "${attention_flags}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(attention_flags ${attention_flags} -mavx2 -mfma -mf16c)
  set_source_files_properties(${kernels}/attention_avx2.cc PROPERTIES COMPILE_OPTIONS "${attention_flags}")
  set(attention_flags ${attention_flags} -mavx512f -Wno-uninitialized $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  set_source_files_properties(${kernels}/attention_avx512.cc PROPERTIES COMPILE_OPTIONS "${attention_flags}")
  set(attention_flags ${attention_flags} -mavx512bw -mavx512vl -mavx512dq -mavx512bf16)
  set_source_files_properties(${kernels}/attention_avx512bf16.cc PROPERTIES COMPILE_OPTIONS "${attention_flags}")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set_source_files_properties(${kernels}/attention_neon.cc PROPERTIES COMPILE_OPTIONS "${attention_flags};${arm_flags}")
endif()

# Everything is inlined by force here, and in generic code every lane is a memory access of its own: with checks on each of
# them compilers take very long. The AVX2 unit, of the same text, has them all.
if(SPEAR_SANITIZE)
  set_property(SOURCE ${kernels}/packed_generic.cc APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=all)
  set_property(SOURCE ${kernels}/packed_avx512.cc APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=undefined)
endif()
