// The decoder, written once. `Ops` supplies arithmetic: torch (gradients), CPU kernels, later CUDA and tensor parallel.
// Its vocabulary is cut where fusion happens:
//
//   Ops::Activation                                  a [tokens, features] value, opaque here
//   Ops::Batch                                       tokens, positions, KV cache: opaque to the layer
//   Stream<Ops> embed(batch, gain)                   token embedding, and its first RMSNorm
//   std::array<Activation, N> linears(x, ids)        several linears on one input; their z's can be computed together
//   Activation attention(layer, q, k, v, batch)      rotary embedding, KV cache, causal softmax
//   Activation gated_act(gate, up)                   silu(gate) ⊙ up
//   Stream<Ops> linear_tail(y, id, stream, gain)     linear + compensator + residual + the next RMSNorm: one fused tail
//   void observe(name, layer, activation)            named intermediates, a no-op unless someone listens
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "model/config.h"

namespace spear {

/// An RMSNorm gain by place: two per layer, then the final one.
struct NormId {
  int index = 0;

  static NormId input(std::int64_t layer) { return {static_cast<int>(2 * layer)}; }
  static NormId post_attention(std::int64_t layer) { return {static_cast<int>(2 * layer) + 1}; }
  static NormId final(const ModelConfig& config) { return {static_cast<int>(2 * config.num_hidden_layers)}; }
  bool operator==(const NormId&) const = default;
};

/// The residual stream and its RMSNorm under the gain of whatever reads it next. Both [tokens, hidden_size].
template <class Ops>
struct Stream {
  typename Ops::Activation residual;
  typename Ops::Activation normed;
};

template <class Ops>
Stream<Ops> decoder_layer(Ops& ops, const ModelConfig& config, std::int64_t layer, Stream<Ops> stream,
                          typename Ops::Batch& batch) {
  const auto id = [layer](LinearKind kind) { return ModuleId::of(layer, kind); };
  const NormId next = layer + 1 < config.num_hidden_layers ? NormId::input(layer + 1) : NormId::final(config);

  auto [q, k, v] = ops.linears(
      stream.normed, std::array{id(LinearKind::q_proj), id(LinearKind::k_proj), id(LinearKind::v_proj)});
  auto attended = ops.attention(layer, std::move(q), std::move(k), std::move(v), batch);
  ops.observe("attention", layer, attended);
  stream = ops.linear_tail(std::move(attended), id(LinearKind::o_proj), std::move(stream), NormId::post_attention(layer));
  ops.observe("post_attention", layer, stream.residual);

  auto [gate, up] = ops.linears(stream.normed, std::array{id(LinearKind::gate_proj), id(LinearKind::up_proj)});
  auto activated = ops.gated_act(std::move(gate), std::move(up));
  ops.observe("gated_act", layer, activated);
  stream = ops.linear_tail(std::move(activated), id(LinearKind::down_proj), std::move(stream), next);
  ops.observe("layer", layer, stream.residual);
  return stream;
}

/// Layers [begin, end) on a stream; a stream kept from before is how an unchanged prefix is re-used.
template <class Ops>
Stream<Ops> decoder_layers(Ops& ops, const ModelConfig& config, std::int64_t begin, std::int64_t end,
                           Stream<Ops> stream, typename Ops::Batch& batch) {
  for (std::int64_t layer = begin; layer < end; ++layer) {
    stream = decoder_layer(ops, config, layer, std::move(stream), batch);
  }
  return stream;
}

/// Final normalized hidden state of every token: [tokens, hidden_size].
template <class Ops>
typename Ops::Activation transformer(Ops& ops, const ModelConfig& config, typename Ops::Batch& batch) {
  return decoder_layers(ops, config, 0, config.num_hidden_layers, ops.embed(batch, NormId::input(0)), batch).normed;
}

}  // namespace spear
