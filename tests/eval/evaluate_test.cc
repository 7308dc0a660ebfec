#include "eval/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "eval/comparison.h"
#include "fake_model.h"

namespace spear {
namespace {

std::vector<std::int32_t> random_text(std::int64_t count, std::int64_t vocab, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocab))));
  }
  return tokens;
}

std::vector<double> row_of(BigramModel& model, std::int32_t token) {
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  return log_softmax(std::span<const float>(model.table).subspan(static_cast<std::size_t>(token) * vocab, vocab));
}

TEST(TextWindows, AreTheFirstAndDoNotOverlap) {
  const std::vector<std::int32_t> tokens{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  const TextWindows two = first_windows(tokens, 2, 4, "text");
  EXPECT_THAT(two.tokens, testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(two.window(1), testing::ElementsAre(4, 5, 6, 7));
  EXPECT_EQ(two.predictions(), 6);
  EXPECT_EQ(first_windows(tokens, 0, 3, "text").windows, 3);
}

TEST(TextWindows, ShortTextIsAnErrorThatNamesIt) {
  const std::vector<std::int32_t> tokens(10, 0);
  try {
    first_windows(tokens, 3, 4, "some.txt");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    EXPECT_EQ(error.where(), "some.txt");
    EXPECT_FALSE(error.remedy().empty());
  }
  EXPECT_THROW(first_windows({}, 0, 4, "x"), Error);
  EXPECT_THROW(first_windows(tokens, 1, 1, "x"), Error);
  EXPECT_THROW(first_windows(tokens, -1, 4, "x"), Error);
}

class Evaluate : public testing::Test {
 protected:
  static constexpr std::int64_t kVocab = 37, kContext = 300, kWindows = 5;  // context > one chunk of logits

  Evaluate()
      : windows(first_windows(random_text(kContext * kWindows + 7, kVocab, 1), kWindows, kContext, "text")),
        reference(BigramModel::random(kVocab, 2)),
        near(reference),
        far(BigramModel::random(kVocab, 9)) {
    Random noise(3);
    for (float& logit : near.table) logit += static_cast<float>(0.2 * noise.normal());
  }

  TextWindows windows;
  BigramModel reference, near, far;
};

TEST_F(Evaluate, AgreesWithBruteForce) {
  const FinalStates states = final_states(reference, windows);
  ThreadPool pool(2);
  const EvalResult result =
      evaluate(near, windows, &states, {.pool = &pool, .windows_per_batch = 2, .per_token = true});
  double nll = 0, kl = 0, agree = 0;
  std::size_t at = 0;
  for (std::int64_t w = 0; w < kWindows; ++w) {
    double window_nll = 0;
    for (std::size_t t = 0; t + 1 < static_cast<std::size_t>(kContext); ++t, ++at) {
      const std::int32_t token = windows.window(w)[t], next = windows.window(w)[t + 1];
      const auto log_p = row_of(reference, token), log_q = row_of(near, token);
      double token_kl = 0;
      for (std::size_t i = 0; i < log_p.size(); ++i) token_kl += std::exp(log_p[i]) * (log_p[i] - log_q[i]);
      EXPECT_NEAR(result.token_nll[at], -log_q[static_cast<std::size_t>(next)], 1e-5);
      EXPECT_NEAR(result.token_kl[at], token_kl, 1e-6);
      window_nll -= log_q[static_cast<std::size_t>(next)];
      kl += token_kl;
      agree += std::max_element(log_p.begin(), log_p.end()) - log_p.begin() ==
                       std::max_element(log_q.begin(), log_q.end()) - log_q.begin()
                   ? 1
                   : 0;
    }
    EXPECT_NEAR(result.window_nll[static_cast<std::size_t>(w)], window_nll, 1e-3);
    nll += window_nll;
  }
  const double count = kWindows * (kContext - 1);
  EXPECT_EQ(result.tokens, kWindows * (kContext - 1));
  EXPECT_NEAR(result.perplexity.value, std::exp(nll / count), 1e-4);
  EXPECT_NEAR(result.kl->value, kl / count, 1e-6);
  EXPECT_DOUBLE_EQ(result.top1_agreement->value, agree / count);
  EXPECT_LT(result.perplexity.low, result.perplexity.value);
  EXPECT_GT(result.perplexity.high, result.perplexity.value);
}

TEST_F(Evaluate, StatesThreadsAndBatchesDoNotChangeTheResult) {
  const FinalStates states = final_states(reference, windows, {.windows_per_batch = 3});
  ThreadPool pool(3);
  const EvalResult plain = evaluate(near, windows, &states);
  const EvalResult batched = evaluate(near, windows, &states, {.pool = &pool, .windows_per_batch = 4});
  const EvalResult from_states = evaluate(final_states(near, windows), windows, &states);
  EXPECT_EQ(plain.window_kl, batched.window_kl);
  EXPECT_EQ(plain.window_nll, batched.window_nll);
  EXPECT_EQ(plain.window_kl, from_states.window_kl);
  EXPECT_EQ(plain.perplexity.low, from_states.perplexity.low);
  EXPECT_EQ(plain.window_nll, evaluate(near, windows, nullptr).window_nll);
}

TEST_F(Evaluate, TheReferenceIsComputedOnceAndAgreesWithItself) {
  const FinalStates states = final_states(reference, windows);
  const int passes = reference.forward_passes;
  evaluate(near, windows, &states);
  evaluate(far, windows, &states);
  const EvalResult itself = evaluate(states, windows, &states);
  EXPECT_EQ(reference.forward_passes, passes);
  EXPECT_EQ(itself.kl->value, 0.0);
  EXPECT_EQ(itself.top1_agreement->value, 1.0);
  EXPECT_EQ(itself.window_nll, evaluate(reference, windows, nullptr).window_nll);
}

TEST_F(Evaluate, GapRecoveredAndPairedDifferences) {
  const FinalStates states = final_states(reference, windows);
  const EvalResult fp = evaluate(states, windows, &states), good = evaluate(near, windows, &states),
                   bad = evaluate(far, windows, &states);
  const GapRecovered gap = gap_recovered(fp, bad, good);
  const double ppl_fp = fp.perplexity.value, ppl_q = bad.perplexity.value, ppl_c = good.perplexity.value;
  EXPECT_DOUBLE_EQ(gap.perplexity.value, (ppl_q - ppl_c) / (ppl_q - ppl_fp));
  EXPECT_NEAR(gap.log_perplexity.value, std::log(ppl_q / ppl_c) / std::log(ppl_q / ppl_fp), 1e-12);
  EXPECT_DOUBLE_EQ(gap.kl.value, 1 - good.kl->value / bad.kl->value);
  EXPECT_EQ(gap_recovered(fp, bad, bad).kl.value, 0.0);
  EXPECT_EQ(gap_recovered(fp, bad, fp).kl.high, 1.0);
  EXPECT_TRUE(gap.kl.excludes_zero());

  const PairedDifference difference = paired_difference(good, bad);
  EXPECT_DOUBLE_EQ(difference.perplexity.value, ppl_c - ppl_q);
  EXPECT_DOUBLE_EQ(difference.kl->value, good.kl->value - bad.kl->value);
  EXPECT_LT(difference.kl->high, 0);
  EXPECT_FALSE(paired_difference(bad, bad).kl->excludes_zero());
}

TEST_F(Evaluate, TokensThatChangedMost) {
  BigramModel changed = near;
  const std::int32_t from = windows.window(2)[100], to = windows.window(2)[101];
  changed.logit(from, to) += 30.0F;
  const EvalOptions options{.per_token = true};
  const EvalResult before = evaluate(near, windows, nullptr, options),
                   after = evaluate(changed, windows, nullptr, options);
  const TokenChanges changes = tokens_changed_most(windows, before, after, 4);
  ASSERT_FALSE(changes.gained.empty());
  EXPECT_EQ(changes.gained[0].token, to);
  EXPECT_GT(changes.gained[0].after, changes.gained[0].before + 1);
  EXPECT_EQ(windows.window(changes.gained[0].window)[static_cast<std::size_t>(changes.gained[0].position - 1)], from);
  for (const TokenChange& lost : changes.lost) EXPECT_LT(lost.after, lost.before);
  const auto decode = [](std::span<const std::int32_t> ids) { return ids.size() == 1 ? "\xF0\x9F" : "text"; };
  const auto json = to_json(changes, windows, decode, 3);
  EXPECT_EQ(json["gained"][0]["context"], "text");
  EXPECT_NO_THROW(json.dump()) << "a token that is half a character must not break the JSON";
  EXPECT_THROW(tokens_changed_most(windows, evaluate(near, windows, nullptr), after, 4), Error);
}

TEST_F(Evaluate, DocumentFollowsTheSchema) {
  const FinalStates states = final_states(reference, windows);
  const auto json = eval_document(evaluate(near, windows, &states), EvalBytes{1000, 10});
  EXPECT_EQ(json["schema"], "spear.eval/1");
  for (const char* measure : {"perplexity", "kl", "top1_agreement"}) {
    for (const char* part : {"value", "low", "high"}) EXPECT_TRUE(json[measure][part].is_number()) << measure << part;
  }
  EXPECT_EQ(json["tokens"], kWindows * (kContext - 1));
  EXPECT_EQ(json["windows"], kWindows);
  EXPECT_EQ(json["context"], kContext);
  EXPECT_EQ(json["bytes"]["fraction"], 0.01);
  EXPECT_TRUE(to_json(Interval{1, NAN, NAN})["low"].is_null());
}

TEST_F(Evaluate, RefusesWhatDoesNotFit) {
  const FinalStates states = final_states(reference, windows);
  BigramModel other(kVocab + 1);
  EXPECT_THROW(evaluate(other, windows, &states), Error);
  const TextWindows fewer = first_windows(windows.tokens, 2, kContext, "text");
  EXPECT_THROW(evaluate(near, fewer, &states), Error);
  TextWindows outside = windows;
  outside.tokens[5] = kVocab;
  EXPECT_THROW(evaluate(near, outside, nullptr), Error);
  near.logit(windows.tokens[0], 3) = NAN;
  EXPECT_THROW(evaluate(near, windows, &states), Error);
  EXPECT_THROW(
      gap_recovered(evaluate(far, fewer, nullptr), evaluate(far, windows, &states), evaluate(far, windows, &states)),
      Error);
}

}  // namespace
}  // namespace spear
