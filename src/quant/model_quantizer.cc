#include "quant/model_quantizer.h"

#include <map>
#include <string_view>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "torch/chunked_ops.h"
#include "torch/transposed_product.h"

namespace spear {
namespace {

using Chunks = ChunkedOps::Activation;

std::int64_t tokens_in(const Chunks& chunks) {
  std::int64_t tokens = 0;
  for (const auto& chunk : chunks) tokens += chunk.size(0);
  return tokens;
}

/// E[(a_t − minus_t) w_t b_tᵀ] over tokens, float32. Weights and `minus` may be empty.
torch::Tensor mean_outer(const Chunks& a, const Chunks& b, const Chunks& weights, const Chunks& minus) {
  auto sum = torch::zeros({a.front().size(1), b.front().size(1)}, a.front().options().dtype(torch::kFloat32));
  for (std::size_t i = 0; i < a.size(); ++i) {
    auto left = a[i];
    if (!minus.empty()) left = left.to(torch::kFloat32) - minus[i].to(torch::kFloat32);
    if (!weights.empty()) left = left.to(torch::kFloat32) * weights[i];
    sum += transposed_product(left, b[i]);
  }
  return sum / static_cast<double>(tokens_in(a));
}

/// E[w x xᵀ], [features, features]; the root of w on both sides keeps it a Gram matrix under any rounding.
torch::Tensor second_moment(const Chunks& x, const Chunks& weights) {
  const std::int64_t n = x.front().size(1);
  auto sum = torch::zeros({n, n}, x.front().options().dtype(torch::kFloat32));
  for (std::size_t i = 0; i < x.size(); ++i) {
    auto rows = x[i];
    if (!weights.empty()) rows = (rows.to(torch::kFloat32) * weights[i].sqrt()).to(x[i].scalar_type());
    sum += transposed_product(rows, rows);
  }
  return sum / static_cast<double>(tokens_in(x));
}

/// [tokens, 1] by chunk: min(1, cap · median(n) / n) for squared norms n.
Chunks outlier_weights(const Chunks& rows, double cap) {
  Chunks out;
  for (const auto& chunk : rows) out.push_back(chunk.to(torch::kFloat32).square().sum(1, true));
  const auto median = torch::cat(out).median();
  for (auto& n : out) n = (cap * median / n.clamp_min(1e-30)).clamp_max(1.0);
  return out;
}

/// What one layer's modules saw in one network.
struct LayerView {
  std::array<Chunks, kLinearsPerLayer> inputs;  ///< [tokens, in]; those of the first module of each group
  Chunks entry, post_attention;                 ///< residual stream [tokens, hidden_size]

  const Chunks* stream_before(LinearKind kind) const {
    if (kind == LinearKind::o_proj) return &entry;
    return kind == LinearKind::down_proj ? &post_attention : nullptr;
  }
};

/// Moments of the inputs that a group shares.
struct Moments {
  torch::Tensor hessian, input_error, residual;  ///< H, C − H, R of the header; the last two may be undefined
  torch::Tensor solver;                    ///< damped H, float64
};

/// Quantizes groups of modules as a forward pass reaches them.
class SequentialQuantizer {
 public:
  SequentialQuantizer(TorchModel& model, const QuantizeOptions& options, const std::vector<CompensatorSite>& sites)
      : model_(model), options_(options), sites_(sites) {
    const auto modules = static_cast<std::size_t>(module_count(model.config()));
    out_.linears.resize(modules);
    out_.targets.resize(options.quantizer == Quantizer::gptq && options.keep_targets ? modules : 0);
    out_.singular_values.resize(sites.size());
    out_.energies.resize(sites.size());
    out_.factors.resize(sites.size());
    for (std::size_t i = 0; i < sites.size(); ++i) {
      for (const ModuleId id : sites[i].members) site_of_[id.index] = i;
    }
  }

  /// The whole group of `first`, when its first member is about to run on x. The members have one Hessian and rows do
  /// not meet in any step, so all rows of the group are quantized as one matrix.
  void quantize_group(ModuleId first, const Chunks& x, const LayerView& seen, const LayerView& reference) {
    const Moments moments = measure(first, x, seen, reference);
    std::vector<ModuleId> members;
    std::vector<torch::Tensor> weights;
    for (ModuleId id = first; id.index < module_count(model_.config()) && id.input_group() == first; ++id.index) {
      members.push_back(id);
      weights.push_back(model_.linear(id).weight.to(torch::kFloat32));
    }
    auto target = torch::cat(weights, 0);
    const QuantizedLinear group = quantize(members, target, moments);
    const auto dequantized = group.dequantize();
    const auto left = target - dequantized;
    std::map<int, torch::Tensor> errors;
    std::int64_t row = 0;
    for (const ModuleId id : members) {
      auto& slot = model_.linear(id);
      const auto index = static_cast<std::size_t>(id.index);
      const std::int64_t rows = slot.weight.size(0);
      out_.linears[index] = group.rows(row, rows);
      if (!out_.targets.empty()) out_.targets[index] = target.narrow(0, row, rows).clone();
      errors[id.index] = left.narrow(0, row, rows);
      slot.weight = dequantized.narrow(0, row, rows).to(model_.compute_type(), /*non_blocking=*/false, /*copy=*/true);
      row += rows;
    }
    for (const ModuleId id : members) {
      const auto site = site_of_.find(id.index);
      if (site != site_of_.end() && sites_[site->second].members.front() == id) compensate(site->second, errors, moments);
    }
  }

  ModelQuantization take() { return std::move(out_); }

 private:
  Moments measure(ModuleId id, const Chunks& x, const LayerView& seen, const LayerView& reference) const {
    Moments m;
    if (options_.quantizer == Quantizer::gptq) {
      const auto& x_reference = reference.inputs[static_cast<std::size_t>(id.kind())];
      auto weights = outlier_weights(x_reference, options_.outlier_cap);
      const auto *before = seen.stream_before(id.kind()), *before_reference = reference.stream_before(id.kind());
      if (before != nullptr) {
        const auto of_stream = outlier_weights(*before_reference, options_.outlier_cap);
        for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = weights[i] * of_stream[i];
        // Behind a norm of the module's own output (Gemma), what the module adds is no longer in units of the stream.
        if (!model_.config().output_norms) m.residual = mean_outer(*before_reference, x, weights, *before);
      }
      m.hessian = second_moment(x, weights);
      m.input_error = mean_outer(x_reference, x, weights, x);
    } else {
      const auto& input = reference.inputs[static_cast<std::size_t>(id.kind())];
      m.hessian = second_moment(input, {});
    }
    m.solver = damped(m.hessian, options_.damping);
    return m;
  }

  /// Codes and scales of the stacked rows of `members`. With gptq, `target` becomes W'.
  QuantizedLinear quantize(const std::vector<ModuleId>& members, torch::Tensor& target, const Moments& moments) const {
    if (options_.quantizer == Quantizer::gptq) {
      target = absorb_error(target, moments.solver, moments.input_error, options_.alpha, moments.residual, options_.rho);
      auto q = quantize_gptq(target, moments.solver, quantize_clip(target, options_.scheme, moments.solver.diagonal()));
      polish(target, moments.solver, q);
      return q;
    }
    if (options_.given != nullptr) {
      std::vector<QuantizedLinear> parts;
      for (const ModuleId id : members) parts.push_back(options_.given->at(static_cast<std::size_t>(id.index)));
      return stack_rows(parts);
    }
    return options_.quantizer == Quantizer::clip ? quantize_clip(target, options_.scheme, moments.hessian.diagonal())
                                                 : quantize_rtn(target, options_.scheme);
  }

  void polish(const torch::Tensor& target, const torch::Tensor& hessian, QuantizedLinear& q) const {
    const bool one_scale = options_.scheme.group_size == 0;
    for (int sweep = 0; sweep < options_.sweeps; ++sweep) {
      if (one_scale) q.scales = refit_row_scales(target, hessian, q);
      descend_codes(target, hessian, q);
    }
    if (one_scale && options_.sweeps > 0) q.scales = refit_row_scales(target, hessian, q);
  }

  static std::vector<double> to_vector(const torch::Tensor& values) {
    const auto host = values.to(torch::kCPU).contiguous();
    return {host.data_ptr<double>(), host.data_ptr<double>() + host.numel()};
  }

  void compensate(std::size_t site, const std::map<int, torch::Tensor>& errors, const Moments& moments) {
    const auto& members = sites_[site].members;
    std::vector<torch::Tensor> stacked;
    for (const ModuleId id : members) stacked.push_back(errors.at(id.index));
    const std::int64_t rank = sites_[site].rank, rows = std::max<std::int64_t>(1, rank + sites_[site].gate_rows);
    const auto leading = whitened_factors(torch::cat(stacked, 0), moments.solver, rows, options_.whitening, options_.spectrum);
    out_.singular_values[site] = to_vector(leading.singular_values);
    out_.energies[site] = leading.energy;
    if (rank == 0) return;
    ChainFactors& factors = out_.factors[site];
    factors.a = leading.a;
    const auto a = leading.a.to(torch::kFloat64);
    factors.sigma = (torch::matmul(a, moments.hessian.to(torch::kFloat64)) * a).sum(1).clamp_min(1e-12).sqrt().to(torch::kFloat32);
    std::int64_t row = 0;
    for (const ModuleId id : members) {
      auto& slot = model_.linear(id);
      factors.b.push_back(leading.b.narrow(0, row, slot.weight.size(0)).narrow(1, 0, std::min(rank, leading.b.size(1))).contiguous());
      row += slot.weight.size(0);
      slot.compensator = TorchCompensator{factors.a, factors.b.back(), {}, {}, {}, {}};
    }
  }

  TorchModel& model_;
  QuantizeOptions options_;
  const std::vector<CompensatorSite>& sites_;
  std::map<int, std::size_t> site_of_;
  ModelQuantization out_;
};

ModelQuantization quantize_rounding(TorchModel& model, const QuantizeOptions& options) {
  ModelQuantization out;
  for (std::int64_t layer = 0; layer < model.config().num_hidden_layers; ++layer) {
    if (options.source != nullptr) model.load_layer(*options.source, layer);
    for (int kind = 0; kind < kLinearsPerLayer; ++kind) {
      auto& slot = model.linear(ModuleId::of(layer, static_cast<LinearKind>(kind)));
      out.linears.push_back(quantize_rtn(slot.weight.to(torch::kFloat32), options.scheme));
      slot.weight = out.linears.back().dequantize().to(model.compute_type());
    }
    if (options.source != nullptr) model.drop_layer(layer);
  }
  return out;
}

}  // namespace

ModelQuantization quantize_model(TorchModel& model, const QuantizeOptions& options, const std::vector<CompensatorSite>& sites,
                                 const torch::Tensor& tokens) {
  torch::NoGradGuard no_grad;
  if (options.quantizer == Quantizer::rtn && sites.empty()) return quantize_rounding(model, options);
  const ModelConfig& config = model.config();
  SequentialQuantizer quantizer(model, options, sites);
  ChunkedOps ops(model);
  auto batch = ChunkedOps::batch(tokens);
  auto stream = ops.embed(batch, NormId::input(0));
  auto reference_stream = stream;
  Progress progress("quantize", config.num_hidden_layers);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    throw_if_interrupted();
    if (options.source != nullptr) model.load_layer(*options.source, layer);
    LayerView reference, seen;
    LayerView* view = &reference;
    ops.on_value = [&view](const char* name, std::int64_t, const Chunks& value) {
      if (std::string_view(name) == "post_attention") view->post_attention = value;
    };
    reference.entry = reference_stream.residual;
    ops.before_linears = [&](ModuleId first, const Chunks& x) { reference.inputs[static_cast<std::size_t>(first.kind())] = x; };
    reference_stream = decoder_layers(ops, config, layer, layer + 1, std::move(reference_stream), batch);
    view = &seen;
    seen.entry = stream.residual;
    ops.before_linears = [&](ModuleId first, const Chunks& x) {
      quantizer.quantize_group(first, x, seen, reference);
      reference.inputs[static_cast<std::size_t>(first.kind())].clear();
    };
    stream = decoder_layers(ops, config, layer, layer + 1, std::move(stream), batch);
    if (options.source != nullptr) model.drop_layer(layer);
    progress.update(layer + 1);
  }
  return quantizer.take();
}

}  // namespace spear
