#include "ops/cpu_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <optional>

#include "base/error.h"
#include "model/transformer.h"
#include "ops/cpu/cpu_ops.h"

namespace spear {

namespace {

template <class Value, std::size_t N>
Value parse_name(std::string_view text, const std::array<const char*, N>& names, const char* option) {
  for (std::size_t i = 0; i < N; ++i) {
    if (text == names[i]) return static_cast<Value>(i);
  }
  throw usage_error(fmt::format("unknown value '{}'", text), option, fmt::format("use {}", fmt::join(names, ", ")));
}

}  // namespace

Activations parse_activations(std::string_view text) {
  return parse_name<Activations, 3>(text, {"a32", "a16", "a8"}, "--activations");
}
HeadType parse_head_type(std::string_view text) {
  return parse_name<HeadType, 3>(text, {"int8", "bf16", "w4"}, "--head-dtype");
}

struct CpuModel::State {
  State(ModelWeights source, const CpuModelOptions& options)
      : weights(std::move(source)),
        kernels(default_kernels()),
        pool(std::in_place, options.threads),
        prepared(weights, options, *pool),
        ops(prepared, kernels, *pool) {
    prepared.release(weights);
    set_compensators(options.compensators);
  }
  void set_compensators(bool on) {
    compensators = on;
    ops.set_compensators(on);
  }

  ModelWeights weights;
  const Kernels& kernels;
  std::optional<ThreadPool> pool;  // replaced in place: `ops` refers to it
  CpuWeights prepared;             // views of `weights`
  CpuOps ops;
  bool compensators = true;
};

CpuModel::CpuModel(ModelWeights weights, const CpuModelOptions& options)
    : state_(std::make_unique<State>(std::move(weights), options)) {}
CpuModel::~CpuModel() = default;
CpuModel::CpuModel(CpuModel&&) noexcept = default;
CpuModel& CpuModel::operator=(CpuModel&&) noexcept = default;

const ModelConfig& CpuModel::config() const { return state_->weights.config; }
const ModelWeights& CpuModel::weights() const { return state_->weights; }
void CpuModel::set_compensators(bool on) { state_->set_compensators(on); }
void CpuModel::set_observer(ActivationObserver observer) { state_->ops.set_observer(std::move(observer)); }
std::string_view CpuModel::isa() const { return state_->kernels.isa; }
int CpuModel::threads() const { return state_->pool->size(); }
void CpuModel::set_threads(int threads) { state_->pool.emplace(threads); }
Activations CpuModel::activations() const { return state_->prepared.activations; }
std::int64_t CpuModel::bytes_per_token() const { return state_->prepared.bytes_per_token(state_->compensators); }

std::unique_ptr<KvCache> CpuModel::make_cache(std::int64_t batch, std::int64_t capacity) {
  return std::make_unique<CpuKvCache>(config(), config().num_hidden_layers, batch, capacity);
}

std::vector<float> CpuModel::hidden_states(const TokenBatch& tokens, KvCache* cache) {
  const std::int64_t count = tokens.batch * tokens.length;
  if (tokens.batch < 1 || tokens.length < 1 || count != static_cast<std::int64_t>(tokens.tokens.size())) {
    throw usage_error(
        fmt::format("{} tokens do not make {} sequences of {}", tokens.tokens.size(), tokens.batch, tokens.length));
  }
  for (const std::int32_t token : tokens.tokens) {
    if (token < 0 || token >= config().vocab_size) {
      throw bad_input(fmt::format("token {} is outside the vocabulary of {}", token, config().vocab_size), "",
                      "use the tokenizer that belongs to this model");
    }
  }
  std::unique_ptr<CpuKvCache> own;
  auto* held = dynamic_cast<CpuKvCache*>(cache);
  if (cache == nullptr) {
    own = std::make_unique<CpuKvCache>(config(), 1, tokens.batch, tokens.length);
    held = own.get();
  } else if (held == nullptr || held->batch() != tokens.batch) {
    throw usage_error("the cache was made by another model, or for another number of sequences");
  }
  if (tokens.length > held->capacity() - held->length()) {
    throw usage_error(
        fmt::format("{} tokens after {} exceed the cache of {}", tokens.length, held->length(), held->capacity()), "",
        "make a cache with more capacity");
  }
  CpuOps::Batch batch{tokens, held, RotaryTable(config(), held->length(), tokens.length)};
  auto hidden = transformer(state_->ops, config(), batch);
  held->advance(tokens.length);
  return {hidden.values().begin(), hidden.values().end()};
}

void CpuModel::logits(std::span<const float> hidden, std::span<float> out) {
  const auto rows = static_cast<std::int64_t>(hidden.size()) / config().hidden_size;
  if (rows * config().hidden_size != static_cast<std::int64_t>(hidden.size()) ||
      rows * config().vocab_size != static_cast<std::int64_t>(out.size())) {
    throw usage_error(fmt::format("{} hidden values do not give {} logits", hidden.size(), out.size()));
  }
  if (rows > 0) state_->ops.logits(hidden.data(), rows, out.data());
}

}  // namespace spear
