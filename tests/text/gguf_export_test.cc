// Tokenizers as GGUF files hold them, read back.
#include "text/gguf_export.h"

#include "text/tokenizer.h"
#include "text_test_util.h"

namespace spear {
namespace {

using nlohmann::json;

json small() {
  json tokenizer = read_golden("small_tokenizer.json");
  tokenizer["normalizer"] = nullptr;  // llama.cpp's smollm has none
  for (json& added : tokenizer["added_tokens"]) added["lstrip"] = added["rstrip"] = added["normalized"] = false;
  return tokenizer;
}

Tokenizer load(json tokenizer) {
  const json config = {{"bos_token", "<|im_start|>"}, {"eos_token", "<|im_end|>"}, {"chat_template", "{{ messages }}"}};
  return Tokenizer::from_json(std::move(tokenizer), config, {{"eos_token_id", {2, 0}}}, "test");
}

void expect_same_ids(const Tokenizer& a, const Tokenizer& b) {
  Random random(3);
  std::vector<std::string> lines = read_golden("lines.json").get<std::vector<std::string>>();
  for (int i = 0; i < 500; ++i) lines.push_back(random_utf8(random, 40));
  lines.push_back("<|im_start|>user <tool_call>1234<tool> x<mask>");
  for (const auto& line : lines) {
    for (const bool special : {false, true}) {
      const EncodeOptions options{.add_special = special, .parse_special = special};
      ASSERT_EQ(a.encode(line, options), b.encode(line, options)) << line;
    }
  }
}

TEST(GgufExport, GivesTheSameIds) {
  const Tokenizer tokenizer = load(small());
  const GgufTokenizer gguf = gguf_tokenizer_of(tokenizer, 910, "test");
  EXPECT_EQ(gguf.pre, "smollm");
  EXPECT_EQ(gguf.tokens.size(), 910U);
  EXPECT_EQ(gguf.tokens[905], "[PAD905]");
  EXPECT_EQ(gguf.token_types[905], 5);
  EXPECT_EQ(gguf.token_types[900], 3);  // <mask> is special
  EXPECT_EQ(gguf.token_types[901], 4);  // <tool> is not
  EXPECT_EQ(gguf.bos_id, 1);
  EXPECT_EQ(gguf.eos_id, 2);
  EXPECT_EQ(gguf.eot_id, 0);
  EXPECT_EQ(gguf.add_bos, true);
  EXPECT_EQ(gguf.add_eos, true);
  const Tokenizer back = Tokenizer::from_gguf(gguf, "test");
  expect_same_ids(tokenizer, back);
  EXPECT_EQ(back.chat_template(), "{{ messages }}");
}

TEST(GgufExport, RefusesWhatGgufCannotSay) {
  const auto refused = [](json tokenizer, const std::string& part, std::int64_t rows = 904) {
    expect_refused([&] { gguf_tokenizer_of(load(std::move(tokenizer)), rows, "test"); }, part, ExitCode::usage);
  };
  json changed = small();
  changed["normalizer"] = {{"type", "NFC"}};
  refused(changed, "pre-tokenizer");
  changed = small();
  changed["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false;
  refused(changed, "pre-tokenizer");
  changed = small();
  changed["model"]["ignore_merges"] = true;
  refused(changed, "pre-tokenizer");
  changed = small();
  changed["post_processor"]["single"][0]["SpecialToken"]["id"] = "<|im_end|>";
  refused(changed, "post-processor");
  refused(small(), "903 rows", 903);
  const Tokenizer pieces = Tokenizer::from_json(read_golden("bpe-fallback-metaspace.json"), nullptr, nullptr, "test");
  expect_refused([&] { gguf_tokenizer_of(pieces, 1 << 20, "test"); }, "scores", ExitCode::usage);
}

TEST(GgufExport, TheRealTokenizerSurvivesTokenizerJson) {
  const auto model = real_model();
  if (model.empty()) GTEST_SKIP() << "no models/SmolLM2-135M-Instruct.Q4_1.gguf (scripts/fetch-model smollm2-135m)";
  const Tokenizer first = load_tokenizer(model);
  const Tokenizer second = Tokenizer::from_json(json::parse(first.to_tokenizer_json()),
                                                json::parse(first.to_tokenizer_config_json()), nullptr, "test");
  const GgufTokenizer expected = read_gguf_tokenizer(GgufFile(model));
  const GgufTokenizer found = gguf_tokenizer_of(second, 49152, "test");
  EXPECT_EQ(found.tokens, expected.tokens);
  EXPECT_EQ(found.merges, expected.merges);
  EXPECT_EQ(found.pre, expected.pre);
  EXPECT_EQ(found.eos_id, expected.eos_id);
  EXPECT_EQ(found.chat_template, expected.chat_template);
  expect_same_ids(first, Tokenizer::from_gguf(found, "test"));
}

}  // namespace
}  // namespace spear
