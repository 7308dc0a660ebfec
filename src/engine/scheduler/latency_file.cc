// The file of a latency table. It may come from anywhere: everything is checked.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "engine/scheduler/latency_table.h"
#include "io/untrusted.h"

namespace spear {
namespace {

using nlohmann::json;

constexpr const char* kSchema = "spear.latency/1";
constexpr std::size_t kMaxNodes = 256, kMaxModules = 1'000'000, kMaxHeldOut = 10'000, kMaxKernels = 100'000, kMaxFileBytes = 16'000'000;
constexpr double kMaxNumber = 1e9;

json grid_json(const LatencyGrid& grid) { return {{"x", grid.x}, {"y", grid.y}, {"ms", grid.value}}; }

json shape_json(const StepShape& s) {
  return {{"decodes", s.decodes},
          {"decode_context", s.decode_context},
          {"prefill", s.prefill},
          {"prefill_context", s.prefill_context},
          {"density", s.density}};
}

class Reader {
 public:
  explicit Reader(std::string where) : where_(std::move(where)) {}

  Error error(const std::string& name, const std::string& what) const {
    return bad_input(fmt::format("\"{}\" {}", name, what), where_, "measure again: spear profile --model MODEL");
  }

  const json& member(const json& object, const char* name) const {
    if (!object.is_object() || !object.contains(name)) throw error(name, "is missing");
    return object.at(name);
  }

  std::string text(const json& object, const char* name) const {
    const json& value = member(object, name);
    if (!value.is_string() || value.get_ref<const std::string&>().size() > 1000)
      throw error(name, "must be a short string");
    return value.get<std::string>();
  }

  double number(const json& value, const char* name) const {
    if (!value.is_number()) throw error(name, "must be a number");
    const double number = value.get<double>();
    if (!std::isfinite(number) || number < 0 || number > kMaxNumber) throw error(name, "is out of range");
    return number;
  }

  std::vector<double> numbers(const json& object, const char* name, std::size_t most) const {
    const json& list = member(object, name);
    if (!list.is_array() || list.size() > most) throw error(name, fmt::format("must be a list of at most {}", most));
    std::vector<double> out;
    for (const json& value : list) out.push_back(number(value, name));
    return out;
  }

  LatencyGrid grid(const json& object, const char* name) const {
    const json& value = member(object, name);
    LatencyGrid grid{numbers(value, "x", kMaxNodes), numbers(value, "y", kMaxNodes),
                     numbers(value, "ms", kMaxNodes * kMaxNodes)};
    for (const auto* nodes : {&grid.x, &grid.y}) {
      if (nodes->empty()) throw error(name, "has no nodes");
      for (std::size_t i = 1; i < nodes->size(); ++i) {
        if (!((*nodes)[i] > (*nodes)[i - 1])) throw error(name, "has nodes that do not ascend");
      }
    }
    if (grid.value.size() != grid.x.size() * grid.y.size()) throw error(name, "has not one value per node");
    grid.make_monotone();  // a table that was edited must not break the search either
    return grid;
  }

  FusionTiming kernel(const json& object) const {
    const auto value = [&](const std::string& name) { return number(member(object, name.c_str()), name.c_str()); };
    const auto count = [&](const char* name) { return static_cast<std::int64_t>(value(name)); };
    FusionTiming timing{{count("rows"), count("cols"), count("ranks")}, count("count"), count("tokens"), value("plain_us"), {}};
    for (std::size_t i = 0; i < kFusions.size(); ++i) timing.fused_us[i] = value(fmt::format("{}_us", fusion_name(kFusions[i])));
    return timing;
  }

  StepShape shape(const json& object) const {
    StepShape shape;
    shape.decodes = static_cast<std::int64_t>(number(member(object, "decodes"), "decodes"));
    shape.decode_context = static_cast<std::int64_t>(number(member(object, "decode_context"), "decode_context"));
    shape.prefill = static_cast<std::int64_t>(number(member(object, "prefill"), "prefill"));
    shape.prefill_context = number(member(object, "prefill_context"), "prefill_context");
    shape.density = std::min(number(member(object, "density"), "density"), 1.0);
    return shape;
  }

 private:
  std::string where_;
};

json key_json(const LatencyKey& key) {
  return {{"machine", key.machine},
          {"isa", key.isa},
          {"build", key.build},
          {"kv_cache_type", key.kv_cache_type},
          {"activations", key.activations},
          {"head_type", key.head_type},
          {"model", key.model},
          {"threads", key.threads}};
}

}  // namespace

std::string LatencyKey::hash() const { return sha256_hex(key_json(*this).dump(-1, ' ', true)).substr(0, 12); }

json to_json(const LatencyTable& table) {
  json held_out = json::array();
  for (const HeldOutStep& step : table.held_out) {
    json entry = shape_json(step.shape);
    entry["measured_ms"] = step.measured_ms;
    entry["predicted_ms"] = step.predicted_ms;
    held_out.push_back(std::move(entry));
  }
  json kernels = json::array();
  for (const FusionTiming& t : table.kernels) {
    json entry = {{"rows", t.shape.rows}, {"cols", t.shape.cols}, {"ranks", t.shape.ranks},
                  {"count", t.count},     {"tokens", t.tokens},   {"plain_us", t.plain_us}};
    for (const Fusion fusion : kFusions) entry[fmt::format("{}_us", fusion_name(fusion))] = t.us(fusion);
    entry["best"] = fusion_name(t.best());
    kernels.push_back(std::move(entry));
  }
  return {{"schema", kSchema},
          {"key", key_json(table.key)},
          {"created", table.created},
          {"base", grid_json(table.base)},
          {"decode_context", grid_json(table.decode_context)},
          {"prefill_context", grid_json(table.prefill_context)},
          {"compensators", grid_json(table.compensators)},
          {"module_us", table.module_us},
          {"held_out", std::move(held_out)},
          {"kernels", std::move(kernels)},
          {"error", {{"p50", table.error_quantile(0.5)}, {"p90", table.error_quantile(0.9)}}}};
}

LatencyTable parse_latency_table(const json& json, const std::string& where) {
  const Reader reader(where);
  if (reader.text(json, "schema") != kSchema) {
    throw reader.error("schema", fmt::format("is {}, not {}", printable(reader.text(json, "schema")), kSchema));
  }
  LatencyTable table;
  const auto& key = reader.member(json, "key");
  table.key = {reader.text(key, "machine"),
               reader.text(key, "isa"),
               reader.text(key, "build"),
               reader.text(key, "kv_cache_type"),
               reader.text(key, "activations"),
               reader.text(key, "head_type"),
               reader.text(key, "model"),
               static_cast<int>(std::min(reader.number(reader.member(key, "threads"), "threads"), 1e6))};
  table.created = reader.text(json, "created");
  table.base = reader.grid(json, "base");
  if (table.base.value.back() <= 0) throw reader.error("base", "says that steps take no time");
  table.decode_context = reader.grid(json, "decode_context");
  table.prefill_context = reader.grid(json, "prefill_context");
  table.compensators = reader.grid(json, "compensators");
  table.module_us = reader.numbers(json, "module_us", kMaxModules);
  const auto& held_out = reader.member(json, "held_out");
  if (!held_out.is_array() || held_out.size() > kMaxHeldOut) throw reader.error("held_out", "must be a short list");
  for (const auto& entry : held_out) {
    table.held_out.push_back({reader.shape(entry), reader.number(reader.member(entry, "measured_ms"), "measured_ms"),
                              reader.number(reader.member(entry, "predicted_ms"), "predicted_ms")});
  }
  if (!json.contains("kernels")) return table;
  const auto& kernels = json.at("kernels");
  if (!kernels.is_array() || kernels.size() > kMaxKernels) throw reader.error("kernels", "must be a short list");
  for (const auto& entry : kernels) table.kernels.push_back(reader.kernel(entry));
  return table;
}

LatencyTable read_latency_table(const std::filesystem::path& path) {
  return parse_latency_table(read_json_object(path, kMaxFileBytes), path.string());
}

std::filesystem::path latency_table_path(const std::filesystem::path& model, const LatencyKey& key) {
  const std::string name = "latency-" + key.hash() + ".json";
  if (std::filesystem::is_directory(model)) return model / name;
  return model.parent_path() / (model.filename().string() + "." + name);
}

void write_latency_table(const std::filesystem::path& path, const LatencyTable& table) {
  if (std::filesystem::exists(std::filesystem::symlink_status(path))) {
    bool ours = std::filesystem::is_regular_file(std::filesystem::symlink_status(path));
    try {
      ours = ours && read_latency_table(path).key == table.key;
    } catch (const Error&) {
      ours = false;
    }
    if (!ours) {
      throw usage_error("something other than an older table of this machine is there", path.string(),
                        "move it away, or give another --out");
    }
  }
  write_file_atomic(path, to_json(table).dump(1) + "\n");
}

std::optional<LatencyTable> find_latency_table(const std::filesystem::path& model, const LatencyKey& key) {
  const auto path = latency_table_path(model, key);
  if (!std::filesystem::is_regular_file(path)) return {};
  LatencyTable table = read_latency_table(path);
  if (!(table.key == key)) return {};
  return table;
}

}  // namespace spear
