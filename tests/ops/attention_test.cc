#include "ops/cpu/attention.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/comparison.h"
#include "ops/random_model.h"

namespace spear {
namespace {

using testing::as_matrix;
using testing::random_floats;
using testing::relative_error;

ModelConfig config_of(const AttentionShape& shape) {
  ModelConfig config;
  config.num_attention_heads = shape.heads;
  config.num_key_value_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.rope_theta = 10000.0;
  return config;
}

struct Inputs {
  std::vector<float> q, k, v;
};

Inputs random_inputs(const AttentionShape& shape, std::uint64_t seed) {
  const std::int64_t rows = shape.batch * shape.length;
  return {random_floats(rows * shape.heads * shape.head_dim, seed),
          random_floats(rows * shape.kv_heads * shape.head_dim, seed + 1),
          random_floats(rows * shape.kv_heads * shape.head_dim, seed + 2)};
}

RefMatrix reference(const AttentionShape& shape, const Inputs& in) {
  const std::int64_t rows = shape.batch * shape.length;
  auto q = as_matrix(in.q, rows, shape.heads * shape.head_dim);
  auto k = as_matrix(in.k, rows, shape.kv_heads * shape.head_dim);
  ref::rotate(q, shape.head_dim, 10000.0, 0, shape.length);
  ref::rotate(k, shape.head_dim, 10000.0, 0, shape.length);
  return ref::attention(q, k, as_matrix(in.v, rows, shape.kv_heads * shape.head_dim), shape.length, shape.head_dim);
}

class AttentionTest : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels_ = *GetParam();
  ThreadPool pool_{2};

  /// The tokens in calls of the given lengths, one after another, through one cache.
  std::vector<float> run(const AttentionShape& shape, const Inputs& in, std::span<const std::int64_t> calls) {
    const ModelConfig config = config_of(shape);
    CpuKvCache cache(config, 1, shape.batch, shape.length + 3);
    const std::int64_t width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
    std::vector<float> out(in.q.size(), std::numeric_limits<float>::quiet_NaN());
    std::int64_t first = 0;
    for (const std::int64_t length : calls) {
      const auto part = [&](const std::vector<float>& source, std::int64_t cols) {
        std::vector<float> rows;
        for (std::int64_t b = 0; b < shape.batch; ++b) {
          const auto begin = source.begin() + (b * shape.length + first) * cols;
          rows.insert(rows.end(), begin, begin + length * cols);
        }
        return rows;
      };
      auto q = part(in.q, width), k = part(in.k, kv_width), v = part(in.v, kv_width);
      std::vector<float> y(q.size(), std::numeric_limits<float>::quiet_NaN());
      AttentionShape call = shape;
      call.length = length;
      attend(pool_, kernels_, call, 0, q.data(), k.data(), v.data(), RotaryTable(config, first, length), cache,
             y.data());
      cache.advance(length);
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        std::copy_n(y.begin() + b * length * width, length * width, out.begin() + (b * shape.length + first) * width);
      }
      first += length;
    }
    return out;
  }
};

TEST_P(AttentionTest, MatchesTheReference) {
  for (const AttentionShape shape : {AttentionShape{1, 1, 1, 1, 2},
                                     {1, 5, 4, 4, 8},
                                     {2, 33, 6, 2, 10},
                                     {1, 70, 9, 3, 64},
                                     {3, 31, 8, 1, 36},
                                     {1, 97, 2, 2, 40}}) {
    const Inputs in = random_inputs(shape, 10);
    EXPECT_LT(relative_error(run(shape, in, {{shape.length}}), reference(shape, in).values), 1e-6) << fmt::format(
        "{} x {} tokens, {}/{} heads of {}", shape.batch, shape.length, shape.heads, shape.kv_heads, shape.head_dim);
  }
}

TEST_P(AttentionTest, TokenByTokenEqualsTheWhole) {
  const AttentionShape shape{2, 40, 6, 2, 12};
  const Inputs in = random_inputs(shape, 20);
  const auto expected = reference(shape, in).values;
  EXPECT_LT(relative_error(run(shape, in, std::vector<std::int64_t>(40, 1)), expected), 1e-6);
  EXPECT_LT(relative_error(run(shape, in, {{33, 1, 1, 5}}), expected), 1e-6);
}

TEST_P(AttentionTest, TheComparisonSeesPlantedFaults) {
  const AttentionShape shape{1, 20, 6, 2, 8};
  const Inputs in = random_inputs(shape, 30);
  const auto expected = reference(shape, in).values;
  const auto error_of = [&](const Inputs& planted) { return relative_error(run(shape, planted, {{20}}), expected); };
  EXPECT_LT(error_of(in), 1e-6);

  Inputs permuted = in;  // query heads 2 and 3, which belong to different key heads, change places
  for (std::int64_t t = 0; t < 20; ++t) {
    std::swap_ranges(permuted.q.begin() + (t * 6 + 2) * 8, permuted.q.begin() + (t * 6 + 3) * 8,
                     permuted.q.begin() + (t * 6 + 3) * 8);
  }
  EXPECT_GT(error_of(permuted), 0.1);

  Inputs interleaved = in;  // rotary pairs (2i, 2i + 1), as GGUF stores llama's q and k
  for (auto* part : {&interleaved.q, &interleaved.k}) {
    for (std::size_t head = 0; head < part->size(); head += 8) {
      const std::vector<float> old(part->begin() + static_cast<std::ptrdiff_t>(head),
                                   part->begin() + static_cast<std::ptrdiff_t>(head) + 8);
      for (std::size_t i = 0; i < 4; ++i) {
        (*part)[head + 2 * i] = old[i];
        (*part)[head + 2 * i + 1] = old[i + 4];
      }
    }
  }
  EXPECT_GT(error_of(interleaved), 0.1);
}

TEST_P(AttentionTest, TheFutureIsNotSeen) {
  const AttentionShape shape{1, 40, 2, 1, 8};
  Inputs in = random_inputs(shape, 40);
  const auto before = run(shape, in, {{40}});
  for (std::int64_t i = 25 * 8; i < 40 * 8; ++i)
    in.k[static_cast<std::size_t>(i)] = in.v[static_cast<std::size_t>(i)] = 1e6F;
  const auto after = run(shape, in, {{40}});
  EXPECT_TRUE(std::equal(before.begin(), before.begin() + 25 * 16, after.begin()));
}

TEST(CpuKvCacheTest, RefusesWhatDoesNotFitInMemory) {
  const ModelConfig config = config_of({1, 1, 8, 8, 128});
  try {
    CpuKvCache cache(config, 32, 1, std::int64_t{1} << 50);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::out_of_resources);
  }
  EXPECT_THROW(CpuKvCache(config, 1, 0, 1), Error);
}

INSTANTIATE_TEST_SUITE_P(Isa, AttentionTest,
                         ::testing::ValuesIn(available_kernels().begin(), available_kernels().end()),
                         [](const auto& info) { return std::string(info.param->isa); });

}  // namespace
}  // namespace spear
