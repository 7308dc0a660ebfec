#include "engine/model_summary.h"

#include <algorithm>
#include <set>

namespace spear {
namespace {

void add(PartSummary& part, const std::string& format, std::int64_t parameters, std::int64_t bytes) {
  if (part.format.find(format) == std::string::npos) part.format += (part.format.empty() ? "" : " + ") + format;
  part.parameters += parameters;
  part.bytes += bytes;
}

void add(PartSummary& part, const Tensor& tensor) {
  add(part, name(tensor.dtype()), tensor.size(), static_cast<std::int64_t>(tensor.bytes().size()));
}

void add(PartSummary& part, const LinearWeight& weight) {
  if (const auto* dense = std::get_if<Tensor>(&weight)) return add(part, *dense);
  if (const auto* blocks = std::get_if<BlockMatrix>(&weight))
    return add(part, blocks->type->name, blocks->rows * blocks->cols, blocks->storage_bytes());
  const auto& packed = std::get<W4Matrix>(weight);
  add(part, to_string(packed.scheme), packed.rows * packed.cols, packed.storage_bytes());
}

double ratio(std::int64_t part, std::int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(std::max<std::int64_t>(whole, 1));
}

/// The scheme of the packed linears, for linears that are not packed; the default when none is.
W4Scheme scheme_of(const ModelWeights& weights) {
  for (int index = 0; index < module_count(weights.config); ++index) {
    if (const auto* packed = std::get_if<W4Matrix>(&weights.linear({index}).weight)) return packed->scheme;
  }
  return {};
}

}  // namespace

double ModelSummary::compensator_fraction() const { return ratio(compensator_bytes, budget_base_bytes); }
double ModelSummary::compensator_linears_fraction() const { return ratio(compensator_bytes, linear_bytes); }

ModelSummary summarize(const ModelWeights& weights) {
  ModelSummary summary;
  summary.config = weights.config;
  PartSummary embedding{"embedding", {}}, head{"head", {}}, linears{"linears", {}}, biases{"biases", {}},
      norms{"norms", {}};
  add(embedding, weights.embed_tokens);
  if (!weights.lm_head.empty()) add(head, weights.lm_head);
  for (const NormId id : norms_of(weights.config)) add(norms, weights.gain(id));
  std::set<const CompensatorInput*> counted;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const LinearModule& module = weights.linear({index});
    add(linears, module.weight);
    if (!module.bias.empty()) add(biases, module.bias);
    if (!module.compensator) continue;
    const Compensator& c = *module.compensator;
    const bool owns_a = counted.insert(c.a.get()).second;
    summary.compensators.push_back({ModuleId{index}.name(), c.rank, c.gate_rows, c.gate.hidden,
                                    c.own_bytes() + (owns_a ? c.a->storage_bytes() : 0)});
    summary.compensator_bytes += summary.compensators.back().bytes;
  }
  summary.linear_bytes = linears.bytes;
  summary.bits_per_linear_weight = 8 * ratio(linears.bytes, linears.parameters);
  summary.budget_base_bytes = budget_base_bytes(weights, scheme_of(weights));
  for (auto* part : {&embedding, &head, &linears, &biases, &norms}) {
    if (part->bytes == 0) continue;
    summary.parameters += part->parameters;
    summary.parts.push_back(std::move(*part));
  }
  if (!summary.compensators.empty()) {
    summary.parts.push_back({"compensators", "I8 + BF16 gates", 0, summary.compensator_bytes});
  }
  for (const auto& part : summary.parts) summary.bytes += part.bytes;
  return summary;
}

nlohmann::json to_json(const ModelSummary& summary) {
  const ModelConfig& config = summary.config;
  nlohmann::json json = {{"config",
                          {{"model_type", config.model_type},
                           {"num_hidden_layers", config.num_hidden_layers},
                           {"hidden_size", config.hidden_size},
                           {"intermediate_size", config.intermediate_size},
                           {"num_attention_heads", config.num_attention_heads},
                           {"num_key_value_heads", config.num_key_value_heads},
                           {"head_dim", config.head_dim},
                           {"vocab_size", config.vocab_size},
                           {"max_position_embeddings", config.max_position_embeddings},
                           {"tie_word_embeddings", config.tie_word_embeddings},
                           {"rotated_stream", config.rotated_stream}}},
                         {"parameters", summary.parameters},
                         {"bytes", summary.bytes},
                         {"bits_per_linear_weight", summary.bits_per_linear_weight},
                         {"parts", nlohmann::json::array()},
                         {"compensators",
                          {{"bytes", summary.compensator_bytes},
                           {"budget_base_bytes", summary.budget_base_bytes},
                           {"fraction", summary.compensator_fraction()},
                           {"linears_fraction", summary.compensator_linears_fraction()},
                           {"modules", nlohmann::json::array()}}}};
  for (const auto& part : summary.parts) {
    json["parts"].push_back(
        {{"name", part.name}, {"format", part.format}, {"parameters", part.parameters}, {"bytes", part.bytes}});
  }
  for (const auto& c : summary.compensators) {
    json["compensators"]["modules"].push_back({{"module", c.module},
                                               {"rank", c.rank},
                                               {"gate_rows", c.gate_rows},
                                               {"gate_hidden", c.gate_hidden},
                                               {"bytes", c.bytes}});
  }
  return json;
}

}  // namespace spear
