#include "server/api_schema.h"

#include <algorithm>

#include "server/json_schema.h"

namespace spear {
namespace {

using Json = nlohmann::json;

// Bounds are those of docs/serving.md; what is not listed is refused by name.
constexpr const char* kComponents = R"json({
"Sampling": {
  "model": {"type": "string", "maxLength": 512, "description": "any of /v1/models; absent: the only one"},
  "n": {"type": "integer", "minimum": 1, "maximum": 16},
  "max_tokens": {"type": "integer", "minimum": 0, "maximum": 1048576},
  "temperature": {"type": "number", "minimum": 0, "maximum": 100},
  "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
  "top_k": {"type": "integer", "minimum": -1, "maximum": 1048576, "description": "-1 or 0: all"},
  "min_p": {"type": "number", "minimum": 0, "maximum": 1},
  "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
  "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
  "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
  "logit_bias": {"type": "object", "maxProperties": 1024, "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                 "description": "token id -> bias"},
  "seed": {"type": "integer", "minimum": -9223372036854775808, "maximum": 18446744073709551615},
  "stop": {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 1024},
                     {"type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1, "maxLength": 1024}}],
           "description": "a string of 1 to 1,024 characters, or at most 16 of them"},
  "stop_token_ids": {"type": "array", "maxItems": 64, "items": {"type": "integer", "minimum": 0, "maximum": 2147483647}},
  "ignore_eos": {"type": "boolean"},
  "stream": {"type": "boolean"},
  "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}, "continuous_usage_stats": {"type": "boolean"}}, "additionalProperties": false},
  "user": {"type": "string", "maxLength": 512, "description": "accepted, not used"},
  "response_format": {"type": "object", "required": ["type"], "additionalProperties": false,
    "properties": {"type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
                   "json_schema": {"type": "object", "required": ["name", "schema"], "additionalProperties": false,
                     "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 64},
                                    "description": {"type": "string"},
                                    "schema": {"type": ["object", "boolean"]},
                                    "strict": {"type": "boolean"}}}},
    "description": "the output is a JSON object, or fits the schema; not beside ignore_eos"},
  "slo": {"type": "object", "additionalProperties": false,
          "properties": {"ttft_ms": {"type": "number", "minimum": 0, "maximum": 1e9},
                         "itl_ms": {"type": "number", "minimum": 0, "maximum": 1e9}},
          "description": "objectives of this request, in milliseconds; 0: the server's (extension)"},
  "priority": {"type": "integer", "minimum": -100, "maximum": 100, "description": "higher goes first (extension)"},
  "compensators": {"type": "boolean", "description": "all of the model's compensators, or none; default: what the server runs at (extension)"}
},
"CompletionRequest": {
  "type": "object", "required": ["prompt"], "additionalProperties": false,
  "properties": {
    "prompt": {"anyOf": [{"type": "string"},
                         {"type": "array", "minItems": 1, "maxItems": 2048, "items": {"type": "string"}},
                         {"type": "array", "minItems": 1, "maxItems": 1048576, "items": {"type": "integer", "minimum": 0, "maximum": 2147483647}},
                         {"type": "array", "minItems": 1, "maxItems": 2048, "items": {"type": "array", "minItems": 1, "maxItems": 1048576,
                          "items": {"type": "integer", "minimum": 0, "maximum": 2147483647}}}],
               "description": "text, a list of texts, token ids, or a list of lists of token ids"},
    "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    "echo": {"type": "boolean"},
    "add_special_tokens": {"type": "boolean", "description": "what the model's post-processor adds; true (extension)"},
    "best_of": {"type": "integer", "minimum": 1, "maximum": 1, "description": "only 1 is supported"}
  }
},
"ChatMessage": {
  "type": "object", "required": ["role"], "additionalProperties": false,
  "properties": {
    "role": {"type": "string", "minLength": 1, "maxLength": 64},
    "content": {"anyOf": [{"type": "string"},
                          {"type": "array", "maxItems": 1024, "items": {"type": "object", "required": ["type", "text"], "additionalProperties": false,
                           "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}}}}],
                "description": "text, or a list of parts of type text"},
    "name": {"type": "string", "maxLength": 256},
    "tool_call_id": {"type": "string", "maxLength": 256},
    "reasoning_content": {"type": "string"},
    "refusal": {"type": "null"},
    "tool_calls": {"type": "array", "maxItems": 128, "items": {
      "type": "object", "required": ["function"], "additionalProperties": false,
      "properties": {"id": {"type": "string", "maxLength": 256}, "type": {"type": "string", "enum": ["function"]},
                     "index": {"type": "integer", "minimum": 0, "maximum": 128},
                     "function": {"type": "object", "required": ["name", "arguments"], "additionalProperties": false,
                       "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 256},
                                      "arguments": {"type": "string", "description": "a JSON object, as text"}}}}}}
  }
},
"Tools": {
  "type": "array", "minItems": 1, "maxItems": 128, "items": {
    "type": "object", "required": ["type", "function"], "additionalProperties": false,
    "properties": {"type": {"type": "string", "enum": ["function"]},
      "function": {"type": "object", "required": ["name"], "additionalProperties": false,
                 "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 64},
                                "description": {"type": "string"},
                                "parameters": {"type": "object", "description": "a JSON schema; absent: any object"},
                                "strict": {"type": "boolean"}}}}}
},
"ChatCompletionRequest": {
  "type": "object", "required": ["messages"], "additionalProperties": false,
  "properties": {
    "messages": {"type": "array", "minItems": 1, "maxItems": 4096, "items": {"$ref": "#/components/schemas/ChatMessage"}},
    "max_completion_tokens": {"type": "integer", "minimum": 1, "maximum": 1048576},
    "logprobs": {"type": "boolean"},
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    "tools": {"$ref": "#/components/schemas/Tools"},
    "tool_choice": {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]},
                              {"type": "object", "required": ["type", "function"], "additionalProperties": false,
                               "properties": {"type": {"type": "string", "enum": ["function"]},
                                 "function": {"type": "object", "required": ["name"], "additionalProperties": false,
                                   "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 64}}}}}],
                    "description": "'none', 'auto', 'required', or {type: function, function: {name}}"},
    "parallel_tool_calls": {"type": "boolean", "description": "false: at most one call"},
    "chat_template_kwargs": {"type": "object", "maxProperties": 64, "description": "further variables of the chat template (extension)"}
  }
},
"TokenizeRequest": {
  "type": "object", "additionalProperties": false,
  "properties": {
    "model": {"type": "string", "maxLength": 512},
    "prompt": {"type": "string"},
    "content": {"type": "string", "description": "llama-server's name of prompt"},
    "messages": {"type": "array", "minItems": 1, "maxItems": 4096, "items": {"$ref": "#/components/schemas/ChatMessage"}},
    "add_special_tokens": {"type": "boolean"},
    "add_special": {"type": "boolean", "description": "llama-server's name of add_special_tokens"},
    "add_generation_prompt": {"type": "boolean"},
    "parse_special": {"type": "boolean"},
    "tools": {"$ref": "#/components/schemas/Tools"},
    "chat_template_kwargs": {"type": "object", "maxProperties": 64}
  }
},
"DetokenizeRequest": {
  "type": "object", "required": ["tokens"], "additionalProperties": false,
  "properties": {
    "model": {"type": "string", "maxLength": 512},
    "tokens": {"type": "array", "maxItems": 1048576, "items": {"type": "integer", "minimum": 0, "maximum": 2147483647}}
  }
},
"Error": {
  "type": "object", "required": ["error"],
  "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"],
    "properties": {"message": {"type": "string"}, "type": {"type": "string"},
                   "param": {"type": ["string", "null"]}, "code": {"type": ["string", "integer", "null"]}}}}
},
"Usage": {
  "type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
  "properties": {"prompt_tokens": {"type": "integer"}, "completion_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"},
                 "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": {"type": "integer"}}}}
},
"Completion": {
  "type": "object", "required": ["id", "object", "created", "model", "choices"],
  "properties": {"id": {"type": "string"}, "object": {"type": "string"}, "created": {"type": "integer"}, "model": {"type": "string"},
                 "choices": {"type": "array", "items": {"type": "object", "required": ["index", "finish_reason"]}},
                 "usage": {"$ref": "#/components/schemas/Usage"}}
},
"Tokens": {
  "type": "object", "required": ["tokens", "count", "max_model_len"],
  "properties": {"tokens": {"type": "array", "items": {"type": "integer"}}, "count": {"type": "integer"}, "max_model_len": {"type": "integer"}}
},
"Text": {
  "type": "object", "required": ["prompt", "content"],
  "properties": {"prompt": {"type": "string"}, "content": {"type": "string"}}
},
"Models": {
  "type": "object", "required": ["object", "data"],
  "properties": {"object": {"type": "string"},
                 "data": {"type": "array", "items": {"type": "object", "required": ["id", "object", "created", "owned_by", "root"]}}}
},
"Any": {"type": "object"}
})json";

struct Route {
  const char *method, *path, *summary, *request, *response;
};
constexpr Route kRoutes[] = {
    {"post", "/v1/completions", "Continue a text", "CompletionRequest", "Completion"},
    {"post", "/v1/chat/completions", "Answer a conversation", "ChatCompletionRequest", "Completion"},
    {"get", "/v1/models", "The model that is served", nullptr, "Models"},
    {"post", "/tokenize", "Text or messages to token ids", "TokenizeRequest", "Tokens"},
    {"post", "/detokenize", "Token ids to text", "DetokenizeRequest", "Text"},
    {"get", "/health", "Whether the engine moves", nullptr, "Any"},
    {"get", "/ready", "Whether new requests are taken", nullptr, "Any"},
    {"get", "/version", "Version of the server", nullptr, "Any"},
};

Json body_of(const std::string& schema) {
  return {{"application/json", {{"schema", {{"$ref", "#/components/schemas/" + schema}}}}}};
}

/// For every property that is not required, null says the same as its absence: clients
/// send either.
void allow_nulls(Json& schema) {
  if (schema.is_array() || schema.is_object()) {
    for (Json& part : schema) allow_nulls(part);
  }
  if (!schema.is_object() || !schema.contains("properties") || !schema["properties"].is_object()) return;
  const Json required = schema.value("required", Json::array());
  for (const auto& [name, member] : schema["properties"].items()) {
    if (std::find(required.begin(), required.end(), name) != required.end()) continue;
    if (member.contains("anyOf")) {
      member["anyOf"].push_back({{"type", "null"}});
    } else if (member.contains("$ref")) {
      member = {{"anyOf", Json::array({std::move(member), Json{{"type", "null"}}})}};
    } else if (member.contains("type") && member["type"] != "null") {
      if (member["type"].is_string()) member["type"] = Json::array({member["type"]});
      member["type"].push_back("null");
      if (member.contains("enum")) member["enum"].push_back(nullptr);
    }
  }
}

}  // namespace

const Json& api_components() {
  static const Json components = [] {
    Json all = Json::parse(kComponents);
    const Json sampling = all.at("Sampling");
    all.erase("Sampling");
    for (const char* name : {"CompletionRequest", "ChatCompletionRequest"})
      all.at(name).at("properties").update(sampling);
    for (const char* name : {"CompletionRequest", "ChatCompletionRequest", "ChatMessage", "Tools", "TokenizeRequest",
                             "DetokenizeRequest"})
      allow_nulls(all.at(name));
    return all;
  }();
  return components;
}

nlohmann::ordered_json checked_body(std::string_view body, const std::string& schema) {
  nlohmann::ordered_json value = parse_body(body);
  validate(value, api_components().at(schema), api_components());
  // An absent optional field and a null say the same: readers see one of them only.
  for (auto member = value.begin(); member != value.end();)
    member = member->is_null() ? value.erase(member) : std::next(member);
  return value;
}

Json openapi_document(const std::string& version) {
  Json paths = Json::object();
  const Json error = {{"description", "what was wrong"}, {"content", body_of("Error")}};
  for (const Route& route : kRoutes) {
    Json operation = {{"summary", route.summary},
                      {"responses", {{"200", {{"description", "the answer"}, {"content", body_of(route.response)}}}}}};
    Json& responses = operation["responses"];
    if (route.request != nullptr) {
      operation["requestBody"] = {{"required", true}, {"content", body_of(route.request)}};
      if (std::string_view(route.path).starts_with("/v1/"))
        responses["200"]["content"]["text/event-stream"] = Json::object();
      for (const char* status : {"400", "404", "413", "415", "429", "500"}) responses[status] = error;
    }
    const bool open = std::string_view(route.path) == "/health" || std::string_view(route.path) == "/ready";
    if (open) operation["security"] = Json::array();
    if (!open) responses["401"] = error;
    if (route.request != nullptr || open) responses["503"] = error;
    paths[route.path][route.method] = std::move(operation);
  }
  paths["/metrics"]["get"] = {
      {"summary", "Prometheus metrics"},
      {"responses",
       {{"200", {{"description", "text format"}, {"content", {{"text/plain", Json::object()}}}}}, {"401", error}}}};
  Json components = {{"schemas", api_components()},
                     {"securitySchemes", {{"key", {{"type", "http"}, {"scheme", "bearer"}}}}}};
  return {{"openapi", "3.1.0"},
          {"info", {{"title", "SPEAR"}, {"version", version}, {"license", {{"name", "see the repository"}}}}},
          {"paths", std::move(paths)},
          {"components", std::move(components)},
          {"security", Json::array({Json{{"key", Json::array()}}, Json::object()})}};
}

}  // namespace spear
