// SentencePiece's BPE against the packages `sentencepiece` and `tokenizers`
// (tests/golden/make_sentencepiece_golden.py).
#include "text/tokenizer.h"
#include "text_test_util.h"

namespace spear {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

Tokenizer from_file(const std::string& name) {
  return Tokenizer::from_json(read_golden(name + ".json"), nullptr, nullptr, name);
}

void expect_golden(const Tokenizer& tokenizer, const std::string& name, bool parse_special = false) {
  const json golden = read_golden("sentencepiece.json");
  const json& texts = golden.at("texts");
  const json &ids = golden.at("expected").at(name), &decoded = golden.at("expected").at(name + ".decoded");
  ASSERT_GT(texts.size(), 200U);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string text = texts[i];
    EXPECT_EQ(tokenizer.encode(text, {.add_special = false, .parse_special = parse_special}), ids[i].get<Ids>())
        << name << ": " << texts[i];
    EXPECT_EQ(tokenizer.decode(ids[i].get<Ids>()), decoded[i].get<std::string>()) << name << ": " << texts[i];
  }
}

class SentencePieceGguf : public testing::TestWithParam<const char*> {};

TEST_P(SentencePieceGguf, IdsAreThoseOfSentencePiece) {
  expect_golden(load_tokenizer(text_data(std::string(GetParam()) + ".gguf")), GetParam());
}

TEST_P(SentencePieceGguf, TheWrittenTokenizerJsonGivesTheSame) {
  const Tokenizer tokenizer = load_tokenizer(text_data(std::string(GetParam()) + ".gguf"));
  expect_golden(Tokenizer::from_json(json::parse(tokenizer.to_tokenizer_json()), nullptr, nullptr, "written"),
                GetParam());
}

TEST_P(SentencePieceGguf, BosComesFirst) {
  const Tokenizer tokenizer = load_tokenizer(text_data(std::string(GetParam()) + ".gguf"));
  const Ids ids = tokenizer.encode("the", {.add_special = true});
  EXPECT_EQ(ids.front(), tokenizer.named().bos);
}

INSTANTIATE_TEST_SUITE_P(All, SentencePieceGguf, testing::Values("spm-llama", "spm-gemma"),
                         [](const auto& info) { return std::string(info.param).substr(4); });

class ByteFallback : public testing::TestWithParam<const char*> {};

TEST_P(ByteFallback, IdsAreThoseOfTokenizers) { expect_golden(from_file(GetParam()), GetParam(), true); }

INSTANTIATE_TEST_SUITE_P(All, ByteFallback,
                         testing::Values("bpe-fallback-prepend", "bpe-fallback-gemma", "bpe-fallback-metaspace",
                                         "bpe-fallback-nfkc"),
                         [](const auto& info) { return std::string(info.param).substr(13); });

TEST(SentencePiece, ALongWordTakesNoQuadraticTime) {
  const Tokenizer tokenizer = load_tokenizer(text_data("spm-llama.gguf"));
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

}  // namespace
}  // namespace spear
