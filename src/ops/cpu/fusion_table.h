// How the correction of compensators reaches the outputs, chosen by measurement for each shape, rank and number of
// tokens. All ways give the same bits, so a choice may change with the batch.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>

namespace spear {

enum class Fusion : std::uint8_t {
  automatic,
  late,      ///< A's rows in the same pass over x as y; B added to y once it is there: hides z's latency, for few tokens
  early,     ///< z of a thread's share of tokens and its gate first, B in the registers of y's tiles: no second pass
  separate,  ///< y, then z, then B, each an operation of its own
};
inline constexpr std::array kFusions{Fusion::late, Fusion::early, Fusion::separate};
const char* fusion_name(Fusion fusion);

/// The outputs of the linears on one input, their common input width, and the rows of their distinct A's.
struct FusionShape {
  std::int64_t rows = 0, cols = 0, ranks = 0;
  auto operator<=>(const FusionShape&) const = default;
};

/// How long one operation of a shape takes, in microseconds.
struct FusionTiming {
  FusionShape shape;
  std::int64_t count = 0;   ///< such operations in a step
  std::int64_t tokens = 0;  ///< rows of x
  double plain_us = 0;      ///< without compensators
  std::array<double, kFusions.size()> fused_us{};  ///< in the order of kFusions

  double us(Fusion fusion) const { return fused_us[static_cast<std::size_t>(fusion) - 1]; }
  /// The fastest; what FusionTable::default_for() says where nothing is faster by more than noise.
  Fusion best() const;
};

/// What a compensator adds to a step of one token.
struct CompensatorCost {
  double fixed_us = 0, us_per_weight = 0;

  /// `features`: in and out together.
  double us(std::int64_t rank, std::int64_t features) const {
    return rank == 0 ? 0 : fixed_us + us_per_weight * static_cast<double>(rank * features);
  }
};
/// By least squares over the timings of one token, neither number below zero. Nothing without such timings.
std::optional<CompensatorCost> compensator_cost(std::span<const FusionTiming> timings);

class FusionTable {
 public:
  FusionTable() = default;
  /// The best of each timing; those of other numbers of tokens than kTokens are passed over.
  explicit FusionTable(std::span<const FusionTiming> timings);

  static constexpr std::array<std::int64_t, 8> kTokens{1, 2, 4, 8, 16, 32, 64, 256};  ///< that are measured
  static constexpr std::int64_t kLateTokens = 8;  ///< from here on `early`, for shapes that were not measured

  /// Of the largest measured number of tokens up to m.
  Fusion at(const FusionShape& shape, std::int64_t m) const;
  void set(const FusionShape& shape, std::size_t tokens_index, Fusion fusion);
  static Fusion default_for(std::int64_t m) { return m < kLateTokens ? Fusion::late : Fusion::early; }

 private:
  std::map<FusionShape, std::array<Fusion, kTokens.size()>> choices_;
};

}  // namespace spear
