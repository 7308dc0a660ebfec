#include "ops/cpu/fused_linear.h"

#include <algorithm>

namespace spear {
namespace {

constexpr std::int64_t kTokenBytes = 256 << 10;  // of activations that stay in L2 while weights pass by

template <class T>
T* grown(std::vector<T>& buffer, std::int64_t size) {
  if (static_cast<std::int64_t>(buffer.size()) < size) buffer.resize(static_cast<std::size_t>(size));
  return buffer.data();
}

/// The part of [0, count) whose cost, at `cost` each and starting at `before` of `total`, falls to `thread`.
/// Boundaries depend on sizes only.
struct Share {
  std::int64_t total = 0;
  int thread = 0, threads = 1;

  std::pair<std::int64_t, std::int64_t> of(std::int64_t before, std::int64_t count, std::int64_t cost) const {
    const auto boundary = [&](int index) {
      return std::clamp<std::int64_t>((total * index / threads - before + cost / 2) / cost, 0, count);
    };
    return {boundary(thread), boundary(thread + 1)};
  }
};

}  // namespace

void FusedLinear::prepare(Activations activations, std::int64_t m, std::span<const FusedJob> jobs,
                          std::span<const PackedView* const> inputs) {
  bool bf16 = false, integers = !inputs.empty();
  for (const FusedJob& job : jobs) {
    (job.weight->kind == PackedKind::bf16 ? bf16 : integers) = true;
  }
  const std::int64_t depth = jobs.front().weight->depth, blocks = depth / kActivationBlock;
  x_ = {};
  x_.planes = !integers ? 0 : activations == Activations::a8 ? 1 : 2;
  x_.depth = depth;
  if (bf16) x_.bf16 = grown(bf16_, m * depth);
  x_.codes = grown(codes_, m * x_.planes * depth);
  x_.scales = grown(scales_, m * blocks);
  x_.negative_sums = grown(sums_, m * blocks);
  x_.negative_halves = grown(halves_, 2 * m * blocks);

  std::int64_t size = 0;
  z_offsets_.clear();
  for (const PackedView* input : inputs) {
    z_offsets_.push_back(size);
    size += m * input->rows;
  }
  grown(z_, size);
  size = 0;
  weighted_offsets_.clear();
  for (const FusedJob& job : jobs) {
    weighted_offsets_.push_back(size);
    if (job.compensator != nullptr) size += m * job.compensator->gate().rank;
  }
  weighted_offsets_.push_back(size);
}

void FusedLinear::weigh(std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs, Range tokens,
                        float* weighted) {
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    if (jobs[j].compensator == nullptr) continue;
    const GateView& gate = jobs[j].compensator->gate();
    const std::int64_t ldz = inputs[jobs[j].input]->rows;
    kernels_.weigh(gate, z_.data() + z_offsets_[jobs[j].input] + tokens.begin * ldz, ldz, tokens.end - tokens.begin,
                   weighted + weighted_offsets_[j] + tokens.begin * gate.rank);
  }
}

void FusedLinear::run(Activations activations, const float* x, std::int64_t m, std::span<const FusedJob> jobs,
                      std::span<const PackedView* const> inputs, Fusion fusion) {
  if (m == 0 || jobs.empty()) return;
  prepare(activations, m, jobs, inputs);
  if (fusion == Fusion::late || (fusion == Fusion::automatic && m < kLateTokens)) {
    for (std::int64_t i = 0; i < m; ++i)
      kernels_.quantize(x + i * jobs.front().weight->cols, jobs.front().weight->cols, i, x_);
    run_late(m, jobs, inputs);
  } else {
    run_early(x, m, jobs, inputs);
  }
}

void FusedLinear::run_late(std::int64_t m, std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs) {
  const int threads = pool_.size();
  const std::int64_t weighted_size = weighted_offsets_.back();
  float* const weighted = grown(weighted_, weighted_size * threads);  // every thread makes its own: no second wait
  std::int64_t total = 0;
  for (const PackedView* input : inputs) total += input->panel_groups() * input->group_bytes();
  for (const FusedJob& job : jobs) total += job.weight->panel_groups() * job.weight->group_bytes();
  z_ready_.reset(threads);
  pool_.run([&](int thread) {
    const Share share{total, thread, threads};
    std::int64_t before = 0;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const PackedView& a = *inputs[i];
      const auto [begin, end] = share.of(before, a.panel_groups(), a.group_bytes());
      before += a.panel_groups() * a.group_bytes();
      if (begin < end) kernels_.multiply(a, begin, end, x_, 0, m, nullptr, z_.data() + z_offsets_[i], a.rows);
    }
    if (!inputs.empty()) z_ready_.arrive();
    const std::int64_t first_job = before;
    for (const FusedJob& job : jobs) {
      const PackedView& w = *job.weight;
      const auto [begin, end] = share.of(before, w.panel_groups(), w.group_bytes());
      before += w.panel_groups() * w.group_bytes();
      if (begin < end) kernels_.multiply(w, begin, end, x_, 0, m, nullptr, job.y, w.rows);
    }
    if (inputs.empty()) return;
    z_ready_.wait();
    float* const own = weighted + thread * weighted_size;
    weigh(jobs, inputs, {0, m}, own);
    before = first_job;
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      const PackedView& w = *jobs[j].weight;
      const auto [begin, end] = share.of(before, w.panel_groups(), w.group_bytes());
      before += w.panel_groups() * w.group_bytes();
      if (begin >= end || jobs[j].compensator == nullptr) continue;
      kernels_.add_low_rank(w, begin, end, jobs[j].compensator->low_rank(own + weighted_offsets_[j]), 0, m, jobs[j].y,
                            w.rows);
    }
  });
}

void FusedLinear::run_early(const float* x, std::int64_t m, std::span<const FusedJob> jobs,
                            std::span<const PackedView* const> inputs) {
  const int threads = pool_.size();
  const std::int64_t cols = jobs.front().weight->cols;
  float* const weighted = grown(weighted_, weighted_offsets_.back());
  const std::int64_t token_bytes = x_.depth * (x_.planes + (x_.bf16 != nullptr ? 2 : 0));
  const std::int64_t blocks = std::max<std::int64_t>(1, (m * token_bytes + kTokenBytes / 2) / kTokenBytes);
  std::int64_t total = 0;
  for (const FusedJob& job : jobs) total += job.weight->panel_groups() * job.weight->group_panels;
  z_ready_.reset(threads);
  pool_.run([&](int thread) {
    const Range tokens{m * thread / threads, m * (thread + 1) / threads};
    for (std::int64_t i = tokens.begin; i < tokens.end; ++i) kernels_.quantize(x + i * cols, cols, i, x_);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      kernels_.multiply(*inputs[i], 0, inputs[i]->panel_groups(), x_, tokens.begin, tokens.end, nullptr,
                        z_.data() + z_offsets_[i], inputs[i]->rows);
    }
    weigh(jobs, inputs, tokens, weighted);
    z_ready_.arrive();
    z_ready_.wait();
    const Share share{total, thread, threads};
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t first = m * block / blocks, last = m * (block + 1) / blocks;
      std::int64_t before = 0;
      for (std::size_t j = 0; j < jobs.size(); ++j) {
        const PackedView& w = *jobs[j].weight;
        const auto [begin, end] = share.of(before, w.panel_groups(), w.group_panels);
        before += w.panel_groups() * w.group_panels;
        if (begin >= end) continue;
        LowRankView low_rank;
        if (jobs[j].compensator != nullptr) low_rank = jobs[j].compensator->low_rank(weighted + weighted_offsets_[j]);
        kernels_.multiply(w, begin, end, x_, first, last, jobs[j].compensator != nullptr ? &low_rank : nullptr,
                          jobs[j].y, w.rows);
      }
    }
  });
}

}  // namespace spear
