// SentencePiece's BPE against the packages `sentencepiece` and `tokenizers`
// (tests/golden/make_sentencepiece_golden.py).
#include <cmath>

#include "text/tokenizer.h"
#include "text/unigram.h"
#include "text_test_util.h"

namespace spear {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

Tokenizer from_file(const std::string& name) {
  return Tokenizer::from_json(read_golden(name + ".json"), nullptr, nullptr, name);
}

void expect_golden(const Tokenizer& tokenizer, const std::string& name, bool parse_special = false,
                   const char* file = "sentencepiece.json") {
  const json golden = read_golden(file);
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

// tests/golden/make_unigram_golden.py
class Unigram : public testing::TestWithParam<const char*> {};

TEST_P(Unigram, IdsAreThoseOfTokenizers) { expect_golden(from_file(GetParam()), GetParam(), true, "unigram.json"); }

TEST_P(Unigram, TheWrittenTokenizerJsonGivesTheSame) {
  const json written = json::parse(from_file(GetParam()).to_tokenizer_json());
  expect_golden(Tokenizer::from_json(written, nullptr, nullptr, "written"), GetParam(), true, "unigram.json");
}

INSTANTIATE_TEST_SUITE_P(All, Unigram, testing::Values("unigram-bytes", "unigram-split", "unigram-unk"),
                         [](const auto& info) { return std::string(info.param).substr(8); });

TEST(UnigramModel, AlmostAllTextsHaveTheIdsOfSentencePieceToo) {
  const json golden = read_golden("unigram.json");
  EXPECT_GT(golden["same_in_sentencepiece"].size() * 100, golden["texts"].size() * 90);
}

TEST(UnigramModel, TheBestSumWinsAndTheFirstFoundStays) {
  Vocabulary vocabulary;
  vocabulary.characters = true;
  vocabulary.ids = {{"<unk>", 0}, {"a", 1}, {"b", 2}, {"ab", 3}, {"ba", 4}, {"aba", 5}};
  vocabulary.unk_token = "<unk>";
  vocabulary.log_probabilities = {-9, -2, -2, -3, -3, -5};
  const UnigramModel model(vocabulary, "test");
  const auto ids = [&](const char* text) {
    Ids out;
    model.encode(text, out);
    return out;
  };
  EXPECT_EQ(ids("ab"), (Ids{3}));
  EXPECT_EQ(ids("abab"), (Ids{3, 3}));     // -6, better than aba + b (-7)
  EXPECT_EQ(ids("aba"), (Ids{5}));         // of three divisions with -5 the one that was found first, from the left
  EXPECT_EQ(ids("axxb"), (Ids{1, 0, 2}));  // a run of unknown characters is one
  EXPECT_EQ(ids(""), (Ids{}));
  Vocabulary lacking = vocabulary;
  lacking.unk_token.clear();
  EXPECT_THROW(UnigramModel(lacking, "test").encode("x", *std::make_unique<Ids>()), Error);
  lacking.log_probabilities[3] = NAN;
  EXPECT_THROW(UnigramModel(lacking, "test"), Error);
}

TEST(UnigramModel, DamagedVocabulariesAreRefused) {
  const json sound = read_golden("unigram-unk.json");
  const auto refused = [&](const char* pointer, const json& value, const std::string& part) {
    json changed = sound;
    changed[json::json_pointer(pointer)] = value;
    expect_refused([&] { Tokenizer::from_json(changed, nullptr, nullptr, "file.json"); }, part);
  };
  refused("/model/vocab/1/1", "x", "pair of text and number");
  refused("/model/vocab/1/1", nullptr, "pair of text and number");
  refused("/model/vocab/1", json::array({"a"}), "pair of text and number");
  refused("/model/vocab/1/0", sound["model"]["vocab"][2][0], "listed twice");
  refused("/model/vocab", json::array(), "0 pieces");
  refused("/model/vocab", json::object(), "array");
  refused("/model/unk_id", 1 << 20, "unk_id");
  refused("/model/unk_id", -1, "unk_id");
  refused("/model/unk_id", 0.5, "unk_id");
  refused("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", ""}}, "\"Precompiled\" is not supported");
}

TEST(SentencePiece, ALongWordTakesNoQuadraticTime) {
  const Tokenizer tokenizer = load_tokenizer(text_data("spm-llama.gguf"));
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

}  // namespace
}  // namespace spear
