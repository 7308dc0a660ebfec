#include "model/stream_rotation.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/random.h"

namespace spear {
namespace {

/// Walsh-Hadamard transform of x [size], a power of two, without its factor 1 / √size.
void hadamard(float* x, std::int64_t size) {
  for (std::int64_t half = 1; half < size; half *= 2) {
    for (std::int64_t block = 0; block < size; block += 2 * half) {
      float* const a = x + block;
      float* const b = a + half;
      for (std::int64_t i = 0; i < half; ++i) {
        const float sum = a[i] + b[i];
        b[i] = a[i] - b[i];
        a[i] = sum;
      }
    }
  }
}

/// `values` as a tensor of f32, or of the 16-bit type of the original.
Tensor in_type(const Shape& shape, const std::vector<float>& values, DType original) {
  const Tensor exact = Tensor::from_floats(shape, values);
  return original == DType::f16 || original == DType::bf16 ? exact.to(original) : exact;
}

DType type_of(const LinearWeight& weight) {
  const auto* dense = std::get_if<Tensor>(&weight);
  return dense != nullptr ? dense->dtype() : DType::f32;
}

/// Rows of [rows, n] times diag(gain), then Q.
void rotate_rows(const StreamRotation& rotation, const std::vector<float>& gain, std::vector<float>& values) {
  const auto n = static_cast<std::size_t>(rotation.size());
  std::vector<float> row(n);
  for (std::size_t begin = 0; begin < values.size(); begin += n) {
    for (std::size_t i = 0; i < n; ++i) row[i] = values[begin + i] * gain[i];
    rotation.into_stream(row.data(), values.data() + begin);
  }
}

/// Qᵀ W, W: [n, cols].
void rotate_columns(const StreamRotation& rotation, std::vector<float>& values) {
  const auto n = static_cast<std::size_t>(rotation.size()), cols = values.size() / n;
  std::vector<float> column(n), rotated(n);
  for (std::size_t j = 0; j < cols; ++j) {
    for (std::size_t i = 0; i < n; ++i) column[i] = values[i * cols + j];
    rotation.into_stream(column.data(), rotated.data());
    for (std::size_t i = 0; i < n; ++i) values[i * cols + j] = rotated[i];
  }
}

bool writes_stream(LinearKind kind) { return kind == LinearKind::o_proj || kind == LinearKind::down_proj; }

NormId norm_before(ModuleId id) {
  const bool mlp = id.kind() == LinearKind::gate_proj || id.kind() == LinearKind::up_proj;
  return mlp ? NormId::post_attention(id.layer()) : NormId::input(id.layer());
}

Tensor ones(const Tensor& like) {
  return in_type(like.shape(), std::vector<float>(static_cast<std::size_t>(like.size()), 1.0F), like.dtype());
}

}  // namespace

StreamRotation::StreamRotation(std::int64_t size) : odd_(size), power_(1) {
  while (odd_ % 2 == 0) {
    odd_ /= 2;
    power_ *= 2;
  }
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(power_)));
  for (std::int64_t i = 0; i < size; ++i) signs_.push_back(mix64(static_cast<std::uint64_t>(i)) >> 63 != 0 ? -scale : scale);
  const auto m = static_cast<double>(odd_);
  for (std::int64_t k = 0; k < odd_; ++k) {
    for (std::int64_t i = 0; i < odd_; ++i) {
      const double value = std::cos(M_PI / m * (static_cast<double>(i) + 0.5) * static_cast<double>(k));
      cosine_.push_back(static_cast<float>(value * std::sqrt((k == 0 ? 1.0 : 2.0) / m)));
    }
  }
}

void StreamRotation::into_stream(const float* x, float* out) const {
  for (std::int64_t k = 0; k < odd_; ++k) {
    float* const row = out + k * power_;
    std::fill(row, row + power_, 0.0F);
    for (std::int64_t i = 0; i < odd_; ++i) {
      const float weight = cosine_[static_cast<std::size_t>(k * odd_ + i)];
      const float* const from = x + i * power_;
      const float* const sign = signs_.data() + i * power_;
      for (std::int64_t j = 0; j < power_; ++j) row[j] += weight * (sign[j] * from[j]);
    }
    hadamard(row, power_);
  }
}

void StreamRotation::out_of_stream(const float* x, float* out) const {
  for (std::int64_t i = 0; i < odd_; ++i) {
    float* const row = out + i * power_;
    std::fill(row, row + power_, 0.0F);
    for (std::int64_t k = 0; k < odd_; ++k) {
      const float weight = cosine_[static_cast<std::size_t>(k * odd_ + i)];
      const float* const from = x + k * power_;
      for (std::int64_t j = 0; j < power_; ++j) row[j] += weight * from[j];
    }
    hadamard(row, power_);
    const float* const sign = signs_.data() + i * power_;
    for (std::int64_t j = 0; j < power_; ++j) row[j] *= sign[j];
  }
}

std::vector<float> StreamRotation::matrix() const {
  const auto n = static_cast<std::size_t>(size());
  std::vector<float> out(n * n), unit(n);
  for (std::size_t i = 0; i < n; ++i) {
    unit[i] = 1;
    into_stream(unit.data(), out.data() + i * n);
    unit[i] = 0;
  }
  return out;
}

LayerWeights rotate_layer(const ModelWeights& weights, std::int64_t layer) {
  LayerWeights out = weights.layers.at(static_cast<std::size_t>(layer));
  const StreamRotation rotation(weights.config.hidden_size);
  for (std::int64_t kind = 0; kind < kLinearsPerLayer; ++kind) {
    const ModuleId id = ModuleId::of(layer, static_cast<LinearKind>(kind));
    LinearModule& module = out.linears[static_cast<std::size_t>(kind)];
    auto values = dequantize(module.weight);
    if (writes_stream(id.kind())) {
      rotate_columns(rotation, values);
    } else {
      rotate_rows(rotation, weights.gain(norm_before(id)).to_floats(), values);
    }
    module.weight = in_type(shape_of(module.weight), values, type_of(module.weight));
    if (module.bias.empty() || !writes_stream(id.kind())) continue;
    auto bias = module.bias.to_floats();
    rotate_columns(rotation, bias);
    module.bias = in_type(module.bias.shape(), bias, module.bias.dtype());
  }
  out.input_layernorm = ones(out.input_layernorm);
  out.post_attention_layernorm = ones(out.post_attention_layernorm);
  return out;
}

ModelWeights rotate_stream(const ModelWeights& weights, const std::function<LayerWeights(std::int64_t)>& layer_of) {
  const ModelConfig& config = weights.config;
  if (config.output_norms) {
    throw bad_input("the stream of " + config.model_type + " cannot be rotated: norms stand between it and what is added to it",
                    "", "use --rotate none");
  }
  if (config.rotated_stream) throw bad_input("the stream of this model is rotated already");
  ModelWeights out = weights;
  out.config.rotated_stream = true;
  out.config.validate("rotation");
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    out.layers[static_cast<std::size_t>(layer)] = layer_of ? layer_of(layer) : rotate_layer(weights, layer);
  }
  return out;
}

ModelWeights fold_stream_rotation(ModelWeights weights) {
  if (!weights.config.rotated_stream) return weights;
  const StreamRotation rotation(weights.config.hidden_size);
  const auto rotated = [&](const Tensor& table, const std::vector<float>& gain) {
    auto values = table.to_floats();
    rotate_rows(rotation, gain, values);
    return in_type(table.shape(), values, table.dtype());
  };
  weights.lm_head = rotated(weights.head(), weights.norm.to_floats());
  weights.embed_tokens =
      rotated(weights.embed_tokens, std::vector<float>(static_cast<std::size_t>(weights.config.hidden_size), 1.0F));
  weights.norm = ones(weights.norm);
  const std::int64_t table = int8_matrix_bytes(weights.config.vocab_size, weights.config.hidden_size);
  if (weights.config.tie_word_embeddings) weights.embedding_budget_bytes += table;
  weights.config.tie_word_embeddings = false;
  weights.config.rotated_stream = false;
  return weights;
}

}  // namespace spear
