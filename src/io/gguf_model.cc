#include "io/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "base/error.h"
#include "io/gguf_blocks.h"
#include "io/gguf_names.h"
#include "io/untrusted.h"

namespace spear {
namespace {

/// Keys under the architecture's name that are honoured. Any other could change results, so it is refused by name.
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
                                                       "rope.scaling.factor",
                                                       "vocab_size"};
const std::set<std::string, std::less<>> kGemmaKeys = {"attention.sliding_window", "attention.sliding_window_pattern",
                                                       "rope.freq_base_swa"};

const GgufArchitecture& architecture_of(const GgufFile& file) {
  const auto name = file.text("general.architecture").value_or("");
  const GgufArchitecture* architecture = find_gguf_architecture(name);
  if (architecture != nullptr) return *architecture;
  throw bad_input(fmt::format("architecture '{}' is not supported", printable(name)), file.where(),
                  "use a model of the architectures llama, qwen2, qwen3 or gemma3");
}

void check_keys(const GgufFile& file, const std::string& prefix) {
  if (file.integer("split.count").value_or(1) > 1) {
    throw bad_input("the model is split over several files, which is not supported", file.where(),
                    "merge it into one file");
  }
  for (const auto& key : file.keys()) {
    if (!key.starts_with(prefix)) continue;
    const auto option = std::string_view(key).substr(prefix.size());
    if (kKnownKeys.contains(option) || (prefix == "gemma3." && kGemmaKeys.contains(option))) continue;
    throw bad_input(fmt::format("option {} is not supported", printable(key)), file.where(),
                    "use a model without it: ignoring the option would change the results");
  }
}

/// llama.cpp keeps Llama 3's scaling as the divisor of each frequency. They are computed again from its parameters.
RopeScaling scaling_of_factors(const GgufFile& file, ModelConfig config) {
  const auto factors = file.dequantize("rope_freqs.weight").to_floats();
  const auto plain = config.rope_frequencies(false);
  config.rope_scaling.type = RopeScaling::Type::llama3;
  config.rope_scaling.factor = factors.empty() ? 0 : *std::max_element(factors.begin(), factors.end());
  bool equal = config.rope_scaling.factor >= 1 && factors.size() == plain.size();
  const auto stretched = config.rope_frequencies(false);
  for (std::size_t i = 0; equal && i < plain.size(); ++i) {
    equal = std::abs(plain[i] / stretched[i] - factors[i]) <= 1e-4 * factors[i];
  }
  if (!equal) {
    throw bad_input("the factors are not those of Llama 3's scaling from 8192 tokens", file.where() + ": rope_freqs.weight",
                    "use the model's Hugging Face directory");
  }
  return config.rope_scaling;
}

void read_rope(const GgufFile& file, const std::string& prefix, ModelConfig& config) {
  config.rope_theta = file.real(prefix + "rope.freq_base").value_or(10000.0);
  const auto scaling = file.text(prefix + "rope.scaling.type").value_or("none");
  if (scaling == "linear") {
    config.rope_scaling.type = RopeScaling::Type::linear;
    config.rope_scaling.factor = file.real(prefix + "rope.scaling.factor").value_or(0);
  } else if (scaling != "none") {
    throw bad_input(fmt::format("{}rope.scaling.type = {} is not supported", prefix, printable(scaling)), file.where(),
                    "use a model whose rotary embedding is plain, linear or Llama 3's");
  }
}

/// What llama.cpp's graph of gemma3 does; only the window is always in the file.
void read_gemma(const GgufFile& file, ModelConfig& config) {
  constexpr std::int64_t kLayersOf27B = 62;
  config.output_norms = true;
  config.hidden_act = HiddenAct::gelu_tanh;
  config.embedding_scale = std::sqrt(static_cast<float>(config.hidden_size));
  config.query_pre_attn_scalar = static_cast<double>(config.num_hidden_layers == kLayersOf27B
                                                         ? config.hidden_size / config.num_attention_heads
                                                         : config.head_dim);
  config.rope_local_theta = file.real("gemma3.rope.freq_base_swa").value_or(10000.0);
  const auto window = file.integer("gemma3.attention.sliding_window");
  if (!window) throw bad_input("key gemma3.attention.sliding_window is missing", file.where(), "the file is incomplete");
  const std::int64_t pattern = file.has("gemma3.attention.sliding_window_pattern")
                                   ? file.integer("gemma3.attention.sliding_window_pattern").value_or(0)
                                   : 6;
  if (pattern < 1) throw bad_input("gemma3.attention.sliding_window_pattern is not positive", file.where());
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    config.local_layers.push_back((layer + 1) % pattern != 0);
  }
  if (std::find(config.local_layers.begin(), config.local_layers.end(), true) == config.local_layers.end()) {
    config.local_layers.clear();
  } else {
    config.sliding_window = *window;
  }
}

/// Undoes the converter's permutation for interleaved rotary pairs.
Tensor unpermute_heads(const Tensor& stored, std::int64_t head_dim) {
  Tensor result(DType::f32, stored.shape());
  const std::int64_t cols = stored.shape().size() == 1 ? 1 : stored.dim(1);
  const auto from = stored.as<float>();
  const auto to = result.mutable_as<float>();
  for (std::int64_t row = 0; row < stored.dim(0); ++row) {
    std::copy_n(from.begin() + row * cols, cols, to.begin() + unpermuted_row(row, head_dim) * cols);
  }
  return result;
}

/// Dequantizes tensors of a known shape and remembers which were asked for.
class TensorReader {
 public:
  explicit TensorReader(const GgufFile& file) : file_(file) {}

  bool has(const std::string& name) const { return file_.tensors().contains(name); }

  Tensor read(const std::string& name, const Shape& shape) {
    find(name, shape);
    return file_.dequantize(name);
  }

  /// Checked against `shape`, and remembered.
  const GgufTensor& find(const std::string& name, const Shape& shape) {
    const GgufTensor& tensor = file_.tensor(name);
    if (tensor.shape != shape) {
      throw bad_input(fmt::format("shape {} instead of {}", to_string(tensor.shape), to_string(shape)),
                      file_.where() + ": " + name, "the file is damaged");
    }
    read_.insert(name);
    return tensor;
  }

  void check_all_read() const {
    for (const auto& [name, tensor] : file_.tensors()) {
      if (!read_.contains(name)) {
        throw bad_input(fmt::format("tensor '{}' is not supported", printable(name)), file_.where(),
                        "use a plain model of its architecture (no experts, adapters or unusual biases)");
      }
    }
  }

 private:
  const GgufFile& file_;
  std::set<std::string> read_;
};

/// A quantized linear as it is; row r of the file becomes row target_row(r).
LinearWeight keep_linear(const GgufTensor& stored, const std::function<std::int64_t(std::int64_t)>& target_row) {
  if (stored.type->id == kGgufQ4_0) return decode_q4_0(stored.bytes, stored.shape, target_row);
  BlockMatrix matrix{stored.shape[0], stored.shape[1], stored.type, {}};
  matrix.blocks.resize(stored.bytes.size());
  const std::int64_t row_bytes = matrix.row_bytes();
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    std::copy_n(stored.bytes.begin() + row * row_bytes, row_bytes, matrix.blocks.begin() + target_row(row) * row_bytes);
  }
  return matrix;
}

std::int64_t budget_bytes(const GgufFile& file, const char* name, const ModelConfig& config) {
  return std::min(static_cast<std::int64_t>(file.tensor(name).bytes.size()),
                  int8_matrix_bytes(config.vocab_size, config.hidden_size));
}

}  // namespace

ModelConfig read_gguf_config(const GgufFile& file) {
  const GgufArchitecture& architecture = architecture_of(file);
  const std::string prefix = std::string(architecture.name) + ".";
  check_keys(file, prefix);
  const auto key = [&](const char* name) { return prefix + name; };
  const auto required = [&](const char* name) {
    const auto value = file.integer(key(name));
    if (!value) throw bad_input(fmt::format("key {} is missing", key(name)), file.where(), "the file is incomplete");
    return *value;
  };
  ModelConfig config;
  config.model_type = architecture.model_type;
  config.hidden_size = required("embedding_length");
  config.intermediate_size = required("feed_forward_length");
  config.num_hidden_layers = required("block_count");
  config.num_attention_heads = required("attention.head_count");
  config.num_key_value_heads = file.integer(key("attention.head_count_kv")).value_or(config.num_attention_heads);
  config.max_position_embeddings = required("context_length");
  config.rms_norm_eps = file.real(key("attention.layer_norm_rms_epsilon")).value_or(0);
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
    throw bad_input(fmt::format("{} = {}, but the embedding has {} rows", key("vocab_size"), *size, config.vocab_size),
                    file.where(), "the file is damaged");
  }
  config.tie_word_embeddings = !file.tensors().contains("output.weight");
  config.bos_token_id = file.integer("tokenizer.ggml.bos_token_id").value_or(-1);
  for (const char* name : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const auto id = file.integer(name);
    const auto& ids = config.eos_token_ids;
    if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) config.eos_token_ids.push_back(*id);
  }
  read_rope(file, prefix, config);
  config.qkv_bias = file.tensors().contains("blk.0.attn_q.bias");
  config.o_bias = file.tensors().contains("blk.0.attn_output.bias");
  config.qk_norm = config.model_type == "qwen3" || config.model_type == "gemma3_text";
  if (config.model_type != "qwen2" && config.o_bias != config.qkv_bias) {
    throw bad_input("attention has some biases and not others", file.where(), "the file is damaged");
  }
  config.validate(file.where());
  if (config.model_type == "gemma3_text") read_gemma(file, config);
  if (file.tensors().contains("rope_freqs.weight")) config.rope_scaling = scaling_of_factors(file, config);
  config.validate(file.where());
  return config;
}

ModelWeights read_gguf_weights(const GgufFile& file, bool keep_quantized) {
  ModelWeights weights;
  weights.config = read_gguf_config(file);
  const ModelConfig& config = weights.config;
  const Shape embedding{config.vocab_size, config.hidden_size};
  TensorReader reader(file);
  weights.embed_tokens = reader.read("token_embd.weight", embedding);
  weights.embedding_budget_bytes = budget_bytes(file, "token_embd.weight", config);
  if (!config.tie_word_embeddings) {
    weights.lm_head = reader.read("output.weight", embedding);
    weights.embedding_budget_bytes += budget_bytes(file, "output.weight", config);
  }
  if (reader.has("rope_freqs.weight")) reader.read("rope_freqs.weight", {config.head_dim / 2});  // in the config
  weights.layers.resize(static_cast<std::size_t>(config.num_hidden_layers));
  for (const NormId id : norms_of(config)) {
    weights.gain(id) = reader.read(gguf_norm_name(id, config), {norm_size(config, id)});
  }
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    const std::string name = gguf_linear_name(id);
    const bool permuted = has_permuted_rows(architecture_of(file), id.kind());
    const auto read = [&](const std::string& part, const Shape& shape) {
      Tensor tensor = reader.read(name + part, shape);
      return permuted ? unpermute_heads(tensor, config.head_dim) : tensor;
    };
    const std::int64_t rows = out_features(config, id.kind());
    LinearModule& module = weights.linear(id);
    const Shape shape{rows, in_features(config, id.kind())};
    if (keep_quantized && file.tensor(name + ".weight").type->quantized()) {
      module.weight = keep_linear(reader.find(name + ".weight", shape), [&](std::int64_t row) {
        return permuted ? unpermuted_row(row, config.head_dim) : row;
      });
    } else {
      module.weight = read(".weight", shape);
    }
    if (has_bias(config, id.kind())) module.bias = read(".bias", {rows});
  }
  reader.check_all_read();
  return weights;
}

}  // namespace spear
