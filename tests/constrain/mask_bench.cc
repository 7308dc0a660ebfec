// Time of a mask on the real vocabulary. Not part of the tests:
//   constrain_tests --gtest_also_run_disabled_tests --gtest_filter='MaskBench.*'
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "constrain/structured_output.h"
#include "constrain_test_util.h"
#include "text/tokenizer.h"

namespace spear::constrain {
namespace {

double microseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

void print(const char* what, std::vector<double> times) {
  std::sort(times.begin(), times.end());
  const auto at = [&](double share) {
    return times[static_cast<std::size_t>(share * static_cast<double>(times.size() - 1))];
  };
  std::printf("%-34s %6zu masks  p50 %7.1f  p90 %7.1f  p99 %7.1f  max %7.1f us\n", what, times.size(), at(0.5), at(0.9),
              at(0.99), times.back());
}

TEST(MaskBench, DISABLED_RealVocabulary) {
  const char* path = std::getenv("SPEAR_MODEL");
  ASSERT_NE(path, nullptr) << "SPEAR_MODEL names a model";
  const Tokenizer tokenizer = load_tokenizer(path);
  auto start = std::chrono::steady_clock::now();
  StructuredOutput output(tokenizer);
  std::printf("vocabulary of %d: %.0f us\n", tokenizer.vocab_size(), microseconds_since(start));
  const char* schema =
      R"({"type":"object","properties":{"title":{"type":"string"},"year":{"type":"integer","minimum":1900,"maximum":2100},
    "genre":{"enum":["drama","comedy","science fiction","documentary"]},"rating":{"type":"number","minimum":0,"maximum":10},
    "id":{"type":"string","pattern":"^[A-Z]{2}-\\d{4}$"},"summary":{"type":"string","maxLength":400},
    "cast":{"type":"array","items":{"type":"object","properties":{"name":{"type":"string"},"role":{"anyOf":[{"type":"string"},{"type":"null"}]},"born":{"type":"string","format":"date"}},
    "required":["name","role","born"],"additionalProperties":false}}},"required":["title","year","genre","rating","id","summary","cast"],"additionalProperties":false})";
  const Json document = Json::parse(
      R"({"title":"The Long \"Quiet\" Night","year":1987,"genre":"science fiction","rating":7.25,"id":"AB-1234",
    "summary":"A lighthouse keeper on a small island finds a radio that only receives broadcasts from tomorrow, and slowly learns what his own silence will cost him.",
    "cast":[{"name":"Anna Müller","role":"the keeper's daughter","born":"1961-03-14"},{"name":"Jean-Luc Petit","role":null,"born":"1944-11-30"},{"name":"Søren Ødegård","role":"radio voice","born":"1952-02-29"}]})");
  std::vector<float> logits(static_cast<std::size_t>(tokenizer.vocab_size()));
  for (const bool schemaless : {false, true}) {
    start = std::chrono::steady_clock::now();
    const auto grammar = schemaless ? output.json_object() : output.json_schema(Json::parse(schema));
    std::printf("%s: compiled in %.0f us, %zu states\n", schemaless ? "json_object" : "json_schema",
                microseconds_since(start), grammar->grammar.num_states());
    for (const char* round : {"first request", "second request", "third request"}) {
      std::vector<double> times, accepts;
      for (const int indent : {-1, 2}) {
        Matcher matcher(grammar);
        for (const std::int32_t token : tokenizer.encode(document.dump(indent))) {
          start = std::chrono::steady_clock::now();
          const TokenBits& bits = matcher.allowed();
          mask_logits(bits, logits);
          times.push_back(microseconds_since(start));
          ASSERT_TRUE(bits[static_cast<std::size_t>(token) / 64] >> (token % 64) & 1) << tokenizer.token_bytes(token);
          start = std::chrono::steady_clock::now();
          ASSERT_TRUE(matcher.accept(token));
          accepts.push_back(microseconds_since(start));
        }
        ASSERT_TRUE(matcher.complete());
      }
      print(round, times);
      print("  accept", accepts);
    }
  }
}

}  // namespace
}  // namespace spear::constrain
