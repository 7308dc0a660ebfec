#include "ops/cpu/fused_linear.h"

#include <algorithm>
#include <chrono>

namespace spear {
namespace {

constexpr std::int64_t kTokenBytes = 256 << 10;  // of activations that stay in L2 while weights pass by
constexpr std::int64_t kDrawTokens = 64;         // from here on a group of panels is work enough for a draw

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
  bool bf16 = false, integers = !inputs.empty(), quarters = false;
  for (const FusedJob& job : jobs) {
    (job.weight->kind == PackedKind::bf16 ? bf16 : integers) = true;
    quarters |= job.weight->group_size == kSmallestGroup;
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
  if (quarters) x_.negative_quarters = grown(quarters_, 4 * m * blocks);

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

void FusedLinear::quantize(const FusedInput& x, std::int64_t cols, Range tokens) {
  for (std::int64_t i = tokens.begin; i < tokens.end; ++i) {
    if (x.activate != nullptr) x.activate(x.x + i * cols, x.other + i * cols, cols);
    kernels_.quantize(x.x + i * cols, cols, i, x_);
  }
}

void FusedLinear::run(Activations activations, const FusedInput& x, std::span<const FusedJob> jobs,
                      std::span<const PackedView* const> inputs, Fusion fusion) {
  if (x.m == 0 || jobs.empty()) return;
  prepare(activations, x.m, jobs, inputs);
  FusionShape shape{0, jobs.front().weight->cols, 0};
  for (const FusedJob& job : jobs) shape.rows += job.weight->rows;
  for (const PackedView* input : inputs) shape.ranks += input->rows;
  if (fusion == Fusion::automatic && probe_ != nullptr) fusion = probe_->fusion;
  if (fusion == Fusion::automatic) fusion = table_.at(shape, x.m);
  if (probe_ == nullptr) return run_as(fusion, x, jobs, inputs);
  const auto start = std::chrono::steady_clock::now();
  run_as(fusion, x, jobs, inputs);
  FusionProbe::Sum& sum = probe_->sums[shape];
  sum.us += std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  ++sum.count;
}

void FusedLinear::run_as(Fusion fusion, const FusedInput& x, std::span<const FusedJob> jobs,
                         std::span<const PackedView* const> inputs) {
  if (fusion == Fusion::late) {
    run_late(x, jobs, inputs);
  } else if (fusion == Fusion::early) {
    run_early(x, jobs, inputs);
  } else {
    run_separate(x, jobs, inputs);
  }
}

void FusedLinear::run_late(const FusedInput& x, std::span<const FusedJob> jobs,
                           std::span<const PackedView* const> inputs) {
  const int threads = pool_.size();
  const std::int64_t m = x.m;
  quantize(x, jobs.front().weight->cols, {0, m});
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

/// y of all jobs, B in the registers of its tiles if `correct`. Called by every thread. Many tokens: threads draw groups
/// of panels from a counter, so that a core that is slower, or shared with others, gets less.
void FusedLinear::multiply_blocks(std::int64_t m, std::span<const FusedJob> jobs, int thread, bool correct) {
  const std::int64_t token_bytes = x_.depth * (x_.planes + (x_.bf16 != nullptr ? 2 : 0));
  const std::int64_t blocks = std::max<std::int64_t>(1, (m * token_bytes + kTokenBytes / 2) / kTokenBytes);
  const auto multiply = [&](std::size_t j, std::int64_t begin, std::int64_t end, std::int64_t block) {
    const FusedJob& job = jobs[j];
    const bool corrected = correct && job.compensator != nullptr;
    LowRankView low_rank;
    if (corrected) low_rank = job.compensator->low_rank(weighted_.data() + weighted_offsets_[j]);
    kernels_.multiply(*job.weight, begin, end, x_, m * block / blocks, m * (block + 1) / blocks,
                      corrected ? &low_rank : nullptr, job.y, job.weight->rows);
  };
  if (m >= kDrawTokens) {
    std::int64_t groups = 0;
    for (const FusedJob& job : jobs) groups += job.weight->panel_groups();
    for (std::int64_t unit; (unit = next_unit_.fetch_add(1, std::memory_order_relaxed)) < groups * blocks;) {
      std::int64_t group = unit % groups;
      std::size_t j = 0;
      for (; group >= jobs[j].weight->panel_groups(); ++j) group -= jobs[j].weight->panel_groups();
      multiply(j, group, group + 1, unit / groups);
    }
    return;
  }
  std::int64_t total = 0;
  for (const FusedJob& job : jobs) total += job.weight->panel_groups() * job.weight->group_panels;
  const Share share{total, thread, pool_.size()};
  for (std::int64_t block = 0; block < blocks; ++block) {
    std::int64_t before = 0;
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      const PackedView& w = *jobs[j].weight;
      const auto [begin, end] = share.of(before, w.panel_groups(), w.group_panels);
      before += w.panel_groups() * w.group_panels;
      if (begin < end) multiply(j, begin, end, block);
    }
  }
}

void FusedLinear::run_early(const FusedInput& x, std::span<const FusedJob> jobs,
                            std::span<const PackedView* const> inputs) {
  const int threads = pool_.size();
  float* const weighted = grown(weighted_, weighted_offsets_.back());
  z_ready_.reset(threads);
  next_unit_.store(0, std::memory_order_relaxed);
  pool_.run([&](int thread) {
    const Range tokens{x.m * thread / threads, x.m * (thread + 1) / threads};
    quantize(x, jobs.front().weight->cols, tokens);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      kernels_.multiply(*inputs[i], 0, inputs[i]->panel_groups(), x_, tokens.begin, tokens.end, nullptr,
                        z_.data() + z_offsets_[i], inputs[i]->rows);
    }
    weigh(jobs, inputs, tokens, weighted);
    z_ready_.arrive();
    z_ready_.wait();
    multiply_blocks(x.m, jobs, thread, true);
  });
}

/// Products one after another: what fusing is measured against.
void FusedLinear::run_separate(const FusedInput& x, std::span<const FusedJob> jobs,
                               std::span<const PackedView* const> inputs) {
  const int threads = pool_.size();
  float* const weighted = grown(weighted_, weighted_offsets_.back());
  next_unit_.store(0, std::memory_order_relaxed);
  const auto share_of = [&](int thread) { return Range{x.m * thread / threads, x.m * (thread + 1) / threads}; };
  pool_.run([&](int thread) { quantize(x, jobs.front().weight->cols, share_of(thread)); });
  pool_.run([&](int thread) { multiply_blocks(x.m, jobs, thread, false); });
  if (inputs.empty()) return;
  pool_.run([&](int thread) {
    const Range tokens = share_of(thread);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      kernels_.multiply(*inputs[i], 0, inputs[i]->panel_groups(), x_, tokens.begin, tokens.end, nullptr,
                        z_.data() + z_offsets_[i], inputs[i]->rows);
    }
    weigh(jobs, inputs, tokens, weighted);
  });
  pool_.run([&](int thread) {
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      if (jobs[j].compensator == nullptr) continue;
      const std::int64_t groups = jobs[j].weight->panel_groups();
      kernels_.add_low_rank(*jobs[j].weight, groups * thread / threads, groups * (thread + 1) / threads,
                            jobs[j].compensator->low_rank(weighted + weighted_offsets_[j]), 0, x.m, jobs[j].y,
                            jobs[j].weight->rows);
    }
  });
}

}  // namespace spear
