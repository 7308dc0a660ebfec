#include "io/gguf.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "io/gguf_parser.h"
#include "io/untrusted.h"

namespace spear {
namespace {

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

std::optional<std::int64_t> decode_integer(std::uint32_t type, const std::byte* bytes) {
  switch (type) {
    case kU8:
      return load<std::uint8_t>(bytes);
    case kI8:
      return load<std::int8_t>(bytes);
    case kU16:
      return load<std::uint16_t>(bytes);
    case kI16:
      return load<std::int16_t>(bytes);
    case kU32:
      return load<std::uint32_t>(bytes);
    case kI32:
      return load<std::int32_t>(bytes);
    case kI64:
      return load<std::int64_t>(bytes);
    case kU64: {
      const auto value = load<std::uint64_t>(bytes);
      return value <= std::uint64_t{INT64_MAX} ? std::optional(static_cast<std::int64_t>(value)) : std::nullopt;
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> decode_real(std::uint32_t type, const std::byte* bytes) {
  if (type == kF32) return load<float>(bytes);
  if (type == kF64) return load<double>(bytes);
  const auto integer = decode_integer(type, bytes);
  return integer ? std::optional(static_cast<double>(*integer)) : std::nullopt;
}

/// The string at `bytes` (its lengths were checked when the file was opened); moves `bytes` behind it.
std::string take_string(std::span<const std::byte>& bytes) {
  const auto length = load<std::uint64_t>(bytes.data());
  std::string text(reinterpret_cast<const char*>(bytes.data()) + sizeof length, length);
  bytes = bytes.subspan(sizeof length + length);
  return text;
}

/// Decodes every element; nothing if one does not decode.
template <class T, class Decode>
std::optional<std::vector<T>> decode_all(const GgufValue& value, Decode decode) {
  const std::size_t step = gguf_value_bytes(value.type);
  std::vector<T> result;
  for (std::size_t i = 0; step != 0 && i < value.count; ++i) {
    const auto element = decode(value.type, value.bytes.data() + i * step);
    if (!element) return std::nullopt;
    result.push_back(*element);
  }
  return step != 0 ? std::optional(std::move(result)) : std::nullopt;
}

Error wrong_type(const std::string& where, std::string_view key, const char* expected) {
  return bad_input(fmt::format("key '{}' is not {}", printable(key), expected), where, "the file is damaged");
}

}  // namespace

GgufFile::GgufFile(const std::filesystem::path& path) : file_(std::make_shared<const MappedFile>(path)) {
  auto content = parse_gguf(file_->bytes(), where());
  values_ = std::move(content.values);
  tensors_ = std::move(content.tensors);
}

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> result;
  for (const auto& [key, value] : values_) result.push_back(key);
  return result;
}

/// The value of `key`, or null when absent; throws when it is an array where none is expected, or the reverse.
const GgufValue* GgufFile::find(std::string_view key, bool array) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return nullptr;
  if (found->second.array != array) throw wrong_type(where(), key, array ? "an array" : "a single value");
  return &found->second;
}

const GgufValue& GgufFile::value(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) throw bad_input(fmt::format("key '{}' is missing", key), where(), "the file is incomplete");
  return found->second;
}

std::optional<std::int64_t> GgufFile::integer(std::string_view key) const {
  const GgufValue* value = find(key, false);
  if (value == nullptr) return std::nullopt;
  const auto result = decode_integer(value->type, value->bytes.data());
  if (!result) throw wrong_type(where(), key, "an integer");
  return result;
}

std::optional<double> GgufFile::real(std::string_view key) const {
  const GgufValue* value = find(key, false);
  if (value == nullptr) return std::nullopt;
  const auto result = decode_real(value->type, value->bytes.data());
  if (!result) throw wrong_type(where(), key, "a number");
  return result;
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
  const GgufValue* value = find(key, false);
  if (value == nullptr) return std::nullopt;
  if (value->type != kBool) throw wrong_type(where(), key, "a boolean");
  return value->bytes[0] != std::byte{0};
}

std::optional<std::string> GgufFile::text(std::string_view key) const {
  const GgufValue* value = find(key, false);
  if (value == nullptr) return std::nullopt;
  if (value->type != kString) throw wrong_type(where(), key, "a string");
  auto bytes = value->bytes;
  return take_string(bytes);
}

std::optional<std::vector<std::int64_t>> GgufFile::integers(std::string_view key) const {
  const GgufValue* value = find(key, true);
  if (value == nullptr) return std::nullopt;
  auto result = decode_all<std::int64_t>(*value, decode_integer);
  if (!result) throw wrong_type(where(), key, "a list of integers");
  return result;
}

std::optional<std::vector<double>> GgufFile::reals(std::string_view key) const {
  const GgufValue* value = find(key, true);
  if (value == nullptr) return std::nullopt;
  auto result = decode_all<double>(*value, decode_real);
  if (!result) throw wrong_type(where(), key, "a list of numbers");
  return result;
}

std::optional<std::vector<std::string>> GgufFile::texts(std::string_view key) const {
  const GgufValue* value = find(key, true);
  if (value == nullptr) return std::nullopt;
  if (value->type != kString) throw wrong_type(where(), key, "a list of strings");
  std::vector<std::string> result;
  for (auto bytes = value->bytes; !bytes.empty();) result.push_back(take_string(bytes));
  return result;
}

const GgufTensor& GgufFile::tensor(std::string_view tensor_name) const {
  const auto found = tensors_.find(tensor_name);
  if (found == tensors_.end()) {
    throw bad_input(fmt::format("tensor '{}' is missing", tensor_name), where(),
                    "the model is incomplete or of another architecture");
  }
  if (found->second.type->dequantize == nullptr) {
    throw bad_input(fmt::format("tensor type {} is not supported", found->second.type->name),
                    where() + ": " + printable(tensor_name), "use a file in F32, F16, BF16, Q8_0, Q6, Q5 or Q4");
  }
  return found->second;
}

Tensor GgufFile::dequantize(std::string_view tensor_name) const {
  const GgufTensor& source = tensor(tensor_name);
  Tensor result(DType::f32, source.shape);
  source.type->dequantize(source.bytes, result.mutable_as<float>());
  return result;
}

}  // namespace spear
