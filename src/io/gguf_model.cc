#include "io/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "base/error.h"
#include "io/untrusted.h"

namespace spear {
namespace {

constexpr std::array<const char*, kLinearsPerLayer> kGgufLinearNames = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                                        "ffn_gate", "ffn_up", "ffn_down"};

/// Keys under "llama." that are honoured. Any other could change results, so it is refused by name.
const std::set<std::string, std::less<>> kKnownKeys = {"block_count",
                                                       "context_length",
                                                       "embedding_length",
                                                       "feed_forward_length",
                                                       "attention.head_count",
                                                       "attention.head_count_kv",
                                                       "attention.layer_norm_rms_epsilon",
                                                       "attention.key_length",
                                                       "attention.value_length",
                                                       "rope.freq_base",
                                                       "rope.dimension_count",
                                                       "rope.scaling.type",
                                                       "vocab_size"};

void check_keys(const GgufFile& file) {
  const auto architecture = file.text("general.architecture").value_or("");
  if (architecture != "llama") {
    throw bad_input(fmt::format("architecture '{}' is not supported", printable(architecture)), file.where(),
                    "use a model of the llama architecture");
  }
  if (file.integer("split.count").value_or(1) > 1) {
    throw bad_input("the model is split over several files, which is not supported", file.where(),
                    "merge it into one file");
  }
  for (const auto& key : file.keys()) {
    if (key.starts_with("llama.") && !kKnownKeys.contains(std::string_view(key).substr(6))) {
      throw bad_input(fmt::format("option {} is not supported", printable(key)), file.where(),
                      "use a model without it: ignoring the option would change the results");
    }
  }
  if (const auto scaling = file.text("llama.rope.scaling.type"); scaling && *scaling != "none") {
    throw bad_input(fmt::format("llama.rope.scaling.type = {} is not supported", printable(*scaling)), file.where(),
                    "use a model without RoPE scaling");
  }
}

/// Undoes the converter's permutation for interleaved rotary pairs: within a head, stored row 2j + i is row i * half +
/// j.
Tensor unpermute_heads(const Tensor& stored, std::int64_t head_dim) {
  Tensor result(DType::f32, stored.shape());
  const auto cols = static_cast<std::size_t>(stored.dim(1));
  const auto from = stored.as<float>();
  const auto to = result.mutable_as<float>();
  const std::int64_t half = head_dim / 2;
  for (std::int64_t row = 0; row < stored.dim(0); ++row) {
    const std::int64_t in_head = row % head_dim;
    const auto target = static_cast<std::size_t>(row - in_head + in_head % 2 * half + in_head / 2);
    std::copy_n(from.begin() + row * stored.dim(1), cols, to.begin() + static_cast<std::ptrdiff_t>(target * cols));
  }
  return result;
}

/// Dequantizes tensors of a known shape and remembers which were asked for.
class TensorReader {
 public:
  explicit TensorReader(const GgufFile& file) : file_(file) {}

  bool has(const std::string& name) const { return file_.tensors().contains(name); }

  Tensor read(const std::string& name, const Shape& shape) {
    const GgufTensor& tensor = file_.tensor(name);
    if (tensor.shape != shape) {
      throw bad_input(fmt::format("shape {} instead of {}", to_string(tensor.shape), to_string(shape)),
                      file_.where() + ": " + name, "the file is damaged");
    }
    read_.insert(name);
    return file_.dequantize(name);
  }

  void check_all_read() const {
    for (const auto& [name, tensor] : file_.tensors()) {
      if (!read_.contains(name)) {
        throw bad_input(fmt::format("tensor '{}' is not supported", printable(name)), file_.where(),
                        "use a plain llama model (no biases, RoPE factors or experts)");
      }
    }
  }

 private:
  const GgufFile& file_;
  std::set<std::string> read_;
};

std::int64_t budget_bytes(const GgufFile& file, const char* name, const ModelConfig& config) {
  return std::min(static_cast<std::int64_t>(file.tensor(name).bytes.size()),
                  int8_matrix_bytes(config.vocab_size, config.hidden_size));
}

}  // namespace

ModelConfig read_gguf_config(const GgufFile& file) {
  check_keys(file);
  const auto key = [](const char* name) { return std::string("llama.") + name; };
  const auto required = [&](const char* name) {
    const auto value = file.integer(key(name));
    if (!value) throw bad_input(fmt::format("key {} is missing", key(name)), file.where(), "the file is incomplete");
    return *value;
  };
  ModelConfig config;
  config.hidden_size = required("embedding_length");
  config.intermediate_size = required("feed_forward_length");
  config.num_hidden_layers = required("block_count");
  config.num_attention_heads = required("attention.head_count");
  config.num_key_value_heads = file.integer(key("attention.head_count_kv")).value_or(config.num_attention_heads);
  config.max_position_embeddings = required("context_length");
  config.rms_norm_eps = file.real(key("attention.layer_norm_rms_epsilon")).value_or(0);
  config.rope_theta = file.real(key("rope.freq_base")).value_or(10000.0);
  const std::int64_t heads = std::max<std::int64_t>(config.num_attention_heads, 1);
  config.head_dim = file.integer(key("attention.key_length")).value_or(config.hidden_size / heads);
  for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
    if (const auto size = file.integer(key(name)); size && *size != config.head_dim) {
      throw bad_input(fmt::format("{} = {} differs from the head size {}, which is not supported", key(name), *size,
                                  config.head_dim),
                      file.where(), "use a model whose heads are rotated whole");
    }
  }
  config.vocab_size = file.tensor("token_embd.weight").shape.front();
  if (const auto size = file.integer(key("vocab_size")); size && *size != config.vocab_size) {
    throw bad_input(fmt::format("llama.vocab_size = {}, but the embedding has {} rows", *size, config.vocab_size),
                    file.where(), "the file is damaged");
  }
  config.tie_word_embeddings = !file.tensors().contains("output.weight");
  config.bos_token_id = file.integer("tokenizer.ggml.bos_token_id").value_or(-1);
  for (const char* name : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const auto id = file.integer(name);
    const auto& ids = config.eos_token_ids;
    if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) config.eos_token_ids.push_back(*id);
  }
  config.validate(file.where());
  return config;
}

ModelWeights read_gguf_weights(const GgufFile& file) {
  ModelWeights weights;
  weights.config = read_gguf_config(file);
  const ModelConfig& config = weights.config;
  const Shape embedding{config.vocab_size, config.hidden_size};
  const Shape gain{config.hidden_size};
  TensorReader reader(file);
  weights.embed_tokens = reader.read("token_embd.weight", embedding);
  weights.embedding_budget_bytes = budget_bytes(file, "token_embd.weight", config);
  if (!config.tie_word_embeddings) {
    weights.lm_head = reader.read("output.weight", embedding);
    weights.embedding_budget_bytes += budget_bytes(file, "output.weight", config);
  }
  weights.norm = reader.read("output_norm.weight", gain);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto tensor_name = [layer](const char* part) { return fmt::format("blk.{}.{}.weight", layer, part); };
    LayerWeights& target = weights.layers.emplace_back();
    target.input_layernorm = reader.read(tensor_name("attn_norm"), gain);
    target.post_attention_layernorm = reader.read(tensor_name("ffn_norm"), gain);
    for (std::size_t i = 0; i < kGgufLinearNames.size(); ++i) {
      const auto kind = static_cast<LinearKind>(i);
      Tensor weight =
          reader.read(tensor_name(kGgufLinearNames[i]), {out_features(config, kind), in_features(config, kind)});
      const bool rotated = kind == LinearKind::q_proj || kind == LinearKind::k_proj;
      target.linears[i].weight = rotated ? unpermute_heads(weight, config.head_dim) : std::move(weight);
    }
  }
  reader.check_all_read();
  return weights;
}

}  // namespace spear
