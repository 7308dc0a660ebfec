#include "ops/cpu/cpu_ops.h"

#include <algorithm>

#include "base/error.h"

namespace spear {
namespace {

constexpr std::int64_t kRowGrain = 4;  // token rows per unit of elementwise work

std::vector<float> gain_of(const Tensor& tensor, std::int64_t size, const std::string& where) {
  if (tensor.size() != size) throw bad_input("gain " + to_string(tensor.shape()) + " has a wrong size", where);
  return tensor.to_floats();
}

void require_shape(const Matrix& matrix, std::int64_t rows, std::int64_t cols, const std::string& where) {
  if (matrix.view().rows != rows || matrix.view().cols != cols) {
    throw bad_input("shape " + to_string(Shape{matrix.view().rows, matrix.view().cols}) + " instead of " +
                        to_string(Shape{rows, cols}),
                    where, "the weights do not belong to this config");
  }
}

}  // namespace

CpuWeights::CpuWeights(const ModelWeights& weights)
    : config(weights.config), embedding(weights.embed_tokens, "embed_tokens"), head(weights.head(), "lm_head") {
  config.validate("model config");
  require_shape(embedding, config.vocab_size, config.hidden_size, "embed_tokens");
  require_shape(head, config.vocab_size, config.hidden_size, "lm_head");
  if (static_cast<std::int64_t>(weights.layers.size()) != config.num_hidden_layers) {
    throw bad_input("the number of layers does not agree with the config");
  }
  for (const LayerWeights& layer : weights.layers) {
    norms.push_back(gain_of(layer.input_layernorm, config.hidden_size, "input_layernorm"));
    norms.push_back(gain_of(layer.post_attention_layernorm, config.hidden_size, "post_attention_layernorm"));
  }
  norms.push_back(gain_of(weights.norm, config.hidden_size, "norm"));
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    const LinearModule& module = weights.linear(id);
    Linear& linear = linears.emplace_back(Linear{Matrix(module.weight, id.name()), {}, {}});
    require_shape(linear.weight, out_features(config, id.kind()), in_features(config, id.kind()), id.name());
    if (!module.compensator) continue;
    const Compensator& compensator = *module.compensator;
    compensator.validate();
    if (compensator.out_features != linear.weight.view().rows ||
        compensator.in_features() != linear.weight.view().cols) {
      throw bad_input("compensator does not fit the module", id.name());
    }
    linear.a.emplace(compensator.a->values, compensator.a->rows, compensator.a->cols, compensator.a->scales);
    linear.compensator.emplace(compensator);
  }
}

Stream<CpuOps> CpuOps::embed(const Batch& batch, NormId gain) {
  const auto rows = static_cast<std::int64_t>(batch.tokens.size());
  const std::int64_t hidden = w_.config.hidden_size;
  Stream<CpuOps> stream{{rows, hidden}, {rows, hidden}};
  for (std::int64_t i = 0; i < rows; ++i) {
    kernels_.read_row(w_.embedding.view(), batch.tokens[static_cast<std::size_t>(i)], 0, hidden,
                      stream.residual.row(i));
  }
  normalize(stream.residual, gain, stream.normed);
  observe("embed", -1, stream.residual);
  return stream;
}

void CpuOps::apply(const Activation& x, std::span<const ModuleId> ids, std::span<Activation> out) {
  std::vector<LinearJob> jobs;
  std::vector<Activation> zs;
  std::vector<std::pair<const CompensatorInput*, std::size_t>> z_of_a;  // distinct A's of this input
  zs.reserve(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto& linear = w_.linears[static_cast<std::size_t>(ids[i].index)];
    out[i] = Activation(x.rows, linear.weight.view().rows);
    jobs.push_back({&linear.weight.view(), out[i].data.get()});
    if (!compensators_ || !linear.compensator) continue;
    const CompensatorInput* a = linear.compensator->a;
    if (std::any_of(z_of_a.begin(), z_of_a.end(), [a](const auto& known) { return known.first == a; })) continue;
    z_of_a.emplace_back(a, zs.size());
    zs.emplace_back(x.rows, a->rows);
    jobs.push_back({&linear.a->view(), zs.back().data.get()});
  }
  run_linears(pool_, kernels_, x.data.get(), x.rows, jobs);
  if (zs.empty()) return;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto& compensator = w_.linears[static_cast<std::size_t>(ids[i].index)].compensator;
    if (!compensator) continue;
    const auto z =
        std::find_if(z_of_a.begin(), z_of_a.end(), [&](const auto& known) { return known.first == compensator->a; });
    add_correction(*compensator, zs[z->second], out[i]);
  }
}

void CpuOps::add_correction(const PreparedCompensator& compensator, Activation& z, Activation& y) {
  Activation weighted(z.rows, compensator.rank);
  pool_.parallel_for(z.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(static_cast<std::size_t>(compensator.hidden));
    for (std::int64_t i = begin; i < end; ++i) compensator.weigh(z.row(i), weighted.row(i), scratch.data());
  });
  const LinearJob job{&compensator.b.view(), y.data.get(), true};
  run_linears(pool_, kernels_, weighted.data.get(), z.rows, {&job, 1});
}

CpuOps::Activation CpuOps::attention(std::int64_t layer, Activation q, Activation k, Activation v, Batch& batch) {
  attend(pool_, attention_, *batch.plan, layer, q.data.get(), k.data.get(), v.data.get(), *batch.cache);
  return q;
}

CpuOps::Activation CpuOps::gated_act(Activation gate, Activation up) {
  pool_.parallel_for(gate.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    kernels_.silu_multiply(gate.row(begin), up.row(begin), (end - begin) * gate.cols);
  });
  return gate;
}

Stream<CpuOps> CpuOps::linear_tail(Activation y, ModuleId id, Stream<CpuOps> stream, NormId gain) {
  Activation out;
  apply(y, {&id, 1}, {&out, 1});
  pool_.parallel_for(out.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    kernels_.add(out.row(begin), (end - begin) * out.cols, stream.residual.row(begin));
  });
  normalize(stream.residual, gain, out);
  stream.normed = std::move(out);
  return stream;
}

void CpuOps::normalize(const Activation& x, NormId gain, Activation& out) {
  const auto& values = w_.norms[static_cast<std::size_t>(gain.index)];
  const auto eps = static_cast<float>(w_.config.rms_norm_eps);
  pool_.parallel_for(x.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      kernels_.rms_norm(x.data.get() + i * x.cols, values.data(), x.cols, eps, out.row(i));
    }
  });
}

void CpuOps::logits(const float* hidden, std::int64_t rows, float* out) {
  const LinearJob job{&w_.head.view(), out};
  run_linears(pool_, kernels_, hidden, rows, {&job, 1});
}

}  // namespace spear
