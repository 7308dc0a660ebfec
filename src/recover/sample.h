// Calibration text, sampled from the reference itself at temperature 1 (design §2: no outside text).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "model/forward_model.h"

namespace spear {

/// Token sequences of one length; the last `held_out` of them are never trained on: the first half of those chooses
/// states and starts, the rest measures results when the user gives no text.
struct CalibrationSet {
  std::int64_t sequences = 0, length = 0, held_out = 0;
  std::vector<std::int32_t> tokens;  ///< [sequences, length]

  std::int64_t train_sequences() const { return sequences - held_out; }
  std::int64_t selection_sequences() const { return (held_out + 1) / 2; }
  std::span<const std::int32_t> rows(std::int64_t first, std::int64_t count) const {
    return std::span(tokens).subspan(static_cast<std::size_t>(first * length), static_cast<std::size_t>(count * length));
  }
};

/// How sequences begin. Of every four: two with the separator, one with the chat opening, one with a random token.
struct SampleOpenings {
  std::int32_t separator = 0;               ///< the token that stands between documents
  std::optional<std::int32_t> first;        ///< what every sequence begins with (BOS), if anything
  std::vector<std::int32_t> chat;           ///< may be empty: the separator is used instead
  std::function<bool(std::int32_t)> plain;  ///< whether a random first token may be this one
};

struct SampleOptions {
  std::int64_t sequences = 0, length = 512;
  std::int64_t batch = 96;  ///< sequences that share a forward pass
  std::uint64_t seed = 0;
};

/// Sequence i depends on (seed, i) and the model only. `finished(first, tokens)` is called with every finished batch
/// and `known` holds batches from an earlier, interrupted run, in order: they are not sampled again.
std::vector<std::int32_t> sample_sequences(ForwardModel& model, const SampleOpenings& openings, const SampleOptions& options,
                                           std::vector<std::int32_t> known = {},
                                           const std::function<void(std::span<const std::int32_t>)>& finished = {});

/// Inverse-CDF draw from softmax(logits) with u in [0, 1).
std::int32_t sample_token(std::span<const float> logits, double u);

/// Share of distinct n-grams among all n-grams that lie within one sequence.
double distinct_ngrams(const CalibrationSet& set, int n);

}  // namespace spear
