#include "io/gguf_writer.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "io/gguf_blocks.h"
#include "io/gguf_parser.h"

namespace spear {
namespace {

constexpr std::uint64_t kAlignment = 32;

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_text(std::string& out, std::string_view text) {
  append<std::uint64_t>(out, text.size());
  out += text;
}

std::uint64_t padded(std::uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void GgufWriter::key(std::string_view name, std::uint32_t type) {
  append_text(values_, name);
  append(values_, type);
  ++value_count_;
}

void GgufWriter::array(std::string_view name, std::uint32_t type, std::uint64_t count) {
  key(name, kArray);
  append(values_, type);
  append(values_, count);
}

void GgufWriter::text(std::string_view name, std::string_view value) {
  key(name, kString);
  append_text(values_, value);
}

void GgufWriter::u32(std::string_view name, std::int64_t value) {
  if (value < 0 || value > UINT32_MAX) throw failed(fmt::format("{} = {} does not fit in 32 bits", name, value));
  key(name, kU32);
  append(values_, static_cast<std::uint32_t>(value));
}

void GgufWriter::f32(std::string_view name, double value) {
  key(name, kF32);
  append(values_, static_cast<float>(value));
}

void GgufWriter::boolean(std::string_view name, bool value) {
  key(name, kBool);
  append<std::uint8_t>(values_, value ? 1 : 0);
}

void GgufWriter::texts(std::string_view name, std::span<const std::string> values) {
  array(name, kString, values.size());
  for (const auto& text : values) append_text(values_, text);
}

void GgufWriter::i32s(std::string_view name, std::span<const std::int32_t> values) {
  array(name, kI32, values.size());
  for (const auto v : values) append(values_, v);
}

void GgufWriter::f32s(std::string_view name, std::span<const float> values) {
  array(name, kF32, values.size());
  for (const auto v : values) append(values_, v);
}

void GgufWriter::value(std::string_view name, const GgufValue& value) {
  if (value.array) {
    array(name, value.type, value.count);
  } else {
    key(name, value.type);
  }
  values_.append(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
}

void GgufWriter::tensor(std::string name, Shape shape, std::uint32_t type,
                        std::function<void(std::span<std::byte>)> fill) {
  const GgufType* known = find_gguf_type(type);
  if (known == nullptr || shape.empty() || shape.back() % known->block_size != 0) {
    throw failed(fmt::format("rows of {} are no whole blocks of GGUF type {}", to_string(shape), type), name);
  }
  const auto bytes = static_cast<std::uint64_t>(element_count(shape) / known->block_size * known->block_bytes);
  tensors_.push_back({std::move(name), std::move(shape), type, bytes, std::move(fill)});
}

void GgufWriter::f32_tensor(std::string name, Shape shape, std::vector<float> values) {
  tensor(std::move(name), std::move(shape), kGgufF32, [values = std::move(values)](std::span<std::byte> out) {
    std::memcpy(out.data(), values.data(), out.size());
  });
}

void GgufWriter::write(const std::filesystem::path& path) const {
  std::string head = "GGUF";
  append<std::uint32_t>(head, 3);
  append<std::uint64_t>(head, tensors_.size());
  append(head, value_count_);
  head += values_;
  std::uint64_t offset = 0;
  for (const Entry& entry : tensors_) {
    append_text(head, entry.name);
    append(head, static_cast<std::uint32_t>(entry.shape.size()));
    for (auto dim = entry.shape.rbegin(); dim != entry.shape.rend(); ++dim) append<std::uint64_t>(head, static_cast<std::uint64_t>(*dim));
    append(head, entry.type);
    append(head, offset);
    offset += padded(entry.bytes);
  }
  head.resize(padded(head.size()));
  OutputFile file(path);
  file.write(head);
  for (const Entry& entry : tensors_) {
    std::vector<std::byte> bytes(padded(entry.bytes));
    entry.fill(std::span(bytes).first(entry.bytes));
    file.write(bytes);
  }
  file.finish();
}

}  // namespace spear
