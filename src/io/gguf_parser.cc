#include "io/gguf_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "io/untrusted.h"

namespace spear {
namespace {

constexpr const char* kDamaged = "the file is truncated or damaged; get it again";
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kMaxAlignment = 1 << 20;

/// Takes values off the front of the file; never past its end.
class Cursor {
 public:
  Cursor(std::span<const std::byte> file, const std::string& where) : file_(file), where_(where) {}

  std::uint64_t position() const { return position_; }

  std::span<const std::byte> take(std::uint64_t count, const std::string& what) {
    if (count > file_.size() - position_) {
      throw bad_input(
          fmt::format("{} at byte {} needs {} bytes, {} are left", what, position_, count, file_.size() - position_),
          where_, kDamaged);
    }
    const auto result = file_.subspan(position_, count);
    position_ += count;
    return result;
  }

  template <class T>
  T number(const std::string& what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string_view text(const std::string& what) {
    const auto bytes = take(number<std::uint64_t>(what), what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<const std::byte> file_;
  const std::string& where_;
  std::uint64_t position_ = 0;
};

GgufValue read_value(Cursor& cursor, const std::string& key, const std::string& where) {
  GgufValue value;
  value.type = cursor.number<std::uint32_t>(key);
  value.array = value.type == kArray;
  if (value.array) {
    value.type = cursor.number<std::uint32_t>(key);
    value.count = cursor.number<std::uint64_t>(key);
  }
  const std::size_t element = gguf_value_bytes(value.type);
  if (element == 0 && value.type != kString) {
    throw bad_input(fmt::format("key '{}' has value type {}{}", key, value.type, value.array ? " in an array" : ""),
                    where, "the file is damaged or newer than this program");
  }
  if (element != 0) {
    if (value.count > UINT64_MAX / element)
      throw bad_input(fmt::format("key '{}' has {} elements", key, value.count), where, kDamaged);
    value.bytes = cursor.take(value.count * element, key);
    return value;
  }
  // Strings have no fixed size: walk over them to find the end. Each takes at least 8 bytes, so a lying count ends
  // soon.
  Cursor start = cursor;
  const std::uint64_t begin = cursor.position();
  for (std::uint64_t i = 0; i < value.count; ++i) cursor.text(key);
  value.bytes = start.take(cursor.position() - begin, key);
  return value;
}

struct Placed {
  std::string name;
  GgufTensor tensor;
  std::uint64_t offset = 0, bytes = 0;
};

Placed read_tensor_info(Cursor& cursor, const std::string& file_where) {
  Placed placed;
  placed.name = std::string(cursor.text("tensor name"));
  const std::string where = file_where + ": " + printable(placed.name);
  const auto dimensions = cursor.number<std::uint32_t>("number of dimensions");
  if (dimensions < 1 || dimensions > kMaxDimensions)
    throw bad_input(fmt::format("{} dimensions", dimensions), where, kDamaged);
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto dim = cursor.number<std::uint64_t>("dimension");
    if (dim < 1 || dim > std::uint64_t{INT64_MAX}) throw bad_input(fmt::format("dimension {}", dim), where, kDamaged);
    placed.tensor.shape.push_back(static_cast<std::int64_t>(dim));
  }
  std::reverse(placed.tensor.shape.begin(), placed.tensor.shape.end());  // stored fastest-varying first
  const auto type = cursor.number<std::uint32_t>("tensor type");
  placed.tensor.type = find_gguf_type(type);
  if (placed.tensor.type == nullptr) {
    constexpr std::uint32_t kFirstOfFork = 97, kLastOfFork = 400;
    throw bad_input(fmt::format("tensor type {} is unknown", type), where,
                    type >= kFirstOfFork && type <= kLastOfFork
                        ? "a type that only ik_llama.cpp has (or damage): quantize to Q4_0, Q4_K_M or another type of llama.cpp"
                        : "the file is damaged or newer than this program");
  }
  placed.offset = cursor.number<std::uint64_t>("tensor offset");
  const std::int64_t count = checked_element_count(placed.tensor.shape, where);
  const GgufType& traits = *placed.tensor.type;
  if (placed.tensor.shape.back() % traits.block_size != 0) {
    throw bad_input(fmt::format("rows of {} weights are not whole {} blocks of {}", placed.tensor.shape.back(),
                                traits.name, traits.block_size),
                    where, kDamaged);
  }
  placed.bytes = static_cast<std::uint64_t>(count / traits.block_size * traits.block_bytes);
  return placed;
}

std::uint64_t read_alignment(const GgufContent& content, const std::string& where) {
  const auto found = content.values.find("general.alignment");
  if (found == content.values.end()) return 32;
  std::uint32_t alignment = 0;
  if (found->second.type == kU32 && !found->second.array)
    std::memcpy(&alignment, found->second.bytes.data(), sizeof alignment);
  if (alignment == 0 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
    throw bad_input("general.alignment is not a power of two", where, kDamaged);
  }
  return alignment;
}

void place_tensors(std::vector<Placed>& placed, std::span<const std::byte> data, std::uint64_t alignment,
                   const std::string& file_where) {
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) { return a.offset < b.offset; });
  std::uint64_t used = 0;
  for (Placed& item : placed) {
    const std::string where = file_where + ": " + printable(item.name);
    if (item.offset % alignment != 0) {
      throw bad_input(fmt::format("offset {} is not a multiple of the alignment {}", item.offset, alignment), where,
                      kDamaged);
    }
    if (item.offset < used) throw bad_input("the tensor overlaps another", where, kDamaged);
    if (item.offset > data.size() || item.bytes > data.size() - item.offset) {
      throw bad_input(
          fmt::format("{} bytes at offset {} end outside the {} bytes of data", item.bytes, item.offset, data.size()),
          where, kDamaged);
    }
    item.tensor.bytes = data.subspan(item.offset, item.bytes);
    used = item.offset + item.bytes;
  }
}

void check_magic(Cursor& cursor, const std::string& where) {
  const auto magic = cursor.take(4, "magic");
  if (std::memcmp(magic.data(), "GGUF", 4) != 0)
    throw bad_input("not a GGUF file", where, "pass a GGUF file or a model directory");
  const auto version = cursor.number<std::uint32_t>("version");
  if ((version & 0xffffU) == 0 && version != 0) {
    throw bad_input("big-endian GGUF is not supported", where, "convert the model to a little-endian file");
  }
  if (version != 2 && version != 3) {
    throw bad_input(fmt::format("GGUF version {} is not supported", version), where, "use a file of version 2 or 3");
  }
}

}  // namespace

std::size_t gguf_value_bytes(std::uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    case kU64:
    case kI64:
    case kF64:
      return 8;
    default:
      return 0;
  }
}

GgufContent parse_gguf(std::span<const std::byte> file, const std::string& where) {
  Cursor cursor(file, where);
  check_magic(cursor, where);
  const auto tensor_count = cursor.number<std::uint64_t>("tensor count");
  const auto value_count = cursor.number<std::uint64_t>("metadata count");

  // Counts are not trusted either: nothing is reserved, and every round takes bytes from the file.
  GgufContent content;
  for (std::uint64_t i = 0; i < value_count; ++i) {
    const std::string key(cursor.text("metadata key"));
    const bool fresh = content.values.emplace(key, read_value(cursor, printable(key), where)).second;
    if (!fresh) throw bad_input(fmt::format("key '{}' appears twice", printable(key)), where, kDamaged);
  }
  std::vector<Placed> placed;
  for (std::uint64_t i = 0; i < tensor_count; ++i) placed.push_back(read_tensor_info(cursor, where));

  const std::uint64_t alignment = read_alignment(content, where);
  const std::uint64_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
  if (data_begin > file.size() && !placed.empty())
    throw bad_input("the file ends before its tensor data", where, kDamaged);
  place_tensors(placed, file.subspan(std::min<std::uint64_t>(data_begin, file.size())), alignment, where);
  for (Placed& item : placed) {
    if (!content.tensors.emplace(item.name, item.tensor).second) {
      throw bad_input(fmt::format("tensor '{}' appears twice", printable(item.name)), where, kDamaged);
    }
  }
  return content;
}

}  // namespace spear
