// What the tests of the text library share.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "text/utf8.h"

namespace spear {

inline std::filesystem::path text_data(const std::string& name) {
  return std::filesystem::path(SPEAR_TEST_DATA) / "text" / name;
}

inline nlohmann::json read_golden(const std::string& name) {
  return nlohmann::json::parse(read_text_file(text_data(name)));
}

/// The development model, or an empty path.
inline std::filesystem::path real_model() {
  const char* named = std::getenv("SPEAR_MODEL");
  const std::filesystem::path path = named != nullptr
                                         ? std::filesystem::path(named)
                                         : std::filesystem::path(SPEAR_TEST_DATA).parent_path().parent_path() /
                                               "models" / "SmolLM2-135M-Instruct.Q4_1.gguf";
  return std::filesystem::exists(path) ? path : std::filesystem::path();
}

/// Random characters of every length in UTF-8, with an emphasis on short ones.
inline std::string random_utf8(Random& random, std::size_t characters) {
  static constexpr char32_t kLimits[] = {0x80, 0x80, 0x800, 0x10000, 0x110000};
  std::string text;
  while (characters > 0) {
    const auto code = static_cast<char32_t>(random.below(kLimits[random.below(5)]));
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    append_utf8(text, code);
    --characters;
  }
  return text;
}

/// Expects `action` to throw an Error(bad_input) whose message contains `part`.
template <typename Action>
void expect_refused(const Action& action, const std::string& part, ExitCode code = ExitCode::bad_input) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown; expected: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

}  // namespace spear
