#include "engine/step_timer.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "ops/cpu/paged_kv_cache.h"

namespace spear {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kLogitRows = 32;         // as in the engine
constexpr std::int64_t kPoolBytes = 256 << 20;  // of cache that contexts are laid over: more than processors cache

}  // namespace

StepTimer::StepTimer(CpuModel& model, KvCacheType kv_cache_type, const StepLimits& limits, std::uint64_t seed)
    : model_(model), random_(seed), size_(model.block_size()) {
  max_context_ = std::min(limits.context, model.config().max_position_embeddings - limits.chunk - 1);
  max_context_ = std::max<std::int64_t>(max_context_ / size_ * size_, 0);
  const std::int64_t wanted = (limits.decodes + 1) * (max_context_ / size_ + 1);
  pool_ = std::max(std::min(wanted, kPoolBytes / model.block_bytes(kv_cache_type)), max_context_ / size_ + 2);
  const std::int64_t blocks = pool_ + limits.decodes + limits.chunk / size_ + 2;
  cache_ = model.make_paged_cache(blocks, kv_cache_type);
  // Pages that were never written are one page of zeros: attention would find all of it in the nearest cache.
  auto& paged = dynamic_cast<CpuPagedKvCache&>(*cache_);
  std::memset(paged.block(0, 0, 0), 0, static_cast<std::size_t>(paged.bytes()));
}

double StepTimer::run(const TimedStep& step) {
  tokens_.resize(static_cast<std::size_t>(step.decodes + step.prefill));
  for (auto& token : tokens_) {
    token = static_cast<std::int32_t>(random_.below(static_cast<std::uint64_t>(model_.config().vocab_size)));
  }
  tables_.assign(static_cast<std::size_t>(step.decodes + (step.prefill > 0 ? 1 : 0)), {});
  chunks_.clear();
  std::int64_t own = pool_, shared = 0;
  const auto table = [&](std::vector<std::int32_t>& blocks, std::int64_t context, std::int64_t tokens) {
    for (std::int64_t i = 0; i < context / size_; ++i) blocks.push_back(static_cast<std::int32_t>(shared++ % pool_));
    for (std::int64_t held = context / size_ * size_; held < context + tokens; held += size_) {
      blocks.push_back(static_cast<std::int32_t>(own++));
    }
  };
  for (std::int64_t i = 0; i < step.decodes; ++i) {
    auto& blocks = tables_[static_cast<std::size_t>(i)];
    table(blocks, step.context, 1);
    chunks_.push_back({std::span(tokens_).subspan(static_cast<std::size_t>(i), 1), step.context, blocks});
  }
  if (step.prefill > 0) {
    table(tables_.back(), step.prefill_context, step.prefill);
    chunks_.push_back(
        {std::span(tokens_).last(static_cast<std::size_t>(step.prefill)), step.prefill_context, tables_.back()});
  }
  model_.set_compensator_density(step.density);
  const auto start = Clock::now();
  const auto hidden = model_.step(chunks_, *cache_);
  const auto width = static_cast<std::size_t>(model_.config().hidden_size);
  const std::int64_t rows = step.decodes + (step.prefill > 0 ? 1 : 0);
  logits_.resize(static_cast<std::size_t>(std::min(rows, kLogitRows) * model_.config().vocab_size));
  for (std::int64_t row = 0; row < rows; row += kLogitRows) {
    const auto count = static_cast<std::size_t>(std::min(kLogitRows, rows - row));
    const auto of = hidden.subspan(static_cast<std::size_t>(row) * width, count * width);
    model_.logits(of, std::span(logits_).first(count * static_cast<std::size_t>(model_.config().vocab_size)));
  }
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace spear
