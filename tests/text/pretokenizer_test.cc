#include "text/pretokenizer.h"

#include <thread>

#include "text_test_util.h"

namespace spear {
namespace {

using nlohmann::json;

std::vector<std::string> split(const PreTokenizer& pretokenizer, std::string_view text) {
  std::deque<std::string> storage;
  std::vector<std::string> pieces;
  for (const std::string_view piece : pretokenizer.split(text, true, storage)) pieces.emplace_back(piece);
  return pieces;
}

PreTokenizer with_regex(const std::string& pattern) {
  return {{{"type", "Sequence"},
           {"pretokenizers",
            {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}},
          false,
          "test"};
}

TEST(PreTokenizer, DividesLikeTokenizers) {
  const json lines = read_golden("lines.json"), golden = read_golden("pieces_golden.json");
  const json prefix = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Digits"}, {"individual_digits", false}},
        {{"type", "Split"}, {"pattern", {{"String", "e"}}}, {"behavior", "Isolated"}, {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", true}}}}};
  for (const auto& [name, all_lengths] : golden.items()) {
    const PreTokenizer pretokenizer(name == "prefix" ? prefix : pretokenizer_of_gguf(name, "test"), false, "test");
    ASSERT_EQ(all_lengths.size(), (lines.size() + 1) / 2);
    for (std::size_t i = 0; i < all_lengths.size(); ++i) {
      const std::string line = lines[2 * i];
      std::vector<std::size_t> lengths;
      for (const std::string& piece : split(pretokenizer, line)) lengths.push_back(piece.size());
      EXPECT_EQ(lengths, all_lengths[i].get<std::vector<std::size_t>>()) << name << ": " << json(line).dump();
    }
  }
}

TEST(PreTokenizer, RefusesByName) {
  const auto refused = [](const json& spec, const std::string& part) {
    expect_refused([&] { PreTokenizer(spec, false, "f"); }, part);
  };
  refused({{"type", "Metaspace"}}, "\"Metaspace\" is not supported");
  refused({{"type", "Digits"}, {"individual_digits", true}}, "no ByteLevel");
  refused(nullptr, "no ByteLevel");
  refused(5, "an object");
  refused({{"type", 5}}, "\"type\" must be a string");
  refused({{"type", "Sequence"}, {"pretokenizers", {}}}, "must be an array");
  refused({{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Removed"}}, "\"Removed\"");
  refused({{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Isolated"}, {"invert", true}}, "invert");
  json nested = {{"type", "ByteLevel"}};
  for (int i = 0; i < 20; ++i) nested = {{"type", "Sequence"}, {"pretokenizers", {nested}}};
  refused(nested, "nested too deeply");
  expect_refused([] { pretokenizer_of_gguf("dbrx", "f"); }, "\"dbrx\"");
  expect_refused([] { Normalizer(json{{"type", "BertNormalizer"}}, "f"); }, "\"BertNormalizer\"");
}

TEST(Regex, RefusesWhatPcre2WouldReadDifferently) {
  for (const std::string pattern :
       {"[a&&b]",  "[[a]b]", "[[:alpha:]]", "\\w",   "\\b",   "\\h", "\\1",  "^a",   "a$",  "(?m:a)", "(?<n>a)",
        "(*FAIL)", "a{2}+",  "a{,3}",       "[a",    "a(",    "\\",  "\\Qa", "[]a]", "\\p", "(?i)a",  "*a",
        "",        "\\x41",  "[\\w]",       "[\\S]", "(?#x)", "\\K", "\\G"}) {
    expect_refused([&] { Regex(pattern, Regex::Syntax::regex, "f"); }, "regular expression");
  }
  expect_refused([] { Regex("a\xFF", Regex::Syntax::regex, "f"); }, "not UTF-8");
}

TEST(Regex, EmptyMatchesDivideToo) {
  // Oniguruma's find_iter, from which `tokenizers` takes the pieces: a*, on "baac", matches "", "aa", "", "".
  EXPECT_EQ(split(with_regex("a*"), "baac"), (std::vector<std::string>{"b", "aa", "c"}));
  EXPECT_EQ(split(with_regex("(?=x)"), "éxyx"), (std::vector<std::string>{"é", "xy", "x"}));
}

TEST(Regex, LongTextsNeedNoStack) {
  const PreTokenizer pretokenizer(pretokenizer_of_gguf("llama-bpe", "test"), false, "test");
  for (const char* unit : {"a", " ", "\n", "!", "1", "漢", "' "}) {
    std::string text;
    while (text.size() < (1u << 20)) text += unit;
    std::size_t total = 0;
    for (const std::string& piece : split(pretokenizer, text)) total += piece.size();
    EXPECT_EQ(total, text.size());
  }
}

TEST(Regex, CatastrophicBacktrackingIsRefused) {
  const PreTokenizer pretokenizer = with_regex("(?:a+a+)+[bc]");
  expect_refused([&] { split(pretokenizer, std::string(200, 'a')); }, "gave up");
  EXPECT_EQ(split(pretokenizer, "daaab"), (std::vector<std::string>{"d", "aaab"}));  // still usable
}

TEST(Regex, DeepRecursionFallsBackToTheInterpreter) {
  // Each repetition of the group takes stack in compiled code: far more than it has.
  const std::string text(40000, 'a');
  const PreTokenizer pretokenizer = with_regex("(?:(a)|b)*");
  EXPECT_EQ(split(pretokenizer, text), std::vector<std::string>{text});
}

TEST(Regex, ThreadsHaveTheirOwnStacks) {
  const PreTokenizer pretokenizer(pretokenizer_of_gguf("smollm", "test"), false, "test");
  std::vector<std::size_t> counts(4);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 100; ++round) counts[i] += split(pretokenizer, "it's 12 words, isn't it?").size();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counts, std::vector<std::size_t>(4, 1100));
}

TEST(Normalizer, Nfc) {
  const Normalizer nfc(json{{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}}, "f");
  EXPECT_EQ(nfc.normalize("e\u0301 \u1112\u1161\u11ab \u212b"), "é 한 Å");
  EXPECT_FALSE(Normalizer(nullptr, "f").active());
}

}  // namespace
}  // namespace spear
