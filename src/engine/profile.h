// Measures the latency table of a model on this machine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/scheduler/latency_table.h"
#include "ops/cpu_model.h"

namespace spear {

struct ProfileOptions {
  KvCacheType kv_cache_type = KvCacheType::bf16;
  double seconds = 40;  ///< of measurements, behind one warm-up of each step; every step is measured twice at least
  std::int64_t max_decodes = 32, max_chunk = 512;
  std::int64_t max_context = 2048;
  std::int64_t held_out = 24;  ///< steps that are measured and predicted, for the error
  std::uint64_t seed = 1;
};

/// What a table is kept under. `build` and `head_type` are what the caller knows of them.
LatencyKey latency_key(const CpuModel& model, KvCacheType kv_cache_type, const std::string& head_type,
                       const std::string& build);

/// The key is left to the caller. The ways of fusing that the kernels' part of it finds best are the model's from then on,
/// steps are timed with them. Compensators must be on, their order set; they are on at full density afterwards.
/// `progress` hears of each phase. Throws Error(usage) for sizes below 1.
LatencyTable profile(CpuModel& model, const ProfileOptions& options,
                     const std::function<void(const std::string&)>& progress = {});

}  // namespace spear
