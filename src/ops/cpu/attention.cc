#include "ops/cpu/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/progress.h"
#include "base/resources.h"
#include "ops/cpu/linear.h"

namespace spear {
namespace {

constexpr std::int64_t kQueryBlock = 32;  // positions whose scores are computed together, for all heads of a group

/// First, last, second, second to last, ...: causal blocks grow, so neighbours in this order cost the same together.
std::int64_t balanced_order(std::int64_t i, std::int64_t count) { return i % 2 == 0 ? i / 2 : count - 1 - i / 2; }

/// Copies k and v of every token into the cache.
void append(const AttentionShape& shape, std::int64_t layer, const float* k, const float* v, CpuKvCache& cache) {
  const std::int64_t d = shape.head_dim;
  for (std::int64_t sequence = 0; sequence < shape.batch; ++sequence) {
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
      float* keys = cache.keys(layer, sequence, head) + cache.length() * d;
      float* values = cache.values(layer, sequence, head) + cache.length() * d;
      for (std::int64_t t = 0; t < shape.length; ++t) {
        const std::int64_t source = ((sequence * shape.length + t) * shape.kv_heads + head) * d;
        std::copy_n(k + source, d, keys + t * d);
        std::copy_n(v + source, d, values + t * d);
      }
    }
  }
}

/// All query heads of one key/value head, for positions [begin, end) of one sequence.
void attend_block(const Kernels& kernels, const AttentionShape& shape, std::int64_t layer, std::int64_t sequence,
                  std::int64_t kv_head, std::int64_t begin, std::int64_t end, const float* q, CpuKvCache& cache,
                  float* out) {
  const std::int64_t d = shape.head_dim;
  const std::int64_t group = shape.heads / shape.kv_heads;
  const std::int64_t positions = end - begin;
  const std::int64_t rows = group * positions;
  const std::int64_t visible = cache.length() + end;
  const float scale = 1.0F / std::sqrt(static_cast<float>(d));
  thread_local std::vector<float> queries, scores, mixed;
  queries.resize(static_cast<std::size_t>(rows * d));
  scores.resize(static_cast<std::size_t>(rows * visible));
  mixed.resize(static_cast<std::size_t>(rows * d));
  const auto offset = [&](std::int64_t row) {  // row = head of the group * positions + position
    const std::int64_t token = sequence * shape.length + begin + row % positions;
    return (token * shape.heads + kv_head * group + row / positions) * d;
  };

  for (std::int64_t row = 0; row < rows; ++row) {
    const float* source = q + offset(row);
    std::transform(source, source + d, queries.begin() + row * d, [scale](float value) { return value * scale; });
  }
  const WeightView keys{WeightKind::f32, visible, d, cache.keys(layer, sequence, kv_head), d * 4};
  multiply_rows(kernels, keys, 0, visible, queries.data(), d, rows, scores.data(), visible, false);
  for (std::int64_t row = 0; row < rows; ++row) {
    float* const row_scores = scores.data() + row * visible;
    const std::int64_t seen = cache.length() + begin + row % positions + 1;
    kernels.softmax(row_scores, seen);
    std::fill(row_scores + seen, row_scores + visible, 0.0F);
  }
  multiply_columns(kernels, scores.data(), visible, rows, visible, cache.values(layer, sequence, kv_head), d,
                   mixed.data(), d);
  for (std::int64_t row = 0; row < rows; ++row) std::copy_n(mixed.data() + row * d, d, out + offset(row));
}

}  // namespace

CpuKvCache::CpuKvCache(const ModelConfig& config, std::int64_t layers, std::int64_t batch, std::int64_t capacity)
    : layers_(layers),
      batch_(batch),
      heads_(config.num_key_value_heads),
      capacity_(capacity),
      head_dim_(config.head_dim) {
  if (layers < 1 || batch < 1 || capacity < 1) {
    throw usage_error(fmt::format("a cache of {} sequences x {} tokens", batch, capacity));
  }
  const double floats = static_cast<double>(layers) * static_cast<double>(batch) * static_cast<double>(heads_) *
                        static_cast<double>(capacity) * static_cast<double>(head_dim_);
  if (8.0 * floats > static_cast<double>(available_memory_bytes())) {
    throw out_of_resources(fmt::format("the key/value cache needs {} and {} are free", format_bytes(8.0 * floats),
                                       format_bytes(static_cast<double>(available_memory_bytes()))),
                           "", "use fewer tokens of context or fewer sequences at once");
  }
  const auto size = static_cast<std::size_t>(layers_ * batch_ * heads_ * capacity_ * head_dim_);
  keys_.resize(size);
  values_.resize(size);
}

RotaryTable::RotaryTable(const ModelConfig& config, std::int64_t first_position, std::int64_t count)
    : half_(config.head_dim / 2),
      cos_(static_cast<std::size_t>(count * half_)),
      sin_(static_cast<std::size_t>(count * half_)) {
  for (std::int64_t i = 0; i < half_; ++i) {
    const double frequency =
        std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
    for (std::int64_t p = 0; p < count; ++p) {
      const double angle = static_cast<double>(first_position + p) * frequency;
      cos_[static_cast<std::size_t>(p * half_ + i)] = static_cast<float>(std::cos(angle));
      sin_[static_cast<std::size_t>(p * half_ + i)] = static_cast<float>(std::sin(angle));
    }
  }
}

void RotaryTable::rotate(std::int64_t index, float* head) const {
  const float* const cos = cos_.data() + index * half_;
  const float* const sin = sin_.data() + index * half_;
  for (std::int64_t i = 0; i < half_; ++i) {
    const float a = head[i], b = head[i + half_];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half_] = b * cos[i] + a * sin[i];
  }
}

void attend(ThreadPool& pool, const Kernels& kernels, const AttentionShape& shape, std::int64_t layer, float* q,
            float* k, const float* v, const RotaryTable& rotary, CpuKvCache& cache, float* out) {
  const std::int64_t tokens = shape.batch * shape.length;
  pool.parallel_for(tokens, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      const std::int64_t index = token % shape.length;
      for (std::int64_t h = 0; h < shape.heads; ++h)
        rotary.rotate(index, q + (token * shape.heads + h) * shape.head_dim);
      for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
        rotary.rotate(index, k + (token * shape.kv_heads + h) * shape.head_dim);
      }
    }
  });
  append(shape, layer, k, v, cache);

  const std::int64_t blocks = (shape.length + kQueryBlock - 1) / kQueryBlock;
  pool.parallel_for(shape.batch * shape.kv_heads * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t first = balanced_order(task % blocks, blocks) * kQueryBlock;
      attend_block(kernels, shape, layer, task / blocks / shape.kv_heads, task / blocks % shape.kv_heads, first,
                   std::min(first + kQueryBlock, shape.length), q, cache, out);
    }
  });
}

}  // namespace spear
