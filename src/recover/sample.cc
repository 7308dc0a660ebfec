#include "recover/sample.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <unordered_set>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "base/random.h"
#include "base/thread_pool.h"
#include "tensor/vector_math.h"

namespace spear {
namespace {

SPEAR_VECTOR_CLONES float sum_exp(const float* logits, std::int64_t n, float shift) {
  float lanes[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int lane = 0; lane < 16; ++lane) lanes[lane] += vector_exp(logits[i + lane] - shift);
  }
  for (; i < n; ++i) lanes[0] += vector_exp(logits[i] - shift);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

/// What a sequence of this kind begins with, but for openings.first.
std::vector<std::int32_t> own_opening(std::int64_t sequence, const SampleOpenings& openings, std::int64_t vocab, Random& random) {
  if (sequence % 4 == 1 && !openings.chat.empty()) return openings.chat;
  if (sequence % 4 != 3) return {openings.separator};
  for (;;) {
    const auto token = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocab)));
    if (!openings.plain || openings.plain(token)) return {token};
  }
}

std::vector<std::int32_t> opening_of(std::int64_t sequence, const SampleOpenings& openings, std::int64_t vocab, Random& random) {
  auto opening = own_opening(sequence, openings, vocab, random);
  if (openings.first && opening.front() != *openings.first) opening.insert(opening.begin(), *openings.first);
  return opening;
}

/// Samples sequences [first, first + count) into `out`, row-major [count, length].
void sample_batch(ForwardModel& model, const SampleOpenings& openings, const SampleOptions& options, std::int64_t first,
                  std::int64_t count, ThreadPool& pool, std::vector<std::int32_t>& out, Progress& progress) {
  const std::int64_t length = options.length, vocab = model.config().vocab_size;
  std::vector<Random> random;
  std::vector<std::vector<std::int32_t>> opening;
  for (std::int64_t i = 0; i < count; ++i) {
    random.emplace_back(options.seed, static_cast<std::uint64_t>(first + i));
    opening.push_back(opening_of(first + i, openings, vocab, random.back()));
  }
  out.assign(static_cast<std::size_t>(count * length), 0);
  std::vector<std::int32_t> current(static_cast<std::size_t>(count));
  std::vector<float> logits(static_cast<std::size_t>(count * vocab));
  const auto cache = model.make_cache(count, length);
  for (std::int64_t position = 0; position < length; ++position) {
    throw_if_interrupted();
    pool.parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const auto& given = opening[static_cast<std::size_t>(i)];
        const bool in_opening = position < static_cast<std::int64_t>(given.size());
        const auto row = std::span<const float>(logits).subspan(static_cast<std::size_t>(i * vocab), static_cast<std::size_t>(vocab));
        const std::int32_t token = in_opening ? given[static_cast<std::size_t>(position)]
                                              : sample_token(row, random[static_cast<std::size_t>(i)].uniform());
        current[static_cast<std::size_t>(i)] = token;
        out[static_cast<std::size_t>(i * length + position)] = token;
      }
    });
    if (position + 1 == length) break;
    const auto hidden = model.hidden_states({current, count, 1}, cache.get());
    model.logits(hidden, logits);
    progress.update(first * length + count * (position + 1));
  }
}

}  // namespace

std::int32_t sample_token(std::span<const float> logits, double u) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  const auto n = static_cast<std::int64_t>(logits.size());
  // Block sums first: the walk then looks at one block only.
  constexpr std::int64_t kBlock = 1024;
  std::vector<double> sums;
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    sums.push_back(sum_exp(logits.data() + begin, std::min(kBlock, n - begin), largest));
    total += sums.back();
  }
  double target = u * total;
  std::size_t block = 0;
  while (block + 1 < sums.size() && target >= sums[block]) target -= sums[block++];
  const std::int64_t begin = static_cast<std::int64_t>(block) * kBlock, end = std::min(begin + kBlock, n);
  for (std::int64_t i = begin; i < end; ++i) {
    target -= vector_exp(logits[static_cast<std::size_t>(i)] - largest);
    if (target < 0) return static_cast<std::int32_t>(i);
  }
  // Rounding left a sliver beyond the block: its most likely token is as good as any.
  return static_cast<std::int32_t>(std::max_element(logits.begin() + begin, logits.begin() + end) - logits.begin());
}

std::vector<std::int32_t> sample_sequences(ForwardModel& model, const SampleOpenings& openings, const SampleOptions& options,
                                           std::vector<std::int32_t> known,
                                           const std::function<void(std::span<const std::int32_t>)>& finished) {
  if (static_cast<std::int64_t>(openings.chat.size()) + (openings.first ? 1 : 0) >= options.length) {
    throw usage_error(fmt::format("sequences of {} tokens leave no room after the chat opening of {}", options.length,
                                  openings.chat.size()));
  }
  ThreadPool pool;
  Progress progress("sample", options.sequences * options.length);
  std::int64_t first = static_cast<std::int64_t>(known.size()) / options.length;
  while (first < options.sequences) {
    const std::int64_t count = std::min(options.batch, options.sequences - first);
    std::vector<std::int32_t> batch;
    sample_batch(model, openings, options, first, count, pool, batch, progress);
    known.insert(known.end(), batch.begin(), batch.end());
    first += count;
    if (finished) finished(known);
  }
  progress.update(options.sequences * options.length);
  return known;
}

double distinct_ngrams(const CalibrationSet& set, int n) {
  std::unordered_set<std::uint64_t> seen;
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < set.sequences; ++row) {
    const auto tokens = set.rows(row, 1);
    for (std::size_t i = 0; i + static_cast<std::size_t>(n) <= tokens.size(); ++i, ++count) {
      std::uint64_t hash = 0;
      for (int j = 0; j < n; ++j) hash = mix64(hash ^ static_cast<std::uint64_t>(tokens[i + static_cast<std::size_t>(j)] + 1));
      seen.insert(hash);
    }
  }
  return count > 0 ? static_cast<double>(seen.size()) / static_cast<double>(count) : 0;
}

}  // namespace spear
