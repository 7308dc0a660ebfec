// What the tests of src/io share: small random models, comparison, raw files, expected refusals.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/random.h"
#include "base/temporary_directory.h"
#include "model/weights.h"

namespace spear {

inline std::filesystem::path data_file(const std::string& name) {
  return std::filesystem::path(SPEAR_TEST_DATA) / name;
}

/// Writes without syncing, so that thousands of damaged variants are cheap.
void write_raw(const std::filesystem::path& path, std::string_view bytes);
std::string read_raw(const std::filesystem::path& path);

/// `body` must throw Error(bad_input) whose message contains `text`.
void expect_refused(const std::function<void()>& body, const std::string& text);

/// `body` may succeed or throw Error(bad_input); anything else fails the test. Returns whether it succeeded.
bool survives(const std::function<void()>& body);

/// `read(path)` must refuse every proper prefix of `bytes` and survive every byte set to 0, 0xff, inverted and +1.
void expect_hardened(const std::filesystem::path& path, const std::string& bytes, std::size_t stride,
                     const std::function<void()>& read);

/// Codes and zero points (these at least `least_zero`) drawn from `random`; scales from `scale`, rounded to F16.
W4Matrix random_w4(Random& random, std::int64_t rows, std::int64_t cols, const W4Scheme& scheme,
                   const std::function<double()>& scale, unsigned least_zero = 0);

struct TinyOptions {
  bool tied = true;
  std::optional<W4Scheme> scheme;  ///< packed linears; dense f32 otherwise
};

/// Two layers, hidden 24, intermediate 40, vocabulary 30: sizes that are not multiples of 16 or 32.
ModelWeights tiny_model(const TinyOptions& options = {});

/// Compensators on several modules of layer 0 and 1: q, k, v share one A; others have their own. `hidden` 0: no gates.
void add_compensators(ModelWeights& weights, std::int64_t hidden);

/// Equal configs, equal numbers in every tensor, equal packed bits, equal compensators with equal sharing.
void expect_same_model(const ModelWeights& a, const ModelWeights& b);

}  // namespace spear
