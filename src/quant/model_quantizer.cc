#include "quant/model_quantizer.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"

namespace spear {
namespace {

/// Mean of a bᵀ over rows, float32, in pieces so that the float32 copies stay small.
torch::Tensor mean_outer(const torch::Tensor& a, const torch::Tensor& b) {
  constexpr std::int64_t kRows = 8192;
  auto sum = torch::zeros({a.size(1), b.size(1)}, a.options().dtype(torch::kFloat32));
  for (std::int64_t begin = 0; begin < a.size(0); begin += kRows) {
    const std::int64_t count = std::min(kRows, a.size(0) - begin);
    sum.addmm_(a.narrow(0, begin, count).to(torch::kFloat32).t(), b.narrow(0, begin, count).to(torch::kFloat32));
  }
  return sum / static_cast<double>(a.size(0));
}

double quadratic(const torch::Tensor& w, const torch::Tensor& h) { return (torch::matmul(w, h) * w).sum(torch::kFloat64).item<double>(); }

/// [tokens, 1]: min(1, 4 median(n) / n) for squared norms n.
torch::Tensor outlier_weights(const torch::Tensor& rows) {
  const auto n = rows.to(torch::kFloat32).square().sum(1, true);
  return (4.0 * n.median() / n.clamp_min(1e-30)).clamp_max(1.0);
}

/// What one layer's modules saw in one network.
struct LayerView {
  std::array<torch::Tensor, kLinearsPerLayer> inputs;  ///< [tokens, in]
  torch::Tensor entry, post_attention;                 ///< residual stream [tokens, hidden_size]

  const torch::Tensor* stream_before(LinearKind kind) const {
    if (kind == LinearKind::o_proj) return &entry;
    return kind == LinearKind::down_proj ? &post_attention : nullptr;
  }
};

/// Quantizes modules as a forward pass reaches them.
class SequentialQuantizer {
 public:
  SequentialQuantizer(TorchModel& model, const QuantizeOptions& options) : model_(model), options_(options) {
    const auto modules = static_cast<std::size_t>(module_count(model.config()));
    out_.linears.resize(modules);
    out_.before_rounding.resize(options.quantizer == Quantizer::gptq ? modules : 0);
    out_.relative_error.resize(modules);
  }

  /// x: [tokens, in], the input of the quantized network; `seen` so far of the quantized network's layer.
  void quantize(ModuleId id, const torch::Tensor& x, const LayerView& seen, const LayerView& reference) {
    if (!(id.input_group() == group_)) accumulate(id, x, seen, reference);
    const auto index = static_cast<std::size_t>(id.index);
    const auto original = model_.linear(id).weight.to(torch::kFloat32);
    const auto target =
        cross_.defined() ? absorb_error(original, hessian_, cross_, residual_, options_.gptq.damping) : original;
    QuantizedLinear q = quantize_clip(target, options_.scheme, hessian_.diagonal());
    if (options_.quantizer == Quantizer::gptq) {
      auto result = quantize_gptq(target, hessian_, q, options_.gptq);
      q = std::move(result.quantized);
      out_.before_rounding[index] = std::move(result.before_rounding);
    }
    const auto weight = q.dequantize();
    out_.relative_error[index] = quadratic(weight - target, hessian_) / quadratic(original, hessian_);
    model_.linear(id).weight = weight.to(model_.compute_type());
    out_.linears[index] = std::move(q);
  }

  ModelQuantization take() { return std::move(out_); }

 private:
  /// Moments of the inputs that the group of `id` shares.
  void accumulate(ModuleId id, const torch::Tensor& x, const LayerView& seen, const LayerView& reference) {
    group_ = id.input_group();
    cross_ = residual_ = torch::Tensor();
    if (!options_.absorb || options_.quantizer != Quantizer::gptq) {
      hessian_ = mean_outer(x, x);
      return;
    }
    const auto& x_reference = reference.inputs[static_cast<std::size_t>(id.kind())];
    auto weights = outlier_weights(x_reference);
    const auto *before = seen.stream_before(id.kind()), *before_reference = reference.stream_before(id.kind());
    if (before != nullptr) weights = torch::minimum(weights, outlier_weights(*before_reference));
    const auto weighted = x * weights;
    hessian_ = mean_outer(weighted, x);
    cross_ = mean_outer(x_reference, weighted);
    if (before != nullptr) residual_ = mean_outer(*before_reference - *before, weighted);
  }

  TorchModel& model_;
  QuantizeOptions options_;
  ModelQuantization out_;
  ModuleId group_{-1};
  torch::Tensor hessian_, cross_, residual_;
};

ModelQuantization quantize_rounding(TorchModel& model, const W4Scheme& scheme) {
  ModelQuantization out;
  for (int index = 0; index < module_count(model.config()); ++index) {
    auto& slot = model.linear(ModuleId{index});
    const auto original = slot.weight.to(torch::kFloat32);
    out.linears.push_back(quantize_rtn(original, scheme));
    const auto weight = out.linears.back().dequantize();
    out.relative_error.push_back(((weight - original).square().sum() / original.square().sum()).item<double>());
    slot.weight = weight.to(model.compute_type());
  }
  return out;
}

}  // namespace

ModelQuantization quantize_model(TorchModel& model, const QuantizeOptions& options, const torch::Tensor& tokens) {
  torch::NoGradGuard no_grad;
  if (options.quantizer == Quantizer::rtn) return quantize_rounding(model, options.scheme);
  const ModelConfig& config = model.config();
  SequentialQuantizer quantizer(model, options);
  auto stream = model.stream_before(tokens, 0);
  auto reference_stream = stream;
  Progress progress("quantize", config.num_hidden_layers);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    throw_if_interrupted();
    LayerView reference, seen;
    LayerView* view = &reference;
    model.on_value = [&view](const char* name, std::int64_t, const torch::Tensor& value) {
      if (std::string_view(name) == "post_attention") view->post_attention = value;
    };
    if (options.quantizer == Quantizer::gptq && options.absorb) {
      reference.entry = reference_stream.residual;
      model.before_linear = [&](ModuleId id, const torch::Tensor& x) { reference.inputs[static_cast<std::size_t>(id.kind())] = x; };
      reference_stream = model.advance(std::move(reference_stream), layer, layer + 1, tokens);
    }
    view = &seen;
    seen.entry = stream.residual;
    model.before_linear = [&](ModuleId id, const torch::Tensor& x) { quantizer.quantize(id, x, seen, reference); };
    stream = model.advance(std::move(stream), layer, layer + 1, tokens);
    model.before_linear = nullptr;
    model.on_value = nullptr;
    progress.update(layer + 1);
  }
  return quantizer.take();
}

std::vector<torch::Tensor> input_moments(TorchModel& model, const torch::Tensor& tokens, std::int64_t batch) {
  torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> moments(static_cast<std::size_t>(module_count(model.config())));
  model.before_linear = [&](ModuleId id, const torch::Tensor& x) {
    if (!(id == id.input_group())) return;
    auto& sum = moments[static_cast<std::size_t>(id.index)];
    const auto outer = mean_outer(x, x) * static_cast<double>(x.size(0));
    sum = sum.defined() ? sum.add_(outer) : outer;
  };
  Progress progress("input moments", tokens.size(0));
  for (std::int64_t first = 0; first < tokens.size(0); first += batch) {
    throw_if_interrupted();
    model.hidden(tokens.narrow(0, first, std::min(batch, tokens.size(0) - first)));
    progress.update(std::min(first + batch, tokens.size(0)));
  }
  model.before_linear = nullptr;
  for (auto& moment : moments) {
    if (moment.defined()) moment /= static_cast<double>(tokens.numel());
  }
  return moments;
}

}  // namespace spear
