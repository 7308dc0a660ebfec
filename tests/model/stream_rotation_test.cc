#include "model/stream_rotation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "ops/random_model.h"

namespace spear {
namespace {

constexpr std::int64_t kSizes[] = {1, 2, 7, 12, 24, 64, 360, 576, 640};

double norm(const std::vector<float>& v) { return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0)); }

TEST(StreamRotation, KeepsLengthsAndComesBack) {
  for (const std::int64_t n : kSizes) {
    const StreamRotation rotation(n);
    ASSERT_EQ(rotation.size(), n);
    const auto x = testing::random_floats(n, 3);
    std::vector<float> in(x.size(), NAN), back(x.size(), NAN);
    rotation.into_stream(x.data(), in.data());
    rotation.out_of_stream(in.data(), back.data());
    EXPECT_NEAR(norm(in), norm(x), 1e-5 * norm(x)) << n;
    for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(back[i], x[i], 2e-6 * norm(x)) << n;
  }
}

/// The formula of docs/checkpoint.md, in float64.
TEST(StreamRotation, IsTheFormula) {
  for (const std::int64_t n : kSizes) {
    std::int64_t odd = n;
    while (odd % 2 == 0) odd /= 2;
    const std::int64_t power = n / odd;
    const auto matrix = StreamRotation(n).matrix();
    for (std::int64_t row = 0; row < n; ++row) {
      std::uint64_t bits = static_cast<std::uint64_t>(row) + 0x9e3779b97f4a7c15ULL;
      bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ULL;
      bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebULL;
      bits ^= bits >> 31;
      for (std::int64_t col = 0; col < n; ++col) {
        const auto i = static_cast<double>(row / power), k = static_cast<double>(col / power);
        const double cosine = std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(odd)) *
                              std::cos(M_PI * (i + 0.5) * k / static_cast<double>(odd));
        const int common = __builtin_popcountll(static_cast<unsigned long long>((row % power) & (col % power)));
        const double hadamard = (common % 2 == 0 ? 1.0 : -1.0) / std::sqrt(static_cast<double>(power));
        EXPECT_NEAR(matrix[static_cast<std::size_t>(row * n + col)], (bits >> 63 != 0 ? -1.0 : 1.0) * cosine * hadamard, 1e-6)
            << n << ": " << row << ", " << col;
      }
    }
  }
}

TEST(StreamRotation, SpreadsAnOutlier) {
  std::vector<float> x(576), out(576);
  x[123] = 24;
  StreamRotation(576).into_stream(x.data(), out.data());
  for (const float v : out) EXPECT_LE(std::fabs(v), 1.5F);  // √(2/9) · 24 / 8
}

TEST(StreamRotation, FoldedAwayAgainTheModelIsAnOrdinaryOne) {
  testing::RandomModelOptions options;
  options.packed = false;
  const ModelWeights weights = testing::random_model(options);
  const ModelWeights rotated = rotate_stream(weights), folded = fold_stream_rotation(rotated);
  EXPECT_TRUE(rotated.config.rotated_stream);
  EXPECT_TRUE(rotated.config.tie_word_embeddings);
  EXPECT_EQ(rotated.embed_tokens.to_floats(), weights.embed_tokens.to_floats());
  EXPECT_FALSE(folded.config.rotated_stream);
  EXPECT_FALSE(folded.config.tie_word_embeddings);
  EXPECT_EQ(folded.lm_head.shape(), weights.embed_tokens.shape());
  EXPECT_GT(folded.embedding_budget_bytes, rotated.embedding_budget_bytes) << "a head of its own is not free";
  for (const NormId id : norms_of(folded.config)) {
    for (const float gain : folded.gain(id).to_floats()) EXPECT_EQ(gain, 1.0F);
  }
  EXPECT_NO_THROW(folded.validate("folded"));
  EXPECT_EQ(fold_stream_rotation(weights).lm_head.empty(), weights.lm_head.empty()) << "nothing to fold";
}

TEST(StreamRotation, RefusesWhatItCannotPass) {
  testing::RandomModelOptions options;
  options.packed = false;
  EXPECT_THROW(rotate_stream(rotate_stream(testing::random_model(options))), Error);
  options.every_option = true;  // norms between outputs and the stream among them
  EXPECT_THROW(rotate_stream(testing::random_model(options)), Error);
}

}  // namespace
}  // namespace spear
