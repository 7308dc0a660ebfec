#include "recover/stages.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "io/checkpoint.h"
#include "io/model_reader.h"
#include "model/stream_rotation.h"
#include "quant/backbone_basis.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

Tensor bf16_host(const torch::Tensor& tensor) {
  Tensor out(DType::bf16, tensor.sizes().vec());
  const auto bits = bf16_bits(tensor);
  std::copy(bits.begin(), bits.end(), out.mutable_as<std::uint16_t>().begin());
  return out;
}

/// A quantized model as tensors of a workspace file, and back.
void put(TensorMap& map, const std::string& name, const QuantizedLinear& q) {
  map.emplace(name + ".codes", bytes_to_host(q.codes));
  map.emplace(name + ".scales", to_host(q.scales));
  map.emplace(name + ".zeros", to_host(q.zeros));
}

QuantizedLinear get(const TensorMap& map, const std::string& name, const W4Scheme& scheme, torch::Device device) {
  return {scheme, bytes_to_torch(map.at(name + ".codes")).to(device), to_torch(map.at(name + ".scales")).to(device),
          to_torch(map.at(name + ".zeros")).to(device)};
}

std::string site_name(std::size_t site, const char* part) { return fmt::format("site.{:04}.{}", site, part); }

TensorMap to_tensors(const ModelQuantization& q) {
  TensorMap out;
  for (std::size_t i = 0; i < q.linears.size(); ++i) {
    const std::string name = ModuleId{static_cast<int>(i)}.name();
    put(out, name, q.linears[i]);
    if (!q.targets.empty()) out.emplace(name + ".target", to_host(q.targets[i]));
  }
  for (std::size_t i = 0; i < q.factors.size(); ++i) {
    Tensor values(DType::f64, {static_cast<std::int64_t>(q.singular_values[i].size())});
    std::copy(q.singular_values[i].begin(), q.singular_values[i].end(), values.mutable_as<double>().begin());
    out.emplace(site_name(i, "singular_values"), values);
    Tensor energy(DType::f64, {1});
    energy.mutable_as<double>()[0] = q.energies[i];
    out.emplace(site_name(i, "energy"), energy);
    if (!q.factors[i].a.defined()) continue;
    out.emplace(site_name(i, "a"), to_host(q.factors[i].a));
    out.emplace(site_name(i, "sigma"), to_host(q.factors[i].sigma));
    for (std::size_t m = 0; m < q.factors[i].b.size(); ++m) out.emplace(site_name(i, "b") + std::to_string(m), to_host(q.factors[i].b[m]));
  }
  return out;
}

ModelQuantization quantization_from(const TensorMap& map, const W4Scheme& scheme, torch::Device device) {
  ModelQuantization out;
  const auto tensor = [&](const std::string& name) { return to_torch(map.at(name)).to(device); };
  for (int index = 0; map.contains(ModuleId{index}.name() + ".codes"); ++index) {
    const std::string name = ModuleId{index}.name();
    out.linears.push_back(get(map, name, scheme, device));
    if (map.contains(name + ".target")) out.targets.push_back(tensor(name + ".target"));
  }
  for (std::size_t i = 0; map.contains(site_name(i, "singular_values")); ++i) {
    const auto values = map.at(site_name(i, "singular_values")).as<double>();
    out.singular_values.emplace_back(values.begin(), values.end());
    out.energies.push_back(map.at(site_name(i, "energy")).as<double>()[0]);
    ChainFactors factors;
    if (map.contains(site_name(i, "a"))) {
      factors.a = tensor(site_name(i, "a"));
      factors.sigma = tensor(site_name(i, "sigma"));
      for (std::size_t m = 0; map.contains(site_name(i, "b") + std::to_string(m)); ++m) {
        factors.b.push_back(tensor(site_name(i, "b") + std::to_string(m)));
      }
    }
    out.factors.push_back(std::move(factors));
  }
  return out;
}

/// The dense parts of a layer, and `like` with those of a file.
constexpr const char *kInputNorm = "input_layernorm", *kPostAttentionNorm = "post_attention_layernorm";

TensorMap to_tensors(const LayerWeights& layer) {
  TensorMap out = {{kInputNorm, layer.input_layernorm}, {kPostAttentionNorm, layer.post_attention_layernorm}};
  for (std::size_t i = 0; i < layer.linears.size(); ++i) {
    out.emplace(fmt::format("{}.weight", i), std::get<Tensor>(layer.linears[i].weight));
    if (!layer.linears[i].bias.empty()) out.emplace(fmt::format("{}.bias", i), layer.linears[i].bias);
  }
  return out;
}

LayerWeights layer_from(const TensorMap& map, LayerWeights like) {
  like.input_layernorm = map.at(kInputNorm);
  like.post_attention_layernorm = map.at(kPostAttentionNorm);
  for (std::size_t i = 0; i < like.linears.size(); ++i) {
    like.linears[i].weight = map.at(fmt::format("{}.weight", i));
    if (!like.linears[i].bias.empty()) like.linears[i].bias = map.at(fmt::format("{}.bias", i));
  }
  return like;
}

/// What takes the reference's place must have its shape, and must be quantized.
void check_backbone(const ModelWeights& reference, const ModelWeights& backbone, const std::string& where) {
  const ModelConfig &a = reference.config, &b = backbone.config;
  const auto shape = [](const ModelConfig& c) {
    return std::tuple(c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                      c.vocab_size, c.qk_norm, c.output_norms, c.qkv_bias, c.o_bias, c.mlp_bias);
  };
  if (shape(a) != shape(b)) {
    throw bad_input("the backbone has not the reference's shape", where, "pass the full-precision parent of this model with --model");
  }
  bool quantized = false;
  for (int index = 0; index < module_count(b); ++index) {
    quantized |= !std::holds_alternative<Tensor>(backbone.linear(ModuleId{index}).weight);
  }
  if (!quantized) {
    throw bad_input("no linear of it is quantized: this is a reference, not a backbone", where,
                    "leave --backbone out to quantize it, or pass a quantized model");
  }
}

}  // namespace

std::string model_sha256(const std::filesystem::path& model) {
  if (!std::filesystem::is_directory(model)) return sha256_file(model);
  std::vector<std::string> hashes;
  for (const auto& entry : std::filesystem::directory_iterator(model)) {
    if (is_weights_file(entry.path()) || entry.path().filename() == "config.json") {
      hashes.push_back(entry.path().filename().string() + " " + sha256_file(entry.path()));
    }
  }
  std::sort(hashes.begin(), hashes.end());
  return sha256_hex(fmt::format("{}", fmt::join(hashes, "\n")));
}

Stages::Stages(const RecoverOptions& options)
    : options_(options),
      workspace_(options.workspace),
      reference_(read_model(options.reference)),
      reference_sha256_(model_sha256(options.reference)),
      tokenizer_(load_tokenizer(options.reference)),
      device_(device_named(options.device)),
      compute_(compute_type(device_)) {
  if (!options.backbone.empty()) read_given_backbone();
  Rotation& rotation = options_.recipe.rotation;
  if (backbone_) rotation = backbone_->config.rotated_stream ? Rotation::stream : Rotation::none;
  if (rotation == Rotation::stream) parent_ = rotated_reference();
  if (backbone_) parent_ = in_basis_of(parent(), *backbone_);
}

ModelWeights Stages::rotated_reference() const {
  return rotate_stream(reference_, [&](std::int64_t layer) {
    const nlohmann::json key = {{"version", kVersion}, {"reference", reference_sha256_}};
    const auto stage = fmt::format("rotated layer {:03}", layer);
    auto kept = workspace_.load(stage, key);
    if (!kept) {
      const LayerWeights rotated = rotate_layer(reference_, layer);
      workspace_.save(stage, key, to_tensors(rotated));
      kept = workspace_.load(stage, key);
    }
    if (!kept) throw failed("what was just written cannot be read", workspace_.folder().string(), "check the disk");
    return layer_from(kept->tensors, reference_.layers[static_cast<std::size_t>(layer)]);
  });
}

void Stages::read_given_backbone() {
  const RecoverOptions& options = options_;
  backbone_ = read_backbone(options.backbone);
  backbone_sha256_ = model_sha256(options.backbone);
  check_backbone(reference_, *backbone_, options.backbone.string());
  for (int index = 0; index < module_count(backbone_->config); ++index) {
    LinearModule& module = backbone_->linear(ModuleId{index});
    module.compensator.reset();
    keeps_file_ |= !std::holds_alternative<W4Matrix>(module.weight);
  }
  if (!keeps_file_) return;
  const auto gguf = gguf_of_model(options.backbone);
  if (!gguf) {
    throw bad_input("some linears of the backbone are not in 4 bit", options.backbone.string(),
                    "pass a checkpoint whose linears are all packed 4-bit, or a GGUF file");
  }
  backbone_gguf_ = *gguf;
  if (options.recipe.tune != Tune::none) {
    throw usage_error("the GGUF file stays as it is, byte for byte, and so do its scales and gains", "--tune",
                      "use --tune none");
  }
}

ModelWeights Stages::as_stored(ModelWeights weights) const {
  return keeps_file_ ? std::move(weights) : with_stored_embeddings(std::move(weights));
}

ModelWeights Stages::quantized_model() { return backbone_ ? *backbone_ : with_linears(parent(), quantized().linears); }

void Stages::write(const std::filesystem::path& directory, const ModelWeights& weights, const nlohmann::json& manifest) const {
  if (keeps_file_) {
    const std::string sha256 = options_.backbone == backbone_gguf_ ? backbone_sha256_ : sha256_file(backbone_gguf_);
    return write_gguf_checkpoint(directory, backbone_gguf_, sha256, weights, manifest);
  }
  nlohmann::json generation = nlohmann::json::object();
  if (const auto& named = tokenizer_.named(); !named.end.empty()) generation["eos_token_id"] = named.end;
  write_checkpoint(directory, weights, {tokenizer_.to_tokenizer_json(), tokenizer_.to_tokenizer_config_json(), generation.dump(2)},
                   manifest);
}

nlohmann::json Stages::input_key() const {
  return {{"version", kVersion}, {"reference", reference_sha256_}, {"backbone", backbone_sha256_}, {"device", device_.str()},
          {"compute", name(compute_)}};
}

nlohmann::json Stages::quantize_key() const {
  const Recipe& r = options_.recipe;
  const QuantizeOptions q = quantize_options(r);
  return {{"input", input_key()},  {"scheme", to_string(r.scheme)}, {"quantizer", r.quantizer}, {"rotation", name(r.rotation)}, {"samples", sample_key(quantizer_sample_options())},
          {"alpha", q.alpha},      {"rho", q.rho},                  {"sweeps", q.sweeps},       {"damping", q.damping},
          {"outlier_cap", fmt::format("{}", q.outlier_cap)}};
}

void Stages::drop_model() {
  model_.reset();
  model_weights_ = nullptr;
}

TorchModel& Stages::model_on(const ModelWeights& weights) {
  if (model_weights_ != &weights) {
    drop_model();
    model_ = std::make_unique<TorchModel>(weights, device_, compute_);
    model_weights_ = &weights;
  }
  return *model_;
}

const torch::Tensor& Stages::states() {
  if (states_.defined()) return states_;
  const auto& set = samples();
  if (const auto kept = workspace_.load("states", sample_key(sample_options()))) {
    const auto& tensor = kept->tensors.at("states");
    states_ = torch::empty(tensor.shape(), torch::kBFloat16);
    std::copy(tensor.bytes().begin(), tensor.bytes().end(), static_cast<std::byte*>(states_.data_ptr()));
  } else {
    states_ = timed("reference states", [&] { return reference_states(reference_model(), set); });
    workspace_.save("states", sample_key(sample_options()), {{"states", bf16_host(states_)}});
  }
  if (device_.is_cuda()) states_ = states_.to(device_);
  return states_;
}

std::vector<QuantizedLinear> Stages::rounded(const ModelWeights& weights) const {
  torch::NoGradGuard no_grad;
  std::vector<QuantizedLinear> out;
  for (int index = 0; index < module_count(weights.config); ++index) {
    out.push_back(quantize_rtn(to_torch(weights.linear(ModuleId{index}).weight).to(device_), options_.recipe.scheme));
  }
  return out;
}

const std::vector<QuantizedLinear>& Stages::rtn() {
  if (!rtn_) rtn_ = rounded(reference_);
  return *rtn_;
}

std::int64_t Stages::budget_base() const {
  if (!backbone_) return budget_base_bytes(reference_, options_.recipe.scheme);
  return budget_embeddings() + budget_base_bytes(*backbone_, options_.recipe.scheme) - backbone_->embedding_budget_bytes;
}

std::int64_t Stages::budget_embeddings() const { return student_base().embedding_budget_bytes; }

std::vector<PlacementSite> Stages::sites() const { return placement_sites(reference_.config, options_.recipe.share_a); }

ModelQuantization Stages::run_quantizer(const std::string& stage, const std::vector<std::int64_t>& ranks, Whitening whitening) {
  auto key = quantize_key();
  key["ranks"] = ranks;
  if (std::any_of(ranks.begin(), ranks.end(), [](std::int64_t rank) { return rank > 0; })) key["gate_rows"] = options_.recipe.gate_rows;
  key["share_a"] = options_.recipe.share_a;
  key["targets"] = options_.recipe.tune == Tune::codes;  // only latents start from them
  key["whitening"] = whitening == Whitening::exact ? "exact" : "diagonal";
  if (const auto kept = workspace_.load(stage, key)) return quantization_from(kept->tensors, options_.recipe.scheme, device_);
  const auto tokens = quantizer_tokens();
  drop_model();
  TorchModel model(parent(), device_, compute_, Linears::empty);
  std::vector<CompensatorSite> where;
  const auto all = sites();
  for (std::size_t i = 0; i < ranks.size(); ++i) where.push_back({all[i].members, ranks[i], options_.recipe.gate_rows});
  QuantizeOptions how = quantize_options(options_.recipe);
  how.source = &parent();
  how.spectrum = options_.recipe.max_rank;
  how.whitening = whitening;
  how.keep_targets = key["targets"];
  if (backbone_) {
    how.quantizer = Quantizer::rtn;
    how.given = &quantized().linears;
  }
  auto out = timed(stage, [&] { return quantize_model(model, how, where, tokens); });
  if (backbone_) out.linears.clear();  // quantized() has them; what was given is not kept again
  workspace_.save(stage, key, to_tensors(out));
  return out;
}

const ModelQuantization& Stages::quantized() {
  if (quantized_) return *quantized_;
  if (backbone_) {
    quantized_.emplace();
    for (int index = 0; index < module_count(reference_.config); ++index) {
      quantized_->linears.push_back(unpack(backbone_->linear(ModuleId{index}).weight, device_));
    }
  } else if (options_.recipe.quantizer == "rtn") {
    quantized_.emplace();
    quantized_->linears = parent_ ? rounded(*parent_) : rtn();
  } else {
    // Row counts of zero: where compensators may go, the spectrum of what is left is measured for the placement; without
    // a budget, too, so that runs with and without compensators share this stage.
    const bool measure = options_.recipe.quantizer != "clip";
    quantized_ = run_quantizer("quantize", std::vector<std::int64_t>(measure ? sites().size() : 0, 0), Whitening::exact);
  }
  return *quantized_;
}

const Damage& Stages::damage() {
  if (damage_) return *damage_;
  const DiagnoseOptions& how = options_.recipe.diagnose;
  const nlohmann::json key = {{"quantized", quantize_key()}, {"samples", sample_key(sample_options())}, {"held_out", options_.recipe.held_out_sequences}, {"sequences", how.sequences},
                              {"length", how.length},        {"restore", how.restore_one},    {"kl", how.delta_kl}};
  if (const auto kept = workspace_.load_json("damage", key)) {
    const auto read = [&](const char* field) { return kept->value(field, std::vector<double>{}); };
    damage_ = Damage{read("cka"), read("delta_kl"), read("restore_cka"), read("restore_kl"), read("fisher"), kept->at("noise_floor")};
    return *damage_;
  }
  const auto& set = samples();
  const auto& linears = quantized().linears;
  const std::int64_t first = set.train_sequences(), rows = std::min(how.sequences, set.held_out);
  auto& model = parent_model();
  const auto tokens = model.token_tensor({set.rows(first, rows), rows, set.length}).narrow(1, 0, std::min(how.length, set.length)).contiguous();
  DiagnoseOptions exact = how;
  exact.length = tokens.size(1);
  damage_ = timed("diagnose", [&] { return diagnose(model, linears, tokens, exact); });
  workspace_.save_json("damage", key,
                       {{"cka", damage_->cka}, {"delta_kl", damage_->delta_kl}, {"restore_cka", damage_->restore_cka},
                        {"restore_kl", damage_->restore_kl}, {"fisher", damage_->fisher}, {"noise_floor", damage_->noise_floor}});
  return *damage_;
}

ModelWeights Stages::with_linears(const ModelWeights& base, const std::vector<QuantizedLinear>& linears) {
  ModelWeights out = base;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    auto& module = out.linear(ModuleId{static_cast<int>(i)});
    module.weight = linears[i].pack();
    module.compensator.reset();
  }
  return out;
}

}  // namespace spear
