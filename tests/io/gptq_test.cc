// GPTQ and AWQ files by an independent packer (tests/golden/make_gptq_golden.py).
#include <gtest/gtest.h>

#include "base/error.h"
#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "model/weights.h"

namespace spear {
namespace {

std::filesystem::path folder(const std::string& name) {
  return std::filesystem::path(SPEAR_TEST_DATA) / "quantized" / name;
}

class GptqFiles : public testing::TestWithParam<const char*> {};

TEST_P(GptqFiles, AreReadExactly) {
  const ModelWeights weights = read_checkpoint(folder(GetParam()));
  const auto expected = read_safetensors(folder(GetParam()) / "expected.tensors").tensors;
  ASSERT_EQ(expected.size(), 2U);
  for (const LinearKind kind : {LinearKind::k_proj, LinearKind::down_proj}) {
    const ModuleId id = ModuleId::of(0, kind);
    const auto& matrix = std::get<W4Matrix>(weights.linear(id).weight);
    // One product of a half and a small integer: exact in float32.
    EXPECT_EQ(matrix.dequantize(), expected.at(id.name()).to_floats()) << id.name();
  }
}

INSTANTIATE_TEST_SUITE_P(All, GptqFiles,
                         testing::Values("gptq-v1-sym-g32", "gptq-v1-asym-g64", "gptq-v2-asym-channel", "awq-asym-g64"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(Gptq, ActOrderWithGroupsIsRefusedByName) {
  try {
    read_checkpoint(folder("gptq-act-order"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    EXPECT_NE(std::string(error.what()).find("g_idx"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace spear
