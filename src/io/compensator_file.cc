#include "io/compensator_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/safetensors.h"
#include "io/untrusted.h"

namespace spear {
namespace {

using nlohmann::json;

constexpr const char* kFormatVersion = "1";
constexpr std::int64_t kMaxRank = 1 << 16;

std::string part(ModuleId id, const char* name) { return id.name() + ".compensator." + name; }

/// Modules that read the same input as `id`, in order.
std::vector<ModuleId> input_siblings(ModuleId id) {
  std::vector<ModuleId> siblings;
  for (int kind = 0; kind < kLinearsPerLayer; ++kind) {
    const auto other = ModuleId::of(id.layer(), static_cast<LinearKind>(kind));
    if (other.input_group() == id.input_group()) siblings.push_back(other);
  }
  return siblings;
}

/// Where the A of `id` is stored: with its group's owner when it is shared and the owner has no A of its own.
ModuleId holder_of_a(const ModelWeights& weights, ModuleId id) {
  const auto& a = weights.linear(id).compensator->a;
  std::vector<ModuleId> users;
  for (const ModuleId other : input_siblings(id)) {
    const auto& compensator = weights.linear(other).compensator;
    if (compensator && compensator->a == a) users.push_back(other);
  }
  const bool owner_free = !weights.linear(id.input_group()).compensator;
  return users.size() > 1 && owner_free ? id.input_group() : users.front();
}

void put_input(TensorMap& tensors, ModuleId holder, const CompensatorInput& a) {
  tensors[part(holder, "A")] = view_of(DType::i8, {a.rows, a.cols}, a.values);
  tensors[part(holder, "A_scale")] = view_of(DType::f16, {a.rows}, a.scales);
}

void put_compensator(TensorMap& tensors, ModuleId id, const Compensator& compensator) {
  tensors[part(id, "B")] = view_of(DType::i8, {compensator.out_features, compensator.rank}, compensator.b);
  tensors[part(id, "B_scale")] = view_of(DType::f16, {compensator.rank}, compensator.b_scales);
  const CompensatorGate& gate = compensator.gate;
  if (gate.hidden == 0) return;
  tensors[part(id, "gate.W1")] = view_of(DType::bf16, {gate.hidden, compensator.a->rows}, gate.w1);
  tensors[part(id, "gate.b1")] = view_of(DType::bf16, {gate.hidden}, gate.b1);
  tensors[part(id, "gate.W2")] = view_of(DType::bf16, {compensator.rank, gate.hidden}, gate.w2);
  tensors[part(id, "gate.b2")] = view_of(DType::bf16, {compensator.rank}, gate.b2);
}

/// "modules" of the metadata: {"model.layers.0...": {"rank": r, "gate_rows": n, "a": module that holds A}}.
struct ModuleEntry {
  std::int64_t rank = 0, gate_rows = 0;
  ModuleId holder;
};

class CompensatorReader {
 public:
  CompensatorReader(const std::filesystem::path& path, ModelWeights& weights)
      : where_(path.string()), file_(read_safetensors(path)), weights_(weights) {}

  void read() {
    check_version();
    const json modules = json::parse(metadata("modules"), nullptr, false);
    if (!modules.is_object()) throw bad_input("metadata 'modules' is not a JSON object", where_, kRemedy);
    for (const auto& [name, fields] : modules.items()) {
      const ModuleId id = module_named(name);
      weights_.linear(id).compensator = take_compensator(id, parse_entry(id, fields));
    }
    if (!file_.tensors.empty()) {
      throw bad_input(fmt::format("tensor '{}' belongs to no compensator", printable(file_.tensors.begin()->first)),
                      where_, kRemedy);
    }
  }

 private:
  static constexpr const char* kRemedy = "the file is damaged; make the checkpoint again";

  const std::string& metadata(const char* key) const {
    const auto found = file_.metadata.find(key);
    if (found == file_.metadata.end()) throw bad_input(fmt::format("metadata '{}' is missing", key), where_, kRemedy);
    return found->second;
  }

  void check_version() const {
    if (const auto& version = metadata("format_version"); version != kFormatVersion) {
      throw bad_input(fmt::format("compensator format version '{}' is unknown (this program knows {})",
                                  printable(version), kFormatVersion),
                      where_, "use a newer SPEAR");
    }
    if (const auto& gate = metadata("gate"); gate != "none" && gate != "mlp") {
      throw bad_input(fmt::format("gate kind '{}' is unknown (this program knows none and mlp)", printable(gate)),
                      where_, "use a newer SPEAR");
    }
  }

  ModuleId module_named(const std::string& name) const {
    for (int index = 0; index < module_count(weights_.config); ++index) {
      if (ModuleId{index}.name() == name) return {index};
    }
    throw bad_input(fmt::format("the model has no module '{}'", printable(name)), where_, kRemedy);
  }

  ModuleEntry parse_entry(ModuleId id, const json& fields) const {
    const std::string where = where_ + ": " + id.name();
    const auto count = [&](const char* key, std::int64_t least) {
      const auto found = fields.is_object() ? fields.find(key) : fields.end();
      if (found == fields.end() || !found->is_number_integer() || *found < least || *found > kMaxRank) {
        throw bad_input(fmt::format("'{}' is not a number in {}..{}", key, least, kMaxRank), where, kRemedy);
      }
      return found->get<std::int64_t>();
    };
    ModuleEntry entry{count("rank", 1), count("gate_rows", 0), id};
    if (const auto a = fields.find("a"); a != fields.end()) {
      const auto siblings = input_siblings(id);
      const auto holder =
          std::find_if(siblings.begin(), siblings.end(), [&](ModuleId other) { return *a == other.name(); });
      if (holder == siblings.end()) throw bad_input("'a' names no module that reads the same input", where, kRemedy);
      entry.holder = *holder;
    }
    return entry;
  }

  std::shared_ptr<const CompensatorInput> input_of(const ModuleEntry& entry) {
    auto& shared = inputs_[entry.holder.index];
    const std::int64_t rows = entry.rank + entry.gate_rows;
    if (shared == nullptr) {
      auto a = std::make_shared<CompensatorInput>();
      a->rows = rows;
      a->cols = in_features(weights_.config, entry.holder.kind());
      a->values = to_vector<std::int8_t>(take(entry.holder, "A", {rows, a->cols}, DType::i8));
      a->scales = to_vector<std::uint16_t>(take(entry.holder, "A_scale", {rows}, DType::f16));
      shared = std::move(a);
    }
    if (shared->rows != rows) {
      throw bad_input(fmt::format("A has {} rows, a module that shares it needs {}", shared->rows, rows),
                      where_ + ": " + entry.holder.name(), kRemedy);
    }
    return shared;
  }

  Compensator take_compensator(ModuleId id, const ModuleEntry& entry) {
    Compensator result;
    result.rank = entry.rank;
    result.gate_rows = entry.gate_rows;
    result.out_features = out_features(weights_.config, id.kind());
    result.a = input_of(entry);
    result.b = to_vector<std::int8_t>(take(id, "B", {result.out_features, entry.rank}, DType::i8));
    result.b_scales = to_vector<std::uint16_t>(take(id, "B_scale", {entry.rank}, DType::f16));
    result.gate = take_gate(id, entry);
    try {
      result.validate();
    } catch (const Error& error) {
      throw bad_input(error.problem(), where_ + ": " + id.name(), kRemedy);
    }
    return result;
  }

  CompensatorGate take_gate(ModuleId id, const ModuleEntry& entry) {
    CompensatorGate gate;
    const auto b1 = file_.tensors.find(part(id, "gate.b1"));
    if (b1 == file_.tensors.end()) return gate;
    if (metadata("gate") == "none")
      throw bad_input("a gate in a file of gate kind 'none'", where_ + ": " + id.name(), kRemedy);
    if (b1->second.shape().size() != 1 || b1->second.dim(0) < 1) {
      throw bad_input(fmt::format("shape {}", to_string(b1->second.shape())), where_ + ": " + b1->first, kRemedy);
    }
    gate.hidden = b1->second.dim(0);
    const auto values = [&](const char* name, const Shape& shape) {
      return to_vector<std::uint16_t>(take(id, name, shape, DType::bf16));
    };
    gate.w1 = values("gate.W1", {gate.hidden, entry.rank + entry.gate_rows});
    gate.b1 = values("gate.b1", {gate.hidden});
    gate.w2 = values("gate.W2", {entry.rank, gate.hidden});
    gate.b2 = values("gate.b2", {entry.rank});
    return gate;
  }

  Tensor take(ModuleId id, const char* name, const Shape& shape, DType type) {
    return take_tensor(file_.tensors, part(id, name), shape, {type}, where_);
  }

  std::string where_;
  Safetensors file_;
  ModelWeights& weights_;
  std::map<int, std::shared_ptr<const CompensatorInput>> inputs_;  ///< by the module that holds it
};

struct CompensatorFile {
  TensorMap tensors;
  std::map<std::string, std::string> metadata;
};

CompensatorFile compensator_file(const ModelWeights& weights) {
  TensorMap tensors;
  json modules = json::object();
  bool gated = false;
  std::map<const CompensatorInput*, ModuleId> group_of;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const ModuleId id{index};
    const auto& compensator = weights.linear(id).compensator;
    if (!compensator) continue;
    if (group_of.try_emplace(compensator->a.get(), id.input_group()).first->second != id.input_group()) {
      throw failed("its A is shared with a module that reads another input", id.name());
    }
    const ModuleId holder = holder_of_a(weights, id);
    put_input(tensors, holder, *compensator->a);
    put_compensator(tensors, id, *compensator);
    gated = gated || compensator->gate.hidden > 0;
    modules[id.name()] = {{"rank", compensator->rank}, {"gate_rows", compensator->gate_rows}, {"a", holder.name()}};
  }
  return {std::move(tensors),
          {{"format_version", kFormatVersion}, {"gate", gated ? "mlp" : "none"}, {"modules", modules.dump()}}};
}

}  // namespace

void write_compensators(const std::filesystem::path& path, const ModelWeights& weights) {
  const CompensatorFile file = compensator_file(weights);
  write_safetensors(path, file.tensors, file.metadata);
}

std::int64_t compensator_file_bytes(const ModelWeights& weights) {
  const CompensatorFile file = compensator_file(weights);
  return file.tensors.empty() ? 0 : safetensors_bytes(file.tensors, file.metadata);
}

void read_compensators(const std::filesystem::path& path, ModelWeights& weights) {
  CompensatorReader(path, weights).read();
}

}  // namespace spear
