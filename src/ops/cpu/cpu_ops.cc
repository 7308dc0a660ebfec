#include "ops/cpu/cpu_ops.h"

#include <algorithm>

#include "base/error.h"

namespace spear {
namespace {

constexpr std::int64_t kRowGrain = 4;  // token rows per unit of elementwise work

std::vector<float> vector_of(const Tensor& tensor, std::int64_t size, const std::string& where) {
  if (tensor.size() != size) throw bad_input("vector " + to_string(tensor.shape()) + " has a wrong size", where);
  return tensor.to_floats();
}

void require_shape(const CpuWeights::Linear& linear, std::int64_t rows, std::int64_t cols, const std::string& where) {
  if (linear.rows() != rows || linear.cols() != cols) {
    throw bad_input(
        "shape " + to_string(Shape{linear.rows(), linear.cols()}) + " instead of " + to_string(Shape{rows, cols}),
        where, "the weights do not belong to this config");
  }
}

/// Of 8-bit inputs, those of q, k and v do half of the damage (KL .0016 of .0037 on SmolLM2-135M) for a sixth of the
/// work: these stay at 16 bits.
Activations activations_of(LinearKind kind, Activations wanted) {
  const bool attention_input = kind == LinearKind::q_proj || kind == LinearKind::k_proj || kind == LinearKind::v_proj;
  return attention_input && wanted == Activations::a8 ? Activations::a16 : wanted;
}

/// A of a compensator with its columns in another order.
std::vector<std::int8_t> reordered(const CompensatorInput& a, const std::vector<std::int32_t>& order) {
  std::vector<std::int8_t> out(a.values.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t col = i % order.size();
    out[i] = a.values[i - col + static_cast<std::size_t>(order[col])];
  }
  return out;
}

/// bf16 weights are packed as they are; others would lose bits, which only 8-bit activations take for speed. Blocks of
/// GGUF are packed, rounded or not, whatever the activations: decoding them for every token would take longer than all
/// the rest.
bool packs(const LinearWeight& weight, Activations activations) {
  if (activations == Activations::f32) return false;
  const auto* dense = std::get_if<Tensor>(&weight);
  return dense == nullptr || dense->dtype() == DType::bf16 || activations == Activations::a8;
}

}  // namespace

CpuWeights::CpuWeights(const ModelWeights& weights, const CpuModelOptions& options, ThreadPool& pool)
    : config(weights.config), activations(options.activations), tied(weights.lm_head.empty()) {
  config.validate("model config");
  WeightArena arena;
  const PackContext context{pool, arena};
  if (activations == Activations::f32) {
    embedding.weight.emplace(weights.embed_tokens, "embed_tokens");
    if (!tied) head.weight.emplace(weights.lm_head, "lm_head");
  } else {
    embedding.packed = PackedMatrix::head(weights.embed_tokens, options.head_type, "embed_tokens", context);
    if (!tied) head.packed = PackedMatrix::head(weights.lm_head, options.head_type, "lm_head", context);
  }
  require_shape(embedding, config.vocab_size, config.hidden_size, "embed_tokens");
  require_shape(head_linear(), config.vocab_size, config.hidden_size, "lm_head");
  if (static_cast<std::int64_t>(weights.layers.size()) != config.num_hidden_layers) {
    throw bad_input("the number of layers does not agree with the config");
  }
  if (config.rotated_stream) rotation.emplace(config.hidden_size);
  norms.resize(static_cast<std::size_t>(NormId::final(config).index) + 1);
  for (const NormId id : norms_of(config)) {
    norms[static_cast<std::size_t>(id.index)] = vector_of(weights.gain(id), norm_size(config, id), id.name(config));
  }
  linears.resize(static_cast<std::size_t>(module_count(config)));
  std::vector<ModuleId> group;
  for (int index = 0; index < module_count(config); ++index) {
    group.push_back({index});
    const ModuleId next{index + 1};
    if (next.index < module_count(config) && next.input_group() == group.front()) continue;
    add_group(weights, group, context);
    group.clear();
  }
}

/// Modules that run as one operation, packed in the order in which it reads: all A, all weights, all B.
void CpuWeights::add_group(const ModelWeights& weights, std::span<const ModuleId> ids, const PackContext& context) {
  for (const ModuleId id : ids) add_input(weights.linear(id), id, context);
  for (const ModuleId id : ids) add_weight(weights.linear(id), id, context);
  for (const ModuleId id : ids) add_output(weights.linear(id), id, context);
}

void CpuWeights::add_input(const LinearModule& module, ModuleId id, const PackContext& context) {
  Linear& linear = linears[static_cast<std::size_t>(id.index)];
  const bool is_packed = packs(module.weight, activations);
  const auto* w4 = std::get_if<W4Matrix>(&module.weight);
  if (is_packed && w4 != nullptr) linear.input_order = known_order(w4->columns_by_group());
  if (!module.compensator) return;
  const Compensator& compensator = *module.compensator;
  compensator.validate();
  if (compensator.out_features != out_features(config, id.kind()) || compensator.in_features() != in_features(config, id.kind())) {
    throw bad_input("compensator does not fit the module", id.name());
  }
  const CompensatorInput& a = *compensator.a;
  if (!is_packed) {
    linear.a.emplace(a.values, a.rows, a.cols, a.scales);
    return;
  }
  PackedMatrix& packed = packed_inputs_[{&a, linear.input_order}];
  if (packed.empty()) {
    std::vector<std::int8_t> sorted;
    if (linear.input_order != nullptr) sorted = reordered(a, *linear.input_order);
    packed = PackedMatrix::from_int8(sorted.empty() ? a.values : sorted, a.rows, a.cols, a.scales, context);
  }
  linear.packed_a = &packed;
}

void CpuWeights::add_weight(const LinearModule& module, ModuleId id, const PackContext& context) {
  Linear& linear = linears[static_cast<std::size_t>(id.index)];
  if (!packs(module.weight, activations)) {
    linear.weight.emplace(module.weight, id.name());
  } else if (const auto* w4 = std::get_if<W4Matrix>(&module.weight)) {
    linear.packed = PackedMatrix::from_w4(*w4, id.name(), context);
  } else if (const auto* blocks = std::get_if<BlockMatrix>(&module.weight)) {
    linear.packed = PackedMatrix::from_blocks(*blocks, id.name(), context);
  } else {
    linear.packed = PackedMatrix::to_bf16(std::get<Tensor>(module.weight), id.name(), context);
  }
  require_shape(linear, out_features(config, id.kind()), in_features(config, id.kind()), id.name());
  if (has_bias(config, id.kind())) linear.bias = vector_of(module.bias, linear.rows(), id.name() + ".bias");
}

void CpuWeights::add_output(const LinearModule& module, ModuleId id, const PackContext& context) {
  if (!module.compensator) return;
  Linear& linear = linears[static_cast<std::size_t>(id.index)];
  if (linear.weight) {
    linear.compensator.emplace(*module.compensator);
  } else {
    linear.packed_compensator.emplace(*module.compensator, linear.packed.view(), id.name(), context.arena);
  }
}

CpuWeights::InputOrder CpuWeights::known_order(std::vector<std::int32_t> order) {
  return order.empty() ? nullptr : &*input_orders_.insert(std::move(order)).first;
}

void CpuWeights::read_embedding(const Kernels& kernels, std::int64_t token, float* out) const {
  if (embedding.weight) return kernels.read_row(embedding.weight->view(), token, 0, config.hidden_size, out);
  unpack_row(embedding.packed.view(), token, out);
}

void CpuWeights::release(ModelWeights& weights) const {
  for (int index = 0; index < module_count(config); ++index) {
    if (linears[static_cast<std::size_t>(index)].weight) continue;
    LinearWeight& weight = weights.linear({index}).weight;
    if (auto* w4 = std::get_if<W4Matrix>(&weight)) std::vector<std::uint32_t>().swap(w4->packed);
    if (auto* blocks = std::get_if<BlockMatrix>(&weight)) std::vector<std::byte>().swap(blocks->blocks);
  }
}

std::int64_t CpuWeights::bytes_per_token(std::span<const std::uint8_t> active) const {
  const auto bytes_of = [](const Linear& linear) {
    return linear.weight ? linear.weight->view().rows * linear.weight->view().row_bytes : linear.packed.bytes();
  };
  std::int64_t bytes = bytes_of(head_linear());
  std::set<const PackedMatrix*> inputs;  // a shared A is read once
  for (std::size_t i = 0; i < linears.size(); ++i) {
    const Linear& linear = linears[i];
    bytes += bytes_of(linear) + static_cast<std::int64_t>(linear.bias.size() * sizeof(float));
    if (active.empty() || active[i] == 0) continue;
    if (linear.packed_compensator) {
      bytes += linear.packed_compensator->bytes();
      if (inputs.insert(linear.packed_a).second) bytes += linear.packed_a->bytes();
    }
    if (linear.compensator) bytes += linear.rows() * linear.compensator->rank + linear.cols() * linear.compensator->inputs;
  }
  return bytes;
}

Stream<CpuOps> CpuOps::embed(const Batch& batch, NormId gain) {
  const auto rows = static_cast<std::int64_t>(batch.tokens.size());
  const std::int64_t hidden = w_.config.hidden_size;
  Stream<CpuOps> stream{{rows, hidden}, {rows, hidden}};
  const auto scale = static_cast<float>(w_.config.embedding_scale);
  pool_.parallel_for(rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      float* const row = w_.rotation ? stream.normed.row(i) : stream.residual.row(i);
      w_.read_embedding(kernels_, batch.tokens[static_cast<std::size_t>(i)], row);
      if (scale != 1.0F) std::transform(row, row + hidden, row, [scale](float v) { return v * scale; });
      if (w_.rotation) w_.rotation->into_stream(row, stream.residual.row(i));
    }
  });
  normalize(stream.residual, gain, stream.normed);
  observe("embed", -1, stream.residual);
  return stream;
}

void CpuOps::apply(const Activation& x, std::span<const ModuleId> ids, std::span<Activation> out) {
  const auto kind_of = [this](ModuleId id) {
    const auto& linear = w_.linears[static_cast<std::size_t>(id.index)];
    return std::pair(!linear.packed.empty(), linear.input_order);
  };
  // Modules of one input may differ in format or in the order of their inputs: runs of a kind go together.
  for (std::size_t first = 0, last; first < ids.size(); first = last) {
    const auto kind = kind_of(ids[first]);
    for (last = first + 1; last < ids.size() && kind_of(ids[last]) == kind;) ++last;
    const auto apply_run = kind.first ? &CpuOps::apply_packed : &CpuOps::apply_unpacked;
    (this->*apply_run)(x, ids.subspan(first, last - first), out.subspan(first, last - first));
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto& bias = w_.linears[static_cast<std::size_t>(ids[i].index)].bias;
    if (!bias.empty()) add_bias(bias, out[i]);
  }
}

void CpuOps::add_bias(const std::vector<float>& bias, Activation& y) {
  pool_.parallel_for(y.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) kernels_.add(bias.data(), y.cols, y.row(i));
  });
}

void CpuOps::apply_packed(const Activation& x, std::span<const ModuleId> ids, std::span<Activation> out) {
  std::array<FusedJob, kLinearsPerLayer> jobs;
  std::array<const PackedView*, kLinearsPerLayer> inputs;
  std::size_t input_count = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto& linear = w_.linears[static_cast<std::size_t>(ids[i].index)];
    out[i] = Activation(x.rows, linear.rows());
    jobs[i] = {&linear.packed.view(), out[i].data.get()};
    if (!linear.packed_compensator || !compensates(ids[i])) continue;
    const auto begin = inputs.begin(), end = begin + static_cast<std::ptrdiff_t>(input_count);
    const auto known = std::find(begin, end, &linear.packed_a->view());
    jobs[i].compensator = &*linear.packed_compensator;
    jobs[i].input = static_cast<std::size_t>(known - begin);
    if (known == end) inputs[input_count++] = &linear.packed_a->view();
  }
  Activation sorted;
  if (const auto* order = w_.linears[static_cast<std::size_t>(ids.front().index)].input_order)
    sorted = ordered(x, *order);
  FusedInput input{sorted.rows > 0 ? sorted.data.get() : x.data.get(), x.rows};
  if (x.up) {
    input.activate = gated_kernel();
    input.other = x.up.get();
  }
  fused_.run(activations_of(ids.front().kind(), w_.activations), input, {jobs.data(), ids.size()},
             {inputs.data(), input_count});
}

/// Columns of x in this order; x is no gated_act() that is still to be carried out.
CpuOps::Activation CpuOps::ordered(const Activation& x, const std::vector<std::int32_t>& order) {
  Activation out(x.rows, x.cols);
  pool_.parallel_for(x.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float* const from = x.data.get() + i * x.cols;
      float* const to = out.row(i);
      for (std::size_t col = 0; col < order.size(); ++col) to[col] = from[order[col]];
    }
  });
  return out;
}

void CpuOps::apply_unpacked(const Activation& x, std::span<const ModuleId> ids, std::span<Activation> out) {
  std::vector<LinearJob> jobs;
  std::vector<Activation> zs;
  std::vector<std::pair<const CompensatorInput*, std::size_t>> z_of_a;  // distinct A's of this input
  zs.reserve(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto& linear = w_.linears[static_cast<std::size_t>(ids[i].index)];
    out[i] = Activation(x.rows, linear.rows());
    jobs.push_back({&linear.weight->view(), out[i].data.get()});
    if (!linear.compensator || !compensates(ids[i])) continue;
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
    if (!compensator || !compensates(ids[i])) continue;
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
  if (w_.config.qk_norm) {
    normalize(q, NormId::of(layer, NormKind::q), q);
    normalize(k, NormId::of(layer, NormKind::k), k);
  }
  attend(pool_, attention_, *batch.plan, layer, q.data.get(), k.data.get(), v.data.get(), *batch.cache);
  return q;
}

CpuOps::Activation CpuOps::gated_act(Activation gate, Activation up) {
  gate.up = std::move(up.data);
  if (observer_) activate(gate);
  return gate;
}

void CpuOps::activate(Activation& gate) {
  // By elements, not rows: one token is work for all threads.
  constexpr std::int64_t kGrain = 512;
  pool_.parallel_for(gate.rows * gate.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    gated_kernel()(gate.data.get() + begin, gate.up.get() + begin, end - begin);
  });
  gate.up.reset();
}

Stream<CpuOps> CpuOps::linear_tail(Activation y, const Tail& tail, Stream<CpuOps> stream) {
  Activation out;
  const auto& linear = w_.linears[static_cast<std::size_t>(tail.linear.index)];
  if (y.up && (linear.packed.empty() || linear.input_order != nullptr)) activate(y);
  apply(y, {&tail.linear, 1}, {&out, 1});
  const float* const output = tail.output ? w_.norms[static_cast<std::size_t>(tail.output->index)].data() : nullptr;
  const auto& next = w_.norms[static_cast<std::size_t>(tail.next.index)];
  const auto eps = static_cast<float>(w_.config.rms_norm_eps);
  pool_.parallel_for(out.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (output != nullptr) kernels_.rms_norm(out.row(i), output, out.cols, eps, out.row(i));
      kernels_.add(out.row(i), out.cols, stream.residual.row(i));
      if (tail.back) w_.rotation->out_of_stream(stream.residual.row(i), out.row(i));
      kernels_.rms_norm(tail.back ? out.row(i) : stream.residual.row(i), next.data(), out.cols, eps, out.row(i));
    }
  });
  stream.normed = std::move(out);
  return stream;
}

void CpuOps::normalize(const Activation& x, NormId gain, Activation& out) {
  const auto& values = w_.norms[static_cast<std::size_t>(gain.index)];
  const auto size = static_cast<std::int64_t>(values.size());
  const std::int64_t grain = std::max<std::int64_t>(kRowGrain * w_.config.hidden_size / size, 1);
  const auto eps = static_cast<float>(w_.config.rms_norm_eps);
  pool_.parallel_for(x.rows * x.cols / size, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      kernels_.rms_norm(x.data.get() + i * size, values.data(), size, eps, out.data.get() + i * size);
    }
  });
}

void CpuOps::logits(const float* hidden, std::int64_t rows, float* out) {
  const CpuWeights::Linear& head = w_.head_linear();
  if (head.packed.empty()) {
    const LinearJob job{&head.weight->view(), out};
    return run_linears(pool_, kernels_, hidden, rows, {&job, 1});
  }
  // 16 bits: no slower where the head's bytes are the limit, and 8 bits here would cost a quarter of what they do in
  // all.
  const FusedJob job{&head.packed.view(), out};
  fused_.run(Activations::a16, hidden, rows, {&job, 1}, {});
}

}  // namespace spear
