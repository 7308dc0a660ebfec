// How long a step takes on this machine: measured once (`spear profile`), looked up by the scheduler, kept in a file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ops/cpu/fusion_table.h"

namespace spear {

/// What a step consists of, as far as its time depends on it.
struct StepShape {
  std::int64_t decodes = 0;         ///< sequences that get one token each
  std::int64_t decode_context = 0;  ///< sum of their tokens in the KV cache
  std::int64_t prefill = 0;         ///< prompt tokens
  double prefill_context = 0;       ///< tokens before them in the KV cache, on average
  double density = 1;               ///< part of the compensators that is applied

  std::int64_t rows() const { return decodes + prefill; }
};

/// A function of two variables, known at the nodes of a grid: linear between them, constant below the first and a
/// straight line beyond the last.
struct LatencyGrid {
  std::vector<double> x, y;   ///< ascending
  std::vector<double> value;  ///< [x, y]

  double at(double at_x, double at_y) const;
  double& node(std::size_t i, std::size_t j) { return value[i * y.size() + j]; }
  double node(std::size_t i, std::size_t j) const { return value[i * y.size() + j]; }
  /// Lowers nodes until none is above one that has more of both: noise only ever makes steps longer, and more work
  /// must not look cheaper.
  void make_monotone();
};

struct Estimate {
  double value = 0, weight = 1;  ///< weight: 1 / variance
};

/// The values that never fall and are nearest to the estimates (pool adjacent violators): noise of both signs.
std::vector<double> nearest_increasing(std::span<const Estimate> estimates);

/// A step that no node was made from.
struct HeldOutStep {
  StepShape shape;
  double measured_ms = 0, predicted_ms = 0;

  double relative_error() const;
};

/// What a table is valid for; another value of any member asks for another table.
struct LatencyKey {
  std::string machine, isa, build, kv_cache_type, activations, head_type;
  std::string model;  ///< sizes that decide the work, in words
  int threads = 0;

  bool operator==(const LatencyKey&) const = default;
  std::string hash() const;  ///< 12 hexadecimal digits
};

/// Times in milliseconds. The step is the sum of three parts, each monotone in everything it depends on.
struct LatencyTable {
  LatencyKey key;
  std::string created;
  LatencyGrid base;               ///< decodes x prompt tokens, at short contexts and all compensators
  LatencyGrid decode_context;     ///< decodes x mean context: what longer contexts add
  LatencyGrid prefill_context;    ///< prompt tokens x context before them: what it adds
  LatencyGrid compensators;       ///< density x rows: what compensators add to a step without
  std::vector<double> module_us;  ///< by module: its compensator's share of a step of one row
  std::vector<HeldOutStep> held_out;
  std::vector<FusionTiming> kernels;  ///< of the compensated operations; older tables have none

  double milliseconds(const StepShape& shape) const;
  /// Of |predicted - measured| / measured over held_out; 0 without any.
  double error_quantile(double quantile) const;
  /// The same machine, `factor` times as slow.
  LatencyTable scaled(double factor) const;
};

/// spear.latency/1.
nlohmann::json to_json(const LatencyTable& table);
/// Throws Error(bad_input) naming `where` and the member for anything that is not a table.
LatencyTable parse_latency_table(const nlohmann::json& json, const std::string& where);
LatencyTable read_latency_table(const std::filesystem::path& path);

/// CHECKPOINT/latency-HASH.json, or MODEL.latency-HASH.json beside a file.
std::filesystem::path latency_table_path(const std::filesystem::path& model, const LatencyKey& key);
/// Replaces an older table of the same key; throws Error(usage) when something else is in the way.
void write_latency_table(const std::filesystem::path& path, const LatencyTable& table);
/// The table kept with the model, or nothing. A damaged one throws.
std::optional<LatencyTable> find_latency_table(const std::filesystem::path& model, const LatencyKey& key);

}  // namespace spear
