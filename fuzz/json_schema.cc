// A schema from anybody: compiled or refused; what a random walk over the masks writes is JSON.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "constrain/matcher.h"
#include "constrain/schema_compiler.h"
#include "text/utf8.h"

using namespace spear::constrain;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto vocabulary = [] {
    std::vector<std::pair<std::string, std::int32_t>> tokens;
    for (std::int32_t byte = 0; byte < 256; ++byte) tokens.emplace_back(std::string(1, static_cast<char>(byte)), byte);
    std::int32_t id = 256;
    for (const char* text :
         {"{\"", "\":", "\",\"", "\"}", "}]", "],", "true", "null", "00", "1.", "\\u", "abc", "\n  "})
      tokens.emplace_back(text, id++);
    return std::make_shared<const Vocabulary>(std::move(tokens), id);
  }();
  const Json schema = Json::parse(std::string_view(reinterpret_cast<const char*>(data), size), nullptr, false);
  if (schema.is_discarded()) return 0;
  try {
    Matcher matcher(
        std::make_shared<const TokenGrammar>(compile_schema(schema, false, {5'000, 50'000, 500}), vocabulary));
    std::string text;
    std::uint32_t random = static_cast<std::uint32_t>(size);
    for (int step = 0; step < 40; ++step) {
      const TokenBits& bits = matcher.allowed();
      std::vector<std::int32_t> allowed;
      for (std::int32_t id = 0; id < vocabulary->size(); ++id) {
        if (bits[static_cast<std::size_t>(id) / 64] >> (id % 64) & 1) allowed.push_back(id);
      }
      if (matcher.complete()) {
        if (Json::parse(text, nullptr, false).is_discarded()) std::abort();
      }
      if (allowed.empty()) {
        if (!matcher.complete()) std::abort();  // stuck
        break;
      }
      random = random * 1664525U + 1013904223U;
      const std::int32_t token = allowed[(random >> 8) % allowed.size()];
      if (!matcher.accept(token)) std::abort();
      text += vocabulary->bytes(token);
    }
  } catch (const spear::Error&) {
  }
  return 0;
}
