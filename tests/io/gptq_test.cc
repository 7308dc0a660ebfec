// GPTQ, AWQ and act-order files by an independent packer (tests/golden/make_gptq_golden.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/temporary_directory.h"
#include "io/checkpoint.h"
#include "io/gptq_writer.h"
#include "io/group_index.h"
#include "io/io_test_util.h"
#include "io/safetensors.h"
#include "model/weights.h"

namespace spear {
namespace {

std::filesystem::path folder(const std::string& name) { return data_file("quantized") / name; }

const W4Matrix& matrix_of(const ModelWeights& weights, LinearKind kind) {
  return std::get<W4Matrix>(weights.linear(ModuleId::of(0, kind)).weight);
}

std::string name_of(const testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class GptqFiles : public testing::TestWithParam<const char*> {};

TEST_P(GptqFiles, AreReadExactly) {
  const ModelWeights weights = read_checkpoint(folder(GetParam()));
  const auto expected = read_safetensors(folder(GetParam()) / "expected.tensors").tensors;
  ASSERT_EQ(expected.size(), 2U);
  for (const LinearKind kind : {LinearKind::k_proj, LinearKind::down_proj}) {
    // One product of a half and a small integer: exact in float32.
    EXPECT_EQ(matrix_of(weights, kind).dequantize(), expected.at(ModuleId::of(0, kind).name()).to_floats());
  }
  const bool act_order = std::string(GetParam()).find("act-order") != std::string::npos;
  EXPECT_EQ(!matrix_of(weights, LinearKind::down_proj).group_index.empty(), act_order);
}

INSTANTIATE_TEST_SUITE_P(All, GptqFiles,
                         testing::Values("gptq-v1-sym-g32", "gptq-v1-asym-g64", "gptq-v2-asym-channel", "awq-asym-g64",
                                         "gptq-act-order", "gptq-v1-act-order-asym-g128", "gptq-v2-act-order-asym-g32",
                                         "ct-act-order-sym-g32", "ct-act-order-asym-g128"),
                         name_of);

class ActOrderFiles : public testing::TestWithParam<const char*> {
 protected:
  TemporaryDirectory directory_;
};

TEST_P(ActOrderFiles, AWrongOrderIsSeen) {
  const auto expected = read_safetensors(folder(GetParam()) / "expected.tensors").tensors;
  W4Matrix matrix = matrix_of(read_checkpoint(folder(GetParam())), LinearKind::down_proj);
  const auto& values = expected.at(ModuleId::of(0, LinearKind::down_proj).name());
  const auto other = std::find_if(matrix.group_index.begin(), matrix.group_index.end(),
                                  [&](auto g) { return g != matrix.group_index[0]; });
  ASSERT_NE(other, matrix.group_index.end());
  std::swap(matrix.group_index[0], *other);
  EXPECT_NE(matrix.dequantize(), values.to_floats());
  matrix.group_index.clear();
  EXPECT_NE(matrix.dequantize(), values.to_floats());
}

TEST_P(ActOrderFiles, StayBitForBitInACheckpoint) {
  const ModelWeights weights = read_checkpoint(folder(GetParam()));
  write_checkpoint(directory_.path(), weights, {}, {});
  expect_same_model(weights, read_checkpoint(directory_.path()));
  const auto config = nlohmann::json::parse(read_text_file(directory_ / "config.json"));
  EXPECT_EQ(config.at("quantization_config").at("config_groups").at("group_0").at("weights").at("actorder"), "group");
  if (!std::string(GetParam()).starts_with("ct-")) return;
  const auto before = read_safetensors(folder(GetParam()) / "model.safetensors").tensors;
  const auto after = read_safetensors(directory_ / "model.safetensors").tensors;
  for (const auto& [name, tensor] : before) {
    if (!name.ends_with("_packed") && !name.ends_with("_g_idx")) continue;
    EXPECT_TRUE(std::ranges::equal(tensor.bytes(), after.at(name).bytes())) << name;
  }
}

TEST_P(ActOrderFiles, AreExportedAsGptqWithTheirOrder) {
  const ModelWeights weights = read_checkpoint(folder(GetParam()));
  write_gptq_model(directory_.path(), weights);
  expect_same_model(weights, read_checkpoint(directory_.path()));
  const auto config = nlohmann::json::parse(read_text_file(directory_ / "quantize_config.json"));
  EXPECT_EQ(config.at("desc_act"), true);
  const auto stored =
      read_safetensors(directory_ / "model.safetensors").tensors.at("model.layers.0.mlp.down_proj.g_idx");
  EXPECT_EQ(to_vector<std::int32_t>(stored), matrix_of(weights, LinearKind::down_proj).group_index);
}

INSTANTIATE_TEST_SUITE_P(All, ActOrderFiles,
                         testing::Values("gptq-act-order", "gptq-v1-act-order-asym-g128", "gptq-v2-act-order-asym-g32",
                                         "ct-act-order-sym-g32", "ct-act-order-asym-g128"),
                         name_of);

// ---------------------------------------------------------------- hostile orders

constexpr std::int64_t kCols = 80;  // groups of 32, 32 and 16

std::vector<std::int32_t> fair_order() {
  std::vector<std::int32_t> groups;
  for (std::int64_t col = 0; col < kCols; ++col) groups.push_back(static_cast<std::int32_t>(col / 32));
  std::reverse(groups.begin(), groups.end());
  return groups;
}

template <class Integer>
std::vector<std::int32_t> taken(const std::vector<Integer>& groups, DType dtype = DType::i32,
                                W4Scheme scheme = {32, true}) {
  W4Matrix shape;
  shape.rows = 4;
  shape.cols = kCols;
  shape.scheme = scheme;
  TensorMap tensors;
  tensors["m.g_idx"] = view_of(dtype, {static_cast<std::int64_t>(groups.size())}, groups);
  return take_group_index(tensors, "m.g_idx", shape, "file");
}

TEST(GroupIndex, IsKeptOnlyWhereGroupsDoNotFollowTheInputs) {
  EXPECT_EQ(taken(fair_order()), fair_order());
  const auto fair = fair_order();
  EXPECT_EQ(taken(std::vector<std::int64_t>(fair.begin(), fair.end()), DType::i64), fair);
  auto in_order = fair_order();
  std::sort(in_order.begin(), in_order.end());
  EXPECT_TRUE(taken(in_order).empty());
  EXPECT_TRUE(taken(std::vector<std::int32_t>(kCols, -1)).empty());
  EXPECT_TRUE(taken(std::vector<std::int32_t>(kCols, 0), DType::i32, {0, true}).empty());
}

TEST(GroupIndex, RefusesGroupsThatDoNotExistOrDiffer) {
  for (const std::int32_t wrong : {3, -1, -2147483647 - 1, 2147483647}) {
    auto groups = fair_order();
    groups[7] = wrong;
    expect_refused([&] { taken(groups); }, "input 7 belongs to group");
  }
  auto uneven = fair_order();
  uneven[0] = 0;  // one more in group 0, one fewer in group 2
  expect_refused([&] { taken(uneven); }, "group 0 has 33 inputs instead of 32");
  expect_refused([&] { taken(std::vector<std::int32_t>(kCols, 1)); }, "group 0 has 0 inputs");
  auto short_first = fair_order();  // right sizes, but not the last group is the short one
  for (auto& group : short_first) group = 2 - group;
  expect_refused([&] { taken(short_first); }, "group 0 has 16 inputs instead of 32");
  auto wide = std::vector<std::int64_t>(kCols, 0);
  wide[3] = std::int64_t{1} << 32;  // 0 in its low half
  expect_refused([&] { taken(wide, DType::i64); }, "input 3 belongs to group");
  expect_refused([&] { taken(std::vector<std::int32_t>(kCols - 1, 0)); }, "shape");
  expect_refused([&] { taken(std::vector<float>(kCols, 0), DType::f32); }, "F32");
  expect_refused([&] { taken(fair_order(), DType::i32, {0, true}); }, "and there are 1");
}

TEST(GroupIndex, IsCheckedInModelsThatNoReaderMade) {
  const ModelWeights good = read_checkpoint(folder("gptq-act-order"));
  for (const auto& damage : {+[](std::vector<std::int32_t>& groups) { groups[3] = 99; },
                             +[](std::vector<std::int32_t>& groups) { groups[3] = -1; },
                             +[](std::vector<std::int32_t>& groups) { groups.pop_back(); }}) {
    ModelWeights bad = good;
    damage(std::get<W4Matrix>(bad.linear(ModuleId::of(0, LinearKind::down_proj)).weight).group_index);
    expect_refused([&] { bad.validate("model"); }, "a group that does not exist");
  }
}

TEST(GroupIndex, MustBeThereWhereTheConfigSaysActOrder) {
  for (const char* name : {"gptq-act-order", "ct-act-order-sym-g32"}) {
    const TemporaryDirectory directory;
    std::filesystem::copy_file(folder(name) / "config.json", directory / "config.json");
    auto tensors = read_safetensors(folder(name) / "model.safetensors").tensors;
    std::erase_if(tensors, [](const auto& item) {
      return item.first.ends_with("up_proj.g_idx") || item.first.ends_with("up_proj.weight_g_idx");
    });
    write_safetensors(directory / "model.safetensors", tensors, {});
    expect_refused([&] { read_checkpoint(directory.path()); }, "act-order");
  }
}

}  // namespace
}  // namespace spear
