#include "ops/cpu_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
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
        ops(prepared, kernels, *pool),
        plan(weights.config),
        kv_cache_type(options.kv_cache_type) {
    prepared.release(weights);
    set_compensators(options.compensators);
    for (int index = 0; index < module_count(weights.config); ++index) {
      if (weights.linear({index}).compensator) compensator_order.push_back(index);
    }
  }
  void set_compensators(bool on) {
    compensators = on;
    ops.set_compensators(on);
  }

  void set_density(double density) {
    const std::size_t count = compensators_at(density, compensator_order.size());
    const auto active = ops.active_compensators();
    for (std::size_t i = 0; i < compensator_order.size(); ++i) {
      active[static_cast<std::size_t>(compensator_order[i])] = i < count ? 1 : 0;
    }
  }

  std::int64_t bytes_per_token() {
    return prepared.bytes_per_token(compensators ? ops.active_compensators() : std::span<std::uint8_t>());
  }

  /// Final normalized hidden states, kept until the next call. The chunks have been checked.
  std::span<const float> run(std::span<const SequenceChunk> chunks, CpuPagedKvCache& cache) {
    tokens.clear();
    for (const SequenceChunk& chunk : chunks) tokens.insert(tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    plan.build(chunks, pool->size());
    CpuOps::Batch batch{tokens, &plan, &cache};
    hidden = transformer(ops, weights.config, batch);
    return hidden.values();
  }

  ModelWeights weights;
  const Kernels& kernels;
  std::optional<ThreadPool> pool;  // replaced in place: `ops` refers to it
  CpuWeights prepared;             // views of `weights`
  CpuOps ops;
  bool compensators = true;
  std::vector<int> compensator_order;  // modules, most worthwhile first
  AttentionPlan plan;
  KvCacheType kv_cache_type;
  std::vector<std::int32_t> tokens;  // of the step, in rows
  CpuOps::Activation hidden;
};

namespace {

void check_tokens(std::span<const std::int32_t> tokens, const ModelConfig& config) {
  for (const std::int32_t token : tokens) {
    if (token >= 0 && token < config.vocab_size) continue;
    throw bad_input(fmt::format("token {} is outside the vocabulary of {}", token, config.vocab_size), "",
                    "use the tokenizer that belongs to this model");
  }
}

void check_chunk(const SequenceChunk& chunk, const CpuPagedKvCache& cache) {
  const auto count = static_cast<std::int64_t>(chunk.tokens.size());
  const auto held = static_cast<std::int64_t>(chunk.block_table.size()) * cache.block_size();
  if (count < 1 || chunk.first_position < 0 || chunk.first_position > held - count) {
    throw usage_error(
        fmt::format("a chunk of {} tokens at position {} with blocks for {}", count, chunk.first_position, held));
  }
  for (const std::int32_t id : chunk.block_table) {
    if (id >= 0 && id < cache.num_blocks()) continue;
    throw usage_error(fmt::format("block {} of a cache of {}", id, cache.num_blocks()));
  }
}

}  // namespace

CpuModel::CpuModel(ModelWeights weights, const CpuModelOptions& options)
    : state_(std::make_unique<State>(std::move(weights), options)) {}
CpuModel::~CpuModel() = default;
CpuModel::CpuModel(CpuModel&&) noexcept = default;
CpuModel& CpuModel::operator=(CpuModel&&) noexcept = default;

const ModelConfig& CpuModel::config() const { return state_->weights.config; }
const ModelWeights& CpuModel::weights() const { return state_->weights; }
void CpuModel::set_compensators(bool on) { state_->set_compensators(on); }
void CpuModel::set_compensator_density(double density) { state_->set_density(density); }

void CpuModel::set_compensator_order(std::vector<int> modules) {
  std::vector<int> given = modules, known = state_->compensator_order;
  std::sort(given.begin(), given.end());
  std::sort(known.begin(), known.end());
  if (given != known) throw usage_error("an order of compensators has to name every module that has one, once");
  state_->compensator_order = std::move(modules);
}

void CpuModel::set_fusion_table(FusionTable table) { state_->ops.fused().set_table(std::move(table)); }
void CpuModel::set_fusion_probe(FusionProbe* probe) { state_->ops.fused().set_probe(probe); }
void CpuModel::set_observer(ActivationObserver observer) { state_->ops.set_observer(std::move(observer)); }
std::string_view CpuModel::isa() const { return state_->kernels.isa; }
int CpuModel::threads() const { return state_->pool->size(); }
void CpuModel::set_threads(int threads) { state_->pool.emplace(threads); }
Activations CpuModel::activations() const { return state_->prepared.activations; }
std::int64_t CpuModel::bytes_per_token() const { return state_->bytes_per_token(); }

std::unique_ptr<KvCache> CpuModel::make_cache(std::int64_t batch, std::int64_t capacity) {
  return std::make_unique<CpuKvCache>(config(), config().num_hidden_layers, batch, capacity, state_->kv_cache_type);
}

KvCacheType CpuModel::kv_cache_type() const { return state_->kv_cache_type; }

std::int64_t CpuModel::block_size() const { return kBlockTokens; }

std::int64_t CpuModel::block_bytes(KvCacheType type) const {
  return config().num_hidden_layers * config().num_key_value_heads * block_layout(type, config().head_dim).bytes;
}

std::unique_ptr<PagedKvCache> CpuModel::make_paged_cache(std::int64_t num_blocks, KvCacheType type) {
  return std::make_unique<CpuPagedKvCache>(config(), config().num_hidden_layers, num_blocks, type);
}

std::vector<float> CpuModel::hidden_states(const TokenBatch& tokens, KvCache* cache) {
  const std::int64_t count = tokens.batch * tokens.length;
  if (tokens.batch < 1 || tokens.length < 1 || count != static_cast<std::int64_t>(tokens.tokens.size())) {
    throw usage_error(
        fmt::format("{} tokens do not make {} sequences of {}", tokens.tokens.size(), tokens.batch, tokens.length));
  }
  check_tokens(tokens.tokens, config());
  std::unique_ptr<CpuKvCache> own;
  auto* held = dynamic_cast<CpuKvCache*>(cache);
  if (cache == nullptr) {
    own = std::make_unique<CpuKvCache>(config(), 1, tokens.batch, tokens.length, state_->kv_cache_type);
    held = own.get();
  } else if (held == nullptr || held->batch() != tokens.batch) {
    throw usage_error("the cache was made by another model, or for another number of sequences");
  }
  if (tokens.length > held->capacity() - held->length()) {
    throw usage_error(
        fmt::format("{} tokens after {} exceed the cache of {}", tokens.length, held->length(), held->capacity()), "",
        "make a cache with more capacity");
  }
  std::vector<SequenceChunk> chunks;
  for (std::int64_t s = 0; s < tokens.batch; ++s) {
    const auto length = static_cast<std::size_t>(tokens.length);
    chunks.push_back(
        {tokens.tokens.subspan(static_cast<std::size_t>(s) * length, length), held->length(), held->block_table(s)});
  }
  const auto hidden = state_->run(chunks, held->paged());
  held->advance(tokens.length);
  return {hidden.begin(), hidden.end()};
}

std::span<const float> CpuModel::step(std::span<const SequenceChunk> chunks, PagedKvCache& cache) {
  auto* const paged = dynamic_cast<CpuPagedKvCache*>(&cache);
  if (paged == nullptr) throw usage_error("the cache was made by another model");
  if (chunks.empty()) throw usage_error("a step without tokens");
  for (const SequenceChunk& chunk : chunks) {
    check_chunk(chunk, *paged);
    check_tokens(chunk.tokens, config());
  }
  return state_->run(chunks, *paged);
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
