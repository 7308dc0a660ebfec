#include "constrain/matcher.h"

#include <limits>

#include "base/file.h"
#include "constrain/structured_output.h"
#include "constrain_test_util.h"
#include "text/tokenizer.h"

namespace spear::constrain {
namespace {

/// Every token on its own copy of the text so far: what a mask must equal.
void expect_masks_are_exact(const std::shared_ptr<const TokenGrammar>& grammar, Random& random, int steps) {
  Matcher matcher(grammar);
  std::string text;
  for (int step = 0; step < steps; ++step) {
    const auto allowed = tokens_of(matcher.allowed());
    std::vector<std::int32_t> expected;
    for (std::int32_t id = 0; id < grammar->vocabulary->size(); ++id) {
      Matcher other(grammar);
      ASSERT_TRUE(other.accept_text(text));
      if (other.accept(id)) expected.push_back(id);
    }
    ASSERT_EQ(allowed, expected) << "behind " << text;
    if (allowed.empty()) return;
    const auto token = allowed[static_cast<std::size_t>(random.uniform() * static_cast<double>(allowed.size()))];
    ASSERT_TRUE(matcher.accept(token));
    text += grammar->vocabulary->bytes(token);
  }
}

TEST(MatcherTest, MasksAreExact) {
  Random random(21);
  const auto object = std::make_shared<const TokenGrammar>(any_object(), piece_vocabulary());
  const std::vector<std::shared_ptr<const TokenGrammar>> grammars{
      object,
      grammar_of(R"({"type":"array","items":{"type":"string","maxLength":7,"minLength":2},"minItems":2,"maxItems":3})"),
      grammar_of(R"({"type":"string","minLength":30,"maxLength":60})"),
      grammar_of(
          R"({"$defs":{"n":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/n"}},{"type":"array","items":{"$ref":"#/$defs/n"}},{"type":"string"}]}},"$ref":"#/$defs/n"})"),
      grammar_of(
          R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"},"tags":{"type":"array","items":{"enum":["red","green","blue"]}}},"additionalProperties":{"type":"string","pattern":"^[a-c]*$"}})")};
  for (const auto& grammar : grammars) {
    for (int walk = 0; walk < 6; ++walk) expect_masks_are_exact(grammar, random, 30);
  }
}

/// Ambiguity that doubles with every level stays as cheap as none: readings that meet become one.
TEST(MatcherTest, AmbiguityStaysPolynomial) {
  const auto grammar = grammar_of(
      R"({"$defs":{"n":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/n"}},{"type":"array","items":{"$ref":"#/$defs/n"}},{"type":"array","prefixItems":[{"$ref":"#/$defs/n"}]},{"type":"null"}]}},"$ref":"#/$defs/n"})");
  Matcher matcher(grammar);
  for (int depth = 0; depth < 300; ++depth) {
    ASSERT_TRUE(matcher.accept_text("["));
    ASSERT_FALSE(tokens_of(matcher.allowed()).empty());
  }
  ASSERT_TRUE(matcher.accept_text("null" + std::string(300, ']')));
  EXPECT_TRUE(matcher.complete());
  EXPECT_FALSE(matcher.accept_text("]"));
}

TEST(MatcherTest, MaskLogits) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  std::vector<float> logits(140, 1.0F);
  TokenBits bits(2);
  bits[0] = ~std::uint64_t{0};
  bits[1] = 0b101;
  mask_logits(bits, logits);
  for (std::size_t i = 0; i < logits.size(); ++i)
    EXPECT_EQ(logits[i], i < 64 || i == 64 || i == 66 ? 1.0F : kNever) << i;
}

TEST(StructuredOutputTest, RealTokenizerWalksAndToolCalls) {
  const Tokenizer tokenizer = Tokenizer::from_json(
      nlohmann::json::parse(read_text_file(std::string(SPEAR_TEST_DATA) + "/text/small_tokenizer.json")), nullptr,
      nullptr, "small_tokenizer.json");
  StructuredOutput output(tokenizer);
  EXPECT_EQ(output.json_object(), output.json_object());
  Random random(9);
  for (int walk = 0; walk < 40; ++walk) {
    EXPECT_TRUE(Json::parse(random_walk(output.json_object(), random, walk), nullptr, false).is_object());
  }
  const std::vector<ToolFunction> functions{
      {"weather",
       Json::parse(
           R"({"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer","minimum":1,"maximum":9}},"required":["city"]})")},
      {"no\"w", nullptr}};
  for (const ToolFormat format : {ToolFormat::hermes, ToolFormat::smollm, ToolFormat::llama3, ToolFormat::mistral}) {
    for (const bool parallel : {false, true}) {
      const auto grammar = output.tool_calls(format, functions, parallel);
      EXPECT_EQ(grammar, output.tool_calls(format, functions, parallel));
      for (int walk = 0; walk < 30; ++walk) {
        const std::string text = random_walk(grammar, random, walk * 3);
        ToolCallParser parser(format, 1);
        auto result = parser.push(text);
        const auto rest = parser.finish();
        result.calls.insert(result.calls.end(), rest.calls.begin(), rest.calls.end());
        EXPECT_EQ(result.text + rest.text, "") << text;
        ASSERT_GE(result.calls.size(), 1U) << text;
        EXPECT_TRUE(parallel || result.calls.size() == 1) << text;
        for (const ToolCall& call : result.calls) {
          const Json arguments = Json::parse(call.arguments);
          if (call.name == "weather") {
            EXPECT_TRUE(valid(arguments, functions[0].parameters, functions[0].parameters)) << text;
          } else {
            EXPECT_EQ(call.name, "no\"w");
          }
        }
      }
    }
  }
  EXPECT_THROW(output.tool_calls(ToolFormat::hermes, {}, false), Error);
  try {
    output.tool_calls(ToolFormat::hermes, {functions[0], {"x", Json::parse(R"({"properties":{"a":{"not":{}}}})")}},
                      false);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.where(), "#/tools/1/function/parameters/properties/a/not");
  }
}

}  // namespace
}  // namespace spear::constrain
