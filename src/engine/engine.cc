#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>

namespace spear {
namespace {

constexpr std::int64_t kLogitRows = 32;  // bounds the memory of logits

const EngineOptions& checked(const EngineOptions& options) {
  if (options.num_blocks < 1 || options.max_num_seqs < 1) {
    throw usage_error(fmt::format("an engine of {} blocks for {} requests", options.num_blocks, options.max_num_seqs));
  }
  return options;
}

}  // namespace

Engine::Engine(PagedModel& model, const ChunkPolicy& policy, const EngineOptions& options)
    : model_(model),
      policy_(policy),
      options_(checked(options)),
      cache_(model.make_paged_cache(options.num_blocks, options.kv_cache_type)),
      blocks_(options.num_blocks, cache_->block_size(), options.hash_seed) {
  const auto most = static_cast<std::size_t>(options_.max_num_seqs);
  running_.reserve(most);
  batch_.reserve(most);
  chunks_.reserve(most);
  sampled_.reserve(most);
}

RequestId Engine::add(Request request) {
  const ModelConfig& config = model_.config();
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  if (prompt == 0) throw usage_error("the prompt has no tokens", "prompt", "give at least one");
  if (request.max_tokens < 1) throw usage_error("nothing to generate", "max_tokens", "ask for at least one token");
  if (prompt >= config.max_position_embeddings) {
    throw usage_error(
        fmt::format("the prompt has {} tokens and the model has {} positions", prompt, config.max_position_embeddings),
        "prompt", "shorten the prompt; it is never cut silently");
  }
  const std::int64_t limit = std::min(request.max_tokens, config.max_position_embeddings - prompt) + prompt;
  // The last token is sampled, but never computed.
  const std::int64_t needed = blocks_for(limit - 1, cache_->block_size());
  if (needed > blocks_.num_blocks()) {
    throw out_of_resources(fmt::format("the request needs {} blocks of {} tokens and the KV cache has {}", needed,
                                       cache_->block_size(), blocks_.num_blocks()),
                           "", "ask for fewer tokens, or give the KV cache more memory");
  }
  for (const auto& [token, bias] : request.sampling.logit_bias) {
    if (token < config.vocab_size) continue;
    throw bad_input(fmt::format("token {} is outside the vocabulary of {}", token, config.vocab_size), "logit_bias");
  }
  auto sequence =
      std::make_unique<Sequence>(last_id_ + 1, std::move(request), limit, config.vocab_size, cache_->block_size());
  const std::size_t all = running_.size() + waiting_.size() + ended_.size() + 1;
  for (auto* list : {&waiting_, &ended_, &reported_}) list->reserve(all);
  outputs_.reserve(all);
  waiting_.push_back(std::move(sequence));
  totals_.prompt_tokens += prompt;
  return ++last_id_;
}

bool Engine::cancel(RequestId id) {
  for (auto* list : {&running_, &waiting_}) {
    const auto found = std::find_if(list->begin(), list->end(), [id](const auto& s) { return s->id == id; });
    if (found == list->end()) continue;
    (*found)->finished = FinishReason::cancelled;
    (*found)->drop(blocks_);
    ended_.push_back(std::move(*found));
    list->erase(found);
    return true;
  }
  return false;
}

std::span<const StepOutput> Engine::step() {
  reported_.clear();
  outputs_.clear();
  for (SequencePtr& sequence : ended_) {
    report(*sequence, -1);
    reported_.push_back(std::move(sequence));
  }
  ended_.clear();
  schedule();
  if (!batch_.empty()) compute();
  return outputs_;
}

void Engine::schedule() {
  batch_.clear();
  for (const SequencePtr& sequence : running_) sequence->scheduled = 0;  // of a step that threw
  schedule_decodes();
  std::int64_t budget = prefill_budget();
  schedule_prefills(budget);
  admit(budget);
  // Only prompts run, and none of them can get a block: the youngest gives its blocks to the others.
  while (batch_.empty() && !running_.empty()) {
    if (running_.size() > 1) preempt_last();
    budget = prefill_budget();
    schedule_prefills(budget);
  }
}

void Engine::schedule_decodes() {
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!sequence.decoding()) continue;
    bool room = sequence.reserve(blocks_, sequence.size());
    while (!room && running_.size() > i + 1) {
      preempt_last();
      room = sequence.reserve(blocks_, sequence.size());
    }
    if (!room) return preempt_last();  // the youngest itself
    sequence.scheduled = 1;
    batch_.push_back(&sequence);
  }
}

std::int64_t Engine::prefill_budget() const {
  StepLoad load;
  load.waiting = static_cast<std::int64_t>(waiting_.size());
  for (const SequencePtr& sequence : running_) {
    if (sequence->scheduled > 0) {
      ++load.decodes;
      load.decode_context += sequence->computed;
    } else {
      if (load.prefill_tokens == 0) load.prefill_context = sequence->computed;
      load.prefill_tokens += sequence->missing();
    }
  }
  return std::max<std::int64_t>(policy_.prefill_tokens(load), load.decodes == 0 ? 1 : 0);
}

void Engine::schedule_prefills(std::int64_t& budget) {
  for (const SequencePtr& sequence : running_) {
    if (budget == 0) return;
    if (sequence->scheduled > 0) continue;
    if (schedule_chunk(*sequence, std::min(sequence->missing(), budget))) budget -= sequence->scheduled;
  }
}

/// Up to `tokens` more tokens, as many as there are blocks for; false if there are none.
bool Engine::schedule_chunk(Sequence& sequence, std::int64_t tokens) {
  if (!sequence.reserve(blocks_, sequence.computed + tokens)) {
    const auto held = static_cast<std::int64_t>(sequence.block_table().size()) * blocks_.block_size();
    tokens = held - sequence.computed;
  }
  if (tokens <= 0) return false;
  sequence.scheduled = tokens;
  batch_.push_back(&sequence);
  return true;
}

/// First come, first served: who does not fit waits, and so does everybody behind.
void Engine::admit(std::int64_t& budget) {
  while (!waiting_.empty() && budget > 0 && static_cast<std::int64_t>(running_.size()) < options_.max_num_seqs) {
    Sequence& sequence = *waiting_.front();
    if (options_.prefix_caching && !sequence.request().prompt_logprobs) sequence.match_prefix(blocks_);
    if (!has_room(sequence)) return sequence.drop(blocks_);
    if (sequence.admitted == std::chrono::steady_clock::time_point()) {
      sequence.admitted = std::chrono::steady_clock::now();
      sequence.cached_tokens = sequence.computed;
    }
    totals_.prefix_queries += sequence.size();
    totals_.prefix_hits += sequence.computed;
    running_.push_back(std::move(waiting_.front()));
    waiting_.erase(waiting_.begin());
    if (schedule_chunk(sequence, std::min(sequence.missing(), budget))) budget -= sequence.scheduled;
  }
}

/// Free blocks for all its tokens, beside what admitted prompts still need.
bool Engine::has_room(const Sequence& sequence) const {
  if (running_.empty()) return true;  // add() made sure that it fits alone
  std::int64_t needed = sequence.blocks_missing(sequence.size());
  for (const SequencePtr& other : running_) needed += other->blocks_missing(other->size());
  return needed <= blocks_.free_blocks();
}

/// The request that was admitted last goes back to the head of the queue; its tokens will be computed again.
void Engine::preempt_last() {
  running_.back()->drop(blocks_);
  waiting_.insert(waiting_.begin(), std::move(running_.back()));
  running_.pop_back();
  ++totals_.preemptions;
}

void Engine::compute() {
  chunks_.clear();
  for (const Sequence* sequence : batch_) {
    const auto tokens = sequence->tokens().subspan(static_cast<std::size_t>(sequence->computed),
                                                   static_cast<std::size_t>(sequence->scheduled));
    chunks_.push_back({tokens, sequence->computed, sequence->block_table()});
  }
  const auto hidden = model_.step(chunks_, *cache_);
  const auto width = static_cast<std::size_t>(model_.config().hidden_size);
  sampled_.clear();
  last_hidden_.clear();
  std::size_t row = 0;
  for (Sequence* sequence : batch_) {
    const auto rows = static_cast<std::size_t>(sequence->scheduled);
    if (sequence->request().prompt_logprobs) {
      score_prompt(*sequence, sequence->computed, hidden.subspan(row * width, rows * width));
    }
    row += rows;
    sequence->commit(blocks_, options_.prefix_caching);
    if (sequence->missing() > 0) continue;
    const auto last = hidden.subspan((row - 1) * width, width);
    last_hidden_.insert(last_hidden_.end(), last.begin(), last.end());
    sampled_.push_back(sequence);
  }
  sample(last_hidden_);
  retire();
}

/// hidden: rows of the tokens from position `first` on; each predicts the token behind it.
void Engine::score_prompt(Sequence& sequence, std::int64_t first, std::span<const float> hidden) {
  const auto width = static_cast<std::size_t>(model_.config().hidden_size);
  const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
  // What a preempted request computes again is known already.
  const auto known = static_cast<std::int64_t>(sequence.prompt_logprobs.size());
  const std::int64_t end =
      std::min(first + static_cast<std::int64_t>(hidden.size() / width), sequence.prompt_tokens() - 1);
  for (std::int64_t begin = std::max(first, known); begin < end; begin += kLogitRows) {
    const auto rows = static_cast<std::size_t>(std::min(end - begin, kLogitRows));
    if (logits_.size() < rows * vocab) logits_.resize(rows * vocab);
    const auto logits = std::span(logits_).first(rows * vocab);
    model_.logits(hidden.subspan(static_cast<std::size_t>(begin - first) * width, rows * width), logits);
    for (std::size_t i = 0; i < rows; ++i) {
      const auto token = sequence.tokens()[static_cast<std::size_t>(begin) + i + 1];
      const auto scored = sequence.sampler.score(logits.subspan(i * vocab, vocab), token);
      sequence.prompt_logprobs.emplace_back(scored.begin(), scored.end());
    }
  }
}

void Engine::sample(std::span<const float> hidden) {
  const auto width = static_cast<std::size_t>(model_.config().hidden_size);
  const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
  for (std::size_t begin = 0; begin < sampled_.size(); begin += kLogitRows) {
    const std::size_t rows = std::min<std::size_t>(sampled_.size() - begin, kLogitRows);
    if (logits_.size() < rows * vocab) logits_.resize(rows * vocab);
    const auto logits = std::span(logits_).first(rows * vocab);
    model_.logits(hidden.subspan(begin * width, rows * width), logits);
    for (std::size_t i = 0; i < rows; ++i) take_token(*sampled_[begin + i], logits.subspan(i * vocab, vocab));
  }
}

void Engine::take_token(Sequence& sequence, std::span<const float> logits) {
  std::int32_t token = -1;
  try {
    token = sequence.sampler.next(logits, sequence.request().constraint.get());
    sequence.append(token);
    if (sequence.finished == FinishReason::eos) {
      token = -1;
    } else {
      ++totals_.generation_tokens;
    }
  } catch (const Error& error) {  // one request's logits must not end the others
    sequence.error = error;
    sequence.finished = FinishReason::failed;
  }
  report(sequence, token);
}

void Engine::report(Sequence& sequence, std::int32_t token) {
  outputs_.push_back({sequence.id, token, sequence.finished,
                      token >= 0 ? sequence.sampler.logprobs() : std::span<const TokenLogprob>(),
                      sequence.error ? &*sequence.error : nullptr, sequence.cached_tokens, sequence.admitted,
                      sequence.size() <= sequence.prompt_tokens() + 1 ? sequence.prompt_logprobs
                                                                      : std::span<const std::vector<TokenLogprob>>()});
}

void Engine::retire() {
  for (SequencePtr& sequence : running_) {
    if (!sequence->finished) continue;
    sequence->drop(blocks_);
    reported_.push_back(std::move(sequence));
  }
  std::erase(running_, nullptr);
}

EngineStats Engine::stats() const {
  EngineStats stats = totals_;
  stats.running = static_cast<std::int64_t>(running_.size());
  stats.waiting = static_cast<std::int64_t>(waiting_.size());
  stats.num_blocks = blocks_.num_blocks();
  stats.free_blocks = blocks_.free_blocks();
  return stats;
}

}  // namespace spear
