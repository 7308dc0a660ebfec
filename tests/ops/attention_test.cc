#include "ops/cpu/attention.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/resources.h"
#include "ops/cpu/kernels.h"
#include "ops/paged_attention.h"

namespace spear {
namespace {

using testing::attend_alone;
using testing::AttentionInputs;
using testing::AttentionShape;
using testing::config_of;
using testing::PagedAttention;
using testing::random_inputs;
using testing::reference;
using testing::relative_error;

constexpr KvCacheType kTypes[] = {KvCacheType::f32, KvCacheType::bf16, KvCacheType::int8};

/// bf16 rounds keys and values to 8 bits, and on "avx512bf16" queries and weights; int8 rounds keys and values to
/// 1 / 254 of their maximum.
double tolerance(KvCacheType type) {
  return type == KvCacheType::f32 ? 1e-6 : type == KvCacheType::bf16 ? 5e-3 : 1.5e-2;
}

class AttentionTest : public ::testing::TestWithParam<const AttentionKernels*> {
 protected:
  const AttentionKernels& kernels_ = *GetParam();
  ThreadPool pool_{2};
};

TEST_P(AttentionTest, MatchesTheReference) {
  for (const AttentionShape shape : {AttentionShape{1, 1, 1, 2},
                                     {5, 4, 4, 8},
                                     {33, 6, 2, 10},
                                     {70, 9, 3, 64},
                                     {31, 8, 1, 36},
                                     {97, 2, 2, 40},
                                     {20, 64, 1, 16},
                                     {40, 5, 5, 128},
                                     {34, 7, 1, 80},
                                     {290, 2, 1, 256}}) {
    const AttentionInputs in = random_inputs(shape, 10);
    const auto expected = reference(in);
    for (const KvCacheType type : kTypes) {
      EXPECT_LT(relative_error(attend_alone(pool_, kernels_, in, type), expected), tolerance(type)) << fmt::format(
          "{}: {} tokens, {}/{} heads of {}", name(type), shape.length, shape.heads, shape.kv_heads, shape.head_dim);
    }
  }
}

TEST_P(AttentionTest, LengthsAroundEveryEdge) {
  for (const std::int64_t length : {1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 255, 256, 257, 258, 511, 513, 770}) {
    const AttentionInputs in = random_inputs({length, 3, 1, 12}, 50 + static_cast<std::uint64_t>(length));
    const auto expected = reference(in);
    for (const KvCacheType type : kTypes) {
      EXPECT_LT(relative_error(attend_alone(pool_, kernels_, in, type), expected), tolerance(type))
          << name(type) << " " << length;
    }
  }
}

TEST_P(AttentionTest, ChunkingDoesNotChangeABit) {
  const AttentionInputs in = random_inputs({300, 6, 2, 20}, 20);
  for (const KvCacheType type : kTypes) {
    const auto whole = attend_alone(pool_, kernels_, in, type);
    EXPECT_EQ(attend_alone(pool_, kernels_, in, type, std::vector<std::int64_t>(300, 1)), whole) << name(type);
    EXPECT_EQ(attend_alone(pool_, kernels_, in, type, {{33, 1, 1, 200, 7, 15}}), whole) << name(type);
    EXPECT_EQ(attend_alone(pool_, kernels_, in, type, {{256, 1, 31}}), whole) << name(type);
  }
}

TEST_P(AttentionTest, WindowsAroundEveryEdge) {
  for (const std::int64_t window : {1, 2, 15, 16, 31, 32, 33, 64, 100, 255, 256, 257, 300, 1000}) {
    const AttentionInputs in = random_inputs({600, 6, 2, 20, window}, 90);
    const auto expected = reference(in);
    for (const KvCacheType type : kTypes) {
      const auto whole = attend_alone(pool_, kernels_, in, type);
      EXPECT_LT(relative_error(whole, expected), tolerance(type)) << name(type) << " " << window;
      EXPECT_EQ(attend_alone(pool_, kernels_, in, type, {{33, 1, 1, 200, 7, 15, 256}}), whole) << name(type);
    }
  }
}

TEST_P(AttentionTest, WhatLiesBeforeTheWindowIsNotSeen) {
  AttentionInputs in = random_inputs({700, 2, 1, 8, 100}, 40);
  for (const KvCacheType type : kTypes) {
    const auto before = attend_alone(pool_, kernels_, in, type);
    AttentionInputs changed = in;
    for (std::size_t i = 0; i < 300 * 8; ++i) changed.k[i] = changed.v[i] = 1e6F;
    const auto after = attend_alone(pool_, kernels_, changed, type);
    EXPECT_TRUE(std::equal(before.begin() + 399 * 16, before.end(), after.begin() + 399 * 16)) << name(type);
    EXPECT_FALSE(std::equal(before.begin() + 398 * 16, before.begin() + 399 * 16, after.begin() + 398 * 16));
  }
}

TEST_P(AttentionTest, BatchesAndThreadsDoNotChangeABit) {
  for (const auto& [type, window] : std::vector<std::pair<KvCacheType, std::int64_t>>{
           {KvCacheType::f32, 0}, {KvCacheType::bf16, 0}, {KvCacheType::int8, 0}, {KvCacheType::f32, 290},
           {KvCacheType::bf16, 290}, {KvCacheType::int8, 290}}) {
    const AttentionShape shape{700, 6, 2, 20, window};
    std::vector<AttentionInputs> in;
    for (const std::int64_t length : {700, 40, 1, 300, 33}) {
      in.push_back(random_inputs({length, 6, 2, 20, window}, 70 + static_cast<std::uint64_t>(length)));
    }
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      PagedAttention run(pool, kernels_, shape, type, 64);
      for (const auto& sequence : in) run.add(sequence);
      // Prefill chunks and decodes mixed; the long sequence ends in decodes that are split over its keys.
      run.step(std::vector<std::int64_t>{600, 39, 0, 100, 0});
      run.step(std::vector<std::int64_t>{97, 1, 1, 150, 20});
      run.step(std::vector<std::int64_t>{1, 0, 0, 49, 1});
      run.step(std::vector<std::int64_t>{1, 0, 0, 1, 12});
      run.step(std::vector<std::int64_t>{1, 0, 0, 0, 0});
      for (std::size_t s = 0; s < in.size(); ++s) {
        EXPECT_EQ(run.output(s), attend_alone(pool_, kernels_, in[s], type))
            << name(type) << ", sequence " << s << ", " << threads << " threads";
      }
    }
  }
}

TEST_P(AttentionTest, NanShows) {
  for (const KvCacheType type : kTypes) {
    AttentionInputs in = random_inputs({40, 2, 1, 8}, 70);
    const auto whole = attend_alone(pool_, kernels_, in, type);
    in.q[39 * 16 + 3] = NAN;  // the last token's first head
    const auto out = attend_alone(pool_, kernels_, in, type);
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (i / 8 == 39 * 2) {
        EXPECT_TRUE(std::isnan(out[i])) << name(type) << " " << i;
      } else {
        EXPECT_EQ(out[i], whole[i]) << name(type) << " " << i;
      }
    }
  }
}

TEST_P(AttentionTest, TheComparisonSeesPlantedFaults) {
  const AttentionInputs in = random_inputs({20, 6, 2, 8}, 30);
  const auto expected = reference(in);
  const auto error_of = [&](const AttentionInputs& planted) {
    return relative_error(attend_alone(pool_, kernels_, planted, KvCacheType::bf16), expected);
  };
  EXPECT_LT(error_of(in), tolerance(KvCacheType::bf16));

  AttentionInputs permuted = in;  // query heads 2 and 3, which belong to different key heads, change places
  for (std::int64_t t = 0; t < 20; ++t) {
    std::swap_ranges(permuted.q.begin() + (t * 6 + 2) * 8, permuted.q.begin() + (t * 6 + 3) * 8,
                     permuted.q.begin() + (t * 6 + 3) * 8);
  }
  EXPECT_GT(error_of(permuted), 0.1);

  AttentionInputs interleaved = in;  // rotary pairs (2i, 2i + 1), as GGUF stores llama's q and k
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
  AttentionInputs in = random_inputs({40, 2, 1, 8}, 40);
  for (const KvCacheType type : kTypes) {
    const auto before = attend_alone(pool_, kernels_, in, type);
    AttentionInputs changed = in;
    for (std::size_t i = 25 * 8; i < 40 * 8; ++i) changed.k[i] = changed.v[i] = 1e6F;
    const auto after = attend_alone(pool_, kernels_, changed, type);
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + 25 * 16, after.begin())) << name(type);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, AttentionTest, ::testing::ValuesIn(available_attention_kernels()),
                         [](const auto& info) { return std::string(info.param->isa); });

TEST(AttentionKernelsTest, InstructionSetsAgree) {
  const AttentionInputs in = random_inputs({300, 6, 2, 48}, 60);
  ThreadPool pool(1);
  const AttentionKernels& portable = attention_kernels_for("generic");
  for (const KvCacheType type : kTypes) {
    const auto generic = attend_alone(pool, portable, in, type);
    const std::vector<double> expected(generic.begin(), generic.end());
    for (const AttentionKernels* kernels : available_attention_kernels()) {
      // Where multiply-adds are fused a rotated key has other last bits, and one in tens of thousands lies where bf16 rounds to
      // the other side: rotations are compared in f32, and are the same ones elsewhere.
      AttentionKernels table = *kernels;
      if (type != KvCacheType::f32) table.rotate = portable.rotate;
      // A query and a weight rounded to bf16 are off by 2^-9 of themselves each; else only sums have another order.
      const bool rounds = std::string_view(kernels->isa) == "avx512bf16" && type != KvCacheType::f32;
      EXPECT_LT(relative_error(attend_alone(pool, table, in, type), expected), rounds ? 2.0 / 512 : 1e-6)
          << kernels->isa << " " << name(type);
    }
  }
}

TEST(AttentionKernelsTest, EveryInstructionSetOfTheOtherKernelsHasOne) {
  for (const Kernels* table : available_kernels()) {
    EXPECT_TRUE(std::string_view(attention_kernels_for(table->isa).isa).starts_with(table->isa));
  }
  EXPECT_THROW(attention_kernels_for("sve"), Error);
}

TEST(PagedKvCacheTest, RefusesWhatDoesNotFitInMemory) {
  const ModelConfig config = config_of({1, 8, 8, 128});
  try {
    CpuPagedKvCache cache(config, 32, std::int64_t{1} << 45, KvCacheType::bf16);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::out_of_resources);
  }
  EXPECT_THROW(CpuKvCache(config, 1, 0, 1), Error);
  EXPECT_THROW(CpuPagedKvCache(config, 1, 0, KvCacheType::f32), Error);
}

TEST(PagedKvCacheTest, MemoryIsThereBeforeTheFirstStep) {
  const ModelConfig config = config_of({1, 8, 8, 128});
  const std::int64_t before = resident_bytes();
  const CpuPagedKvCache cache(config, 30, 12, KvCacheType::bf16);
  std::vector<unsigned char> there(static_cast<std::size_t>(cache.bytes() / 4096));
  void* const start = const_cast<std::byte*>(cache.block(0, 0, 0));
  ASSERT_EQ(mincore(start, there.size() * 4096, there.data()), 0);
  const auto taken = std::count_if(there.begin(), there.end(), [](unsigned char page) { return (page & 1U) != 0; });
  if (taken == 0) GTEST_SKIP() << "this kernel gives pages when they are touched";
  EXPECT_EQ(static_cast<std::size_t>(taken), there.size());
  EXPECT_GE(resident_bytes() - before, cache.bytes() * 9 / 10);
}

TEST(PagedKvCacheTest, MemoryIsWhatTheTypeNeeds) {
  const ModelConfig config = config_of({1, 9, 3, 64});
  const auto bytes = [&](KvCacheType type) { return CpuPagedKvCache(config, 30, 10, type).bytes(); };
  const std::int64_t values = 30 * 10 * 32 * 3 * 64 * 2;
  EXPECT_EQ(bytes(KvCacheType::f32), 4 * values);
  EXPECT_EQ(bytes(KvCacheType::bf16), 2 * values);
  EXPECT_EQ(bytes(KvCacheType::int8), values + 30 * 10 * 32 * 3 * 2 * 4);
}

}  // namespace
}  // namespace spear
