#include "text/tokenizer.h"

#include "io/gguf.h"
#include "text_test_util.h"

namespace spear {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

const json& small_json() {
  static const json tokenizer = read_golden("small_tokenizer.json");
  return tokenizer;
}

Tokenizer small() { return Tokenizer::from_json(small_json(), nullptr, nullptr, "small"); }

void expect_ids(const Tokenizer& tokenizer, const json& lines, const json& ids, EncodeOptions options,
                std::size_t stride = 1) {
  ASSERT_EQ(ids.size(), (lines.size() + stride - 1) / stride);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string line = lines[i * stride];
    EXPECT_EQ(tokenizer.encode(line, options), ids[i].get<Ids>()) << json(line).dump();
  }
}

void expect_decoded(const Tokenizer& tokenizer, const json& cases) {
  for (const json& item : cases) {
    const Ids ids = item[0];
    EXPECT_EQ(tokenizer.decode(ids), item[1].get<std::string>());
    EXPECT_EQ(tokenizer.decode(ids, true), item[2].get<std::string>());
  }
}

void expect_golden(const Tokenizer& tokenizer) {
  const json lines = read_golden("lines.json"), golden = read_golden("small_golden.json");
  expect_ids(tokenizer, lines, golden["ids"], {.parse_special = true}, 3);
  expect_ids(tokenizer, golden["special_lines"], golden["special_as_text"], {});
  expect_ids(tokenizer, golden["special_lines"], golden["special_framed"],
             {.add_special = true, .parse_special = true});
  expect_decoded(tokenizer, golden["decode"]);
}

TEST(Tokenizer, IdsOfTheReference) { expect_golden(small()); }

TEST(Tokenizer, WrittenAndReadAgainItIsTheSame) {
  const std::string written = small().to_tokenizer_json();
  expect_golden(Tokenizer::from_json(json::parse(written), nullptr, nullptr, "written"));
  EXPECT_EQ(json::parse(written)["model"]["vocab"], small_json()["model"]["vocab"]);
}

TEST(Tokenizer, UnknownBytesAndIgnoredMerges) {
  const json golden = read_golden("small_golden.json");
  for (const json& item : golden["tiny"]) {
    const Tokenizer tokenizer = Tokenizer::from_json(item["tokenizer"], nullptr, nullptr, "tiny");
    expect_ids(tokenizer, item["texts"], item["ids"], {});
    EXPECT_EQ(tokenizer.missing_bytes().size(), 252u);  // a, b, c and the space are there
  }
}

TEST(Tokenizer, RandomTextSurvives) {
  json spec = small_json();
  spec["normalizer"] = nullptr;  // NFC changes texts
  spec["added_tokens"] = json::array();
  const Tokenizer tokenizer = Tokenizer::from_json(spec, nullptr, nullptr, "small");
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    const std::string text = random_utf8(random, random.below(40));
    const Ids ids = tokenizer.encode(text);
    ASSERT_EQ(tokenizer.decode(ids), text) << json(text).dump();
    StreamDecoder stream(tokenizer, false);
    std::string streamed;
    for (const std::int32_t id : ids) {
      const std::string part = stream.push(id);
      ASSERT_EQ(find_invalid_utf8(part), std::string::npos);
      streamed += part;
    }
    ASSERT_EQ(streamed + stream.finish(), text);
  }
}

TEST(Tokenizer, StreamEqualsWholeForRandomIds) {
  const Tokenizer tokenizer = small();
  Random random(3);
  for (int round = 0; round < 500; ++round) {
    Ids ids(1 + random.below(12));
    for (std::int32_t& id : ids)
      id = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(tokenizer.vocab_size())));
    StreamDecoder stream(tokenizer, true);
    std::string streamed, bytes;
    for (const std::int32_t id : ids) {
      streamed += stream.push(id);
      if (!tokenizer.is_special(id)) bytes += tokenizer.token_bytes(id);
    }
    streamed += stream.finish();
    EXPECT_EQ(streamed, tokenizer.decode(ids, true));
    Utf8Stream whole;
    std::string repaired = whole.push(bytes);
    repaired += whole.finish();
    EXPECT_EQ(streamed, repaired);
  }
}

TEST(Tokenizer, PlainTextNeverBecomesSpecial) {
  const Tokenizer tokenizer = small();
  for (const std::int32_t id : tokenizer.encode("<|im_start|><|im_end|> <|endoftext|><mask>"))
    EXPECT_FALSE(tokenizer.is_special(id));
  EXPECT_EQ(tokenizer.encode("<|im_end|>", {.parse_special = true}), Ids{2});
}

TEST(Tokenizer, NamedTokensAndConfig) {
  const json config = {
      {"bos_token", {{"content", "<|im_start|>"}, {"lstrip", false}}},
      {"eos_token", "<|im_end|>"},
      {"pad_token", nullptr},
      {"chat_template", {{{"name", "tool_use"}, {"template", "T"}}, {{"name", "default"}, {"template", "D"}}}}};
  const Tokenizer tokenizer = Tokenizer::from_json(small_json(), config, {{"eos_token_id", {0, 2}}}, "small");
  EXPECT_EQ(tokenizer.named().bos, 1);
  EXPECT_EQ(tokenizer.named().eos, 2);
  EXPECT_FALSE(tokenizer.named().pad.has_value());
  EXPECT_EQ(tokenizer.named().end, (Ids{0, 2}));
  EXPECT_EQ(tokenizer.chat_template(), "D");
  EXPECT_EQ(tokenizer.token_id("<tool>"), small_json()["added_tokens"][4]["id"].get<std::int32_t>());
  EXPECT_FALSE(tokenizer.token_id("nope").has_value());
  EXPECT_EQ(tokenizer.template_tokens(),
            (std::map<std::string, std::string>{{"bos_token", "<|im_start|>"}, {"eos_token", "<|im_end|>"}}));
  const json written = json::parse(tokenizer.to_tokenizer_config_json());
  EXPECT_EQ(written["eos_token"], "<|im_end|>");
  EXPECT_EQ(written["chat_template"], "D");
  EXPECT_EQ(written["tokenizer_class"], "PreTrainedTokenizerFast");
}

TEST(Tokenizer, InvalidInputIsRefused) {
  const Tokenizer tokenizer = small();
  expect_refused([&] { tokenizer.encode("abc\xFF"); }, "not valid UTF-8 at byte 3");
  expect_refused([&] { tokenizer.encode("ab\xE2\x82"); }, "not valid UTF-8 at byte 2");
  for (const std::int32_t id : {-1, tokenizer.vocab_size()}) {
    expect_refused([&] { tokenizer.decode(Ids{id}); }, "outside the vocabulary", ExitCode::usage);
  }
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  EXPECT_EQ(tokenizer.decode(Ids{}), "");
}

TEST(Tokenizer, LongWordsTakeLittleTime) {  // quadratic merging would take minutes
  const Tokenizer tokenizer = small();
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

/// The small tokenizer with one thing changed must be refused with `part`.
void expect_spec_refused(const std::string& pointer, const json& value, const std::string& part) {
  json spec = small_json();
  spec[json::json_pointer(pointer)] = value;
  expect_refused([&] { Tokenizer::from_json(spec, nullptr, nullptr, "file.json"); }, part);
}

TEST(TokenizerHostile, RefusesByName) {
  expect_spec_refused("/model", 5, "\"model\" must be an object");
  expect_spec_refused("/model/type", "WordPiece", "\"WordPiece\" is not supported");
  expect_spec_refused("/model/dropout", 0.1, "dropout");
  expect_spec_refused("/model/continuing_subword_prefix", "##", "continuing_subword_prefix");
  expect_spec_refused("/model/end_of_word_suffix", "</w>", "end_of_word_suffix");
  expect_spec_refused("/model/byte_fallback", true, "beside byte_fallback");
  expect_spec_refused("/model/unk_token", "<none>", "unk_token \"<none>\"");
  expect_spec_refused("/model/fuse_unk", "yes", "\"fuse_unk\" must be true or false");
  expect_spec_refused("/model/vocab", json::array(), "\"vocab\" must be an object");
  expect_spec_refused("/model/vocab/zz", -1, "\"zz\" has no valid id");
  expect_spec_refused("/model/vocab/zz", 4294967296, "\"zz\" has no valid id");
  expect_spec_refused("/model/vocab/zz", 1.5, "\"zz\" has no valid id");
  expect_spec_refused("/model/vocab/zz", 16000000, "only");
  expect_spec_refused("/model/vocab/zz", 5, "the same id, 5");
  expect_spec_refused("/model/merges", 1, "\"merges\" must be an array");
  expect_spec_refused("/model/merges/0", "qqq zzz", "\"qqq\", which is not in the vocabulary");
  expect_spec_refused("/model/merges/0", "z \xC4\xA7", "not in the vocabulary");  // both parts are, the result isn't
  expect_spec_refused("/model/merges/0", "abc", "not a pair");
  expect_spec_refused("/model/merges/0", "a b c", "not a pair");
  expect_spec_refused("/model/merges/0", {"a"}, "not a pair");
  expect_spec_refused("/model/merges/0", {"a b", "c"}, "not a pair");
  expect_spec_refused("/added_tokens", 1, "array");
  expect_spec_refused("/added_tokens/0/id", -5, "\"id\" must be a token id");
  expect_spec_refused("/added_tokens/0/id", 9, "another id");
  expect_spec_refused("/added_tokens/0/id", 1e300, "\"id\" must be a token id");
  expect_spec_refused("/added_tokens/0/content", "", "no text");
  expect_spec_refused("/added_tokens/0/single_word", true, "single_word");
  expect_spec_refused("/added_tokens/1/content", "<|endoftext|>", "listed twice");
  expect_spec_refused("/normalizer", {{"type", "Precompiled"}}, "\"Precompiled\"");
  expect_spec_refused("/pre_tokenizer", nullptr, "ByteLevel");
  expect_spec_refused("/decoder", {{"type", "WordPiece"}}, "\"WordPiece\"");
  expect_spec_refused("/decoder", nullptr, "an object");
  expect_spec_refused("/post_processor", {{"type", "RobertaProcessing"}}, "\"RobertaProcessing\"");
  expect_spec_refused("/post_processor/single", json::array(), "no place for the text");
  expect_spec_refused("/post_processor/special_tokens", json::object(), "must be an object");
  expect_spec_refused("/post_processor/special_tokens/<|im_end|>/ids", {99999}, "unknown id, 99999");
}

TEST(TokenizerHostile, MissingParts) {
  for (const char* part : {"model", "decoder", "pre_tokenizer"}) {
    json spec = small_json();
    spec.erase(part);
    EXPECT_THROW(Tokenizer::from_json(spec, nullptr, nullptr, "f"), Error) << part;
  }
  EXPECT_THROW(Tokenizer::from_json(nullptr, nullptr, nullptr, "f"), Error);
  EXPECT_THROW(Tokenizer::from_json(small_json(), 5, nullptr, "f"), Error);
  EXPECT_THROW(Tokenizer::from_json(small_json(), {{"eos_token", 5}}, nullptr, "f"), Error);
  EXPECT_THROW(Tokenizer::from_json(small_json(), nullptr, {{"eos_token_id", "x"}}, "f"), Error);
  EXPECT_THROW(Tokenizer::from_json(small_json(), nullptr, {{"eos_token_id", 50000}}, "f"), Error);
}

TEST(TokenizerHostile, EveryMemberReplaced) {  // no crash, whatever stands where; Error or a working tokenizer
  std::vector<std::string> pointers;
  json skeleton = small_json();
  skeleton["model"]["vocab"] = json::object();
  skeleton["model"]["merges"] = json::array();
  const json flat = skeleton.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    for (std::size_t end = pointer.find('/', 1); end != std::string::npos; end = pointer.find('/', end + 1)) {
      pointers.push_back(pointer.substr(0, end));
    }
    pointers.push_back(pointer);
  }
  for (const std::string& pointer : pointers) {
    for (const json& value : {json(), json(-7), json("x"), json::array(), json::object(), json(true), json(1e99)}) {
      json spec = small_json();
      spec[json::json_pointer(pointer)] = value;
      try {
        Tokenizer::from_json(spec, nullptr, nullptr, "f")
            .encode("a <mask> 1", {.add_special = true, .parse_special = true});
      } catch (const Error&) {
      }
    }
  }
}

GgufTokenizer small_gguf() {
  GgufTokenizer gguf;
  gguf.model = "gpt2";
  gguf.pre = "smollm";
  const json& vocabulary = small_json()["model"]["vocab"];
  gguf.tokens.resize(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) gguf.tokens.at(id) = token;
  gguf.token_types.assign(gguf.tokens.size(), 1);
  for (int i = 0; i < 3; ++i) gguf.token_types[static_cast<std::size_t>(i)] = 3;
  for (const json& merge : small_json()["model"]["merges"]) {
    gguf.merges.push_back(merge.is_string() ? merge.get<std::string>()
                                            : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  gguf.bos_id = 1;
  gguf.eos_id = 2;
  return gguf;
}

TEST(TokenizerGguf, SameIdsAsTokenizerJson) {
  json spec = small_json();
  spec["normalizer"] = nullptr;
  spec["added_tokens"].erase(spec["added_tokens"].begin() + 3, spec["added_tokens"].end());
  const Tokenizer expected = Tokenizer::from_json(spec, nullptr, nullptr, "json");
  GgufTokenizer gguf = small_gguf();
  gguf.add_bos = true;
  gguf.add_eos = true;
  const Tokenizer tokenizer = Tokenizer::from_gguf(gguf, "gguf");
  const Tokenizer again = Tokenizer::from_json(json::parse(tokenizer.to_tokenizer_json()), nullptr, nullptr, "again");
  for (const std::string line : read_golden("lines.json")) {
    const Ids ids = expected.encode(line, {.add_special = true, .parse_special = true});
    EXPECT_EQ(tokenizer.encode(line, {.add_special = true, .parse_special = true}), ids);
    EXPECT_EQ(again.encode(line, {.add_special = true, .parse_special = true}), ids);
  }
  EXPECT_EQ(tokenizer.named().end, Ids{2});
}

TEST(TokenizerGguf, LlamaAddsBosUnlessToldOtherwise) {
  GgufTokenizer gguf = small_gguf();
  gguf.pre = "llama-bpe";
  EXPECT_EQ(Tokenizer::from_gguf(gguf, "f").encode("", {.add_special = true}), Ids{1});
  gguf.add_bos = false;
  EXPECT_EQ(Tokenizer::from_gguf(gguf, "f").encode("", {.add_special = true}), Ids{});
}

TEST(TokenizerGguf, RefusesByName) {
  const auto refused = [](const auto& change, const std::string& part) {
    GgufTokenizer gguf = small_gguf();
    change(gguf);
    expect_refused([&] { Tokenizer::from_gguf(gguf, "f.gguf"); }, part);
  };
  refused([](auto& g) { g.model = "t5"; }, "\"t5\"");
  refused(
      [](auto& g) {
        g.model = "llama";
        g.scores.clear();
      },
      "without scores");
  refused([](auto& g) { g.pre = "chatglm-bpe"; }, "\"chatglm-bpe\"");
  refused([](auto& g) { g.pre.clear(); }, "smollm, gpt-2, llama-bpe, qwen2");
  refused([](auto& g) { g.merges[3] = "nope nope"; }, "not in the vocabulary");
  refused([](auto& g) { g.merges[3] = "a"; }, "not a pair");
  refused([](auto& g) { g.merges[3] = "a b c"; }, "not a pair");
  refused([](auto& g) { g.tokens[7] = g.tokens[8]; }, "listed twice");
  refused([](auto& g) { g.tokens[7] = "\xFF"; }, "not UTF-8");
  refused([](auto& g) { g.token_types.pop_back(); }, "differ in number");
  refused([](auto& g) { g.eos_id = 1 << 20; }, "outside the vocabulary");
  refused([](auto& g) { g.eos_id = INT64_MIN; }, "outside the vocabulary");
  refused([](auto& g) { g.add_bos = true, g.bos_id = 1 << 20; }, "BOS lies outside the vocabulary");
  refused([](auto& g) { g.add_bos = true, g.bos_id.reset(); }, "names none");
}

TEST(TokenizerSmolLM2, IdsOfTheReference) {
  const std::filesystem::path model = real_model();
  if (model.empty()) GTEST_SKIP() << "no models/SmolLM2-135M-Instruct.Q4_1.gguf (scripts/fetch-model smollm2-135m)";
  const Tokenizer tokenizer = load_tokenizer(model);
  const json lines = read_golden("lines.json"), golden = read_golden("smollm2_golden.json");
  expect_ids(tokenizer, lines, golden["ids"], {.parse_special = true});
  expect_ids(tokenizer, read_golden("small_golden.json")["special_lines"], golden["special_as_text"], {});
  expect_decoded(tokenizer, golden["decode"]);
  EXPECT_EQ(tokenizer.vocab_size(), 49152);
  EXPECT_EQ(tokenizer.missing_bytes().size(), 21u);
  EXPECT_EQ(tokenizer.named().bos, 1);
  EXPECT_EQ(tokenizer.named().end, Ids{2});
  const Tokenizer again = Tokenizer::from_json(json::parse(tokenizer.to_tokenizer_json()),
                                               json::parse(tokenizer.to_tokenizer_config_json()), nullptr, "written");
  expect_ids(again, lines, golden["ids"], {.parse_special = true});
  EXPECT_EQ(again.chat_template(), tokenizer.chat_template());
  EXPECT_EQ(again.template_tokens(), tokenizer.template_tokens());
}

}  // namespace
}  // namespace spear
