#include "recover/machine_speed.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace spear {

double measured_gflops(torch::ScalarType type) {
  constexpr std::int64_t kTokens = 1024, kIn = 576, kOut = 1536;
  constexpr int kProducts = 4, kRounds = 7;
  torch::NoGradGuard no_grad;
  const auto x = torch::randn({kTokens, kIn}).to(type), weight = torch::randn({kOut, kIn}).to(type);
  std::vector<double> seconds;
  for (int round = 0; round <= kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kProducts; ++i) torch::linear(x, weight);
    if (round == 0) continue;  // kernels are compiled
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  return 2e-9 * kTokens * kIn * kOut * kProducts / seconds[kRounds / 2];
}

}  // namespace spear
