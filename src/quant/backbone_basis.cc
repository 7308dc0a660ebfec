#include "quant/backbone_basis.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace spear {
namespace {

/// Gains are stored in 16 bits by some: what is closer than this is equal.
constexpr double kGainTolerance = 0x1p-7;
/// Rounding and clipping move a row's least-squares factor by a few per cent; a method's own factors spread far more.
constexpr double kRowTolerance = 0.15;

using Factors = std::vector<float>;

bool are_trivial(const Factors& factors, double tolerance) {
  return std::all_of(factors.begin(), factors.end(), [&](float f) { return std::fabs(f - 1.0F) <= tolerance; });
}

/// Element (i, j) times factor(i, j).
void scale(LinearWeight& weight, const std::function<float(std::size_t, std::size_t)>& factor) {
  auto values = dequantize(weight);
  const Shape shape = shape_of(weight);
  const auto cols = static_cast<std::size_t>(shape[1]);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] *= factor(i / cols, i % cols);
  weight = Tensor::from_floats(shape, values);
}

/// reference / backbone by channel; 1 where the backbone's is 0.
Factors quotient(const Tensor& reference, const Tensor& backbone) {
  Factors out = reference.to_floats();
  const auto other = backbone.to_floats();
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = other[i] != 0 ? out[i] / other[i] : 1.0F;
  return out;
}

void move_gain(ModelWeights& out, const ModelWeights& backbone, NormId norm, std::initializer_list<ModuleId> readers) {
  const Factors factors = quotient(out.gain(norm), backbone.gain(norm));
  if (are_trivial(factors, kGainTolerance)) return;
  out.gain(norm) = backbone.gain(norm);
  for (const ModuleId id : readers) scale(out.linear(id).weight, [&](std::size_t, std::size_t j) { return factors[j]; });
}

/// By row: the factor that brings the reference's row closest to the backbone's.
Factors row_factors(const LinearWeight& reference, const LinearWeight& backbone) {
  const auto a = dequantize(reference), b = dequantize(backbone);
  const auto cols = static_cast<std::size_t>(shape_of(reference)[1]);
  Factors out;
  for (std::size_t begin = 0; begin < a.size(); begin += cols) {
    double product = 0, square = 0;
    for (std::size_t j = begin; j < begin + cols; ++j) {
      product += static_cast<double>(a[j]) * b[j];
      square += static_cast<double>(a[j]) * a[j];
    }
    const double factor = square > 0 ? product / square : 1.0;
    out.push_back(std::isfinite(factor) && factor > 0 ? static_cast<float>(factor) : 1.0F);
  }
  return out;
}

/// Rows of `first` times the backbone's factors, columns of `second` divided by them; column j reads row `source(j)`.
void move_rows(ModelWeights& out, const ModelWeights& backbone, ModuleId first, ModuleId second,
               const std::function<std::size_t(std::size_t)>& source) {
  LinearModule& from = out.linear(first);
  const Factors factors = row_factors(from.weight, backbone.linear(first).weight);
  if (are_trivial(factors, kRowTolerance)) return;
  scale(from.weight, [&](std::size_t i, std::size_t) { return factors[i]; });
  if (!from.bias.empty()) {
    auto bias = from.bias.to_floats();
    for (std::size_t i = 0; i < bias.size(); ++i) bias[i] *= factors[i];
    from.bias = Tensor::from_floats(from.bias.shape(), bias);
  }
  scale(out.linear(second).weight, [&](std::size_t, std::size_t j) { return 1.0F / factors[source(j)]; });
}

}  // namespace

ModelWeights in_basis_of(const ModelWeights& reference, const ModelWeights& backbone) {
  ModelWeights out = reference;
  const ModelConfig& c = reference.config;
  const auto head = static_cast<std::size_t>(c.head_dim), group = static_cast<std::size_t>(c.num_attention_heads / c.num_key_value_heads);
  for (std::int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const auto id = [layer](LinearKind kind) { return ModuleId::of(layer, kind); };
    move_gain(out, backbone, NormId::input(layer), {id(LinearKind::q_proj), id(LinearKind::k_proj), id(LinearKind::v_proj)});
    move_gain(out, backbone, NormId::post_attention(layer), {id(LinearKind::gate_proj), id(LinearKind::up_proj)});
    // Columns of o read the values of their query head, which are those of its group's key-value head.
    move_rows(out, backbone, id(LinearKind::v_proj), id(LinearKind::o_proj),
              [&](std::size_t j) { return j / head / group * head + j % head; });
    move_rows(out, backbone, id(LinearKind::up_proj), id(LinearKind::down_proj), [](std::size_t j) { return j; });
  }
  return out;
}

}  // namespace spear
