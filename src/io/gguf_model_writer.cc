#include "io/gguf_model_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "io/gguf_blocks.h"
#include "io/gguf_model.h"
#include "io/gguf_names.h"
#include "io/gguf_writer.h"
#include "io/stored_tensors.h"

namespace spear {
namespace {

constexpr const char* kKeep = "use the checkpoint itself, or export it in another format";

std::uint32_t gguf_type_of(DType type) {
  return type == DType::f16 ? kGgufF16 : type == DType::bf16 ? kGgufBF16 : kGgufF32;
}

/// What general.file_type calls a file of mostly this type.
std::int64_t file_type_of(const ModelWeights& weights) {
  const auto* packed = std::get_if<W4Matrix>(&weights.linear({0}).weight);
  if (packed != nullptr) return packed->scheme.symmetric ? 2 : 8;
  const auto* dense = std::get_if<Tensor>(&weights.linear({0}).weight);
  constexpr std::int64_t kGuessed = 1024;  // what llama.cpp calls a mixture
  return dense == nullptr ? kGuessed : dense->dtype() == DType::f32 ? 0 : 1;
}

void put_config(GgufWriter& out, const ModelConfig& c, const std::string& arch) {
  const auto key = [&](const char* name) { return arch + "." + name; };
  out.u32(key("context_length"), c.max_position_embeddings);
  out.u32(key("embedding_length"), c.hidden_size);
  out.u32(key("block_count"), c.num_hidden_layers);
  out.u32(key("feed_forward_length"), c.intermediate_size);
  out.u32(key("attention.head_count"), c.num_attention_heads);
  out.u32(key("attention.head_count_kv"), c.num_key_value_heads);
  out.u32(key("attention.key_length"), c.head_dim);
  out.u32(key("attention.value_length"), c.head_dim);
  out.f32(key("attention.layer_norm_rms_epsilon"), c.rms_norm_eps);
  out.f32(key("rope.freq_base"), c.rope_theta);
  out.u32(key("rope.dimension_count"), c.head_dim);
  out.u32(key("vocab_size"), c.vocab_size);
  if (c.rope_scaling.type == RopeScaling::Type::linear) {
    out.text(key("rope.scaling.type"), "linear");
    out.f32(key("rope.scaling.factor"), c.rope_scaling.factor);
  }
  if (arch == "gemma3") {
    // Without local layers the window is never used, but llama.cpp wants the key.
    out.u32(key("attention.sliding_window"), std::max<std::int64_t>(c.sliding_window, 1));
    if (c.rope_local_theta > 0) out.f32(key("rope.freq_base_swa"), c.rope_local_theta);
  }
}

void put_tokenizer(GgufWriter& out, const GgufTokenizer& t, std::int64_t vocab_size) {
  if (static_cast<std::int64_t>(t.tokens.size()) != vocab_size) {
    throw usage_error(fmt::format("{} tokens for {} rows of the embedding", t.tokens.size(), vocab_size), "tokenizer",
                      "llama.cpp wants as many; pass --tokenizer with a GGUF file of this model");
  }
  const auto key = [](const char* name) { return std::string("tokenizer.ggml.") + name; };
  out.text(key("model"), t.model);
  if (!t.pre.empty()) out.text(key("pre"), t.pre);
  out.texts(key("tokens"), t.tokens);
  if (!t.scores.empty()) out.f32s(key("scores"), t.scores);
  out.i32s(key("token_type"), t.token_types);
  if (!t.merges.empty()) out.texts(key("merges"), t.merges);
  const std::pair<const char*, std::optional<std::int64_t>> ids[] = {{"bos_token_id", t.bos_id},
                                                                     {"eos_token_id", t.eos_id},
                                                                     {"eot_token_id", t.eot_id},
                                                                     {"unknown_token_id", t.unknown_id},
                                                                     {"padding_token_id", t.padding_id}};
  for (const auto& [name, id] : ids) {
    if (id) out.u32(key(name), *id);
  }
  if (t.add_bos) out.boolean(key("add_bos_token"), *t.add_bos);
  if (t.add_eos) out.boolean(key("add_eos_token"), *t.add_eos);
  if (t.add_space_prefix) out.boolean(key("add_space_prefix"), *t.add_space_prefix);
  if (!t.chat_template.empty()) out.text("tokenizer.chat_template", t.chat_template);
}

void copy_tokenizer(GgufWriter& out, const GgufFile& from, std::int64_t vocab_size) {
  const auto count = read_gguf_tokenizer(from).tokens.size();
  if (static_cast<std::int64_t>(count) != vocab_size) {
    throw usage_error(fmt::format("{} tokens for {} rows of the embedding", count, vocab_size), from.where(),
                      "pass the GGUF file of the same model");
  }
  for (const auto& key : from.keys()) {
    if (key.starts_with("tokenizer.")) out.value(key, from.value(key));
  }
}

void put_embedding(GgufWriter& out, const std::string& name, const Tensor& tensor, bool int8) {
  if (int8 && tensor.dim(1) % 32 == 0) {
    out.tensor(name, tensor.shape(), kGgufQ8_0, [&](std::span<std::byte> to) { encode_q8_0(tensor.to_floats(), to); });
  } else {
    out.tensor(name, tensor.shape(), gguf_type_of(tensor.dtype()),
               [&](std::span<std::byte> to) { std::copy_n(tensor.bytes().begin(), to.size(), to.begin()); });
  }
}

/// Where row `row` of a tensor in the file comes from.
using RowSource = std::function<std::int64_t(std::int64_t)>;

RowSource row_source(const GgufArchitecture& architecture, ModuleId id, const ModelConfig& config) {
  if (!has_permuted_rows(architecture, id.kind())) return [](std::int64_t row) { return row; };
  return [head = config.head_dim](std::int64_t row) { return unpermuted_row(row, head); };
}

void put_linear(GgufWriter& out, const std::string& name, const LinearWeight& weight, const RowSource& source) {
  if (const auto* packed = std::get_if<W4Matrix>(&weight)) {
    if (!packed->group_index.empty()) {
      throw usage_error("groups do not follow the inputs (act-order), and GGUF's blocks do", name,
                        "export with --format gptq, which keeps the order");
    }
    if (packed->cols % 32 != 0) {
      throw usage_error(fmt::format("rows of {} weights are no whole blocks of 32", packed->cols), name, kKeep);
    }
    out.tensor(name, {packed->rows, packed->cols}, gguf_type_of(packed->scheme), [=](std::span<std::byte> to) {
      const std::size_t row_bytes = to.size() / static_cast<std::size_t>(packed->rows);
      for (std::int64_t row = 0; row < packed->rows; ++row) {
        encode_w4_row(*packed, source(row), to.subspan(static_cast<std::size_t>(row) * row_bytes, row_bytes));
      }
    });
    return;
  }
  const auto* dense = std::get_if<Tensor>(&weight);
  const auto type = dense != nullptr ? gguf_type_of(dense->dtype()) : std::get<BlockMatrix>(weight).type->id;
  const std::span<const std::byte> bytes = dense != nullptr ? dense->bytes() : std::span(std::get<BlockMatrix>(weight).blocks);
  const std::int64_t rows = shape_of(weight).at(0);
  out.tensor(name, shape_of(weight), type, [=](std::span<std::byte> to) {
    const std::size_t row_bytes = to.size() / static_cast<std::size_t>(rows);
    for (std::int64_t row = 0; row < rows; ++row) {
      std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(row_bytes) * source(row), row_bytes,
                  to.begin() + static_cast<std::ptrdiff_t>(row_bytes) * row);
    }
  });
}

void put_weights(GgufWriter& out, const ModelWeights& weights, const GgufArchitecture& architecture, bool int8) {
  const ModelConfig& config = weights.config;
  put_embedding(out, "token_embd.weight", weights.embed_tokens, int8);
  if (!weights.lm_head.empty()) put_embedding(out, "output.weight", weights.lm_head, int8);
  if (config.rope_scaling.type == RopeScaling::Type::llama3) {
    ModelConfig plain = config;
    plain.rope_scaling = {};
    const auto from = plain.rope_frequencies(false);
    const auto to = config.rope_frequencies(false);
    std::vector<float> factors(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) factors[i] = static_cast<float>(from[i] / to[i]);
    out.f32_tensor("rope_freqs.weight", {config.head_dim / 2}, std::move(factors));
  }
  for (const NormId id : norms_of(config)) {
    out.f32_tensor(gguf_norm_name(id, config), weights.gain(id).shape(), weights.gain(id).to_floats());
  }
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    const RowSource source = row_source(architecture, id, config);
    const LinearModule& module = weights.linear(id);
    put_linear(out, gguf_linear_name(id) + ".weight", module.weight, source);
    if (module.bias.empty()) continue;
    const auto bias = module.bias.to_floats();
    std::vector<float> stored(bias.size());
    for (std::size_t row = 0; row < bias.size(); ++row) stored[row] = bias[static_cast<std::size_t>(source(static_cast<std::int64_t>(row)))];
    out.f32_tensor(gguf_linear_name(id) + ".bias", module.bias.shape(), std::move(stored));
  }
}

/// What the file says must be what the model is. Gemma's embedding scale is rounded to a dtype that GGUF doesn't know.
void check_config(const ModelConfig& model, const ModelConfig& file) {
  const auto require = [](bool same, const char* what) {
    if (!same) throw usage_error("llama.cpp has no such option for this family, or fixes another value", what, kKeep);
  };
  const auto near = [](double a, double b, double tolerance = 1e-6) {
    return std::abs(a - b) <= tolerance * std::max(std::abs(a), std::abs(b));
  };
  require(near(model.rms_norm_eps, file.rms_norm_eps), "rms_norm_eps");
  require(near(model.rope_theta, file.rope_theta), "rope_theta");
  require(near(model.rope_local_theta, file.rope_local_theta), "rope_local_base_freq");
  require(model.rope_scaling.type == file.rope_scaling.type, "rope_scaling");
  for (const bool local : {false, true}) {
    const auto a = model.rope_frequencies(local);
    const auto b = file.rope_frequencies(local);
    require(std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](double x, double y) { return near(x, y, 1e-4); }),
            "rope_scaling");
  }
  require(model.local_layers == file.local_layers && model.sliding_window == file.sliding_window, "sliding_window");
  require(near(model.attention_scale(), file.attention_scale()), "query_pre_attn_scalar");
  require(near(model.embedding_scale, file.embedding_scale, 4e-3), "embedding_scale");
  require(model.hidden_act == file.hidden_act, "hidden_act");
  require(model.qkv_bias == file.qkv_bias && model.o_bias == file.o_bias && model.mlp_bias == file.mlp_bias, "biases");
  require(model.qk_norm == file.qk_norm && model.output_norms == file.output_norms, "norms");
  require(model.num_key_value_heads == file.num_key_value_heads && model.head_dim == file.head_dim, "heads");
}

void check_equal(std::span<const float> expected, std::span<const float> found, const std::string& name) {
  if (expected.size() != found.size() || std::memcmp(expected.data(), found.data(), expected.size_bytes()) != 0) {
    throw failed("the file does not hold the value that was written; this is a fault of ours", name, "report it");
  }
}

/// What our reader refuses to read, llama.cpp may still run, but nobody has checked how.
ModelConfig config_of(const GgufFile& file) {
  try {
    return read_gguf_config(file);
  } catch (const Error& error) {
    throw usage_error("GGUF cannot express this model so that it is read back: " + error.problem(), "config.json", kKeep);
  }
}

/// Row by row, so that one dense tensor is in memory at a time.
void check_linear(const LinearWeight& weight, const Tensor& found, const RowSource& source, const std::string& name) {
  const auto values = found.as<float>();
  const auto* packed = std::get_if<W4Matrix>(&weight);
  const auto dense = packed == nullptr ? dequantize(weight) : std::vector<float>{};
  std::vector<float> row(static_cast<std::size_t>(found.dim(1)));
  for (std::int64_t i = 0; i < found.dim(0); ++i) {
    if (packed != nullptr) packed->dequantize_row(source(i), row);
    const auto expected =
        packed != nullptr ? std::span<const float>(row) : std::span(dense).subspan(static_cast<std::size_t>(source(i)) * row.size(), row.size());
    check_equal(expected, values.subspan(static_cast<std::size_t>(i) * row.size(), row.size()), name);
  }
}

void check_file(const std::filesystem::path& path, const ModelWeights& weights, const GgufArchitecture& architecture) {
  const GgufFile file(path);
  const ModelConfig& config = weights.config;
  check_config(config, config_of(file));
  for (const NormId id : norms_of(config)) {
    check_equal(weights.gain(id).to_floats(), file.dequantize(gguf_norm_name(id, config)).as<float>(), id.name(config));
  }
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    check_linear(weights.linear(id).weight, file.dequantize(gguf_linear_name(id) + ".weight"),
                 row_source(architecture, id, config), id.name());
  }
}

/// Removes the unchecked file unless it was renamed.
struct Unchecked {
  std::filesystem::path path;
  ~Unchecked() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
};

}  // namespace

void write_gguf_model(const std::filesystem::path& path, const ModelWeights& weights,
                      const std::variant<GgufTokenizer, const GgufFile*>& tokenizer, const GgufExportOptions& options) {
  const ModelConfig& config = weights.config;
  require_plain_stream(config);
  const GgufArchitecture* architecture = gguf_architecture_of(config);
  if (architecture == nullptr) {
    throw usage_error(fmt::format("llama.cpp's name for '{}' is not known", config.model_type), "model_type", kKeep);
  }
  GgufWriter out;
  out.text("general.architecture", architecture->name);
  out.text("general.type", "model");
  if (!options.name.empty()) out.text("general.name", options.name);
  out.u32("general.file_type", file_type_of(weights));
  out.u32("general.quantization_version", 2);
  put_config(out, config, architecture->name);
  if (const auto* own = std::get_if<GgufTokenizer>(&tokenizer)) {
    put_tokenizer(out, *own, config.vocab_size);
  } else {
    copy_tokenizer(out, *std::get<const GgufFile*>(tokenizer), config.vocab_size);
  }
  put_weights(out, weights, *architecture, options.int8_embeddings);
  const Unchecked unchecked{path.parent_path() / (".unchecked-" + path.filename().string())};
  out.write(unchecked.path);
  check_file(unchecked.path, weights, *architecture);
  std::filesystem::rename(unchecked.path, path);
}

}  // namespace spear
