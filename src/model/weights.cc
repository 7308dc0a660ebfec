#include "model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "tensor/vector_math.h"

namespace spear {
namespace {

/// Whether any element's exponent bits are all ones (NaN or infinity).
template <class Bits>
inline __attribute__((always_inline)) bool any_exponent(const std::byte* bytes, std::size_t count, Bits exponent) {
  Bits bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * sizeof bits, sizeof bits);
    bad = static_cast<Bits>(bad | ((bits & exponent) == exponent ? 1 : 0));
  }
  return bad != 0;
}

SPEAR_VECTOR_CLONES bool any_non_finite(const std::byte* bytes, std::size_t count, std::uint16_t exponent) {
  return any_exponent(bytes, count, exponent);
}

SPEAR_VECTOR_CLONES bool any_non_finite(const std::byte* bytes, std::size_t count, std::uint32_t exponent) {
  return any_exponent(bytes, count, exponent);
}

/// Index of the first such element, -1 if there is none.
template <class Bits>
std::int64_t first_non_finite(std::span<const std::byte> bytes, Bits exponent) {
  constexpr std::size_t kBlock = 1024;
  const std::size_t count = bytes.size() / sizeof(Bits);
  for (std::size_t first = 0; first < count; first += kBlock) {
    if (!any_non_finite(bytes.data() + first * sizeof(Bits), std::min(kBlock, count - first), exponent)) continue;
    while (!any_non_finite(bytes.data() + first * sizeof(Bits), 1, exponent)) ++first;
    return static_cast<std::int64_t>(first);
  }
  return -1;
}

/// Looks at the bits: a copy as floats would double the memory that loading takes.
std::int64_t first_non_finite(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case DType::f32:
      return first_non_finite<std::uint32_t>(tensor.bytes(), 0x7f800000U);
    case DType::f16:
      return first_non_finite<std::uint16_t>(tensor.bytes(), 0x7c00U);
    case DType::bf16:
      return first_non_finite<std::uint16_t>(tensor.bytes(), 0x7f80U);
    default:
      throw bad_input(fmt::format("expected F32, F16 or BF16, found {}", name(tensor.dtype())));
  }
}

void check_tensor(const Tensor& tensor, const Shape& shape, const std::string& where, const std::string& tensor_name) {
  if (tensor.shape() != shape) {
    throw bad_input(fmt::format("shape {} instead of {}", to_string(tensor.shape()), to_string(shape)),
                    where + ": " + tensor_name, "the file does not belong to this config, or is damaged");
  }
  if (const std::int64_t bad = first_non_finite(tensor); bad >= 0) {
    throw bad_input(fmt::format("element {} is NaN or infinite", bad), where + ": " + tensor_name,
                    "get an undamaged copy of the model");
  }
}

/// matrix: packed, or in blocks.
void check_shape(const auto& matrix, std::int64_t rows, std::int64_t cols, const std::string& where) {
  if (matrix.rows != rows || matrix.cols != cols) {
    throw bad_input(fmt::format("shape [{}, {}] instead of [{}, {}]", matrix.rows, matrix.cols, rows, cols), where);
  }
}

void check_w4(const W4Matrix& matrix, std::int64_t rows, std::int64_t cols, const std::string& where) {
  check_shape(matrix, rows, cols, where);
  for (const std::uint16_t bits : matrix.scales) {
    if (!std::isfinite(f16_to_f32(bits))) throw bad_input("a scale is NaN or infinite", where);
  }
  const auto exists = [&](std::int32_t group) { return group >= 0 && group < matrix.groups(); };
  if (!matrix.group_index.empty() && (static_cast<std::int64_t>(matrix.group_index.size()) != cols ||
                                      !std::all_of(matrix.group_index.begin(), matrix.group_index.end(), exists))) {
    throw bad_input("an input belongs to a group that does not exist", where, "get the model again");
  }
}

void check_blocks(const BlockMatrix& matrix, std::int64_t rows, std::int64_t cols, const std::string& where) {
  check_shape(matrix, rows, cols, where);
  if (const std::int64_t row = matrix.first_non_finite_row(); row >= 0) {
    throw bad_input(fmt::format("a scale of row {} is NaN or infinite", row), where,
                    "get an undamaged copy of the model");
  }
}

}  // namespace

Shape shape_of(const LinearWeight& weight) {
  if (const auto* dense = std::get_if<Tensor>(&weight)) return dense->shape();
  if (const auto* packed = std::get_if<W4Matrix>(&weight)) return {packed->rows, packed->cols};
  return {std::get<BlockMatrix>(weight).rows, std::get<BlockMatrix>(weight).cols};
}

std::vector<float> dequantize(const LinearWeight& weight) {
  if (const auto* dense = std::get_if<Tensor>(&weight)) return dense->to_floats();
  if (const auto* packed = std::get_if<W4Matrix>(&weight)) return packed->dequantize();
  return std::get<BlockMatrix>(weight).dequantize();
}

const Tensor& ModelWeights::gain(NormId id) const {
  if (id == NormId::final(config)) return norm;
  const LayerWeights& layer = layers.at(static_cast<std::size_t>(id.layer()));
  switch (id.kind()) {
    case NormKind::input:
      return layer.input_layernorm;
    case NormKind::post_attention:
      return layer.post_attention_layernorm;
    case NormKind::attention_output:
      return layer.attention_output;
    case NormKind::mlp_output:
      return layer.mlp_output;
    case NormKind::q:
      return layer.q_norm;
    case NormKind::k:
      return layer.k_norm;
  }
  throw failed("a norm of no kind");
}

void ModelWeights::validate(const std::string& where) const {
  config.validate(where);
  const Shape embedding{config.vocab_size, config.hidden_size};
  check_tensor(embed_tokens, embedding, where, "model.embed_tokens.weight");
  if (!lm_head.empty()) check_tensor(lm_head, embedding, where, "lm_head.weight");
  if (lm_head.empty() && !config.tie_word_embeddings) {
    throw bad_input("lm_head.weight is missing and tie_word_embeddings is false", where);
  }
  if (static_cast<std::int64_t>(layers.size()) != config.num_hidden_layers) {
    throw bad_input(fmt::format("{} layers instead of {}", layers.size(), config.num_hidden_layers), where);
  }
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    const auto& module = linear(id);
    const std::int64_t rows = out_features(config, id.kind());
    const std::int64_t cols = in_features(config, id.kind());
    if (const auto* dense = std::get_if<Tensor>(&module.weight)) {
      check_tensor(*dense, {rows, cols}, where, id.name() + ".weight");
    } else if (const auto* packed = std::get_if<W4Matrix>(&module.weight)) {
      check_w4(*packed, rows, cols, where + ": " + id.name());
    } else {
      check_blocks(std::get<BlockMatrix>(module.weight), rows, cols, where + ": " + id.name());
    }
    if (has_bias(config, id.kind())) {
      check_tensor(module.bias, {rows}, where, id.name() + ".bias");
    } else if (!module.bias.empty()) {
      throw bad_input("a bias that the config does not mention", where + ": " + id.name());
    }
    if (!module.compensator) continue;
    module.compensator->validate();
    if (module.compensator->out_features != rows || module.compensator->in_features() != cols) {
      throw bad_input("compensator does not fit the module", where + ": " + id.name());
    }
  }
  for (const NormId id : norms_of(config)) {
    check_tensor(gain(id), {norm_size(config, id)}, where, id.name(config) + ".weight");
  }
}

std::int64_t int8_matrix_bytes(std::int64_t rows, std::int64_t cols) {
  return rows * cols + rows * ((cols + 31) / 32) * 2;
}

std::int64_t budget_base_bytes(const ModelWeights& weights, const W4Scheme& scheme) {
  std::int64_t bytes = weights.embedding_budget_bytes;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const ModuleId id{index};
    if (const auto* packed = std::get_if<W4Matrix>(&weights.linear(id).weight)) {
      bytes += packed->storage_bytes();
    } else if (const auto* blocks = std::get_if<BlockMatrix>(&weights.linear(id).weight)) {
      bytes += blocks->storage_bytes();
    } else {
      W4Matrix shape_only;
      shape_only.rows = out_features(weights.config, id.kind());
      shape_only.cols = in_features(weights.config, id.kind());
      shape_only.scheme = scheme;
      bytes += shape_only.storage_bytes();
    }
  }
  return bytes;
}

std::int64_t compensator_bytes(const ModelWeights& weights) {
  std::vector<const Compensator*> all;
  for (const auto& layer : weights.layers) {
    for (const auto& module : layer.linears) {
      if (module.compensator) all.push_back(&*module.compensator);
    }
  }
  return compensator_bytes(all);
}

}  // namespace spear
