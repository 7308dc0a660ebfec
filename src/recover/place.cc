#include "recover/place.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace spear {
namespace {

constexpr std::pair<const char*, Placement> kPlacements[] = {
    {"damage", Placement::damage}, {"fisher", Placement::fisher}, {"uniform", Placement::uniform}, {"random", Placement::random},
    {"trained", Placement::trained}};

/// Ranks under construction.
class Allocation {
 public:
  Allocation(const std::vector<PlacementSite>& sites, const PlacementOptions& options)
      : sites_(sites), options_(options), ranks_(sites.size(), 0) {}

  std::int64_t cost_of_next(std::size_t i) const { return bytes(i, ranks_[i] + 1) - bytes(i, ranks_[i]); }
  bool can_grow(std::size_t i) const {
    const auto limit = std::min({options_.max_rank, sites_[i].in_features, sites_[i].out_features});
    return ranks_[i] < limit && used_ + cost_of_next(i) <= options_.budget_bytes;
  }
  /// What divides the gain of the next rank: its bytes and, if latency counts, its microseconds.
  double price_of_next(std::size_t i) const {
    const auto bytes = static_cast<double>(cost_of_next(i));
    if (!options_.latency) return bytes;
    const std::int64_t features = sites_[i].in_features + sites_[i].out_features;
    return bytes * (options_.latency->us(ranks_[i] + 1, features) - options_.latency->us(ranks_[i], features));
  }
  void grow(std::size_t i) {
    used_ += cost_of_next(i);
    ++ranks_[i];
  }
  std::int64_t rank(std::size_t i) const { return ranks_[i]; }
  std::size_t size() const { return ranks_.size(); }

 private:
  std::int64_t bytes(std::size_t i, std::int64_t rank) const {
    return rank == 0 ? 0 : site_bytes(sites_[i], rank, options_.gate_hidden, options_.gate_rows);
  }
  const std::vector<PlacementSite>& sites_;
  PlacementOptions options_;
  std::vector<std::int64_t> ranks_;
  std::int64_t used_ = 0;
};

void place_by_damage(const std::vector<PlacementSite>& sites, Allocation& ranks) {
  // Greedy is exact water-filling: gains of one site fall with its rank. A site's damage is shared out among its ranks
  // in proportion to the output error that each removes.
  for (;;) {
    double best = 0;
    std::size_t best_site = sites.size();
    for (std::size_t i = 0; i < sites.size(); ++i) {
      if (!ranks.can_grow(i)) continue;
      const auto& values = sites[i].singular_values;
      const auto next = static_cast<std::size_t>(ranks.rank(i));
      if (next >= values.size()) continue;
      const double total = sites[i].energy;
      const double gain = total > 0 ? sites[i].damage * values[next] * values[next] / total : 0;
      const double worth = gain / ranks.price_of_next(i);
      if (worth > best) {
        best = worth;
        best_site = i;
      }
    }
    if (best_site == sites.size()) return;
    ranks.grow(best_site);
  }
}

void place_uniformly(Allocation& ranks) {
  for (bool grown = true; grown;) {
    grown = false;
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      if (!ranks.can_grow(i)) continue;
      ranks.grow(i);
      grown = true;
    }
  }
}

void place_at_random(Allocation& ranks, std::uint64_t seed) {
  Random random(seed, 0x706c616365);
  for (;;) {
    std::vector<std::size_t> open;
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      if (ranks.can_grow(i)) open.push_back(i);
    }
    if (open.empty()) return;
    ranks.grow(open[random.below(open.size())]);
  }
}

}  // namespace

Placement parse_placement(std::string_view text) {
  for (const auto& [label, placement] : kPlacements) {
    if (text == label) return placement;
  }
  throw usage_error(fmt::format("unknown placement '{}'", text), "--placement", "use damage, fisher, uniform, random or trained");
}

const char* name(Placement placement) {
  for (const auto& [label, value] : kPlacements) {
    if (value == placement) return label;
  }
  return "?";
}

std::int64_t site_bytes(const PlacementSite& site, std::int64_t rank, std::int64_t gate_hidden, std::int64_t gate_rows) {
  const std::int64_t rows = rank + gate_rows, members = static_cast<std::int64_t>(site.members.size());
  const std::int64_t gate = gate_hidden > 0 ? 2 * (gate_hidden * (rows + 1) + rank * (gate_hidden + 1)) : 0;
  return rows * (site.in_features + 2) + rank * site.out_features + members * (2 * rank + gate);
}

std::vector<PlacementSite> placement_sites(const ModelConfig& config, bool share_a) {
  std::vector<PlacementSite> sites;
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    const bool joins = share_a && !(id.input_group() == id);
    if (!joins) sites.push_back({{}, in_features(config, id.kind()), 0, 0, {}});
    sites.back().members.push_back(id);
    sites.back().out_features += out_features(config, id.kind());
  }
  return sites;
}

std::vector<CompensatorShape> place(const std::vector<PlacementSite>& sites, const PlacementOptions& options) {
  Allocation ranks(sites, options);
  switch (options.placement) {
    case Placement::damage:
    case Placement::fisher:
    case Placement::trained: place_by_damage(sites, ranks); break;
    case Placement::uniform: place_uniformly(ranks); break;
    case Placement::random: place_at_random(ranks, options.seed); break;
  }
  std::vector<CompensatorShape> shapes;
  for (std::size_t i = 0; i < sites.size(); ++i) {
    if (ranks.rank(i) > 0) shapes.push_back({sites[i].members, ranks.rank(i), options.gate_rows, options.gate_hidden});
  }
  return shapes;
}

std::vector<CompensatorShape> place_within_file(const std::vector<PlacementSite>& sites, PlacementOptions& options, std::int64_t file_bytes) {
  // Upper bounds, per module and per tensor: B and its scale (and a gate) per module, A and its scale per site.
  constexpr std::int64_t kFixedBytes = 256, kModuleBytes = 114, kTensorBytes = 114;
  const auto header = [&](const std::vector<CompensatorShape>& shapes) {
    std::int64_t bytes = kFixedBytes;
    for (const auto& shape : shapes) {
      const auto modules = static_cast<std::int64_t>(shape.members.size());
      bytes += modules * (kModuleBytes + (options.gate_hidden > 0 ? 6 : 2) * kTensorBytes) + 2 * kTensorBytes;
    }
    return std::min(bytes, file_bytes / 4);
  };
  // A larger share for factors may reach more modules and so a longer header: the largest share that still fits.
  std::int64_t fits = 0, limit = file_bytes;
  while (limit - fits > 64) {
    options.budget_bytes = (fits + limit + 1) / 2;
    (options.budget_bytes + header(place(sites, options)) <= file_bytes ? fits : limit) = options.budget_bytes;
  }
  options.budget_bytes = fits;
  return place(sites, options);
}

double placed_us(const std::vector<PlacementSite>& sites, const std::vector<CompensatorShape>& shapes, const CompensatorCost& cost) {
  double us = 0;
  for (const PlacementSite& site : sites) {
    for (const auto& shape : shapes) us += shape.members == site.members ? cost.us(shape.rank, site.in_features + site.out_features) : 0;
  }
  return us;
}

nlohmann::json placement_json(const std::vector<CompensatorShape>& shapes, const PlacementOptions& options, int modules, bool share_a) {
  std::vector<std::int64_t> ranks(static_cast<std::size_t>(modules), 0);
  for (const auto& shape : shapes) {
    for (const ModuleId id : shape.members) ranks[static_cast<std::size_t>(id.index)] = shape.rank;
  }
  return {{"policy", name(options.placement)}, {"ranks", ranks}, {"shared_a", share_a}, {"budget_bytes", options.budget_bytes}};
}

}  // namespace spear
