// A checked request body as what the engine needs.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "server/output_format.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace spear {

/// What a server knows of the model it serves; lives as long as the server.
struct ServedModel {
  std::string name;  ///< id in /v1/models
  std::string root;  ///< path of the checkpoint
  const Tokenizer* tokenizer = nullptr;
  std::optional<ChatTemplate> chat_template;
  std::optional<ToolFormat> tool_format;  ///< how it writes tool calls; nothing: its template knows no tools
  std::int64_t max_model_len = 0;  ///< tokens of prompt and output together
  std::int64_t vocab_size = 0;
  std::vector<std::int64_t> stop_token_ids;
  SamplingOptions defaults;        ///< of requests that leave something out
  double compensator_density = 0;  ///< share of the compensators that are applied
};

struct GenerationParams {
  bool chat = false, stream = false, include_usage = false, continuous_usage = false, echo = false;
  bool want_logprobs = false;
  std::int64_t n = 1;
  bool seeded = false;
  std::vector<std::vector<std::int32_t>> prompts;
  Request request;         ///< of every choice, the prompt left out
  bool no_output = false;  ///< max_tokens 0 with echo: the prompt alone
  std::vector<std::string> stop;
  OutputFormat output;
  StructuredOutput::GrammarPtr grammar;  ///< of a constrained output, once it is made
  std::uint64_t call_seed = 0;           ///< of the ids of tool calls
};

/// Both throw ApiError(400 or 404) naming the field.
GenerationParams completion_params(const nlohmann::ordered_json& body, const ServedModel& model);
GenerationParams chat_params(const nlohmann::ordered_json& body, const ServedModel& model);

/// The model's chat template over `messages`. Throws ApiError(400) with the template's own words.
std::vector<std::int32_t> chat_prompt(const nlohmann::ordered_json& messages, const ServedModel& model,
                                      bool add_generation_prompt,
                                      const nlohmann::ordered_json& extra = nlohmann::ordered_json::object());

/// Throws ApiError(404) unless the body names the model that is served, or none.
void check_model(const nlohmann::ordered_json& body, const ServedModel& model);

}  // namespace spear
