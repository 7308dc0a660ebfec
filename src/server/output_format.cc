#include "server/output_format.h"

#include <fmt/format.h>

#include <set>

#include "server/api_error.h"

namespace spear {
namespace {

using Json = nlohmann::ordered_json;

void take_response_format(const Json& body, OutputFormat& out) {
  const auto found = body.find("response_format");
  if (found == body.end()) return;
  const auto& type = found->at("type").get_ref<const std::string&>();
  const auto schema = found->find("json_schema");
  const bool has_schema = schema != found->end() && !schema->is_null();
  if (has_schema != (type == "json_schema")) {
    throw bad_request(has_schema ? "json_schema belongs to the type 'json_schema'" : "the type 'json_schema' needs one",
                      "response_format.json_schema");
  }
  if (type == "json_object") out.kind = OutputFormat::Kind::json_object;
  if (!has_schema) return;
  out.kind = OutputFormat::Kind::json_schema;
  const auto strict = schema->find("strict");
  out.strict = strict != schema->end() && strict->is_boolean() && strict->get<bool>();
  out.schema = schema->at("schema");
}

ToolFunction read_function(const Json& tool) {
  const Json& function = tool.at("function");
  ToolFunction out;
  out.name = function.at("name").get<std::string>();
  if (const auto parameters = function.find("parameters"); parameters != function.end()) out.parameters = *parameters;
  const auto strict = function.find("strict");
  out.strict = strict != function.end() && strict->is_boolean() && strict->get<bool>();
  return out;
}

/// "none", "auto", "required", or "" and the function's name in `named`.
std::string read_choice(const Json& body, std::string& named) {
  const auto choice = body.find("tool_choice");
  if (choice == body.end()) return "auto";
  if (choice->is_string()) return choice->get<std::string>();
  named = choice->at("function").at("name").get<std::string>();
  return "";
}

void take_tools(const Json& body, std::optional<ToolFormat> model_calls, OutputFormat& out) {
  const auto tools = body.find("tools");
  if (tools == body.end()) {
    for (const char* field : {"tool_choice", "parallel_tool_calls"}) {
      const auto found = body.find(field);
      if (found != body.end() && *found != "none") throw bad_request(fmt::format("{} needs tools", field), field);
    }
    return;
  }
  std::string named;
  const std::string choice = read_choice(body, named);
  check_tools(*tools, model_calls);
  if (choice == "none") return;  // not even shown to the model: it cannot call what it does not know
  if (out.constrained()) {
    throw bad_request("response_format beside tools is not supported unless tool_choice is 'none'", "response_format");
  }
  out.tools = *tools;
  out.calls = model_calls;
  if (const auto parallel = body.find("parallel_tool_calls"); parallel != body.end())
    out.parallel = parallel->get<bool>();
  if (choice == "auto") return;
  out.kind = OutputFormat::Kind::tool_calls;
  for (std::size_t i = 0; i < tools->size(); ++i) {
    ToolFunction function = read_function((*tools)[i]);
    if (!named.empty() && function.name != named) continue;
    out.functions.push_back(std::move(function));
    out.positions.push_back(i);
  }
  if (out.functions.empty()) {
    throw bad_request(fmt::format("there is no tool '{}'", named), "tool_choice.function.name");
  }
  if (!named.empty()) out.parallel = false;
}

}  // namespace

void check_tools(const Json& tools, std::optional<ToolFormat> model_calls) {
  if (!model_calls) {
    throw bad_request("this model's chat template knows no tools; the operator may give one by --chat-template", "tools");
  }
  std::set<std::string> names;
  for (std::size_t i = 0; i < tools.size(); ++i) {
    const auto name = tools[i].at("function").at("name").get<std::string>();
    if (!names.insert(name).second) {
      throw bad_request(fmt::format("the tool '{}' is there twice", name), fmt::format("tools[{}].function.name", i));
    }
  }
}

OutputFormat output_format(const Json& body, std::optional<ToolFormat> model_calls) {
  OutputFormat out;
  take_response_format(body, out);
  take_tools(body, model_calls, out);
  return out;
}

}  // namespace spear
