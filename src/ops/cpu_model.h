// The online plane's model: the one transformer over CPU kernels.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "model/forward_model.h"
#include "model/paged_model.h"
#include "model/weights.h"
#include "ops/cpu/fusion_table.h"

namespace spear {

struct FusionProbe;  // ops/cpu/fused_linear.h

/// What linears take as input; norms, attention and residuals are float32 always.
enum class Activations {
  f32,  ///< float32: the oracle. Weights are dequantized tile by tile as they are used
  a16,  ///< 16-bit integers with a power-of-two scale per 64 columns (bf16 for dense bf16 weights): within 5e-5 of f32
  a8,   ///< 8-bit integers with a scale per 64 columns, 16-bit ones where they matter most (q, k, v, head); dense
        ///< weights of any type are rounded to bf16
};
/// How embedding and head are held, unless activations are f32. int8 and w4 have an f16 scale per 32 columns.
enum class HeadType { int8, bf16, w4 };

/// "a32", "a16", "a8"; "int8", "bf16", "w4". Both throw Error(usage) naming the valid ones.
Activations parse_activations(std::string_view text);
HeadType parse_head_type(std::string_view text);

struct CpuModelOptions {
  int threads = 0;           ///< 0: every usable core
  bool compensators = true;  ///< false: the bare backbone
  Activations activations = Activations::f32;
  HeadType head_type = HeadType::int8;
  /// Of hidden_states(), where float32 is the quality oracle; a paged cache has the type it is made with.
  KvCacheType kv_cache_type = KvCacheType::f32;
};

/// Sees a named intermediate of the forward pass: (name, layer, values [tokens, features]). Names are those of
/// model/transformer.h.
using ActivationObserver = std::function<void(std::string_view, std::int64_t, std::span<const float>)>;

/// Kernels are those of the best instruction set of this machine, or of SPEAR_FORCE_ISA (see ops/cpu/kernels.h).
/// Calls must not overlap: one instance serves one caller at a time.
class CpuModel final : public ForwardModel, public PagedModel {
 public:
  /// Takes the weights over; packed codes are kept in kernel order only (W4Matrix::packed of weights() is empty then,
  /// its shape stays). Throws Error(bad_input) when a tensor's bytes disagree with the config.
  explicit CpuModel(ModelWeights weights, const CpuModelOptions& options = {});
  ~CpuModel() override;
  CpuModel(CpuModel&&) noexcept;
  CpuModel& operator=(CpuModel&&) noexcept;

  const ModelConfig& config() const override;
  const ModelWeights& weights() const;
  std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) override;
  std::vector<float> hidden_states(const TokenBatch& tokens, KvCache* cache) override;
  std::int64_t block_size() const override;
  std::int64_t block_bytes(KvCacheType type) const override;
  std::unique_ptr<PagedKvCache> make_paged_cache(std::int64_t num_blocks, KvCacheType type) override;
  std::span<const float> step(std::span<const SequenceChunk> chunks, PagedKvCache& cache) override;
  void logits(std::span<const float> hidden, std::span<float> out) override;

  /// Compensators on or off from the next forward pass on; a cache must not be carried across the change.
  void set_compensators(bool on);
  /// Modules with a compensator, those first that are worth most: what set_compensator_density() goes by; before it is
  /// called, their order in the model. Throws Error(usage) unless each of them is named once.
  void set_compensator_order(std::vector<int> modules);
  /// That part of the modules, rounded up, while compensators are on. Nothing is allocated or moved.
  void set_compensator_density(double density) override;
  /// Which way of fusing a compensator each shape and number of tokens takes; no result depends on it.
  void set_fusion_table(FusionTable table);
  void set_fusion_probe(FusionProbe* probe);       ///< sees every 4-bit operation from now on; nullptr: nobody does
  void set_observer(ActivationObserver observer);  ///< an empty one listens to nothing
  KvCacheType kv_cache_type() const;  ///< of hidden_states()
  std::string_view isa() const;                    ///< "generic", "avx2", "avx512"
  int threads() const;
  void set_threads(int threads);  ///< from the next call on; 0: every usable core
  /// Bytes of weights that a decode step of one token reads, logits included, the KV cache not.
  std::int64_t bytes_per_token() const;
  Activations activations() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace spear
