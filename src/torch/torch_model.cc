#include "torch/torch_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "model/stream_rotation.h"
#include "torch/fused_ops.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

torch::Tensor bf16_parameter(const std::vector<std::uint16_t>& bits, std::vector<std::int64_t> shape) {
  return to_torch(Tensor(DType::bf16, std::move(shape), std::as_bytes(std::span(bits)), nullptr));
}

/// int8 [rows, cols] times one f16 scale per row (dimension 0) or column (dimension 1), float32.
torch::Tensor scaled_int8(const std::vector<std::int8_t>& values, const std::vector<std::uint16_t>& scales,
                          std::int64_t rows, std::int64_t cols, std::int64_t scaled_dimension) {
  auto q = torch::from_blob(const_cast<std::int8_t*>(values.data()), {rows, cols}, torch::kInt8).to(torch::kFloat32);
  auto s = to_torch(Tensor(DType::f16, {static_cast<std::int64_t>(scales.size())}, std::as_bytes(std::span(scales)), nullptr));
  return q * s.unsqueeze(1 - scaled_dimension);
}

}  // namespace

/// Keys and values [batch, kv_heads, capacity, head_dim] per layer, in the compute type.
class TorchKvCache : public KvCache {
 public:
  TorchKvCache(const ModelConfig& config, std::int64_t batch, std::int64_t capacity, torch::TensorOptions options)
      : capacity_(capacity) {
    for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      keys.push_back(torch::zeros({batch, config.num_key_value_heads, capacity, config.head_dim}, options));
      values.push_back(torch::zeros_like(keys.back()));
    }
  }
  std::int64_t length() const override { return length_; }
  std::int64_t capacity() const override { return capacity_; }
  void advance(std::int64_t tokens) { length_ += tokens; }

  std::vector<torch::Tensor> keys, values;

 private:
  std::int64_t capacity_, length_ = 0;
};

torch::Tensor TorchCompensator::gate(const torch::Tensor& z_all) const {
  if (!w1.defined()) return torch::ones({z_all.size(0), rank()}, z_all.options());
  const auto hidden = torch::silu(torch::linear(z_all, w1, b1));
  return 1.0 + torch::tanh(torch::linear(hidden, w2, b2));
}

torch::Tensor TorchCompensator::correction(const torch::Tensor& z_all, torch::ScalarType type) const {
  const auto z = z_all.narrow(1, 0, rank());
  return torch::linear((w1.defined() ? gate(z_all) * z : z).to(type), b.to(type));
}

TorchCompensator to_torch(const Compensator& c) {
  TorchCompensator out;
  const std::int64_t rows = c.rank + c.gate_rows;
  out.a = scaled_int8(c.a->values, c.a->scales, rows, c.a->cols, 0);
  out.b = scaled_int8(c.b, c.b_scales, c.out_features, c.rank, 1);
  if (c.gate.hidden > 0) {
    out.w1 = bf16_parameter(c.gate.w1, {c.gate.hidden, rows});
    out.b1 = bf16_parameter(c.gate.b1, {c.gate.hidden});
    out.w2 = bf16_parameter(c.gate.w2, {c.rank, c.gate.hidden});
    out.b2 = bf16_parameter(c.gate.b2, {c.rank});
  }
  return out;
}

Stream<TorchOps> TorchOps::embed(Batch& batch, NormId gain) {
  auto residual = model_.weights_.embed_tokens.index_select(0, batch.tokens.reshape({-1}));
  if (const double scale = model_.config().embedding_scale; scale != 1) residual = residual * scale;
  if (const auto& q = model_.weights_.rotation; q.defined()) residual = torch::matmul(residual, q);
  return {residual, rms_norm(residual, gain)};
}

torch::Tensor TorchOps::linear(const torch::Tensor& x, ModuleId id, torch::Tensor& z, torch::Tensor& z_owner) {
  const TorchLinear& slot = model_.linear(id);
  auto y = torch::linear(x, slot.weight);
  if (slot.row_factor.defined()) y = scale_columns(y, slot.row_factor);
  if (slot.compensator) {
    if (!z_owner.defined() || !z_owner.is_same(slot.compensator->a)) {
      z_owner = slot.compensator->a;
      z = torch::linear(x, z_owner.to(x.scalar_type())).to(torch::kFloat32);
    }
    y = y + slot.compensator->correction(z, y.scalar_type());
  }
  if (slot.bias.defined()) y = y + slot.bias.to(y.scalar_type());
  if (model_.on_linear) model_.on_linear(id, x, y);
  return y;
}

torch::Tensor TorchOps::rms_norm(const torch::Tensor& x, NormId gain) {
  return spear::rms_norm(x, model_.weights_.gains.at(static_cast<std::size_t>(gain.index)), model_.config().rms_norm_eps,
                         model_.compute_);
}

torch::Tensor TorchOps::norm_heads(const torch::Tensor& x, NormId gain) {
  const auto heads = x.to(torch::kFloat32).reshape({-1, model_.config().head_dim});
  return rms_norm(heads, gain).view(x.sizes());
}

torch::Tensor TorchOps::attention(std::int64_t layer, torch::Tensor q, torch::Tensor k, torch::Tensor v, Batch& batch) {
  const ModelConfig& c = model_.config();
  const std::int64_t sequences = batch.tokens.size(0), length = batch.tokens.size(1), start = batch.start;
  const auto& [cos, sin] = model_.rotary(c.is_local(layer), start + length);
  if (c.qk_norm) {
    q = norm_heads(q, NormId::of(layer, NormKind::q));
    k = norm_heads(k, NormId::of(layer, NormKind::k));
  }
  const auto heads = [&](const torch::Tensor& x, std::int64_t count) {
    return x.view({sequences, length, count, c.head_dim});
  };
  const auto rotated = [&](const torch::Tensor& x, std::int64_t count) {
    return rotate_heads(heads(x, count), cos.narrow(0, start, length), sin.narrow(0, start, length));
  };
  // [batch, heads, length, head_dim]
  auto query = rotated(q, c.num_attention_heads);
  auto key = rotated(k, c.num_key_value_heads);
  auto value = heads(v, c.num_key_value_heads).transpose(1, 2);
  if (batch.cache != nullptr) {
    auto& keys = batch.cache->keys[static_cast<std::size_t>(layer)];
    auto& values = batch.cache->values[static_cast<std::size_t>(layer)];
    keys.narrow(2, start, length).copy_(key);
    values.narrow(2, start, length).copy_(value);
    key = keys.narrow(2, 0, start + length);
    value = values.narrow(2, 0, start + length);
  }
  return causal_attention(query, key, value, c.attention_scale(), c.window(layer));
}

torch::Tensor TorchOps::gated_act(const torch::Tensor& gate, const torch::Tensor& up) {
  return model_.config().hidden_act == HiddenAct::silu ? swiglu(gate, up) : geglu(gate, up);
}

Stream<TorchOps> TorchOps::linear_tail(const torch::Tensor& y, const Tail& tail, Stream<TorchOps> stream) {
  torch::Tensor z, z_owner;
  auto out = linear(y, tail.linear, z, z_owner);
  if (tail.output) out = rms_norm(out.to(torch::kFloat32), *tail.output);
  auto residual = stream.residual + out;
  return {residual, rms_norm(tail.back ? torch::matmul(residual, model_.weights_.rotation.t()) : residual, tail.next)};
}

TorchModel::TorchModel(const ModelWeights& weights, torch::Device device, torch::ScalarType compute, Linears linears)
    : device_(device), compute_(compute) {
  torch::NoGradGuard no_grad;
  weights_.config = weights.config;
  weights_.embed_tokens = to_torch(weights.embed_tokens).to(device);
  weights_.head = weights.lm_head.empty() ? weights_.embed_tokens : to_torch(weights.lm_head).to(device);
  for (const auto& layer : weights.layers) {
    for (const auto& module : layer.linears) {
      TorchLinear slot;
      if (!module.bias.empty()) slot.bias = to_torch(module.bias).to(device);
      if (module.compensator) {
        slot.compensator = to_torch(*module.compensator);
        for (auto* part : {&slot.compensator->a, &slot.compensator->b, &slot.compensator->w1, &slot.compensator->b1,
                           &slot.compensator->w2, &slot.compensator->b2}) {
          if (part->defined()) *part = part->to(device);
        }
      }
      weights_.linears.push_back(std::move(slot));
    }
  }
  for (std::int64_t layer = 0; linears == Linears::loaded && layer < weights.config.num_hidden_layers; ++layer) load_layer(weights, layer);
  if (weights.config.rotated_stream) {
    const std::int64_t n = weights.config.hidden_size;
    const auto q = StreamRotation(n).matrix();
    weights_.rotation = to_torch(Tensor::from_floats({n, n}, q)).to(device);
  }
  weights_.gains.resize(static_cast<std::size_t>(NormId::final(weights.config).index) + 1);
  for (const NormId id : norms_of(weights.config)) {
    weights_.gains[static_cast<std::size_t>(id.index)] = to_torch(weights.gain(id)).to(device);
  }
}

void TorchModel::load_layer(const ModelWeights& weights, std::int64_t layer) {
  for (std::int64_t kind = 0; kind < kLinearsPerLayer; ++kind) {
    const ModuleId id = ModuleId::of(layer, static_cast<LinearKind>(kind));
    linear(id).weight = to_torch(weights.linear(id).weight).to(device_, compute_);
  }
}

void TorchModel::drop_layer(std::int64_t layer) {
  for (std::int64_t kind = 0; kind < kLinearsPerLayer; ++kind) linear(ModuleId::of(layer, static_cast<LinearKind>(kind))).weight = torch::Tensor();
}

const std::pair<torch::Tensor, torch::Tensor>& TorchModel::rotary(bool local, std::int64_t end) {
  auto& tables = rotary_[local ? 1 : 0];
  if (!tables.first.defined() || tables.first.size(0) < end) {
    torch::NoGradGuard no_grad;
    const std::int64_t positions = std::max<std::int64_t>(end, 512);
    const auto f64 = torch::TensorOptions().dtype(torch::kFloat64);
    const auto angle = torch::outer(torch::arange(positions, f64), torch::tensor(config().rope_frequencies(local), f64));
    tables = {angle.cos().to(device_, torch::kFloat32), angle.sin().to(device_, torch::kFloat32)};
  }
  return tables;
}

std::unique_ptr<KvCache> TorchModel::make_cache(std::int64_t batch, std::int64_t capacity) {
  return std::make_unique<TorchKvCache>(config(), batch, capacity, torch::TensorOptions().dtype(compute_).device(device_));
}

torch::Tensor token_tensor(const TokenBatch& tokens, const ModelConfig& config, torch::Device device) {
  if (static_cast<std::int64_t>(tokens.tokens.size()) != tokens.batch * tokens.length) {
    throw failed(fmt::format("{} tokens in a batch of {} x {}", tokens.tokens.size(), tokens.batch, tokens.length));
  }
  for (const std::int32_t token : tokens.tokens) {
    if (token < 0 || token >= config.vocab_size) throw bad_input(fmt::format("token id {} is outside the vocabulary", token));
  }
  return torch::from_blob(const_cast<std::int32_t*>(tokens.tokens.data()), {tokens.batch, tokens.length}, torch::kInt32)
      .to(torch::kInt64)
      .to(device);
}

torch::Tensor TorchModel::hidden(const torch::Tensor& tokens, KvCache* cache) {
  auto* kv = static_cast<TorchKvCache*>(cache);
  if (kv != nullptr && kv->length() + tokens.size(1) > kv->capacity()) {
    throw usage_error(fmt::format("{} tokens do not fit the KV cache of {}", kv->length() + tokens.size(1), kv->capacity()));
  }
  TorchOps ops(*this);
  TorchOps::Batch batch{tokens, kv != nullptr ? kv->length() : 0, kv};
  auto out = transformer(ops, config(), batch).to(torch::kFloat32);
  if (kv != nullptr) kv->advance(tokens.size(1));
  return out;
}

Stream<TorchOps> TorchModel::stream_before(const torch::Tensor& tokens, std::int64_t layer) {
  TorchOps ops(*this);
  TorchOps::Batch batch{tokens};
  return decoder_layers(ops, config(), 0, layer, ops.embed(batch, NormId::input(0)), batch);
}

Stream<TorchOps> TorchModel::advance(Stream<TorchOps> stream, std::int64_t begin, std::int64_t end,
                                     const torch::Tensor& tokens) {
  TorchOps ops(*this);
  TorchOps::Batch batch{tokens};
  return decoder_layers(ops, config(), begin, end, std::move(stream), batch);
}

torch::Tensor TorchModel::logits(const torch::Tensor& hidden) const {
  return torch::linear(hidden, weights_.head);
}

std::vector<float> TorchModel::hidden_states(const TokenBatch& tokens, KvCache* cache) {
  torch::NoGradGuard no_grad;
  const auto out = hidden(token_tensor(tokens), cache).to(torch::kCPU).contiguous();
  return {out.data_ptr<float>(), out.data_ptr<float>() + out.numel()};
}

void TorchModel::logits(std::span<const float> hidden, std::span<float> out) {
  torch::NoGradGuard no_grad;
  const std::int64_t rows = static_cast<std::int64_t>(hidden.size()) / config().hidden_size;
  if (static_cast<std::int64_t>(out.size()) != rows * config().vocab_size) {
    throw failed(fmt::format("logits of {} rows do not fit {} floats", rows, out.size()));
  }
  const auto h = torch::from_blob(const_cast<float*>(hidden.data()), {rows, config().hidden_size}, torch::kFloat32);
  torch::from_blob(out.data(), {rows, config().vocab_size}, torch::kFloat32).copy_(logits(h.to(device_)));
}

}  // namespace spear
