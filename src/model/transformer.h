// The decoder, written once. `Ops` supplies arithmetic: torch (gradients), CPU kernels, later CUDA and tensor parallel.
// Its vocabulary is cut where fusion happens:
//
//   Ops::Activation                                  a [tokens, features] value, opaque here
//   Ops::Batch                                       tokens, positions, KV cache: opaque to the layer
//   Stream<Ops> embed(batch, gain)                   token embedding, its scale and rotation, and its first RMSNorm
//   std::array<Activation, N> linears(x, ids)        several linears (with compensators and biases) on one input; their
//                                                    z's can be computed together
//   Activation attention(layer, q, k, v, batch)      norms of q and k, rotary embedding, KV cache, causal softmax in the
//                                                    layer's window
//   Activation gated_act(gate, up)                   act(gate) ⊙ up
//   Stream<Ops> linear_tail(y, tail, stream)         linear + RMSNorm of the output, if any + residual + the next
//                                                    RMSNorm: one fused tail
//   void observe(name, layer, activation)            named intermediates, a no-op unless someone listens
//
// What a family has and another has not is in ModelConfig; weights, frequencies and windows are the backend's to look up
// by layer.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "model/config.h"

namespace spear {

/// How a block of the layer ends: a linear, the norm of its output where the family has one, the norm of what reads on.
/// `back`: a rotated stream ends here, and its norm is that of the stream rotated back.
struct Tail {
  ModuleId linear;
  std::optional<NormId> output;
  NormId next;
  bool back = false;
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
  const auto output = [&](NormKind kind) {
    return config.output_norms ? std::optional(NormId::of(layer, kind)) : std::nullopt;
  };
  const bool last = layer + 1 == config.num_hidden_layers;
  const NormId next = last ? NormId::final(config) : NormId::input(layer + 1);

  auto [q, k, v] = ops.linears(
      stream.normed, std::array{id(LinearKind::q_proj), id(LinearKind::k_proj), id(LinearKind::v_proj)});
  auto attended = ops.attention(layer, std::move(q), std::move(k), std::move(v), batch);
  ops.observe("attention", layer, attended);
  const Tail attention_tail{id(LinearKind::o_proj), output(NormKind::attention_output), NormId::post_attention(layer)};
  stream = ops.linear_tail(std::move(attended), attention_tail, std::move(stream));
  ops.observe("post_attention", layer, stream.residual);

  auto [gate, up] = ops.linears(stream.normed, std::array{id(LinearKind::gate_proj), id(LinearKind::up_proj)});
  auto activated = ops.gated_act(std::move(gate), std::move(up));
  ops.observe("gated_act", layer, activated);
  const Tail mlp_tail{id(LinearKind::down_proj), output(NormKind::mlp_output), next, last && config.rotated_stream};
  stream = ops.linear_tail(std::move(activated), mlp_tail, std::move(stream));
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
