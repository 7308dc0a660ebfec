#include "io/gguf.h"

#include <fmt/format.h>

#include "gguf_bytes.h"
#include "io_test_util.h"
#include "tensor/block_matrix.h"
#include "tensor/dtype.h"
#include "tensor/gguf_types.h"

namespace spear {
namespace {

class Gguf : public testing::Test {
 protected:
  GgufFile open(const GgufBytes& content) {
    write_raw(path_, content.bytes());
    return GgufFile(path_);
  }
  void expect_open_refused(const GgufBytes& content, const std::string& text) {
    expect_refused([&] { open(content); }, text);
  }
  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "model.gguf";
};

constexpr std::uint32_t kF32 = 0, kQ4_0 = 2;

// Oracle: the gguf Python package (tests/golden/make_gguf_golden.py).
TEST(GgufGolden, DequantizesBitForBit) {
  const GgufFile file(data_file("dequantize.gguf"));
  int compared = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    if (name.ends_with(".expected")) continue;
    EXPECT_EQ(tensor.type->name, name);
    const Tensor found = file.dequantize(name);
    const Tensor expected = file.dequantize(name + ".expected");
    ASSERT_EQ(found.shape(), (Shape{3, 256}));
    EXPECT_TRUE(
        std::equal(found.bytes().begin(), found.bytes().end(), expected.bytes().begin(), expected.bytes().end()))
        << name;
    ++compared;
  }
  EXPECT_EQ(compared, 11);
}

// Oracle: dequantize_row_q6_0 of ik_llama.cpp's library (wheel ik-llama-cpp-python 0.1.5) on random blocks, each value divided by its d.
TEST(GgufGolden, Q6_0AsItsOwnProgramReadsIt) {
  const std::uint8_t blocks[] = {
      0x4c, 0x22, 0x82, 0xb7, 0x0e, 0xee, 0x7f, 0x1a, 0x50, 0x39, 0xbe, 0xf0, 0x7e, 0xc2, 0x34, 0x7f, 0x06, 0x6e, 0xd0,
      0x8f, 0x5d, 0xc7, 0x51, 0x24, 0x47, 0xe3, 0x00, 0xb8, 0x40, 0x43, 0x00, 0x02, 0x6b, 0x6e, 0x54, 0x55, 0x94, 0xa0,
      0x65, 0x68, 0x5d, 0x64, 0xc4, 0x98, 0x0b, 0xb8, 0xd4, 0x54, 0x4a, 0x87, 0x21, 0xa9, 0xff, 0x03, 0x9a, 0x01, 0xad,
      0x21, 0x9e, 0xb5, 0x9c, 0xf6, 0xa1, 0x5e, 0xf6, 0xf1, 0x5a, 0x1d, 0x83, 0x0b, 0xb7, 0xce, 0x09, 0xd6, 0xbb, 0xc0,
      0x04, 0xe7};
  const int codes[] = {
      14, 16, 14, 2, 20, 15, -26, -2, -32, 31, -19, 7, 17, -12, -9, 19, -21, -1, 23, 28, 19, 7, -32, 6, 13, 8, -27, 28, -11,
      -30, -12, -18, -28, 16, -27, 8, 29, 4, -28, -8, -21, -24, -28, -28, 10, 7, -15, -7, -23, -22, -26, -26, 5, 22, -4, -7,
      -16, -5, -19, -27, -12, -8, -14, -6, 1, -2, -10, -15, 10, -3, -29, 11, -9, -18, 9, 6, -5, 16, -12, 23, 10, -27, 31,
      -17, 21, -15, 24, -16, 11, -20, 0, -19, 11, 12, 0, 30};
  const float scales[] = {f16_to_f32(0x224c), f16_to_f32(0xb800), f16_to_f32(0x03ff)};
  const GgufType* type = find_gguf_type(133);
  ASSERT_NE(type, nullptr);
  ASSERT_EQ(sizeof blocks, static_cast<std::size_t>(3 * type->block_bytes));
  std::vector<float> values(96);
  type->dequantize(std::as_bytes(std::span(blocks)), values);
  for (std::size_t i = 0; i < 96; ++i) EXPECT_EQ(values[i], scales[i / 32] * static_cast<float>(codes[i])) << i;
}

TEST(GgufGolden, BlocksOfEveryQuantizedTypeAsAMatrix) {
  const GgufFile file(data_file("dequantize.gguf"));
  int compared = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    if (name.ends_with(".expected") || !tensor.type->quantized()) continue;
    BlockMatrix matrix{3, 256, tensor.type, {tensor.bytes.begin(), tensor.bytes.end()}};
    const auto expected = file.dequantize(name + ".expected").to_floats();
    EXPECT_EQ(matrix.dequantize(), expected) << name;
    std::vector<float> row(256);
    matrix.dequantize_row(1, row);
    EXPECT_TRUE(std::equal(row.begin(), row.end(), expected.begin() + 256)) << name;
    EXPECT_EQ(matrix.first_non_finite_row(), -1) << name;
    ASSERT_GE(tensor.type->first_half, 0) << name;
    // The halves are where the table says: one that is infinite is found, and without them nothing is left.
    BlockMatrix zero = matrix;
    for (std::int64_t at = 0; at < matrix.storage_bytes(); at += tensor.type->block_bytes) {
      for (const std::int64_t offset : {tensor.type->first_half, tensor.type->second_half}) {
        if (offset >= 0) std::fill_n(zero.blocks.begin() + at + offset, 2, std::byte{0});
      }
    }
    const auto nothing = zero.dequantize();
    EXPECT_TRUE(std::all_of(nothing.begin(), nothing.end(), [](float v) { return v == 0; })) << name;
    for (const std::int64_t offset : {tensor.type->first_half, tensor.type->second_half}) {
      if (offset < 0) continue;
      BlockMatrix infinite = matrix;
      infinite.blocks[static_cast<std::size_t>(2 * matrix.row_bytes() + offset + 1)] = std::byte{0xfc};
      infinite.blocks[static_cast<std::size_t>(2 * matrix.row_bytes() + offset)] = std::byte{0};
      EXPECT_EQ(infinite.first_non_finite_row(), 2) << name;
    }
    ++compared;
  }
  EXPECT_EQ(compared, 8);
}

TEST(GgufGolden, Q4_0HasNegativeScales) {
  const GgufFile file(data_file("dequantize.gguf"));
  const auto bytes = file.tensor("Q4_0").bytes;
  int negative = 0;
  for (std::size_t block = 0; block < bytes.size(); block += 18)
    negative += (bytes[block + 1] & std::byte{0x80}) != std::byte{0};
  EXPECT_GT(negative, 0);
}

TEST(GgufGolden, Tokenizer) {
  const auto tokenizer = read_gguf_tokenizer(GgufFile(data_file("tiny-llama.gguf")));
  EXPECT_EQ(tokenizer.model, "gpt2");
  EXPECT_EQ(tokenizer.pre, "smollm");
  ASSERT_EQ(tokenizer.tokens.size(), 40U);
  EXPECT_EQ(tokenizer.tokens[39], "t39");
  EXPECT_EQ(tokenizer.token_types[1], 3);
  EXPECT_EQ(tokenizer.token_types[2], 1);
  EXPECT_EQ(tokenizer.merges, (std::vector<std::string>{"t 1", "t 2"}));
  EXPECT_EQ(tokenizer.bos_id, 0);
  EXPECT_EQ(tokenizer.eos_id, 1);
  EXPECT_FALSE(tokenizer.eot_id || tokenizer.unknown_id || tokenizer.padding_id || tokenizer.add_bos ||
               tokenizer.add_space_prefix);
  EXPECT_TRUE(tokenizer.scores.empty());
  EXPECT_EQ(tokenizer.chat_template, "{{ messages }}");
}

TEST_F(Gguf, MetadataOfEveryType) {
  GgufBytes content;
  content.header(0, 12);
  const auto scalar = [&](const char* key, std::uint32_t type, const auto& value) {
    content.text(key).u32(type).raw(&value, sizeof value);
  };
  scalar("u8", 0, std::uint8_t{200});
  scalar("i8", 1, std::int8_t{-3});
  scalar("u16", 2, std::uint16_t{60000});
  scalar("i16", 3, std::int16_t{-30000});
  scalar("u64", 10, std::uint64_t{1} << 40);
  scalar("huge", 10, UINT64_MAX);
  scalar("i64", 11, INT64_MIN);
  scalar("f64", 12, 0.1);
  scalar("bool", 7, std::uint8_t{1});
  content.value_text("text", "a\nb");
  content.text("ints").u32(9).u32(5).u64(2).u32(7).u32(0xffffffffU);
  content.text("texts").u32(9).u32(8).u64(2).text("").text("x");
  const GgufFile file = open(content);
  EXPECT_EQ(file.integer("u8"), 200);
  EXPECT_EQ(file.integer("i8"), -3);
  EXPECT_EQ(file.integer("u16"), 60000);
  EXPECT_EQ(file.integer("i16"), -30000);
  EXPECT_EQ(file.integer("u64"), std::int64_t{1} << 40);
  EXPECT_EQ(file.integer("i64"), INT64_MIN);
  EXPECT_EQ(file.real("f64"), 0.1);
  EXPECT_EQ(file.real("u8"), 200.0);
  EXPECT_EQ(file.boolean("bool"), true);
  EXPECT_EQ(file.text("text"), "a\nb");
  EXPECT_EQ(file.integers("ints"), (std::vector<std::int64_t>{7, -1}));
  EXPECT_EQ(file.reals("ints"), (std::vector<double>{7, -1}));
  EXPECT_EQ(file.texts("texts"), (std::vector<std::string>{"", "x"}));
  EXPECT_EQ(file.integer("absent"), std::nullopt);
  EXPECT_FALSE(file.has("absent"));
  EXPECT_EQ(file.keys().size(), 12U);
  expect_refused([&] { file.integer("huge"); }, "'huge' is not an integer");
  expect_refused([&] { file.integer("text"); }, "'text' is not an integer");
  expect_refused([&] { file.integer("ints"); }, "'ints' is not a single value");
  expect_refused([&] { file.text("u8"); }, "'u8' is not a string");
  expect_refused([&] { file.boolean("u8"); }, "'u8' is not a boolean");
  expect_refused([&] { file.texts("ints"); }, "'ints' is not a list of strings");
  expect_refused([&] { file.integers("texts"); }, "'texts' is not a list of integers");
  expect_refused([&] { file.integers("u8"); }, "'u8' is not an array");
}

TEST_F(Gguf, VersionsAndMagic) {
  EXPECT_NO_THROW(open(GgufBytes().header(0, 0, 2)));
  EXPECT_NO_THROW(open(GgufBytes().header(0, 0, 3)));
  expect_open_refused(GgufBytes().header(0, 0, 1), "version 1");
  expect_open_refused(GgufBytes().header(0, 0, 4), "version 4");
  expect_open_refused(GgufBytes().header(0, 0, 0x03000000), "big-endian");
  expect_open_refused(GgufBytes().raw("GGML", 4).u32(3).u64(0).u64(0), "not a GGUF file");
  expect_open_refused(GgufBytes(), "magic");
}

TEST_F(Gguf, LyingCounts) {
  expect_open_refused(GgufBytes().header(0, UINT64_MAX), "metadata key");
  expect_open_refused(GgufBytes().header(UINT64_MAX, 0), "tensor name");
  expect_open_refused(GgufBytes().header(0, 1).u64(UINT64_MAX).raw("key", 3), "metadata key");
  expect_open_refused(GgufBytes().header(0, 1).text("k").u32(8).u64(UINT64_MAX), "needs");
  expect_open_refused(GgufBytes().header(0, 1).text("k").u32(9).u32(10).u64(UINT64_MAX),
                      "18446744073709551615 elements");
  expect_open_refused(GgufBytes().header(0, 1).text("k").u32(9).u32(10).u64(std::uint64_t{1} << 60), "needs");
  expect_open_refused(GgufBytes().header(0, 1).text("k").u32(9).u32(8).u64(UINT64_MAX).text("a").text("b"),
                      "k at byte");
  expect_open_refused(GgufBytes().header(0, 1).text("k").u32(9).u32(0).u64(5).raw("1234", 4), "needs 5 bytes");
}

TEST_F(Gguf, BadValues) {
  expect_open_refused(GgufBytes().header(0, 1).text("k").u32(13).u64(0), "value type 13");
  expect_open_refused(GgufBytes().header(0, 1).text("k").u32(0xffffffffU).u64(0), "value type 4294967295");
  expect_open_refused(GgufBytes().header(0, 1).text("k").u32(9).u32(9).u64(0), "in an array");
  expect_open_refused(GgufBytes().header(0, 2).value_u32("k", 1).value_u32("k", 2), "'k' appears twice");
  for (const std::uint32_t alignment : {0U, 3U, 24U, 0x80000000U, 0xffffffffU}) {
    expect_open_refused(GgufBytes().header(0, 1).value_u32("general.alignment", alignment), "power of two");
  }
  expect_open_refused(GgufBytes().header(0, 1).value_text("general.alignment", "32"), "power of two");
}

TEST_F(Gguf, TensorsAtTheirOffsets) {
  const GgufFile file = open(GgufBytes()
                                 .header(2, 1)
                                 .value_u32("general.alignment", 64)
                                 .tensor("a", {3, 2}, kF32, 0)
                                 .tensor("b", {32}, kQ4_0, 64)
                                 .data(82, 64));
  EXPECT_EQ(file.tensors().at("a").shape, (Shape{2, 3})) << "stored fastest-varying first";
  EXPECT_EQ(file.tensors().at("b").bytes.size(), 18U);
  EXPECT_EQ(file.dequantize("b").shape(), (Shape{32}));
  expect_refused([&] { file.dequantize("c"); }, "'c' is missing");
}

TEST_F(Gguf, LyingTensors) {
  const auto one = [](const std::vector<std::uint64_t>& dims, std::uint32_t type, std::uint64_t offset) {
    return GgufBytes().header(1, 0).tensor("t", dims, type, offset).data(64);
  };
  EXPECT_NO_THROW(open(one({16}, kF32, 0)));
  expect_open_refused(one({17}, kF32, 0), "outside");
  expect_open_refused(one({16}, kF32, 32), "outside");
  expect_open_refused(one({1}, kF32, 64 + 32), "outside");
  expect_open_refused(one({1}, kF32, 8), "not a multiple of the alignment");
  expect_open_refused(one({1}, kF32, UINT64_MAX - 31), "outside");
  expect_open_refused(one({}, kF32, 0), "0 dimensions");
  expect_open_refused(one({1, 1, 1, 1, 1}, kF32, 0), "5 dimensions");
  expect_open_refused(one({0}, kF32, 0), "dimension 0");
  expect_open_refused(one({UINT64_MAX}, kF32, 0), "dimension 18446744073709551615");
  expect_open_refused(one({std::uint64_t{1} << 32, std::uint64_t{1} << 32}, kF32, 0), "too large");
  expect_open_refused(one({std::uint64_t{1} << 62, 4}, kF32, 0), "too large");
  expect_open_refused(one({33}, kQ4_0, 0), "not whole Q4_0 blocks");
  expect_open_refused(one({576}, 12, 0), "not whole Q4_K blocks");  // llama.cpp takes Q5_0 for such rows
  expect_open_refused(one({16}, 4, 0), "tensor type 4 is unknown");
  expect_open_refused(one({16}, 137, 0), "tensor type 137 is unknown");
  expect_open_refused(one({16}, 0x80000000U, 0), "is unknown");
  const auto two = [](const char* second, std::uint64_t offset) {
    return GgufBytes().header(2, 0).tensor("t", {16}, kF32, 0).tensor(second, {8}, kF32, offset).data(128);
  };
  EXPECT_NO_THROW(open(two("u", 64)));
  expect_open_refused(two("u", 32), "overlaps");
  expect_open_refused(two("u", 0), "overlaps");
  expect_open_refused(two("t", 64), "'t' appears twice");
  expect_open_refused(GgufBytes().header(1, 0).tensor("t", {1}, kF32, 0), "ends before");
}

TEST_F(Gguf, UnreadableTypesAreNamed) {
  const GgufFile file = open(GgufBytes().header(1, 0).tensor("t", {256}, 10, 0).data(84));
  expect_refused([&] { file.dequantize("t"); }, "Q2_K");
}

TEST_F(Gguf, TokenizerThatMakesNoSense) {
  const auto with = [&](const std::function<void(GgufBytes&)>& extra, std::uint64_t count) {
    GgufBytes content;
    content.header(0, 2 + count)
        .value_text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("b");
    extra(content);
    return content;
  };
  EXPECT_EQ(read_gguf_tokenizer(open(with([](GgufBytes&) {}, 0))).token_types, (std::vector<std::int32_t>{1, 1}));
  expect_refused(
      [&] { read_gguf_tokenizer(open(with([](GgufBytes& c) { c.value_u32("tokenizer.ggml.eos_token_id", 2); }, 1))); },
      "vocabulary");
  expect_refused(
      [&] {
        read_gguf_tokenizer(
            open(with([](GgufBytes& c) { c.text("tokenizer.ggml.token_type").u32(9).u32(5).u64(1).u32(1); }, 1)));
      },
      "token types");
  expect_refused(
      [&] {
        read_gguf_tokenizer(
            open(with([](GgufBytes& c) { c.text("tokenizer.ggml.scores").u32(9).u32(6).u64(1).u32(0); }, 1)));
      },
      "scores");
  expect_refused([&] { read_gguf_tokenizer(open(GgufBytes().header(0, 0))); }, "no tokenizer");
}

TEST_F(Gguf, DamagedAnywhereNeverCrashes) {
  GgufBytes content;
  content.header(2, 3).value_u32("general.alignment", 32).value_text("general.architecture", "llama");
  content.text("l").u32(9).u32(8).u64(3).text("x").text("yy").text("");
  content.tensor("a", {32, 2}, kQ4_0, 0).tensor("b", {5}, kF32, 64).data(84);
  expect_hardened(path_, content.bytes(), 1, [&] {
    const GgufFile file(path_);
    for (const auto& key : file.keys()) survives([&] { file.texts(key); });
    for (const auto& [name, tensor] : file.tensors()) file.dequantize(name);
  });
}

}  // namespace
}  // namespace spear
