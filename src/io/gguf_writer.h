// Writes GGUF files, version 3: metadata, then tensors that are produced one at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"

namespace spear {

class GgufWriter {
 public:
  void text(std::string_view key, std::string_view value);
  void u32(std::string_view key, std::int64_t value);
  void f32(std::string_view key, double value);
  void boolean(std::string_view key, bool value);
  void texts(std::string_view key, std::span<const std::string> values);
  void i32s(std::string_view key, std::span<const std::int32_t> values);
  void f32s(std::string_view key, std::span<const float> values);
  /// A value of another file, byte for byte.
  void value(std::string_view key, const GgufValue& value);

  /// `shape` in C order. `fill` gets the tensor's bytes, zeroed, when the file is written. Throws Error(failed) for a
  /// type that is unknown or whose blocks don't divide the rows.
  void tensor(std::string name, Shape shape, std::uint32_t type, std::function<void(std::span<std::byte>)> fill);
  void f32_tensor(std::string name, Shape shape, std::vector<float> values);

  /// Writes the file atomically, in the order of the calls. Throws Error(out_of_resources) when the disk is full.
  void write(const std::filesystem::path& path) const;

 private:
  struct Entry {
    std::string name;
    Shape shape;
    std::uint32_t type = 0;
    std::uint64_t bytes = 0;
    std::function<void(std::span<std::byte>)> fill;
  };
  void key(std::string_view name, std::uint32_t type);
  void array(std::string_view name, std::uint32_t type, std::uint64_t count);

  std::string values_;
  std::uint64_t value_count_ = 0;
  std::vector<Entry> tensors_;
};

}  // namespace spear
