// Layers over more tokens than one should hold activations of: every operation runs chunk by chunk of sequences, and what
// an operation has used up is freed on the way. Tensors stay small enough for malloc to give them out again.
#pragma once

#include <functional>
#include <vector>

#include "torch/torch_model.h"

namespace spear {

/// An Ops backend of model/transformer.h around TorchOps. An activation is a list: [tokens of the chunk, features] each.
class ChunkedOps {
 public:
  using Activation = std::vector<torch::Tensor>;
  using Batch = std::vector<TorchOps::Batch>;

  /// tokens: [sequences, length] -> chunks of whole sequences, 8192 tokens or one sequence each.
  static Batch batch(const torch::Tensor& tokens);

  explicit ChunkedOps(TorchModel& model) : inner_(model) {}

  Stream<ChunkedOps> embed(Batch& batch, NormId gain);
  template <std::size_t N>
  std::array<Activation, N> linears(const Activation& x, const std::array<ModuleId, N>& ids) {
    if (before_linears) before_linears(ids.front(), x);
    std::array<Activation, N> out;
    for (const auto& chunk : x) {
      auto y = inner_.linears(chunk, ids);
      for (std::size_t i = 0; i < N; ++i) out[i].push_back(std::move(y[i]));
    }
    return out;
  }
  Activation attention(std::int64_t layer, Activation q, Activation k, Activation v, Batch& batch);
  Activation gated_act(Activation gate, Activation up);
  Stream<ChunkedOps> linear_tail(Activation y, const Tail& tail, Stream<ChunkedOps> stream);
  void observe(const char* name, std::int64_t layer, const Activation& value) {
    if (on_value) on_value(name, layer, value);
  }

  /// Called with the input of modules that share one before the first of them runs on any chunk, if set; it may replace
  /// their slots' weights.
  std::function<void(ModuleId first, const Activation& x)> before_linears;
  std::function<void(const char* name, std::int64_t layer, const Activation&)> on_value;

 private:
  TorchOps inner_;
};

}  // namespace spear
