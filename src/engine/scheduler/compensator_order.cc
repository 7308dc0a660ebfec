#include "engine/scheduler/compensator_order.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/untrusted.h"

namespace spear {

std::vector<double> compensator_shares(const ModelWeights& weights) {
  const int modules = module_count(weights.config);
  std::map<const CompensatorInput*, int> sharers;
  for (int index = 0; index < modules; ++index) {
    const auto& compensator = weights.linear({index}).compensator;
    if (compensator && compensator->a) ++sharers[compensator->a.get()];
  }
  std::vector<double> shares(static_cast<std::size_t>(modules), 0.0);
  for (int index = 0; index < modules; ++index) {
    const auto& compensator = weights.linear({index}).compensator;
    if (!compensator || !compensator->a) continue;
    shares[static_cast<std::size_t>(index)] =
        static_cast<double>(compensator->own_bytes()) +
        static_cast<double>(compensator->a->storage_bytes()) / sharers.at(compensator->a.get());
  }
  return shares;
}

std::vector<double> read_module_damage(const std::filesystem::path& model, std::size_t modules) {
  const auto path = model / "spear.json";
  if (!std::filesystem::is_regular_file(path)) return {};
  const auto manifest = read_json_object(path);
  const auto diagnosis = manifest.find("diagnosis");
  if (diagnosis == manifest.end() || !diagnosis->is_object() || !diagnosis->contains("damage")) return {};
  const auto& list = diagnosis->at("damage");
  const auto error = [&](const char* what) {
    return bad_input(what, path.string() + ": diagnosis.damage", "recover the model again; its manifest is damaged");
  };
  if (!list.is_array() || list.size() != modules) throw error("is not one number per module");
  std::vector<double> damage;
  for (const auto& value : list) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) throw error("has something that is no number");
    damage.push_back(value.get<double>());
  }
  return damage;
}

std::vector<int> compensator_order(const ModelWeights& weights, const std::vector<double>& damage) {
  const std::vector<double> shares = compensator_shares(weights);
  std::vector<int> order;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] > 0) order.push_back(static_cast<int>(i));
  }
  if (damage.size() != shares.size()) return order;
  const auto worth = [&](int module) {
    return damage[static_cast<std::size_t>(module)] / shares[static_cast<std::size_t>(module)];
  };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return worth(a) > worth(b); });
  return order;
}

}  // namespace spear
