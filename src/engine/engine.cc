#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace spear {
namespace {

constexpr std::int64_t kLogitRows = 32;  // bounds the memory of logits

const EngineOptions& checked(const EngineOptions& options) {
  if (options.num_blocks < 1 || options.max_num_seqs < 1) {
    throw usage_error(fmt::format("an engine of {} blocks for {} requests", options.num_blocks, options.max_num_seqs));
  }
  return options;
}

SchedulerOptions scheduler_options(const EngineOptions& options) {
  SchedulerOptions scheduler = options.scheduler;
  scheduler.max_num_seqs = options.max_num_seqs;
  return scheduler;
}

}  // namespace

Engine::Engine(PagedModel& model, const EngineOptions& options, const ChunkPolicy* policy, LatencyModel* latency)
    : model_(model),
      options_(checked(options)),
      cache_(model.make_paged_cache(options.num_blocks, options.kv_cache_type)),
      blocks_(options.num_blocks, cache_->block_size(), options.hash_seed),
      scheduler_(policy != nullptr ? Scheduler(scheduler_options(options), *this, *policy)
                                   : Scheduler(scheduler_options(options), *this, *latency)) {
  totals_.compensator_density = options_.scheduler.density;
  const auto most = static_cast<std::size_t>(options_.max_num_seqs);
  chunks_.reserve(most);
  sampled_.reserve(most);
}

Engine::Engine(PagedModel& model, const ChunkPolicy& policy, const EngineOptions& options)
    : Engine(model, options, &policy, nullptr) {}
Engine::Engine(PagedModel& model, LatencyModel& latency, const EngineOptions& options)
    : Engine(model, options, nullptr, &latency) {}

double Engine::now() const {
  if (options_.clock) return options_.clock();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
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
  const auto density = request.compensator_density;
  if (density && !(*density >= 0 && *density <= 1)) {
    throw usage_error(fmt::format("{} is no part of the compensators", *density), "compensator_density", "give 0 to 1");
  }
  auto sequence =
      std::make_unique<Sequence>(last_id_ + 1, std::move(request), limit, config.vocab_size, cache_->block_size());
  const Request& wanted = sequence->request();
  sequence->priority = wanted.priority;
  const double arrival = std::chrono::duration<double>(wanted.arrival.time_since_epoch()).count();
  sequence->arrival = arrival == 0 || options_.clock ? now() : arrival;
  if (wanted.slo.ttft_ms > 0) sequence->ttft = wanted.slo.ttft_ms * 1e-3;
  if (wanted.slo.itl_ms > 0) sequence->itl = wanted.slo.itl_ms * 1e-3;
  if (density) sequence->density_class = density_key(*density);
  const std::size_t all = sequences_.size() + ended_.size() + 1;
  for (auto* list : {&sequences_, &ended_, &reported_}) list->reserve(all);
  outputs_.reserve(all);
  scheduler_.add(*sequence);
  sequences_.push_back(std::move(sequence));
  totals_.prompt_tokens += prompt;
  return ++last_id_;
}

/// Out of sequences_.
Engine::SequencePtr Engine::take(const ScheduledRequest& request) {
  const auto found =
      std::find_if(sequences_.begin(), sequences_.end(), [&](const SequencePtr& s) { return s.get() == &request; });
  SequencePtr sequence = std::move(*found);
  *found = std::move(sequences_.back());
  sequences_.pop_back();
  return sequence;
}

bool Engine::cancel(RequestId id) {
  const auto found = std::find_if(sequences_.begin(), sequences_.end(), [id](const auto& s) { return s->id == id; });
  if (found == sequences_.end()) return false;
  (*found)->finished = FinishReason::cancelled;
  scheduler_.remove(**found);
  (*found)->drop(blocks_);
  ended_.push_back(take(**found));
  return true;
}

std::int64_t Engine::blocks_missing(const ScheduledRequest& request, std::int64_t tokens) const {
  return static_cast<const Sequence&>(request).blocks_missing(tokens);
}

std::int64_t Engine::capacity(const ScheduledRequest& request) const {
  return static_cast<std::int64_t>(static_cast<const Sequence&>(request).block_table().size()) * blocks_.block_size();
}

bool Engine::reserve(ScheduledRequest& request, std::int64_t tokens) {
  return static_cast<Sequence&>(request).reserve(blocks_, tokens);
}

void Engine::match_prefix(ScheduledRequest& request) {
  auto& sequence = static_cast<Sequence&>(request);
  if (options_.prefix_caching && !sequence.request().prompt_logprobs) sequence.match_prefix(blocks_);
}

void Engine::drop(ScheduledRequest& request) { static_cast<Sequence&>(request).drop(blocks_); }

std::span<const StepOutput> Engine::step() {
  reported_.clear();
  outputs_.clear();
  for (SequencePtr& sequence : ended_) {
    report(*sequence, -1);
    reported_.push_back(std::move(sequence));
  }
  ended_.clear();
  const double start = now();
  const StepPlan& plan = scheduler_.next(start);
  refuse(plan.refused);
  if (!plan.batch.empty()) compute(plan, start);
  return outputs_;
}

void Engine::refuse(std::span<ScheduledRequest* const> requests) {
  for (ScheduledRequest* request : requests) {
    auto& sequence = static_cast<Sequence&>(*request);
    sequence.finished = FinishReason::refused;
    sequence.error = out_of_resources("the first token cannot come in time", "slo.ttft_ms",
                                      "ask again later, or allow more time");
    report(sequence, -1);
    reported_.push_back(take(sequence));
  }
}

/// What is to be noted of requests that were admitted in this step.
void Engine::begin(std::span<ScheduledRequest* const> batch) {
  for (ScheduledRequest* request : batch) {
    if (!std::exchange(request->fresh, false)) continue;
    auto& sequence = static_cast<Sequence&>(*request);
    if (sequence.admitted == std::chrono::steady_clock::time_point()) {
      sequence.admitted = std::chrono::steady_clock::now();
      sequence.cached_tokens = sequence.computed;
    }
    totals_.prefix_queries += sequence.size();
    totals_.prefix_hits += sequence.computed;
  }
}

void Engine::compute(const StepPlan& plan, double start) {
  begin(plan.batch);
  if (plan.shape.density != model_density_) model_.set_compensator_density(plan.shape.density);
  model_density_ = plan.shape.density;
  chunks_.clear();
  for (ScheduledRequest* request : plan.batch) {
    auto& sequence = static_cast<Sequence&>(*request);
    const auto tokens = sequence.tokens().subspan(static_cast<std::size_t>(sequence.computed),
                                                  static_cast<std::size_t>(sequence.scheduled));
    chunks_.push_back({tokens, sequence.computed, sequence.block_table()});
    sequence.density = std::min(sequence.density, plan.shape.density);
  }
  const auto hidden = model_.step(chunks_, *cache_);
  const auto width = static_cast<std::size_t>(model_.config().hidden_size);
  sampled_.clear();
  last_hidden_.clear();
  std::size_t row = 0;
  for (ScheduledRequest* request : plan.batch) {
    auto& sequence = static_cast<Sequence&>(*request);
    const auto rows = static_cast<std::size_t>(sequence.scheduled);
    if (sequence.request().prompt_logprobs) {
      score_prompt(sequence, sequence.computed, hidden.subspan(row * width, rows * width));
    }
    row += rows;
    sequence.commit(blocks_, options_.prefix_caching);
    if (sequence.missing() > 0) continue;
    const auto last = hidden.subspan((row - 1) * width, width);
    last_hidden_.insert(last_hidden_.end(), last.begin(), last.end());
    sampled_.push_back(&sequence);
  }
  sample(last_hidden_);
  const double end = now();
  for (Sequence* sequence : sampled_) scheduler_.token(*sequence, end);
  scheduler_.done(end - start);
  totals_.predicted_seconds = plan.predicted;
  totals_.step_seconds = end - start;
  totals_.compensator_density = plan.shape.density;
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
                                                                      : std::span<const std::vector<TokenLogprob>>(),
                      sequence.density});
}

void Engine::retire() {
  for (Sequence* sequence : sampled_) {
    if (!sequence->finished) continue;
    scheduler_.remove(*sequence);
    sequence->drop(blocks_);
    reported_.push_back(take(*sequence));
  }
}

EngineStats Engine::stats() const {
  EngineStats stats = totals_;
  stats.running = static_cast<std::int64_t>(scheduler_.running().size());
  stats.waiting = static_cast<std::int64_t>(scheduler_.waiting().size());
  stats.num_blocks = blocks_.num_blocks();
  stats.free_blocks = blocks_.free_blocks();
  const SchedulerStats& scheduler = scheduler_.stats();
  stats.preemptions = scheduler.preemptions;
  stats.refused = scheduler.refused;
  stats.steps = scheduler.steps;
  stats.shed_steps = scheduler.shed_steps;
  return stats;
}

}  // namespace spear
