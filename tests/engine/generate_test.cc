#include "engine/generate.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace spear {
namespace {

/// Says a fixed sequence of tokens, whatever it reads; remembers what it was given.
class Parrot final : public PagedModel {
 public:
  explicit Parrot(std::vector<std::int32_t> script) : script_(std::move(script)) {
    config_.vocab_size = 300;
    config_.hidden_size = 1;
    config_.max_position_embeddings = 2000;
    config_.eos_token_ids = {299};
  }

  struct Cache final : PagedKvCache {
    std::int64_t blocks = 0;
    std::int64_t block_size() const override { return 16; }
    std::int64_t num_blocks() const override { return blocks; }
    std::int64_t bytes() const override { return 0; }
  };

  const ModelConfig& config() const override { return config_; }
  std::int64_t block_size() const override { return 16; }
  std::int64_t block_bytes(KvCacheType) const override { return 0; }
  std::unique_ptr<PagedKvCache> make_paged_cache(std::int64_t num_blocks, KvCacheType) override {
    auto cache = std::make_unique<Cache>();
    cache->blocks = num_blocks;
    return cache;
  }
  std::span<const float> step(std::span<const SequenceChunk> chunks, PagedKvCache& cache) override {
    EXPECT_EQ(chunks.size(), 1U);
    const auto& chunk = chunks.front();
    EXPECT_EQ(chunk.first_position, static_cast<std::int64_t>(seen.size()));
    seen.insert(seen.end(), chunk.tokens.begin(), chunk.tokens.end());
    EXPECT_LE(seen.size(), chunk.block_table.size() * 16);
    EXPECT_LE(chunk.block_table.size(), static_cast<std::size_t>(cache.num_blocks()));
    hidden_.assign(chunk.tokens.size(), 0.0F);
    return hidden_;
  }
  void logits(std::span<const float>, std::span<float> out) override {
    std::fill(out.begin(), out.end(), 0.0F);
    out[static_cast<std::size_t>(script_.at(said_++))] = 1.0F;
  }

  ModelConfig config_;
  std::vector<std::int32_t> seen;

 private:
  std::vector<std::int32_t> script_;
  std::vector<float> hidden_;
  std::size_t said_ = 0;
};

std::vector<std::int32_t> ids(std::string_view text) {
  std::vector<std::int32_t> out;
  for (const char c : text) out.push_back(static_cast<unsigned char>(c));
  return out;
}

std::string byte_of(std::int32_t id) { return std::string(1, static_cast<char>(id)); }

struct Outcome {
  GenerateResult result;
  std::vector<std::string> pieces;
};

Outcome run(Parrot& model, const GenerateOptions& options, std::string_view prompt = "hi") {
  Outcome outcome;
  outcome.result = generate(model, ids(prompt), options, byte_of,
                            [&](std::string_view piece) { outcome.pieces.emplace_back(piece); });
  std::string joined;
  for (const auto& piece : outcome.pieces) joined += piece;
  EXPECT_EQ(joined, outcome.result.text);
  return outcome;
}

TEST(GenerateTest, StreamsUntilTheEndToken) {
  auto script = ids("Yes.");
  script.push_back(299);
  Parrot model(script);
  const auto [result, pieces] = run(model, {});
  EXPECT_EQ(result.text, "Yes.");
  EXPECT_EQ(result.reason, FinishReason::eos);
  EXPECT_EQ(result.tokens, ids("Yes."));
  EXPECT_EQ(pieces, (std::vector<std::string>{"Y", "e", "s", "."}));
  EXPECT_EQ(model.seen, ids("hiYes."));  // every token once, the prompt first
}

TEST(GenerateTest, FurtherEndTokensAndNone) {
  Parrot model(ids("ab\ncd"));
  EXPECT_EQ(run(model, {.eos_token_ids = {'\n'}}).result.text, "ab");
  auto script = ids("a");
  script.insert(script.end(), {299, 'b'});
  Parrot stubborn(script);
  const auto result = run(stubborn, {.max_tokens = 3, .ignore_eos = true}).result;
  EXPECT_EQ(result.tokens.size(), 3U);
  EXPECT_EQ(result.reason, FinishReason::length);
}

TEST(GenerateTest, StopStringsAcrossTokens) {
  Parrot model(ids("one END two"));
  const auto [result, pieces] = run(model, {.stop = {"xyz", "END"}});
  EXPECT_EQ(result.text, "one ");
  EXPECT_EQ(result.reason, FinishReason::stop);
  Parrot almost(ids("ENENDED"));  // a false start inside the stop string
  EXPECT_EQ(run(almost, {.stop = {"ENDED"}}).result.text, "EN");
  Parrot held(ids("abEN"));  // held back text is not lost at the end
  EXPECT_EQ(run(held, {.max_tokens = 4, .stop = {"END"}}).result.text, "abEN");
  Parrot first(ids("--stop"));  // the earliest of several
  EXPECT_EQ(run(first, {.stop = {"op", "-s"}}).result.text, "-");
}

TEST(GenerateTest, GivesOutWholeCharactersOnly) {
  Parrot model(ids("a\xC3\xA9\xF0\x9F\x99\x82!"));
  const auto [result, pieces] = run(model, {.max_tokens = 8});
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "\xC3\xA9", "\xF0\x9F\x99\x82", "!"}));
  Parrot broken(ids("a\xC3"));  // the last character is never finished
  EXPECT_EQ(run(broken, {.max_tokens = 2}).result.text, "a\xEF\xBF\xBD");
}

TEST(GenerateTest, StopsAtTheModelsLastPosition) {
  Parrot model(ids("abcdefgh"));
  model.config_.max_position_embeddings = 6;
  const auto result = run(model, {}, "123").result;
  EXPECT_EQ(result.text, "abc");
  EXPECT_EQ(result.reason, FinishReason::length);
}

TEST(GenerateTest, LongPromptsArriveWholeAndInOrder) {
  std::string prompt;
  for (int i = 0; i < 1337; ++i) prompt += static_cast<char>('a' + i % 26);
  Parrot model(ids("x"));
  run(model, {.max_tokens = 1}, prompt);
  EXPECT_EQ(model.seen, ids(prompt));
}

TEST(GenerateTest, RefusesInsteadOfCutting) {
  Parrot model(ids("abc"));
  model.config_.max_position_embeddings = 3;
  const auto code_of = [&](std::string_view prompt, const GenerateOptions& options) {
    try {
      run(model, options, prompt);
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::ok;
  };
  EXPECT_EQ(code_of("123", {}), ExitCode::usage);
  EXPECT_EQ(code_of("", {}), ExitCode::usage);
  EXPECT_EQ(code_of("1", {.max_tokens = 0}), ExitCode::usage);
  EXPECT_EQ(code_of("1", {.stop = {""}}), ExitCode::usage);
  EXPECT_TRUE(model.seen.empty());
  EXPECT_EQ(code_of("12", {}), ExitCode::ok);
}

}  // namespace
}  // namespace spear
