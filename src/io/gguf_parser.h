// The structure of a GGUF file, checked byte by byte; used by GgufFile only.
#pragma once

#include <map>
#include <string>

#include "io/gguf.h"

namespace spear {

struct GgufContent {
  std::map<std::string, GgufValue, std::less<>> values;
  std::map<std::string, GgufTensor, std::less<>> tensors;
};

/// GGUF value types; the numbers are those of the file.
enum GgufValueType : std::uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

/// Bytes of a fixed-size value, 0 for strings, arrays and unknown types.
std::size_t gguf_value_bytes(std::uint32_t type);

/// Throws Error(bad_input) naming `where` and the key or tensor that is wrong. The result views `file`.
GgufContent parse_gguf(std::span<const std::byte> file, const std::string& where);

}  // namespace spear
