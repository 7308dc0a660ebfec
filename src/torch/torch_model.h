// The torch plane: the Ops backend of model/transformer.h made of tensor operations, with gradients.
// Every slot (linear, gain, compensator) holds a tensor that may carry history: who trains puts parametrized
// tensors into the slots before a forward pass; who measures replaces or observes single modules.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "model/forward_model.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "torch/libtorch.h"

namespace spear {

/// A compensator as tensors (compensator/compensator.h has the formula). w1 is undefined without a gate.
struct TorchCompensator {
  torch::Tensor a;   ///< [rank + gate_rows, in]; the same tensor in modules that share it
  torch::Tensor b;   ///< [out, rank]
  torch::Tensor w1;  ///< [hidden, rank + gate_rows]
  torch::Tensor b1;  ///< [hidden]
  torch::Tensor w2;  ///< [rank, hidden]
  torch::Tensor b2;  ///< [rank]

  std::int64_t rank() const { return b.size(1); }
  /// z_all: [tokens, rows] -> g(z): [tokens, rank] (ones without a gate).
  torch::Tensor gate(const torch::Tensor& z_all) const;
  /// z_all: [tokens, rows] float32 -> B (g(z) ⊙ z): [tokens, out] in `type`.
  torch::Tensor correction(const torch::Tensor& z_all, torch::ScalarType type) const;
};

TorchCompensator to_torch(const Compensator& compensator);

struct TorchLinear {
  torch::Tensor weight;      ///< [out, in], in the model's compute type
  torch::Tensor row_factor;  ///< [out] float32 that multiplies the rows of weight, if defined: row scales in training
  torch::Tensor bias;        ///< [out] float32, if defined
  std::optional<TorchCompensator> compensator;
};

/// All tensors of a model on one device.
struct TorchWeights {
  ModelConfig config;
  torch::Tensor embed_tokens;  ///< [vocab, hidden] float32
  torch::Tensor head;          ///< [vocab, hidden] float32; the same storage when tied
  std::vector<torch::Tensor> gains;  ///< by NormId, float32; undefined where the model has none
  std::vector<TorchLinear> linears;  ///< by ModuleId
  torch::Tensor rotation;  ///< Q of a rotated stream [hidden, hidden] float32, or undefined
};

class TorchModel;

/// The Ops backend. Activations are [batch * length, features]: residual float32, linears in the compute type.
class TorchOps {
 public:
  using Activation = torch::Tensor;
  struct Batch {
    torch::Tensor tokens;  ///< [batch, length] int64
    std::int64_t start = 0;
    class TorchKvCache* cache = nullptr;
  };

  explicit TorchOps(TorchModel& model) : model_(model) {}

  Stream<TorchOps> embed(Batch& batch, NormId gain);
  template <std::size_t N>
  std::array<torch::Tensor, N> linears(const torch::Tensor& x, const std::array<ModuleId, N>& ids) {
    std::array<torch::Tensor, N> out;
    torch::Tensor z, z_owner;
    for (std::size_t i = 0; i < N; ++i) out[i] = linear(x, ids[i], z, z_owner);
    return out;
  }
  torch::Tensor attention(std::int64_t layer, torch::Tensor q, torch::Tensor k, torch::Tensor v, Batch& batch);
  torch::Tensor gated_act(const torch::Tensor& gate, const torch::Tensor& up);
  Stream<TorchOps> linear_tail(const torch::Tensor& y, const Tail& tail, Stream<TorchOps> stream);
  void observe(const char*, std::int64_t, const torch::Tensor&) {}

 private:
  /// `z` is re-used while the A of `z_owner` is the module's A.
  torch::Tensor linear(const torch::Tensor& x, ModuleId id, torch::Tensor& z, torch::Tensor& z_owner);
  torch::Tensor rms_norm(const torch::Tensor& x, NormId gain);
  /// Norm of each head, as q and k have it in some families; x [tokens, heads * head_dim].
  torch::Tensor norm_heads(const torch::Tensor& x, NormId gain);

  TorchModel& model_;
};

/// [batch, length] int64 on `device`; throws Error(bad_input) on an id outside the vocabulary.
torch::Tensor token_tensor(const TokenBatch& tokens, const ModelConfig& config, torch::Device device);

/// Whether a TorchModel starts with the weights of its linears, most of its memory, or whoever uses it fills the slots.
enum class Linears { loaded, empty };

class TorchModel : public ForwardModel {
 public:
  /// Dequantizes `weights` onto `device`; linears in `compute` (float32 or bfloat16).
  TorchModel(const ModelWeights& weights, torch::Device device, torch::ScalarType compute, Linears linears = Linears::loaded);

  const ModelConfig& config() const override { return weights_.config; }
  std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) override;
  std::vector<float> hidden_states(const TokenBatch& tokens, KvCache* cache) override;
  void logits(std::span<const float> hidden, std::span<float> out) override;

  /// [batch, length] int64 tokens -> [batch * length, hidden_size] float32, with gradients if a slot asks for them.
  torch::Tensor hidden(const torch::Tensor& tokens, KvCache* cache = nullptr);
  /// The stream that enters layer `layer`, and the final hidden state from a stream that enters `layer`.
  Stream<TorchOps> stream_before(const torch::Tensor& tokens, std::int64_t layer);
  Stream<TorchOps> advance(Stream<TorchOps> stream, std::int64_t begin, std::int64_t end, const torch::Tensor& tokens);
  /// [rows, hidden_size] -> [rows, vocab_size] float32.
  torch::Tensor logits(const torch::Tensor& hidden) const;

  TorchWeights& weights() { return weights_; }
  const TorchWeights& weights() const { return weights_; }
  TorchLinear& linear(ModuleId id) { return weights_.linears.at(static_cast<std::size_t>(id.index)); }
  /// Fills the slots of a layer's linears with what `weights`, of the same shape, has for them; and empties them.
  void load_layer(const ModelWeights& weights, std::int64_t layer);
  void drop_layer(std::int64_t layer);
  torch::Device device() const { return device_; }
  torch::ScalarType compute_type() const { return compute_; }
  torch::Tensor token_tensor(const TokenBatch& tokens) const { return spear::token_tensor(tokens, config(), device_); }

  /// Called with input x [tokens, in] and output y [tokens, out] of every linear, if set.
  std::function<void(ModuleId, const torch::Tensor& x, torch::Tensor& y)> on_linear;

 private:
  friend class TorchOps;
  /// Tables of local layers or the others for positions [0, end).
  const std::pair<torch::Tensor, torch::Tensor>& rotary(bool local, std::int64_t end);

  TorchWeights weights_;
  torch::Device device_;
  torch::ScalarType compute_;
  std::array<std::pair<torch::Tensor, torch::Tensor>, 2> rotary_;  ///< by locality: cos, sin: [positions, head_dim / 2] float32
};

}  // namespace spear
