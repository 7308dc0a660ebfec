// GGUF files for tests, byte by byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace spear {

/// Puts together GGUF bytes, well-formed or not.
class GgufBytes {
 public:
  GgufBytes& u32(std::uint32_t value) { return raw(&value, 4); }
  GgufBytes& u64(std::uint64_t value) { return raw(&value, 8); }
  GgufBytes& text(std::string_view value) { return u64(value.size()).raw(value.data(), value.size()); }
  GgufBytes& header(std::uint64_t tensors, std::uint64_t values, std::uint32_t version = 3) {
    return raw("GGUF", 4).u32(version).u64(tensors).u64(values);
  }
  GgufBytes& value_u32(std::string_view key, std::uint32_t value) { return text(key).u32(4).u32(value); }
  GgufBytes& value_text(std::string_view key, std::string_view value) { return text(key).u32(8).text(value); }
  GgufBytes& tensor(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
                    std::uint64_t offset) {
    text(name).u32(static_cast<std::uint32_t>(dims.size()));
    for (const auto dim : dims) u64(dim);
    return u32(type).u64(offset);
  }
  GgufBytes& data(std::size_t count, std::size_t alignment = 32) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment);
    bytes_.append(count, '\1');
    return *this;
  }
  GgufBytes& raw(const void* source, std::size_t count) {
    bytes_.append(static_cast<const char*>(source), count);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace spear
