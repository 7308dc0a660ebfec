#include "server/json_schema.h"

#include <gtest/gtest.h>

#include "server/api_error.h"
#include "server/api_schema.h"

namespace spear {
namespace {

std::string refusal(const std::string& body, const std::string& schema = "CompletionRequest") {
  try {
    checked_body(body, schema);
    return "";
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status(), 400);
    return error.what();
  }
}

TEST(JsonSchema, TakesWhatOpenAiClientsSend) {
  EXPECT_EQ(refusal(R"({"model":"m","prompt":"a","max_tokens":5,"temperature":0.5,"stop":["x","y"],"logit_bias":{"5":-100},
                        "stream":true,"stream_options":{"include_usage":true},"user":"u","n":2,"best_of":1,"seed":-3})"),
            "");
  EXPECT_EQ(refusal(R"({"prompt":[1,2,3]})"), "");
  EXPECT_EQ(refusal(R"({"prompt":[[1,2],[3]]})"), "");
  EXPECT_EQ(refusal(R"({"prompt":["a","b"],"stop":null})"), "");
  EXPECT_EQ(refusal(R"({"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"top_logprobs":3,"logprobs":true})", "ChatCompletionRequest"), "");
}

TEST(JsonSchema, RefusesByName) {
  EXPECT_NE(refusal(R"({"prompt":"a","best_off":1})").find("best_off"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","best_of":2})").find("best_of"), std::string::npos);
  EXPECT_NE(refusal(R"({"max_tokens":3})").find("prompt"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":null})").find("prompt"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","n":1000000000})").find("'n'"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","n":-1})").find("'n'"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","n":1.5})").find("integer"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","max_tokens":18446744073709551615})").find("max_tokens"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","temperature":1e999})").find("JSON"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","temperature":"1"})").find("temperature"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","stop":[""]})").find("stop"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":[1,"a"]})").find("prompt"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":[]})").find("prompt"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","stream_options":{"x":1}})").find("stream_options.x"), std::string::npos);
  EXPECT_NE(refusal(R"({"prompt":"a","logit_bias":{"5":101}})").find("logit_bias.5"), std::string::npos);
  EXPECT_NE(refusal(R"({"messages":[{"role":"user","content":[{"type":"image_url","text":""}]}]})", "ChatCompletionRequest").find("messages[0].content"),
            std::string::npos);
}

TEST(JsonSchema, RefusesWhatIsNoJson) {
  for (const std::string body : {"", "{", "nul", "{\"prompt\":\"a\"} x", "\xff", "{\"prompt\":\"\xc3\"}", "[]", "\"a\""}) EXPECT_NE(refusal(body), "") << body;
  EXPECT_NE(refusal("{\"prompt\":" + std::string(100000, '[') + std::string(100000, ']') + "}").find("levels"), std::string::npos);
}

TEST(JsonSchema, TheDocumentDescribesWhatIsEnforced) {
  const auto document = openapi_document("1.2.3");
  EXPECT_TRUE(document.at("components").at("schemas") == api_components());
  for (const auto& [path, operations] : document.at("paths").items()) {
    for (const auto& [method, operation] : operations.items()) {
      for (const auto& [status, response] : operation.at("responses").items()) {
        const auto& schema = response.at("content").value("application/json", nlohmann::json::object());
        if (schema.empty()) continue;
        const auto name = schema.at("schema").at("$ref").get<std::string>();
        EXPECT_TRUE(api_components().contains(name.substr(name.rfind('/') + 1))) << path << ' ' << name;
      }
    }
  }
}

}  // namespace
}  // namespace spear
