#include "engine/grammar_constraint.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "constrain/schema_compiler.h"
#include "engine/sampler.h"

namespace spear {
namespace {

constexpr std::int32_t kEnd = 256;

std::shared_ptr<const constrain::TokenGrammar> grammar_of(const char* schema, bool without_digits = false) {
  std::vector<std::pair<std::string, std::int32_t>> tokens;
  for (std::int32_t byte = 0; byte < 256; ++byte) {
    if (!without_digits || byte < '0' || byte > '9') tokens.emplace_back(std::string(1, static_cast<char>(byte)), byte);
  }
  return std::make_shared<const constrain::TokenGrammar>(
      constrain::compile_schema(nlohmann::ordered_json::parse(schema)),
      std::make_shared<constrain::Vocabulary>(std::move(tokens), 257));
}

/// What a sampler writes under the constraint; `liked`: bytes in order of preference.
std::string sample(GrammarConstraint& constraint, const SamplingOptions& options, const std::string& liked) {
  Sampler sampler(options);
  std::string text;
  while (text.size() < 200) {
    std::vector<float> logits(260, 0.0F);
    for (std::size_t i = 0; i < liked.size(); ++i)
      logits[static_cast<unsigned char>(liked[i])] = 50.0F - static_cast<float>(i);
    logits[kEnd] = 100;
    const std::int32_t token = sampler.next(logits, &constraint);
    if (token == kEnd) return text;
    text += static_cast<char>(token);
  }
  return text;
}

TEST(GrammarConstraintTest, EndsWhereTheTextIsCompleteAndNowhereElse) {
  const auto grammar = grammar_of(R"({"type":"object","properties":{"a":{"enum":[10,11,1]}},"required":["a"]})");
  GrammarConstraint constraint(grammar, {kEnd});
  EXPECT_EQ(sample(constraint, {}, "}1"), R"({"a":1})");
  GrammarConstraint again(grammar, {kEnd});
  EXPECT_EQ(sample(again, {.logit_bias = {{kEnd, -100.0F}}}, "1}"), R"({"a":11})");
}

/// Log-probabilities are the model's own, whatever the constraint forbids.
TEST(GrammarConstraintTest, LogprobsAreTheModels) {
  GrammarConstraint constraint(grammar_of(R"({"const":"x"})"), {kEnd});
  Sampler sampler({.logprobs = 1});
  std::vector<float> logits(257, 0.0F);
  logits['q'] = 5;
  EXPECT_EQ(sampler.next(logits, &constraint), '"');
  EXPECT_EQ(sampler.logprobs()[1].token, 'q');
  EXPECT_NEAR(sampler.logprobs()[0].logprob, -std::log(256 + std::exp(5.0)), 1e-4);
}

TEST(GrammarConstraintTest, SaysWhenTheVocabularyCannotGoOn) {
  GrammarConstraint constraint(grammar_of(R"({"const":5})", true), {kEnd});
  std::vector<float> logits(257, 0.0F);
  EXPECT_THROW(constraint.mask(logits), Error);
  EXPECT_THROW(GrammarConstraint(grammar_of("{}"), {}), Error);
  GrammarConstraint other(grammar_of(R"({"const":5})"), {kEnd});
  EXPECT_THROW(other.accept('6'), Error);
}

}  // namespace
}  // namespace spear
