// What the tests of constrained decoding share: a vocabulary, random walks, and a validator that knows no automata.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <regex>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "constrain/matcher.h"
#include "constrain/schema_compiler.h"
#include "text/utf8.h"

namespace spear::constrain {

/// All bytes, and pieces that cross the borders of JSON's syntax in every way.
inline std::shared_ptr<const Vocabulary> piece_vocabulary() {
  static const auto vocabulary = [] {
    std::vector<std::pair<std::string, std::int32_t>> tokens;
    std::int32_t id = 0;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(std::string(1, static_cast<char>(byte)), id++);
    for (const char* text : {"{\"",
                             "\":",
                             "\": ",
                             "\", \"",
                             "\",\"",
                             "\"}",
                             "\"},",
                             "\"},{\"",
                             "}]",
                             "]}",
                             "}}",
                             "},\n",
                             "],",
                             "[[",
                             "[{\"",
                             "\"]",
                             ", ",
                             ",\"",
                             " \"",
                             ": ",
                             ":{\"",
                             ":[",
                             "tr",
                             "true",
                             "false",
                             "null",
                             "ue,",
                             "00",
                             "10",
                             "123",
                             "1.",
                             ".5",
                             "e+",
                             "E-1",
                             "-1",
                             "-0",
                             "0,",
                             "5}",
                             "abc",
                             "name",
                             "nam",
                             "e\":",
                             "name\": \"",
                             "age",
                             "a\"",
                             "\\\"",
                             "\\n",
                             "\\u",
                             "\\ud",
                             "\\ud83d",
                             "\\ude00",
                             "d83d\\ude",
                             "é",
                             "日本",
                             "\xE6\x97",
                             "\xA5",
                             "😀",
                             "\xF0\x9F",
                             "\x98\x80",
                             "\n  ",
                             "\n    \"",
                             "\n\n",
                             "   ",
                             "\r\n",
                             "\t",
                             "2024",
                             "-01",
                             "T1",
                             ":00Z",
                             "@b",
                             ".co",
                             "<tool_call>",
                             "</tool_call>",
                             "\n</",
                             "[TOOL",
                             "arguments\": {",
                             "parameters",
                             "red",
                             "green\"",
                             "blue",
                             "tag",
                             "tags\":[\"",
                             "aaaaaaaa",
                             "x\",\"y",
                             "\"a\":1",
                             "{}",
                             "[]",
                             "\"\"",
                             "{},",
                             "\":{}",
                             "nulls"}) {
      tokens.emplace_back(text, id++);
    }
    tokens.emplace_back("abc", id++);  // the same bytes again
    tokens.emplace_back("", id++);     // no text
    return std::make_shared<const Vocabulary>(std::move(tokens), id);
  }();
  return vocabulary;
}

inline std::shared_ptr<const TokenGrammar> grammar_of(const std::string& schema, bool strict = false) {
  return std::make_shared<const TokenGrammar>(compile_schema(Json::parse(schema), strict), piece_vocabulary());
}

inline std::vector<std::int32_t> tokens_of(const TokenBits& bits) {
  std::vector<std::int32_t> out;
  for (std::size_t word = 0; word < bits.size(); ++word) {
    for (int bit = 0; bit < 64; ++bit) {
      if (bits[word] >> bit & 1) out.push_back(static_cast<std::int32_t>(word * 64) + bit);
    }
  }
  return out;
}

/// Any allowed token each time; after `steps` whatever closes first. Empty with a test failure if it gets stuck.
inline std::string random_walk(const std::shared_ptr<const TokenGrammar>& grammar, Random& random, int steps) {
  Matcher matcher(grammar);
  std::string text;
  for (int step = 0; step < steps + 20'000; ++step) {
    const auto allowed = tokens_of(matcher.allowed());
    if (matcher.complete() && (allowed.empty() || step >= steps || random.uniform() < 0.2)) return text;
    if (allowed.empty()) {
      ADD_FAILURE() << "stuck behind " << text;
      return {};
    }
    auto token = allowed[static_cast<std::size_t>(random.uniform() * static_cast<double>(allowed.size()))];
    if (step >= steps && random.uniform() < 0.6) {
      // The quote last: inside a string the others are text.
      for (const char* closing : {"]", "}", "\""}) {
        for (const std::int32_t id : allowed) token = grammar->vocabulary->bytes(id) == closing ? id : token;
      }
    }
    if (!matcher.accept(token)) {
      ADD_FAILURE() << "a token that was allowed is not accepted behind " << text;
      return {};
    }
    text += grammar->vocabulary->bytes(token);
  }
  ADD_FAILURE() << "no end: " << text.substr(0, 200);
  return {};
}

/// Whether the text is accepted in whole, divided into tokens at random.
inline bool accepts(const std::shared_ptr<const TokenGrammar>& grammar, const std::string& text,
                    Random* random = nullptr) {
  Matcher matcher(grammar);
  std::size_t at = 0;
  while (at < text.size()) {
    std::vector<std::int32_t> fitting;
    for (std::int32_t id = 0; id < grammar->vocabulary->size(); ++id) {
      const std::string& bytes = grammar->vocabulary->bytes(id);
      if (!bytes.empty() && text.compare(at, bytes.size(), bytes) == 0) fitting.push_back(id);
    }
    const auto id = random == nullptr
                        ? fitting.front()
                        : fitting[static_cast<std::size_t>(random->uniform() * static_cast<double>(fitting.size()))];
    const TokenBits& bits = matcher.allowed();
    const bool allowed = bits[static_cast<std::size_t>(id) / 64] >> (id % 64) & 1;
    const bool accepted = matcher.accept(id);
    EXPECT_EQ(allowed, accepted) << "token '" << grammar->vocabulary->bytes(id) << "' at " << at << " of " << text;
    if (!accepted) return false;
    at += grammar->vocabulary->bytes(id).size();
  }
  return matcher.complete();
}

/// Plain recursion over the keywords that the tests use; `root` for $ref.
inline bool valid(const Json& value, const Json& schema, const Json& root) {
  if (schema.is_boolean()) return schema.get<bool>();
  const auto each = [&](const char* keyword, auto ok) { return !schema.contains(keyword) || ok(schema.at(keyword)); };
  const auto is_type = [&](const std::string& type) {
    if (type == "integer") return value.is_number() && value.get<double>() == std::floor(value.get<double>());
    if (type == "number") return value.is_number();
    return type == (value.is_array()     ? "array"
                    : value.is_object()  ? "object"
                    : value.is_string()  ? "string"
                    : value.is_boolean() ? "boolean"
                    : value.is_null()    ? "null"
                                         : "");
  };
  const auto count = [](const std::string& text) {
    return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  };
  const auto some = [&](const Json& list) {
    return std::any_of(list.begin(), list.end(), [&](const Json& s) { return valid(value, s, root); });
  };
  bool ok = each("type", [&](const Json& t) {
    return t.is_string() ? is_type(t) : std::any_of(t.begin(), t.end(), [&](const Json& one) { return is_type(one); });
  });
  ok = ok && each("enum", [&](const Json& list) { return std::find(list.begin(), list.end(), value) != list.end(); });
  ok = ok && each("const", [&](const Json& one) { return one == value; });
  ok = ok && each("anyOf", some) && each("oneOf", some);
  ok = ok && each("allOf", [&](const Json& list) {
         return std::all_of(list.begin(), list.end(), [&](const Json& s) { return valid(value, s, root); });
       });
  ok = ok && each("$ref", [&](const Json& ref) {
         return valid(value, root.at(Json::json_pointer(ref.get<std::string>().substr(1))), root);
       });
  if (value.is_number()) {
    const double x = value.get<double>();
    ok = ok && each("minimum", [&](double b) { return x >= b; }) && each("maximum", [&](double b) { return x <= b; });
    ok = ok && each("exclusiveMinimum", [&](double b) { return x > b; }) &&
         each("exclusiveMaximum", [&](double b) { return x < b; });
  }
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    ok = ok && each("minLength", [&](int n) { return count(text) >= n; }) &&
         each("maxLength", [&](int n) { return count(text) <= n; });
    ok = ok && each("pattern", [&](const std::string& p) { return std::regex_search(text, std::regex(p)); });
  }
  if (value.is_array()) {
    const auto size = static_cast<int>(value.size());
    ok = ok && each("minItems", [&](int n) { return size >= n; }) && each("maxItems", [&](int n) { return size <= n; });
    const Json prefix = schema.value("prefixItems", Json::array());
    for (std::size_t i = 0; ok && i < value.size(); ++i) {
      ok = i < prefix.size() ? valid(value[i], prefix[i], root)
                             : each("items", [&](const Json& s) { return valid(value[i], s, root); });
    }
  }
  if (value.is_object()) {
    ok = ok && each("required", [&](const Json& names) {
           return std::all_of(names.begin(), names.end(),
                              [&](const Json& n) { return value.contains(n.get<std::string>()); });
         });
    const Json properties = schema.value("properties", Json::object());
    for (const auto& [name, member] : value.items()) {
      ok = ok && (properties.contains(name)
                      ? valid(member, properties[name], root)
                      : each("additionalProperties", [&, member = member](const Json& s) { return valid(member, s, root); }));
    }
  }
  return ok;
}

}  // namespace spear::constrain
