// The CPU backend of model/transformer.h: the operations of the decoder over threaded kernels.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "model/forward_model.h"
#include "model/stream_rotation.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/fused_linear.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/matrix.h"
#include "ops/cpu/step_buffer.h"
#include "ops/cpu_model.h"

namespace spear {

/// What the kernels need of a model, made once at load. The weights must outlive it, except what release() names.
struct CpuWeights {
  CpuWeights(const ModelWeights& weights, const CpuModelOptions& options, ThreadPool& pool);

  /// In kernel order, or as the model stores it: float32 activations, and dense weights that bf16 would round.
  struct Linear {
    PackedMatrix packed;
    const PackedMatrix* packed_a = nullptr;  ///< shared by the modules that share A
    /// Of packed and packed_a: their column i multiplies this input; null when that is input i.
    const std::vector<std::int32_t>* input_order = nullptr;
    std::optional<PackedCompensator> packed_compensator;

    std::optional<Matrix> weight;
    std::optional<Matrix> a;  ///< A of the compensator; views of a shared A have the same data pointer
    std::optional<PreparedCompensator> compensator;

    std::vector<float> bias;  ///< [rows], or empty

    std::int64_t rows() const { return weight ? weight->view().rows : packed.view().rows; }
    std::int64_t cols() const { return weight ? weight->view().cols : packed.view().cols; }
  };

  /// out: [hidden_size].
  void read_embedding(const Kernels& kernels, std::int64_t token, float* out) const;
  /// Frees the codes of packed linears in the model they came from: they would be held twice.
  void release(ModelWeights& weights) const;
  /// Bytes that one token's forward pass and logits read: all weights, and the compensators of `active` modules (a flag per
  /// module; none if empty).
  std::int64_t bytes_per_token(std::span<const std::uint8_t> active) const;

  ModelConfig config;
  Activations activations;
  Linear embedding, head;  ///< a head that is tied to a packed embedding is that one: see head_linear()
  bool tied = false;
  std::vector<std::vector<float>> norms;  ///< by NormId; empty where the model has none
  std::vector<Linear> linears;            ///< by ModuleId
  std::optional<StreamRotation> rotation;

  const Linear& head_linear() const { return tied ? embedding : head; }

 private:
  void add_group(const ModelWeights& weights, std::span<const ModuleId> ids, const PackContext& context);
  void add_weight(const LinearModule& module, ModuleId id, const PackContext& context);
  void add_input(const LinearModule& module, ModuleId id, const PackContext& context);
  void add_output(const LinearModule& module, ModuleId id, const PackContext& context);

  using InputOrder = const std::vector<std::int32_t>*;
  InputOrder known_order(std::vector<std::int32_t> order);

  std::set<std::vector<std::int32_t>> input_orders_;  ///< each once, so that equal ones have one address
  std::map<std::pair<const CompensatorInput*, InputOrder>, PackedMatrix> packed_inputs_;
};

class CpuOps {
 public:
  /// [rows, cols], not initialized.
  struct Activation {
    std::int64_t rows = 0, cols = 0;
    StepBuffer data;
    StepBuffer up;  ///< this is gate ⊙ act of a gated_act() that its one reader, a linear, carries out; or null

    Activation() = default;
    Activation(std::int64_t rows, std::int64_t cols) : rows(rows), cols(cols), data(take_step_buffer(rows * cols)) {}
    float* row(std::int64_t i) { return data.get() + i * cols; }
    std::span<float> values() { return {data.get(), static_cast<std::size_t>(rows * cols)}; }
  };

  /// The rows of a step: chunk after chunk.
  struct Batch {
    std::span<const std::int32_t> tokens;  ///< [rows]
    AttentionPlan* plan;
    CpuPagedKvCache* cache;
  };

  CpuOps(const CpuWeights& weights, const Kernels& kernels, ThreadPool& pool)
      : w_(weights),
        kernels_(kernels),
        attention_(attention_kernels_for(kernels.isa)),
        pool_(pool),
        fused_(packed_kernels(kernels), pool),
        active_(weights.linears.size(), 1) {}

  void set_compensators(bool on) { compensators_ = on; }
  /// By module: whether its compensator is applied, if compensators are on.
  std::span<std::uint8_t> active_compensators() { return active_; }
  FusedLinear& fused() { return fused_; }
  void set_observer(ActivationObserver observer) { observer_ = std::move(observer); }

  Stream<CpuOps> embed(const Batch& batch, NormId gain);

  template <std::size_t N>
  std::array<Activation, N> linears(const Activation& x, const std::array<ModuleId, N>& ids) {
    std::array<Activation, N> out;
    apply(x, ids, out);
    return out;
  }

  Activation attention(std::int64_t layer, Activation q, Activation k, Activation v, Batch& batch);
  Activation gated_act(Activation gate, Activation up);
  Stream<CpuOps> linear_tail(Activation y, const Tail& tail, Stream<CpuOps> stream);

  void observe(std::string_view name, std::int64_t layer, Activation& activation) {
    if (observer_) observer_(name, layer, activation.values());
  }

  /// hidden: [rows, hidden_size] -> out: [rows, vocab_size].
  void logits(const float* hidden, std::int64_t rows, float* out);

 private:
  /// out[i] = linear ids[i] of x, compensators included; each distinct A is applied once.
  void apply(const Activation& x, std::span<const ModuleId> ids, std::span<Activation> out);
  bool compensates(ModuleId id) const { return compensators_ && active_[static_cast<std::size_t>(id.index)] != 0; }
  void apply_packed(const Activation& x, std::span<const ModuleId> ids, std::span<Activation> out);
  Activation ordered(const Activation& x, const std::vector<std::int32_t>& order);
  void activate(Activation& gate);
  decltype(Kernels::silu_multiply) gated_kernel() const {
    return w_.config.hidden_act == HiddenAct::silu ? kernels_.silu_multiply : kernels_.gelu_multiply;
  }

  void apply_unpacked(const Activation& x, std::span<const ModuleId> ids, std::span<Activation> out);
  void add_bias(const std::vector<float>& bias, Activation& y);
  void add_correction(const PreparedCompensator& compensator, Activation& z, Activation& y);
  /// out: as x, which it may be; norms of heads take the rows of x apart.
  void normalize(const Activation& x, NormId gain, Activation& out);

  const CpuWeights& w_;
  const Kernels& kernels_;
  const AttentionKernels& attention_;
  ThreadPool& pool_;
  FusedLinear fused_;
  bool compensators_ = true;
  std::vector<std::uint8_t> active_;
  ActivationObserver observer_;
};

}  // namespace spear
