#include "text/tool_calls.h"

#include <gtest/gtest.h>

#include <set>

#include "base/random.h"

namespace spear {
namespace {

struct Parsed {
  std::string text;
  std::vector<std::pair<std::string, std::string>> calls;
  friend bool operator==(const Parsed&, const Parsed&) = default;
};

void PrintTo(const Parsed& parsed, std::ostream* out) {
  *out << "'" << parsed.text << "'";
  for (const auto& [name, arguments] : parsed.calls) *out << " " << name << "(" << arguments << ")";
}

void add(Parsed& parsed, const ToolCallParser::Output& output) {
  parsed.text += output.text;
  for (const ToolCall& call : output.calls) parsed.calls.emplace_back(call.name, call.arguments);
}

Parsed parse(ToolFormat format, const std::string& text, std::size_t piece) {
  ToolCallParser parser(format, 1);
  Parsed parsed;
  for (std::size_t at = 0; at < text.size(); at += piece) add(parsed, parser.push(text.substr(at, piece)));
  add(parsed, parser.finish());
  return parsed;
}

struct Case {
  ToolFormat format;
  std::string text;
  Parsed expected;
};

TEST(ToolCallsTest, FindsCallsInPiecesOfAnySize) {
  using enum ToolFormat;
  const std::vector<Case> cases{
      {hermes, "plain text", {"plain text", {}}},
      {hermes,
       "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"x\"}}\n</tool_call>",
       {"", {{"f", "{\"b\":1,\"a\":\"x\"}"}}}},
      {hermes, "Let me see. <tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>", {"Let me see. ", {{"f", "{}"}}}},
      {hermes,
       "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>\n{\"name\":\"g\"}\n</tool_call>\n",
       {"", {{"f", "{}"}, {"g", "{}"}}}},
      {hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call> and more", {" and more", {{"f", "{}"}}}},
      {hermes,
       "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"</tool_call>\\\"}\"}}</tool_call>",
       {"", {{"f", "{\"a\":\"</tool_call>\\\"}\"}"}}}},
      {hermes, "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": 1}\"}</tool_call>", {"", {{"f", "{\"a\": 1}"}}}},
      {hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{}}", {"", {{"f", "{}"}}}},
      {hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_c", {"", {{"f", "{}"}}}},
      {hermes, "<tool_call>{\"name\":\"f\",\"argum", {"<tool_call>{\"name\":\"f\",\"argum", {}}},
      {hermes, "<tool_call>{\"name\":3}</tool_call>", {"<tool_call>{\"name\":3}</tool_call>", {}}},
      {hermes,
       "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>",
       {"<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>", {}}},
      {hermes, "<tool_call>{bad}</tool_call>", {"<tool_call>{bad}</tool_call>", {}}},
      {hermes,
       "<tool_call>f()</tool_call><tool_call>{\"name\":\"f\"}</tool_call>",
       {"<tool_call>f()</tool_call>", {{"f", "{}"}}}},
      {hermes, "<tool_call><tool_call>{\"name\":\"f\"}</tool_call>", {"<tool_call>", {{"f", "{}"}}}},
      {hermes, "a < b, <tool, <tool_cal", {"a < b, <tool, <tool_cal", {}}},
      {hermes, "{\"name\":\"f\",\"arguments\":{}}", {"{\"name\":\"f\",\"arguments\":{}}", {}}},
      {smollm,
       "<tool_call>[{\"name\":\"f\",\"arguments\":{\"a\":[]}},{\"name\":\"g\",\"arguments\":{}}]</tool_call>",
       {"", {{"f", "{\"a\":[]}"}, {"g", "{}"}}}},
      {smollm, "<tool_call>[]</tool_call>", {"", {}}},
      {smollm, "<tool_call>[{\"name\":\"f\"},3]</tool_call>", {"<tool_call>[{\"name\":\"f\"},3]</tool_call>", {}}},
      {mistral, "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}]", {"", {{"f", "{\"a\":1}"}}}},
      {mistral, "[TOOL_CALLS][{\"name\": \"f\"", {"[TOOL_CALLS][{\"name\": \"f\"", {}}},
      {mistral, "a [list] of [TOOL", {"a [list] of [TOOL", {}}},
      {llama3, "{\"name\": \"f\", \"parameters\": {\"a\": null}}", {"", {{"f", "{\"a\":null}"}}}},
      {llama3,
       "\n {\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}",
       {"", {{"f", "{}"}, {"g", "{}"}}}},
      {llama3, "{\"answer\": 42}", {"{\"answer\": 42}", {}}},
      {llama3, "{\"name\": \"Ann\"}", {"{\"name\": \"Ann\"}", {}}},
      {llama3, "Hello {\"name\": \"f\", \"parameters\": {}}", {"Hello {\"name\": \"f\", \"parameters\": {}}", {}}},
      {llama3, "{\"name\": ", {"{\"name\": ", {}}},
      {llama3, "  ", {"  ", {}}},
  };
  for (const Case& one : cases) {
    for (std::size_t piece = 1; piece <= one.text.size(); ++piece) {
      ASSERT_EQ(parse(one.format, one.text, piece), one.expected) << one.text << " in pieces of " << piece;
    }
  }
}

TEST(ToolCallsTest, TextIsNotHeldLongerThanItHasToBe) {
  ToolCallParser parser(ToolFormat::hermes, 1);
  EXPECT_EQ(parser.push("a <").text, "a ");
  EXPECT_EQ(parser.push("b").text, "<b");
  EXPECT_EQ(parser.push("<tool_call").text, "");
  EXPECT_EQ(parser.push("s>").text, "<tool_calls>");
  ToolCallParser llama(ToolFormat::llama3, 1);
  EXPECT_EQ(llama.push("Hi").text, "Hi");
  EXPECT_EQ(llama.push(" {").text, " {");
}

TEST(ToolCallsTest, ABrokenCallIsNotHeldForever) {
  ToolCallParser parser(ToolFormat::hermes, 1);
  std::string text = parser.push("<tool_call>{\"").text;
  for (int i = 0; i < 300; ++i) text += parser.push(std::string(4096, 'x')).text;
  EXPECT_GT(text.size(), 1'000'000U);
  ToolCallParser deep(ToolFormat::hermes, 1);
  EXPECT_GT(deep.push("<tool_call>" + std::string(100'000, '[')).text.size(), 100'000U - 300);
}

TEST(ToolCallsTest, IdsAreUnlikeEachOther) {
  std::set<std::string> ids;
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    ToolCallParser parser(ToolFormat::smollm, seed);
    for (const auto& call : parser.push("<tool_call>[{\"name\":\"f\"},{\"name\":\"f\"}]</tool_call>").calls) {
      EXPECT_TRUE(call.id.starts_with("call_"));
      ids.insert(call.id);
    }
  }
  EXPECT_EQ(ids.size(), 6U);
  ToolCallParser mistral(ToolFormat::mistral, 1);
  EXPECT_EQ(mistral.push("[TOOL_CALLS][{\"name\":\"f\"}]").calls.at(0).id.size(), 9U);
}

TEST(ToolCallsTest, FormatsByNameAndTemplate) {
  for (const char* text : {"hermes", "smollm", "llama3_json", "mistral"}) EXPECT_STREQ(name(*tool_format(text)), text);
  EXPECT_FALSE(tool_format("other"));
  EXPECT_EQ(detect_tool_format("...{{ '[TOOL_CALLS]' }}"), ToolFormat::mistral);
  EXPECT_EQ(detect_tool_format("format: <tool_call>[{...}]</tool_call>"), ToolFormat::smollm);
  EXPECT_EQ(detect_tool_format("<tool_call>\\n{\"name\""), ToolFormat::hermes);
  EXPECT_EQ(detect_tool_format("'<|python_tag|>'"), ToolFormat::llama3);
  EXPECT_FALSE(detect_tool_format("{{ message['content'] }}"));
}

/// Nothing depends on how the text was cut, and what is no call is not lost (an empty list is a call of nothing).
TEST(ToolCallsTest, RandomPiecesNeverLoseText) {
  Random random(4);
  const std::vector<std::string> pieces{"<tool_call>",
                                        "</tool_call>",
                                        "{",
                                        "}",
                                        "[",
                                        "]",
                                        "\"",
                                        "\\",
                                        "name",
                                        ":",
                                        ",",
                                        "f",
                                        " ",
                                        "<",
                                        "[TOOL_CALLS]",
                                        "{\"name\":\"f\",\"arguments\":{}}"};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int i = 0; i < 12; ++i)
      text += pieces[static_cast<std::size_t>(random.uniform() * static_cast<double>(pieces.size()))];
    for (const ToolFormat format : {ToolFormat::hermes, ToolFormat::smollm, ToolFormat::mistral, ToolFormat::llama3}) {
      const Parsed whole = parse(format, text, text.size());
      ASSERT_EQ(parse(format, text, 1), whole) << text;
      if (whole.calls.empty() && text.find(']') == std::string::npos) {
        ASSERT_EQ(whole.text, text);
      }
    }
  }
}

}  // namespace
}  // namespace spear
