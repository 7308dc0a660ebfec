#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "io/untrusted.h"

namespace spear {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian and mapped as they are");

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::array kDTypes = {DType::f32, DType::f16, DType::bf16, DType::f64,
                                DType::i8,  DType::u8,  DType::i32,  DType::i64};

struct Entry {
  std::string dtype;
  std::optional<Shape> shape;
  std::optional<std::vector<std::int64_t>> offsets;
};

/// Reads exactly the header's grammar, {name: {dtype, shape, data_offsets}, "__metadata__": {text: text}}, straight
/// from the parser's events: no JSON tree is built, and duplicate keys are seen.
class HeaderHandler : public json::json_sax_t {
 public:
  explicit HeaderHandler(std::string where) : where_(std::move(where)) {}

  std::map<std::string, Entry> entries;
  std::map<std::string, std::string> metadata;

  bool start_object(std::size_t) override {
    if (depth_ > 1 || (depth_ == 1 && name_.empty() && !in_metadata_)) wrong("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    in_metadata_ = false;
    return true;
  }
  bool key(std::string& text) override {
    if (depth_ == 1) {
      name_ = text;
      in_metadata_ = text == "__metadata__";
      if (in_metadata_ ? std::exchange(seen_metadata_, true) : !entries.try_emplace(text).second) duplicate(text);
    } else {
      field_ = text;
      if (in_metadata_ ? !metadata.try_emplace(text).second : !fields_of_[name_].insert(text).second) duplicate(text);
    }
    return true;
  }
  bool string(std::string& text) override {
    if (depth_ == 2 && in_metadata_) {
      metadata[field_] = text;
    } else if (depth_ == 2 && field_ == "dtype") {
      entries[name_].dtype = text;
    } else {
      wrong("a string");
    }
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ != 2 || in_metadata_ || array_ != nullptr) wrong("an array");
    Entry& entry = entries[name_];
    if (field_ == "shape") {
      array_ = &entry.shape.emplace();
    } else if (field_ == "data_offsets") {
      array_ = &entry.offsets.emplace();
    } else {
      wrong("an array");
    }
    return true;
  }
  bool end_array() override {
    array_ = nullptr;
    return true;
  }
  bool number_unsigned(std::uint64_t value) override {
    if (array_ == nullptr || value > std::uint64_t{INT64_MAX} || array_->size() >= 8) wrong("a number");
    array_->push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool number_integer(std::int64_t) override { return wrong("a negative number"); }
  bool number_float(double, const std::string&) override { return wrong("a fraction"); }
  bool null() override { return wrong("null"); }
  bool boolean(bool) override { return wrong("a boolean"); }
  bool binary(json::binary_t&) override { return wrong("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const json::exception&) override {
    throw bad_input(fmt::format("the header is not valid JSON (byte {})", position), where_,
                    "the file is damaged; get it again");
  }

 private:
  [[noreturn]] bool wrong(const char* what) const {
    throw bad_input(
        fmt::format("{} where the header must not have one, near '{}' '{}'", what, printable(name_), printable(field_)),
        where_, "the file is damaged or not a safetensors file");
  }
  [[noreturn]] void duplicate(const std::string& text) const {
    throw bad_input(fmt::format("key '{}' appears twice in the header", printable(text)), where_,
                    "the file is damaged");
  }

  std::string where_, name_, field_;
  std::map<std::string, std::set<std::string>> fields_of_;
  std::vector<std::int64_t>* array_ = nullptr;
  int depth_ = 0;
  bool in_metadata_ = false, seen_metadata_ = false;
};

DType parse_dtype(const std::string& text, const std::string& where) {
  for (const DType type : kDTypes) {
    if (text == name(type)) return type;
  }
  throw bad_input(fmt::format("dtype '{}' is not supported", printable(text)), where,
                  "convert the tensor to F32, F16 or BF16");
}

/// A view of the file, or a copy where a view would not be aligned for its elements.
Tensor view_or_copy(DType type, Shape shape, std::span<const std::byte> bytes,
                    const std::shared_ptr<const MappedFile>& file) {
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % element_bytes(type) == 0) {
    return Tensor(type, std::move(shape), bytes, file);
  }
  Tensor copy(type, std::move(shape));
  std::copy(bytes.begin(), bytes.end(), copy.mutable_as<std::byte>().begin());
  return copy;
}

Tensor make_tensor(const Entry& entry, std::span<const std::byte> data, const std::shared_ptr<const MappedFile>& file,
                   const std::string& where) {
  if (entry.dtype.empty() || !entry.shape || !entry.offsets || entry.offsets->size() != 2) {
    throw bad_input("dtype, shape or data_offsets is missing", where, "the file is damaged");
  }
  const DType type = parse_dtype(entry.dtype, where);
  const auto begin = static_cast<std::uint64_t>((*entry.offsets)[0]);
  const auto end = static_cast<std::uint64_t>((*entry.offsets)[1]);
  if (begin > end || end > data.size()) {
    throw bad_input(fmt::format("data_offsets [{}, {}] lie outside the {} bytes of data", begin, end, data.size()),
                    where, "the file is truncated or damaged; get it again");
  }
  const auto expected = static_cast<std::uint64_t>(checked_element_count(*entry.shape, where)) * element_bytes(type);
  if (end - begin != expected) {
    throw bad_input(fmt::format("{} of shape {} needs {} bytes, data_offsets give {}", entry.dtype,
                                to_string(*entry.shape), expected, end - begin),
                    where, "the file is damaged");
  }
  return view_or_copy(type, *entry.shape, data.subspan(begin, end - begin), file);
}

/// Tensors must tile the data: the format allows neither gaps nor overlaps.
void check_coverage(const std::map<std::string, Entry>& entries, std::uint64_t data_bytes, const std::string& where) {
  std::vector<const std::vector<std::int64_t>*> ranges;
  for (const auto& [name, entry] : entries) ranges.push_back(&*entry.offsets);
  std::sort(ranges.begin(), ranges.end(), [](const auto* a, const auto* b) { return *a < *b; });
  std::int64_t covered = 0;
  for (const auto* range : ranges) {
    if ((*range)[0] != covered) {
      throw bad_input(fmt::format("tensors {} at data offset {}", (*range)[0] < covered ? "overlap" : "leave a gap",
                                  std::min((*range)[0], covered)),
                      where, "the file is damaged");
    }
    covered = (*range)[1];
  }
  if (static_cast<std::uint64_t>(covered) != data_bytes) {
    throw bad_input(fmt::format("tensors cover {} of {} bytes of data", covered, data_bytes), where,
                    "the file is damaged or has something appended");
  }
}

/// tensor name -> shard file name, from model.safetensors.index.json.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const auto malformed = [&](const std::string& what) { return bad_input(what, path.string(), "get the file again"); };
  const json index = read_json_object(path);
  if (!index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw malformed("no weight_map");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) throw malformed(fmt::format("the shard of '{}' is not a name", printable(tensor)));
    const auto file = shard.get<std::string>();
    if (!file.ends_with(".safetensors") || fs::path(file).filename() != file || file.find('\\') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      throw malformed(
          fmt::format("shard name '{}' is not that of a .safetensors file in the same directory", printable(file)));
    }
    shards[tensor] = file;
  }
  return shards;
}

using FileOrder = std::vector<std::pair<std::string, const Tensor*>>;

FileOrder file_order(const TensorMap& tensors) {
  FileOrder order;
  for (const auto& [tensor_name, tensor] : tensors) order.emplace_back(tensor_name, &tensor);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return element_bytes(a.second->dtype()) > element_bytes(b.second->dtype());
  });
  return order;
}

std::string header_text(const FileOrder& order, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const auto& [tensor_name, tensor] : order) {
    const std::uint64_t end = offset + tensor->bytes().size();
    header[tensor_name] = {
        {"dtype", name(tensor->dtype())}, {"shape", tensor->shape()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace

Safetensors read_safetensors(const fs::path& path) {
  const auto file = std::make_shared<const MappedFile>(path);
  const std::string where = path.string();
  const auto bytes = file->bytes();
  std::uint64_t header_bytes = 0;
  if (bytes.size() < sizeof header_bytes)
    throw bad_input("too short for a safetensors file", where, "get the file again");
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - sizeof header_bytes) {
    throw bad_input(fmt::format("header of {} bytes in a file of {}", header_bytes, bytes.size()), where,
                    "not a safetensors file, or truncated");
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + sizeof header_bytes;
  HeaderHandler header(where);
  if (header_bytes == 0 || *text != '{')
    throw bad_input("the header does not start with '{'", where, "get the file again");
  json::sax_parse(text, text + header_bytes, &header);

  const auto data = bytes.subspan(sizeof header_bytes + header_bytes);
  Safetensors result{{}, std::move(header.metadata)};
  for (const auto& [tensor_name, entry] : header.entries) {
    result.tensors.emplace(tensor_name, make_tensor(entry, data, file, where + ": " + printable(tensor_name)));
  }
  check_coverage(header.entries, data.size(), where);
  return result;
}

TensorMap read_safetensors_directory(const fs::path& directory) {
  const fs::path single = directory / "model.safetensors";
  const fs::path index = directory / "model.safetensors.index.json";
  if (fs::exists(single)) return read_safetensors(single).tensors;
  if (!fs::exists(index)) {
    throw bad_input("neither model.safetensors nor model.safetensors.index.json is there", directory.string(),
                    "pass a directory that holds a model in safetensors");
  }
  const auto shard_of = read_index(index);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  TensorMap all;
  for (const auto& shard : shards) {
    if (!fs::exists(directory / shard)) {
      throw bad_input(fmt::format("shard '{}' is missing", shard), index.string(), "download the missing file");
    }
    for (auto& [tensor_name, tensor] : read_safetensors(directory / shard).tensors) {
      const auto listed = shard_of.find(tensor_name);
      if (listed == shard_of.end() || listed->second != shard) {
        throw bad_input(fmt::format("tensor '{}' is not listed for this shard in the index", printable(tensor_name)),
                        (directory / shard).string(), "index and shards do not belong together");
      }
      all.emplace(tensor_name, std::move(tensor));
    }
  }
  for (const auto& [tensor, shard] : shard_of) {
    if (!all.contains(tensor)) {
      throw bad_input(fmt::format("tensor '{}' is not in its shard '{}'", printable(tensor), shard), index.string(),
                      "index and shards do not belong together");
    }
  }
  return all;
}

void write_safetensors(const fs::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const FileOrder order = file_order(tensors);
  const std::string header = header_text(order, metadata);
  const std::uint64_t header_bytes = header.size();
  OutputFile file(path);
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(header);
  for (const auto& [tensor_name, tensor] : order) file.write(tensor->bytes());
  file.finish();
}

std::int64_t safetensors_bytes(const TensorMap& tensors, const std::map<std::string, std::string>& metadata) {
  auto bytes = static_cast<std::int64_t>(sizeof(std::uint64_t) + header_text(file_order(tensors), metadata).size());
  for (const auto& [tensor_name, tensor] : tensors) bytes += static_cast<std::int64_t>(tensor.bytes().size());
  return bytes;
}

Tensor take_tensor(TensorMap& tensors, const std::string& name, const Shape& shape, std::initializer_list<DType> types,
                   const std::string& where) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    throw bad_input(fmt::format("tensor '{}' is missing", name), where,
                    "the model is incomplete or of another architecture");
  }
  Tensor tensor = std::move(found->second);
  tensors.erase(found);
  if (std::find(types.begin(), types.end(), tensor.dtype()) == types.end()) {
    throw bad_input(fmt::format("dtype {} is not supported here", spear::name(tensor.dtype())), where + ": " + name,
                    "convert the model to a dtype that is");
  }
  if (tensor.shape() != shape) {
    throw bad_input(fmt::format("shape {} instead of {}", to_string(tensor.shape()), to_string(shape)),
                    where + ": " + name, "the file does not belong to this config, or is damaged");
  }
  return tensor;
}

}  // namespace spear
