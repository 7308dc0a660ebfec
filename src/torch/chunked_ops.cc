#include "torch/chunked_ops.h"

#include <algorithm>

namespace spear {
namespace {

constexpr std::int64_t kTokens = 8192;

/// The tensor, and nothing in its place in the list.
torch::Tensor take(torch::Tensor& chunk) { return std::exchange(chunk, torch::Tensor()); }

}  // namespace

ChunkedOps::Batch ChunkedOps::batch(const torch::Tensor& tokens) {
  Batch out;
  const std::int64_t sequences = std::max<std::int64_t>(1, kTokens / tokens.size(1));
  for (std::int64_t first = 0; first < tokens.size(0); first += sequences) {
    out.push_back({tokens.narrow(0, first, std::min(sequences, tokens.size(0) - first))});
  }
  return out;
}

Stream<ChunkedOps> ChunkedOps::embed(Batch& batch, NormId gain) {
  Stream<ChunkedOps> out;
  for (auto& chunk : batch) {
    auto [residual, normed] = inner_.embed(chunk, gain);
    out.residual.push_back(std::move(residual));
    out.normed.push_back(std::move(normed));
  }
  return out;
}

ChunkedOps::Activation ChunkedOps::attention(std::int64_t layer, Activation q, Activation k, Activation v, Batch& batch) {
  for (std::size_t i = 0; i < batch.size(); ++i) q[i] = inner_.attention(layer, take(q[i]), take(k[i]), take(v[i]), batch[i]);
  return q;
}

ChunkedOps::Activation ChunkedOps::gated_act(Activation gate, Activation up) {
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = inner_.gated_act(take(gate[i]), take(up[i]));
  return gate;
}

Stream<ChunkedOps> ChunkedOps::linear_tail(Activation y, const Tail& tail, Stream<ChunkedOps> stream) {
  if (before_linears) before_linears(tail.linear, y);
  for (std::size_t i = 0; i < y.size(); ++i) {
    auto [residual, normed] = inner_.linear_tail(take(y[i]), tail, {take(stream.residual[i]), take(stream.normed[i])});
    stream.residual[i] = std::move(residual);
    stream.normed[i] = std::move(normed);
  }
  return stream;
}

}  // namespace spear
