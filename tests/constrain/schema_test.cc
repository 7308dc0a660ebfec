#include <fmt/format.h>

#include <chrono>

#include "constrain_test_util.h"

namespace spear::constrain {
namespace {

const std::vector<std::string> kSchemas{
    R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"},"tags":{"type":"array","items":{"type":"string"}}},"required":["name","age"],"additionalProperties":false})",
    R"({"type":"object","properties":{"a":{"type":"number"},"b":{"type":["string","null"]},"c":{"enum":["red","green","blue",null,1.5,[1,"x"]]}}})",
    R"({"type":"object","additionalProperties":{"type":"integer"}})",
    R"({"type":"object","properties":{"a":{"const":"é\"\\\n"},"name":true},"required":["a","zed"],"additionalProperties":{"type":"boolean"}})",
    R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"null"},"minItems":1,"maxItems":4})",
    R"({"type":"array","items":{"type":"boolean"},"minItems":2})",
    R"({"type":"array","prefixItems":[{"const":1}],"items":false})",
    R"({"type":"integer","minimum":-17,"exclusiveMaximum":1234})",
    R"({"type":"integer","minimum":98,"maximum":105})",
    R"({"type":"number","minimum":0,"maximum":1})",
    R"({"type":"number","exclusiveMinimum":-2,"exclusiveMaximum":3})",
    R"({"type":"number","maximum":-5})",
    R"({"type":"string","minLength":2,"maxLength":5})",
    R"({"type":"string","minLength":3})",
    R"({"type":"string","pattern":"^[a-c]+-\\d{2,3}(x|yz)?$"})",
    R"({"type":"string","pattern":"ab"})",
    R"({"anyOf":[{"type":"object","properties":{"kind":{"const":"a"},"x":{"type":"integer"}},"required":["kind","x"]},{"type":"object","properties":{"kind":{"const":"b"},"y":{"type":"string"}},"required":["kind","y"]},{"type":"null"}]})",
    R"({"allOf":[{"type":"object","properties":{"a":{"type":"number","minimum":3}},"required":["a"]},{"properties":{"a":{"type":"integer","maximum":9},"b":{"type":"string"}},"required":["b"]}]})",
    R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"anyOf":[{"required":["a"]},{"required":["b"]}]})",
    R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"name":{"type":"string"},"kids":{"type":"array","items":{"$ref":"#/$defs/node"}}},"required":["name","kids"],"additionalProperties":false}}})",
    R"({"type":"object","properties":{"next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["next"],"additionalProperties":false})",
    R"({})",
    R"({"type":"string","enum":["a","ab","abc","b"],"maxLength":2})",
    R"({"type":"object","minProperties":1,"properties":{"a":{"type":"null"},"b":{"type":"null"}}})",
};

TEST(SchemaTest, RandomWalksAreValid) {
  std::ofstream file;  // for another validator: tests/python/check_walks.py
  if (const char* path = std::getenv("SPEAR_WALKS")) file.open(path);
  for (const std::string& text : kSchemas) {
    const Json schema = Json::parse(text);
    const auto grammar = grammar_of(text);
    Random random(7);
    for (int walk = 0; walk < 60; ++walk) {
      const std::string document = random_walk(grammar, random, walk);
      ASSERT_EQ(find_invalid_utf8(document), std::string::npos) << text;
      const Json value = Json::parse(document, nullptr, false);
      ASSERT_FALSE(value.is_discarded()) << text << "\n" << document;
      ASSERT_TRUE(valid(value, schema, schema)) << text << "\n" << document;
      if (file.is_open()) file << Json{{"schema", schema}, {"text", document}}.dump() << "\n";
    }
  }
}

TEST(SchemaTest, AnyObject) {
  const auto grammar = std::make_shared<const TokenGrammar>(any_object(), piece_vocabulary());
  Random random(3);
  for (int walk = 0; walk < 300; ++walk) {
    const std::string document = random_walk(grammar, random, walk % 100);
    ASSERT_TRUE(Json::parse(document, nullptr, false).is_object()) << document;
  }
  for (const char* document : {"{}", R"({"a": [1, -2.5e+10, {"b": null}], "é\ud83d\ude00": "\/\u00e9\n"})",
                               "{\n  \"a\": {\n    \"b\": []\n  }\n}"}) {
    EXPECT_TRUE(accepts(grammar, document, &random)) << document;
  }
  for (const char* document :
       {"", "[]", "{", "{\"a\":}", "{\"a\":01}", "{\"a\":1,}", R"({"a":"\ud83d"})", R"({"a":"\udc00\ud800"})",
        "{\"a\":\"\xFF\"}", "{\"a\":\"\n\"}", "{\"a\":\"\xED\xA0\x80\"}", "{    }", "{\n\n}", "{} "}) {
    EXPECT_FALSE(accepts(grammar, document, &random)) << document;
  }
}

struct Case {
  const char* schema;
  std::vector<const char*> valid, invalid;
};

TEST(SchemaTest, AcceptsWhatIsValidAndNothingElse) {
  const std::vector<Case> cases{
      {R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},"required":["name"],"additionalProperties":false})",
       {R"({"name":"x"})", R"({"name": "x", "age": 3})", "{\n  \"name\": \"x\",\n  \"age\": -3\n}",
        R"({"name":"\"","age":0})"},
       {"{}", R"({"age":3})", R"({"name":1})", R"({"name":"x","age":1.5})", R"({"name":"x","b":1})", R"({"name":"x",})",
        R"({"name":"x","name":"y"})"}},
      {R"({"type":"object","properties":{"a":{"type":"null"},"b":{"type":"null"},"c":{"type":"null"}},"required":["b"]})",
       {R"({"b":null})", R"({"a":null,"b":null})", R"({"b":null,"c":null})", R"({"a":null,"b":null,"c":null})"},
       {R"({"a":null})", R"({"a":null,"c":null})", R"({,"b":null})"}},
      {R"({"type":"object","properties":{"ab":{"type":"null"},"é":{"type":"null"}},"additionalProperties":{"type":"boolean"}})",
       {"{}", R"({"ab":null})", R"({"a":true})", R"({"abc":true,"":false})", R"({"ab":null,"è":true})",
        R"({"é":null,"ab ":true})"},
       {R"({"ab":true})", R"({"é":true})", R"({"a":null})"}},
      {R"({"type":"integer","minimum":5,"maximum":120})",
       {"5", "9", "10", "99", "100", "120"},
       {"4", "121", "05", "-5", "1200", "5.0"}},
      {R"({"type":"integer","maximum":-5})", {"-5", "-999999999999999999"}, {"-4", "0", "-0", "-1000000000000000000"}},
      {R"({"type":"number","minimum":0,"maximum":1})",
       {"0", "1", "0.5", "1.0", "0.0"},
       {"-0.1", "1.01", "2", "-0", "1e0"}},
      {R"({"type":"number","exclusiveMinimum":0,"exclusiveMaximum":10})",
       {"0.5", "9.99", "0.05", "5"},
       {"0", "0.0", "10", "10.0", "-1"}},
      {R"({"type":"string","maxLength":3})",
       {R"("")", R"("日本é")", R"("\u00e9\ud83d\ude00x")", R"("\"\"\"")"},
       {R"("abcd")", R"("日本é!")"}},
      {R"({"type":"string","minLength":2,"pattern":"^a{2,4}$","maxLength":4})",
       {R"("aa")", R"("aaaa")"},
       {R"("a")", R"("aaaaa")"}},
      {R"({"type":"string","pattern":"^(\\w+\\s?)*[^\"\\\\x-z]$"})",
       {R"("ab cd")", R"("\n")"},
       {R"("ab x")", R"("\"")", R"("")"}},
      {R"({"type":"string","pattern":"foo$|^bar"})",
       {R"("xfoo")", R"("bars")", R"("foo")"},
       {R"("foox")", R"("xbar")"}},
      {R"({"type":"string","format":"date"})",
       {R"("2024-02-29")", R"("1999-12-31")"},
       {R"("2023-02-29")", R"("1900-02-29")", R"("2024-04-31")", R"("0000-01-01")", R"("2024-1-1")"}},
      {R"({"type":"string","format":"date-time"})",
       {R"("2024-01-01T10:00:00Z")", R"("2024-01-01T23:59:59.123+02:00")"},
       {R"("2024-01-01 10:00:00Z")", R"("2024-01-01T24:00:00Z")"}},
      {R"({"type":"string","format":"uuid"})",
       {R"("123e4567-e89b-12d3-a456-426614174000")"},
       {R"("123e4567e89b12d3a456426614174000")"}},
      {R"({"type":"string","format":"email"})", {R"("a.b@b.com")"}, {R"("a@b")", R"("@b.com")", R"(".a@b.com")"}},
      {R"({"type":"string","format":"ipv4"})",
       {R"("127.0.0.1")", R"("255.255.255.255")"},
       {R"("256.0.0.1")", R"("1.2.3")", R"("01.2.3.4")"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3})",
       {"[1]", "[1, 2,3]", "[\n  1,\n  2\n]"},
       {"[]", "[1,2,3,4]", "[1,]", "[\"a\"]"}},
      {R"({"type":"array","maxItems":0})", {"[]"}, {"[1]"}},
      {R"({"type":"integer","nullable":true})", {"1", "null"}, {"true"}},
      {R"({"enum":[{"a":[1,true]},"x"]})", {R"({"a":[1,true]})", R"("x")"}, {R"({"a":[1]})", R"("y")"}},
      {R"({"allOf":[{"properties":{"a":{"type":"integer"}},"additionalProperties":false},{"properties":{"b":{"type":"integer"}}}],"type":"object"})",
       {"{}", R"({"a":1})"},
       {R"({"b":1})", R"({"a":1,"b":1})"}},
      {R"({"type":"object","properties":{"a":{"$ref":"#/definitions/x~1y%20z"}},"definitions":{"x/y z":{"const":7}}})",
       {R"({"a":7})"},
       {R"({"a":8})"}},
  };
  Random random(11);
  for (const Case& one : cases) {
    const auto grammar = grammar_of(one.schema);
    for (const char* document : one.valid) {
      EXPECT_TRUE(accepts(grammar, document)) << one.schema << "\n" << document;
      for (int i = 0; i < 8; ++i) EXPECT_TRUE(accepts(grammar, document, &random)) << one.schema << "\n" << document;
    }
    for (const char* document : one.invalid) {
      for (int i = 0; i < 4; ++i) EXPECT_FALSE(accepts(grammar, document, &random)) << one.schema << "\n" << document;
    }
  }
}

/// Integers have at most 18 digits; bounds near and beyond those of 64 bits must not wrap around.
TEST(SchemaTest, BoundsNearTheLimitsOf64Bits) {
  const auto takes = [](const std::string& schema, const std::string& text) {
    Matcher matcher(grammar_of(schema));
    return matcher.accept_text(text) && matcher.complete();
  };
  const std::string largest = "999999999999999999", beyond = "1000000000000000000";
  for (const std::string& bound : {largest, beyond, std::string("9223372036854775807"),
                                   std::string("9223372036854775808"), std::string("18446744073709551615"),
                                   std::string("1e18"), std::string("1e300")}) {
    for (const char* type : {"integer", "number"}) {
      const std::string above = fmt::format(R"({{"type":"{}","maximum":{}}})", type, bound);
      const std::string below = fmt::format(R"({{"type":"{}","minimum":-{}}})", type, bound);
      for (const std::string& schema : {above, below}) {
        for (const std::string& number : {std::string("0"), std::string("-1"), std::string("7"), largest, "-" + largest})
          EXPECT_TRUE(takes(schema, number)) << schema << " " << number;
        EXPECT_FALSE(takes(schema, beyond)) << schema;
        EXPECT_FALSE(takes(schema, "-" + beyond)) << schema;
      }
    }
  }
  EXPECT_TRUE(takes(R"({"type":"integer","minimum":999999999999999999})", largest));
  EXPECT_FALSE(takes(R"({"type":"integer","minimum":999999999999999999})", "999999999999999998"));
  EXPECT_TRUE(takes(R"({"type":"integer","exclusiveMaximum":-999999999999999998})", "-" + largest));
  EXPECT_TRUE(takes(R"({"type":"number","exclusiveMinimum":999999999999999997})", "999999999999999998.5"));
  EXPECT_FALSE(takes(R"({"type":"number","exclusiveMinimum":999999999999999997})", "999999999999999997"));
  for (const char* schema : {R"({"type":"integer","minimum":1000000000000000000})",
                             R"({"type":"integer","exclusiveMinimum":999999999999999999})",
                             R"({"type":"integer","maximum":-9223372036854775808})",
                             R"({"type":"integer","minimum":18446744073709551615})"})
    EXPECT_THROW(grammar_of(schema), Error) << schema;
}

TEST(SchemaTest, RefusesByNameAndPointer) {
  const std::vector<std::array<const char*, 3>> cases{
      {R"({"properties":{"a":{"not":{}}}})", "#/properties/a/not", "not supported"},
      {R"({"properties":{"a/b":{"type":"strin"}}})", "#/properties/a~1b/type", "expected"},
      {R"({"type":"array","items":{"uniqueItems":true}})", "#/items/uniqueItems", "not supported"},
      {R"({"patternProperties":{"^a":{}}})", "#/patternProperties", "not supported"},
      {R"({"if":{},"then":{}})", "#/if", "not supported"},
      {R"({"type":"string","format":"iri"})", "#/format", "iri"},
      {R"J({"type":"string","pattern":"(?=a)"})J", "#/pattern", "group"},
      {R"({"type":"string","pattern":"(a)\\1"})", "#/pattern", "\\1"},
      {R"({"type":"string","pattern":"a$b"})", "#/pattern", "anchor"},
      {R"({"type":"string","pattern":"[a"})", "#/pattern", "class"},
      {R"({"type":"string","pattern":"a*","maxLength":3})", "#/pattern", "maxLength"},
      {R"({"type":"number","minimum":0.5})", "#/minimum", "whole"},
      {R"({"type":"integer","multipleOf":3})", "#/multipleOf", "not supported"},
      {R"({"$ref":"http://x/y"})", "#/$ref", "within"},
      {R"({"$ref":"#/$defs/x"})", "#/$ref", "nowhere"},
      {R"({"$ref":"#"})", "#", "itself"},
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", "#", "itself"},
      {R"({"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"anyOf":[{"$ref":"#"}]}}})", "#", "itself"},
      {R"({"anyOf":[]})", "#/anyOf", "list"},
      {R"({"type":"object","properties":{"a":3}})", "#/properties/a", "schema"},
      {R"({"type":"string","minLength":-1})", "#/minLength", "whole"},
      {R"({"type":"string","minLength":1e9})", "#/minLength", "more than"},
      {R"({"type":"array","minItems":100000})", "#/minItems", "more than"},
      {R"({"type":"object","minProperties":3})", "#/minProperties", "required"},
      {R"({"enum":["a"],"pattern":"b"})", "#/pattern", "beside"},
      {R"([])", "#", "schema"},
      {R"({"enum":[]})", "", "no value fits"},
      {R"({"type":"object","properties":{"a":false},"required":["a"]})", "", "no value fits"},
      {R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})", "", "no value fits"},
      {R"({"type":"integer","minimum":5,"maximum":4})", "", "no value fits"},
  };
  for (const auto& [schema, pointer, words] : cases) {
    try {
      compile_schema(Json::parse(schema));
      ADD_FAILURE() << "not refused: " << schema;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input) << schema;
      EXPECT_EQ(error.where(), pointer) << schema << ": " << error.problem();
      EXPECT_NE(error.problem().find(words), std::string::npos) << schema << ": " << error.problem();
    }
  }
}

TEST(SchemaTest, StrictIsOpenAis) {
  EXPECT_NO_THROW(grammar_of(
      R"({"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false})", true));
  EXPECT_THROW(grammar_of(R"({"type":"object","properties":{"a":{"type":"string"}},"required":["a"]})", true), Error);
  EXPECT_THROW(
      grammar_of(R"({"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":false})", true),
      Error);
}

std::string nested(int depth, const std::string& open, const std::string& close) {
  std::string text;
  for (int i = 0; i < depth; ++i) text += open;
  text += "{\"type\":\"null\"}";
  for (int i = 0; i < depth; ++i) text += close;
  return text;
}

/// Quickly compiled, or quickly refused; and then no mask takes long.
TEST(SchemaTest, HostileSchemasCostLittle) {
  std::string many = "{\"type\":\"object\",\"properties\":{";
  for (int i = 0; i < 1500; ++i) many += (i ? ",\"p" : "\"p") + std::to_string(i) + "\":{\"type\":\"integer\"}";
  std::string doubling = R"({"type":"object","$defs":{"d0":{"type":"null"})";
  for (int i = 1; i < 40; ++i) {
    const std::string ref = "{\"$ref\":\"#/$defs/d" + std::to_string(i - 1) + "\"}";
    doubling += ",\"d" + std::to_string(i) + "\":{\"anyOf\":[" + ref + "," + ref + "]}";
  }
  std::string crosses = "{\"allOf\":[";
  for (int i = 0; i < 30; ++i)
    crosses += std::string(i ? "," : "") + R"({"anyOf":[{"minimum":1},{"maximum":2},{"minLength":1}]})";
  const std::vector<std::string> schemas{
      many + "}}",
      doubling + R"(},"properties":{"a":{"$ref":"#/$defs/d39"}}})",
      crosses + "]}",
      nested(500, R"({"type":"array","items":)", "}"),
      nested(500, R"({"anyOf":[)", "]}"),
      nested(500, R"({"allOf":[)", "]}"),
      R"({"type":"string","pattern":"^(a|b)*a(a|b){18}$"})",
      R"({"type":"string","pattern":"(((a{100}){100}){100}){100}"})",
      R"({"type":"string","pattern":"((((a*)*)*)*)*b"})",
      R"({"type":"string","pattern":"(((){1000}){1000}){1000}"})",
      R"({"type":"string","maxLength":1000000000})",
      R"({"type":"array","items":{"type":"array","items":{"type":"string","maxLength":10000},"maxItems":10000},"maxItems":10000})",
      R"({"$defs":{"n":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/n"}},{"type":"array","items":{"$ref":"#/$defs/n"}},{"type":"array","prefixItems":[{"$ref":"#/$defs/n"}]},{"type":"null"}]}},"$ref":"#/$defs/n"})",
  };
  for (const std::string& schema : schemas) {
    const auto start = std::chrono::steady_clock::now();
    try {
      const auto grammar = grammar_of(schema);
      Random random(5);
      for (int i = 0; i < 3; ++i)
        EXPECT_FALSE(Json::parse(random_walk(grammar, random, 100), nullptr, false).is_discarded());
    } catch (const Error& error) {
      EXPECT_FALSE(error.problem().empty());
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    EXPECT_LT(took.count(), 10) << schema.substr(0, 200);
  }
}

}  // namespace
}  // namespace spear::constrain
