#include "io/safetensors.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "io_test_util.h"

namespace spear {
namespace {

std::string raw_file(const std::string& header, const std::string& data) {
  const std::uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

TensorMap sample() {
  TensorMap tensors;
  tensors["floats"] = Tensor::from_floats({2, 3}, std::vector<float>{1, -2, 3, 0.5F, 1e-30F, 7});
  tensors["halves"] = tensors["floats"].to(DType::f16);
  tensors["brains"] = tensors["floats"].to(DType::bf16);
  Tensor bytes(DType::i8, {5});
  for (int i = 0; i < 5; ++i)
    bytes.mutable_as<std::int8_t>()[static_cast<std::size_t>(i)] = static_cast<std::int8_t>(i - 2);
  tensors["bytes"] = bytes;
  tensors["empty"] = Tensor(DType::f32, {0, 4});
  tensors["scalar"] = Tensor::from_floats({}, std::vector<float>{42});
  Tensor shape(DType::i64, {2});
  shape.mutable_as<std::int64_t>()[1] = INT64_MIN;
  tensors["longs"] = shape;
  return tensors;
}

class SafetensorsFile : public testing::Test {
 protected:
  /// Reads a file made of this header and data.
  void read(const std::string& header, const std::string& data = {}) {
    write_raw(path_, raw_file(header, data));
    read_safetensors(path_);
  }
  void expect_header_refused(const std::string& header, const std::string& data, const std::string& text) {
    expect_refused([&] { read(header, data); }, text);
  }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "model.safetensors";
};

TEST_F(SafetensorsFile, RoundTripKeepsEveryByte) {
  const TensorMap tensors = sample();
  write_safetensors(path_, tensors, {{"format", "pt"}, {"quote", "\"\n"}});
  const Safetensors back = read_safetensors(path_);
  EXPECT_EQ(back.metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"quote", "\"\n"}}));
  ASSERT_EQ(back.tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const Tensor& other = back.tensors.at(name);
    EXPECT_EQ(tensor.dtype(), other.dtype()) << name;
    EXPECT_EQ(tensor.shape(), other.shape()) << name;
    EXPECT_TRUE(std::equal(tensor.bytes().begin(), tensor.bytes().end(), other.bytes().begin(), other.bytes().end()))
        << name;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(other.bytes().data()) % element_bytes(other.dtype()), 0U) << name;
  }
}

TEST_F(SafetensorsFile, EqualInputGivesEqualAlignedFiles) {
  write_safetensors(path_, sample(), {{"a", "1"}});
  write_safetensors(directory_ / "again", sample(), {{"a", "1"}});
  const std::string bytes = read_raw(path_);
  EXPECT_EQ(bytes, read_raw(directory_ / "again"));
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  EXPECT_EQ(header % 8, 0U);
  EXPECT_EQ(bytes[8], '{');
}

TEST_F(SafetensorsFile, ReadsWhatTheReferenceLibraryWrote) {
  const auto file = read_safetensors(data_file("tiny-llama/model.safetensors"));
  EXPECT_EQ(file.metadata.at("format"), "pt");
  EXPECT_EQ(file.tensors.at("model.embed_tokens.weight").shape(), (Shape{40, 32}));
}

TEST_F(SafetensorsFile, UnalignedDataIsCopied) {
  const float value = 2.5F;
  const std::string data = "x" + std::string(reinterpret_cast<const char*>(&value), 4);
  write_raw(
      path_,
      raw_file(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
          data));
  const auto file = read_safetensors(path_);
  EXPECT_EQ(file.tensors.at("b").as<float>()[0], 2.5F);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file.tensors.at("b").bytes().data()) % 4, 0U);
}

TEST_F(SafetensorsFile, MinimalFilesAreLegal) {
  EXPECT_NO_THROW(read("{}"));
  EXPECT_NO_THROW(read(R"({"__metadata__":{}})"));
  EXPECT_NO_THROW(read(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}      )", "1234"));
  EXPECT_NO_THROW(read(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})"));
}

TEST_F(SafetensorsFile, OffsetsMustTileTheData) {
  const auto two = [](const char* a, const char* b) {
    return fmt::format(
        R"({{"a":{{"dtype":"I8","shape":[4],"data_offsets":{}}},"b":{{"dtype":"I8","shape":[4],"data_offsets":{}}}}})",
        a, b);
  };
  EXPECT_NO_THROW(read(two("[0,4]", "[4,8]"), "12345678"));
  EXPECT_NO_THROW(read(two("[4,8]", "[0,4]"), "12345678"));
  expect_header_refused(two("[0,4]", "[2,6]"), "123456", "overlap");
  expect_header_refused(two("[0,4]", "[0,4]"), "1234", "overlap");
  expect_header_refused(two("[0,4]", "[5,9]"), "123456789", "gap");
  expect_header_refused(two("[1,5]", "[5,9]"), "123456789", "gap");
  expect_header_refused(two("[0,4]", "[4,8]"), "123456789", "cover 8 of 9");
  expect_header_refused(two("[0,4]", "[4,8]"), "1234567", "outside");
  expect_header_refused(two("[0,4]", "[8,4]"), "12345678", "outside");
  expect_header_refused(two("[0,4]", "[4,9223372036854775807]"), "12345678", "outside");
}

TEST_F(SafetensorsFile, LyingShapes) {
  const auto shaped = [](const char* dtype, const char* shape) {
    return fmt::format(R"({{"a":{{"dtype":"{}","shape":{},"data_offsets":[0,8]}}}})", dtype, shape);
  };
  EXPECT_NO_THROW(read(shaped("F32", "[2]"), "12345678"));
  expect_header_refused(shaped("F32", "[3]"), "12345678", "needs 12 bytes");
  expect_header_refused(shaped("F32", "[0]"), "12345678", "needs 0 bytes");
  expect_header_refused(shaped("F32", "[4294967296,4294967296]"), "12345678", "too large");
  expect_header_refused(shaped("F32", "[9223372036854775807,9223372036854775807]"), "12345678", "too large");
  expect_header_refused(shaped("F32", "[18446744073709551615]"), "12345678", "a number");
  expect_header_refused(shaped("F32", "[-2]"), "12345678", "negative");
  expect_header_refused(shaped("F32", "[2.0]"), "12345678", "fraction");
  expect_header_refused(shaped("F32", "[[2]]"), "12345678", "an array");
  expect_header_refused(shaped("F32", "[1,1,1,1,1,1,1,1,2]"), "12345678", "a number");
  expect_header_refused(shaped("F8_E4M3", "[8]"), "12345678", "F8_E4M3");
  expect_header_refused(shaped("", "[2]"), "12345678", "missing");
}

TEST_F(SafetensorsFile, MalformedHeaders) {
  const std::string a = R"({"dtype":"I8","shape":[1],"data_offsets":[0,1]})";
  expect_header_refused("{\"a\":" + a + ",\"a\":" + a + "}", "1", "twice");
  expect_header_refused(R"({"a":{"dtype":"I8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "1", "twice");
  expect_header_refused(R"({"__metadata__":{"k":"1","k":"2"}})", "", "twice");
  expect_header_refused(R"({"__metadata__":{},"__metadata__":{}})", "", "twice");
  expect_header_refused(R"({"__metadata__":{"k":1}})", "", "a number");
  expect_header_refused(R"({"__metadata__":{"k":{}}})", "", "an object");
  expect_header_refused(R"({"__metadata__":"x"})", "", "a string");
  expect_header_refused(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", "1", "missing");
  expect_header_refused(R"({"a":{"dtype":"I8","data_offsets":[0,1]}})", "1", "missing");
  expect_header_refused(R"({"a":{"dtype":"I8","shape":[1]}})", "1", "missing");
  expect_header_refused(R"({"a":{"dtype":"I8","shape":[1],"data_offsets":[0]}})", "1", "missing");
  expect_header_refused(R"({"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1,1]}})", "1", "missing");
  expect_header_refused(R"({"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1],"extra":[1]}})", "1", "an array");
  expect_header_refused(R"({"a":{"b":{}}})", "", "an object");
  expect_header_refused(R"({"a":null})", "", "null");
  expect_header_refused("[1]", "", "start with");
  expect_header_refused("", "", "start with");
  expect_header_refused("{\"a\":", "", "JSON");
  expect_header_refused("{} {}", "", "JSON");
  expect_header_refused("{\"\xff\":1}", "", "JSON");
  expect_header_refused(std::string(100'000, '{'), "", "JSON");
  expect_header_refused("{\"a\":" + std::string(100'000, '['), "", "an array");
}

TEST_F(SafetensorsFile, LyingHeaderLength) {
  for (const std::uint64_t size : {std::uint64_t{3}, std::uint64_t{100'000'001}, UINT64_MAX, UINT64_MAX - 7}) {
    std::string bytes = raw_file("{}", "");
    std::memcpy(bytes.data(), &size, 8);
    write_raw(path_, bytes);
    expect_refused([&] { read_safetensors(path_); }, "header of");
  }
}

TEST_F(SafetensorsFile, DamagedAnywhereNeverCrashes) {
  TensorMap tensors;
  tensors["w"] = Tensor::from_floats({2, 2}, std::vector<float>{1, 2, 3, 4});
  tensors["b"] = Tensor(DType::i8, {3});
  write_safetensors(path_, tensors, {{"k", "v"}});
  expect_hardened(path_, read_raw(path_), 1, [&] { read_safetensors(path_); });
}

class Sharded : public testing::Test {
 protected:
  void SetUp() override {
    write_safetensors(directory_ / "one.safetensors", {{"a", Tensor(DType::f32, {2})}}, {});
    write_safetensors(directory_ / "two.safetensors", {{"b", Tensor(DType::f32, {3})}, {"c", Tensor(DType::f32, {1})}},
                      {});
  }
  void index(const std::string& weight_map) {
    write_raw(directory_ / "model.safetensors.index.json",
              R"({"metadata":{"total_size":24},"weight_map":)" + weight_map + "}");
  }
  void expect_index_refused(const std::string& weight_map, const std::string& text) {
    index(weight_map);
    expect_refused([&] { read_safetensors_directory(directory_.path()); }, text);
  }
  TemporaryDirectory directory_;
};

TEST_F(Sharded, ReadsEveryShard) {
  index(R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  const TensorMap all = read_safetensors_directory(directory_.path());
  EXPECT_EQ(all.size(), 3U);
  EXPECT_EQ(all.at("b").shape(), (Shape{3}));
}

TEST_F(Sharded, RefusesWhatDoesNotFit) {
  expect_index_refused(R"({"a":"one.safetensors","z":"three.safetensors"})", "shard 'three.safetensors' is missing");
  expect_index_refused(R"({"a":"one.safetensors","b":"two.safetensors"})", "'c' is not listed");
  expect_index_refused(R"({"a":"one.safetensors","b":"one.safetensors"})", "'b' is not in its shard");
  expect_index_refused(R"({"a":1})", "not a name");
  expect_index_refused("[]", "no weight_map");
  for (const char* name : {"../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..", "", "one.bin",
                           "a\\\\b.safetensors", "./one.safetensors", "one.safetensors/", "a\\u0000.safetensors"}) {
    expect_index_refused(fmt::format(R"({{"a":"{}"}})", name), "shard name");
  }
  write_raw(directory_ / "model.safetensors.index.json", "{");
  expect_refused([&] { read_safetensors_directory(directory_.path()); }, "JSON");
  std::filesystem::remove(directory_ / "model.safetensors.index.json");
  expect_refused([&] { read_safetensors_directory(directory_.path()); }, "neither");
}

}  // namespace
}  // namespace spear
