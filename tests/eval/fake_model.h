// A model whose probabilities are known: the next token depends on the current one alone, through a table of logits.
#pragma once

#include <vector>

#include "base/random.h"
#include "model/forward_model.h"

namespace spear {

class BigramModel : public ForwardModel {
 public:
  explicit BigramModel(std::int64_t vocab_size) : table(static_cast<std::size_t>(vocab_size * vocab_size)) {
    config_.vocab_size = vocab_size;
    config_.hidden_size = vocab_size;  // the hidden state is the token, one-hot
    config_.max_position_embeddings = 64;
  }

  static BigramModel random(std::int64_t vocab_size, std::uint64_t seed, double spread = 2.0) {
    BigramModel model(vocab_size);
    Random random(seed);
    for (float& logit : model.table) logit = static_cast<float>(spread * random.normal());
    return model;
  }

  float& logit(std::int64_t from, std::int64_t to) {
    return table[static_cast<std::size_t>(from * config_.vocab_size + to)];
  }

  const ModelConfig& config() const override { return config_; }
  std::unique_ptr<KvCache> make_cache(std::int64_t, std::int64_t) override { return nullptr; }
  std::vector<float> hidden_states(const TokenBatch& batch, KvCache*) override {
    ++forward_passes;
    const auto vocab = static_cast<std::size_t>(config_.vocab_size);
    std::vector<float> hidden(batch.tokens.size() * vocab, 0.0F);
    for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
      hidden[i * vocab + static_cast<std::size_t>(batch.tokens[i])] = 1.0F;
    }
    return hidden;
  }
  void logits(std::span<const float> hidden, std::span<float> out) override {
    const auto vocab = static_cast<std::size_t>(config_.vocab_size);
    for (std::size_t row = 0; row < hidden.size() / vocab; ++row) {
      for (std::size_t token = 0; token < vocab; ++token) {
        if (hidden[row * vocab + token] != 1.0F) continue;
        std::copy_n(table.begin() + static_cast<std::ptrdiff_t>(token * vocab), vocab,
                    out.begin() + static_cast<std::ptrdiff_t>(row * vocab));
      }
    }
  }

  std::vector<float> table;  ///< [vocab, vocab] logits of the next token
  int forward_passes = 0;

 private:
  ModelConfig config_;
};

/// float64 oracle: log-probabilities of a row.
inline std::vector<double> log_softmax(std::span<const float> row) {
  double largest = -1e300, sum = 0;
  for (const float v : row) largest = std::max(largest, static_cast<double>(v));
  for (const float v : row) sum += std::exp(static_cast<double>(v) - largest);
  std::vector<double> result;
  for (const float v : row) result.push_back(static_cast<double>(v) - largest - std::log(sum));
  return result;
}

}  // namespace spear
