// Classes of attacks on readers of model files that became CVEs elsewhere. What single readers refuse in detail is
// tested beside them; here are the lies that cost others memory, and what no length in a file may do: decide how much
// is allocated before it was compared with the file.
#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <nlohmann/json.hpp>

#include "gguf_bytes.h"
#include "io/checkpoint.h"
#include "io/gguf.h"
#include "io/hf_config.h"
#include "io/model_reader.h"
#include "io/safetensors.h"
#include "io/untrusted.h"
#include "io_test_util.h"

namespace {

std::atomic<std::size_t> largest_allocation{0};

void* allocate(std::size_t size, std::size_t alignment) {
  std::size_t seen = largest_allocation.load();
  while (size > seen && !largest_allocation.compare_exchange_weak(seen, size)) {
  }
  void* result = alignment == 0 ? std::malloc(size)
                                : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (result == nullptr) throw std::bad_alloc();
  return result;
}

}  // namespace

// All of them: a sanitizer sees to it that what one pair allocated is not freed by another.
void* operator new(std::size_t size) { return allocate(size, 0); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
void* operator new[](std::size_t size) { return allocate(size, 0); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace spear {
namespace {

using nlohmann::json;

/// Bytes of the largest piece of memory that `body` asked for.
std::size_t largest_of(const std::function<void()>& body) {
  largest_allocation = 0;
  body();
  return largest_allocation;
}

std::string safetensors_bytes_of(const std::string& header, std::size_t data) {
  const std::uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + std::string(data, '\0');
}

class Hostile : public testing::Test {
 protected:
  /// The reader refuses the file and, small as it is, asks for little memory on the way.
  void expect_cheap_refusal(const std::string& bytes, const std::function<void()>& read, const std::string& text) {
    write_raw(path_, bytes);
    EXPECT_LT(largest_of([&] { expect_refused(read, text); }), std::size_t{1} << 20) << text;
  }
  void expect_gguf_refused(const GgufBytes& content, const std::string& text) {
    expect_cheap_refusal(
        content.bytes(), [&] { GgufFile file(path_); }, text);
  }
  void expect_safetensors_refused(const std::string& header, std::size_t data, const std::string& text) {
    expect_cheap_refusal(
        safetensors_bytes_of(header, data), [&] { read_safetensors(path_); }, text);
  }
  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "file";
};

TEST_F(Hostile, TheMeterOfAllocationsWorks) {
  EXPECT_GE(largest_of([] { std::vector<char>(5 << 20).shrink_to_fit(); }), std::size_t{5} << 20);
  EXPECT_LT(largest_of([] {}), 1U << 10);
}

// CVE-2025-53630, CVE-2026-27940: a size in bytes that wraps around makes a small buffer for a large tensor.
TEST_F(Hostile, SizeOverflowOfGgufTensors) {
  const std::uint64_t half = std::uint64_t{1} << 32;
  for (const std::vector<std::uint64_t>& dims : std::vector<std::vector<std::uint64_t>>{
           {half, half}, {half * half / 2, 2}, {half, half / 2, 8}, {3, UINT64_MAX / 3}}) {
    expect_gguf_refused(GgufBytes().header(1, 0).tensor("t", dims, 0, 0).data(64), "");
  }
  // Elements fit into 63 bits, elements × bytes don't; and offset + bytes doesn't.
  expect_gguf_refused(GgufBytes().header(1, 0).tensor("t", {std::uint64_t{1} << 61}, 0, 0).data(64), "");
  expect_gguf_refused(GgufBytes().header(1, 0).tensor("t", {16}, 0, UINT64_MAX - 31).data(64), "outside");
}

// CVE-2026-7482: dimensions that promise more than the file holds.
TEST_F(Hostile, LyingDimensions) {
  expect_gguf_refused(GgufBytes().header(1, 0).tensor("t", {1 << 20, 1 << 10}, 0, 0).data(64), "outside");
  expect_safetensors_refused(R"({"t":{"dtype":"F32","shape":[1048576,1024],"data_offsets":[0,4294967296]}})", 64,
                             "outside");
  expect_safetensors_refused(R"({"t":{"dtype":"F32","shape":[1048576,1024],"data_offsets":[0,64]}})", 64,
                             "needs 4294967296 bytes");
}

// llama.cpp PR 19856: strings and arrays longer than the file.
TEST_F(Hostile, LengthsBeyondTheFile) {
  for (const std::uint64_t length : {std::uint64_t{1} << 20, std::uint64_t{1} << 40, UINT64_MAX, UINT64_MAX - 8}) {
    expect_gguf_refused(GgufBytes().header(0, 1).u64(length), "metadata key");
    expect_gguf_refused(GgufBytes().header(0, 1).text("k").u32(8).u64(length), "k at byte");
    for (const std::uint32_t type : {0U, 1U, 4U, 6U, 8U, 10U, 12U}) {
      expect_gguf_refused(GgufBytes().header(0, 1).text("k").u32(9).u32(type).u64(length), "");
    }
    expect_gguf_refused(GgufBytes().header(length, 0), "tensor name");
    expect_gguf_refused(GgufBytes().header(0, length), "metadata key");
  }
  for (const std::uint64_t length : {std::uint64_t{1} << 26, std::uint64_t{1} << 40, UINT64_MAX}) {
    const std::string bytes = std::string(reinterpret_cast<const char*>(&length), 8) + "{}";
    expect_cheap_refusal(
        bytes, [&] { read_safetensors(path_); }, "header of");
  }
}

// llama.cpp PR 19856: negative numbers where unsigned ones are meant.
TEST_F(Hostile, NegativeTypesAndCounts) {
  const std::uint32_t minus_one = 0xffffffffU;
  expect_gguf_refused(GgufBytes().header(0, 1).text("k").u32(minus_one).u64(0), "value type");
  expect_gguf_refused(GgufBytes().header(0, 1).text("k").u32(9).u32(minus_one).u64(0), "value type");
  expect_gguf_refused(GgufBytes().header(1, 0).text("t").u32(minus_one), "dimensions");
  expect_gguf_refused(GgufBytes().header(1, 0).tensor("t", {16}, minus_one, 0).data(64), "unknown");
}

// Two names for the same bytes: one reader's weights are another one's header.
TEST_F(Hostile, OverlappingAndTwinTensors) {
  expect_gguf_refused(GgufBytes().header(2, 0).tensor("a", {16}, 0, 0).tensor("b", {16}, 0, 32).data(128), "overlaps");
  expect_gguf_refused(GgufBytes().header(2, 0).tensor("a", {8}, 0, 0).tensor("a", {8}, 0, 32).data(128), "twice");
  const std::string entry = R"({"dtype":"I8","shape":[8],"data_offsets":[0,8]})";
  expect_safetensors_refused(R"({"a":)" + entry + R"(,"b":)" + entry + "}", 8, "overlap");
  expect_safetensors_refused(R"({"a":)" + entry + R"(,"a":)" + entry + "}", 8, "twice");
  // A polyglot hides behind the tensors or between them.
  expect_safetensors_refused(R"({"a":)" + entry + "}", 4096, "cover");
}

// Headers of 100,000 entries: other readers took minutes.
TEST_F(Hostile, ManyEntriesTakeLittleTime) {
  std::string header = "{";
  for (int i = 0; i < 200'000; ++i) {
    header +=
        fmt::format(R"({}"t{}":{{"dtype":"I8","shape":[1],"data_offsets":[{},{}]}})", i == 0 ? "" : ",", i, i, i + 1);
  }
  write_raw(path_, safetensors_bytes_of(header + "}", 200'000));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(read_safetensors(path_).tensors.size(), 200'000U);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 30);
}

TEST_F(Hostile, JsonThatIsNestedTooDeeply) {
  const auto nested = [](int levels) { return std::string(levels, '[') + std::string(levels, ']'); };
  EXPECT_NO_THROW(parse_json(nested(64), "file"));
  for (const int levels : {65, 1'000'000})
    expect_refused([&] { parse_json(nested(levels), "file"); }, "more than 64 levels");
  EXPECT_NO_THROW(
      parse_json(R"({"a":"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"[["})", "file"));
  // Where a config is compared, copied or quoted in a message, each of which recurses.
  const std::string deep = nested(1'000'000);
  for (const char* field : {"architectures", "eos_token_id", "rope_scaling", "quantization_config", "anything"}) {
    write_raw(directory_ / "config.json", R"({"model_type":"llama",")" + std::string(field) + "\":" + deep + "}");
    expect_refused([&] { read_hf_directory_config(directory_.path()); }, "more than 64 levels");
    expect_refused([&] { kind_of_model(directory_.path()); }, "more than 64 levels");
  }
  write_raw(directory_ / "spear.json", R"({"schema":)" + deep + "}");
  expect_refused([&] { read_manifest(directory_.path()); }, "more than 64 levels");
  write_raw(directory_ / "model.safetensors.index.json", R"({"weight_map":)" + deep + "}");
  expect_refused([&] { read_safetensors_directory(directory_.path()); }, "more than 64 levels");
}

TEST_F(Hostile, NumbersBeyondTheirType) {
  expect_refused([] { parse_json("[1e999]", "file"); }, "not usable JSON");
  for (const char* number : {"1e999", "-1e999", "9223372036854775808", "-9223372036854775809", "18446744073709551616",
                             "1e18", "0.5", "-1", "0"}) {
    for (const char* field : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                              "vocab_size", "max_position_embeddings"}) {
      json config = {{"model_type", "llama"},  {"hidden_size", 16},        {"intermediate_size", 24},
                     {"num_hidden_layers", 1}, {"num_attention_heads", 2}, {"vocab_size", 8}};
      config[field] = "NUMBER";
      std::string text = config.dump();
      text.replace(text.find("\"NUMBER\""), 8, number);
      write_raw(directory_ / "config.json", text);
      EXPECT_LT(largest_of([&] { expect_refused([&] { read_hf_directory_config(directory_.path()); }, ""); }),
                std::size_t{1} << 20)
          << field << " = " << number;
    }
  }
}

TEST_F(Hostile, TwinKeysOfDocuments) {  // two readers could take different ones
  expect_refused([] { parse_json(R"({"a":{"b":1,"c":{"b":2},"b":3}})", "file"); }, "'b' appears twice");
  EXPECT_NO_THROW(parse_json(R"({"a":{"b":1,"c":[{"b":2},{"b":2}]},"b":3})", "file"));
  write_raw(directory_ / "config.json", R"({"model_type":"llama","hidden_size":16,"hidden_size":32})");
  expect_refused([&] { read_hf_directory_config(directory_.path()); }, "'hidden_size' appears twice");
}

// A scale of NaN or infinity spoils every token without a crash.
TEST_F(Hostile, ScalesThatAreNotFinite) {
  for (const bool symmetric : {true, false}) {
    for (const float value :
         {NAN, -NAN, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      const auto folder = directory_ / "model";
      std::filesystem::create_directory(folder);
      ModelWeights weights = tiny_model({true, W4Scheme{0, symmetric}});
      add_compensators(weights, 2);
      write_checkpoint(folder, weights, {}, json::object());
      const auto change = [&](const char* file, const std::string& tensor, std::uint16_t bits) {
        const std::string before = read_raw(folder / file);
        Safetensors content = read_safetensors(folder / file);
        ASSERT_TRUE(content.tensors.contains(tensor)) << tensor;
        Tensor copy(content.tensors[tensor].dtype(), content.tensors[tensor].shape());
        std::memcpy(copy.mutable_as<std::byte>().data(), content.tensors[tensor].bytes().data(), copy.bytes().size());
        copy.mutable_as<std::uint16_t>().back() = bits;
        content.tensors[tensor] = copy;
        write_safetensors(folder / file, content.tensors, content.metadata);
        expect_refused([&] { read_checkpoint(folder); }, "");
        write_raw(folder / file, before);
      };
      const std::string module = "model.layers.0.self_attn.q_proj";
      change("model.safetensors", module + ".weight_scale", f32_to_f16(value));
      change("compensators.safetensors", module + ".compensator.A_scale", f32_to_f16(value));
      change("compensators.safetensors", module + ".compensator.B_scale", f32_to_f16(value));
      change("compensators.safetensors", module + ".compensator.gate.W1", f32_to_bf16(value));
      EXPECT_NO_THROW(read_checkpoint(folder));
      std::filesystem::remove_all(folder);
    }
  }
}

// CVE-2026-53923: a dimension that is cut to 32 bits on its way to a kernel.
TEST_F(Hostile, DimensionsThatAre32BitsTooWide) {
  for (const std::uint64_t rows :
       {(std::uint64_t{1} << 32) + 16, (std::uint64_t{1} << 31) + 16, std::uint64_t{1} << 63}) {
    expect_gguf_refused(GgufBytes().header(1, 0).tensor("t", {16, rows}, 0, 0).data(1024), "");
    expect_safetensors_refused(fmt::format(R"({{"t":{{"dtype":"F32","shape":[{},1],"data_offsets":[0,64]}}}})", rows),
                               64, "");
  }
}

// Names that lead out of the model's directory.
TEST_F(Hostile, NamesOfOtherDirectories) {
  write_raw(directory_ / "config.json", "{}");
  for (const char* name : {"../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\\\x.safetensors",
                           "x.safetensors\\u0000.json", "", ".."}) {
    write_raw(directory_ / "model.safetensors.index.json", fmt::format(R"({{"weight_map":{{"t":"{}"}}}})", name));
    expect_refused([&] { read_safetensors_directory(directory_.path()); }, "shard name");
  }
  for (const char* name : {"../x", "/etc/passwd", "a/b", "", "."}) {
    write_raw(directory_ / "spear.json", json{{"schema", kManifestSchema}, {"files", {{name, "0"}}}}.dump());
    expect_refused([&] { verify_checkpoint(directory_.path()); }, "");
  }
}

}  // namespace
}  // namespace spear
