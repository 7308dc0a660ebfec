#include "eval/tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "base/error.h"
#include "base/file.h"
#include "fake_model.h"

namespace spear {
namespace {

/// One token per byte.
std::vector<std::int32_t> encode_bytes(std::string_view text) {
  std::vector<std::int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

class TaskFile : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& content) {
    write_file_atomic(path, content);
    return path;
  }
  void TearDown() override { std::filesystem::remove(path); }

  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("spear_task_" + std::to_string(getpid()) + ".jsonl");
};

TEST_F(TaskFile, FieldsTellTheKind) {
  const Task choice =
      read_task(write("{\"query\": \"Question: why?\\n\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n\n"
                      "{\"query\": \"plain\", \"choices\": [\"a\", \"b\", \"c\"], \"gold\": 0}"));
  EXPECT_EQ(choice.kind, TaskKind::multiple_choice);
  ASSERT_EQ(choice.items.size(), 2U);
  EXPECT_EQ(choice.items[0].contexts[0], "Question: why?\nAnswer:");
  EXPECT_EQ(choice.items[1].contexts[0], "plain");
  EXPECT_EQ(choice.items[0].gold, 1);
  EXPECT_EQ(read_task(path, 1).items.size(), 1U);
  EXPECT_EQ(read_task(write("{\"context\": \"a b\", \"continuation\": \"c\"}")).kind, TaskKind::last_word);
  const Task ending = read_task(write("{\"context_options\": [\"x\", \"y\"], \"continuation\": \"z\", \"gold\": 0}"));
  EXPECT_EQ(ending.kind, TaskKind::shared_ending);
  EXPECT_EQ(ending.items[0].options(), 2U);
}

TEST_F(TaskFile, HostileLinesAreRefusedWithTheirPlace) {
  const std::string good = "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n";
  for (const std::string bad : {
           "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}",
           "{\"query\": \"q\", \"choices\": [\"a\", \"b\"]}",
           "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": -1}",
           "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 0.5}",
           "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 18446744073709551615}",
           "{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}",
           "{\"query\": \"q\", \"choices\": [\"a\", \"\"], \"gold\": 0}",
           "{\"query\": \"q\", \"choices\": \"ab\", \"gold\": 0}",
           "{\"query\": 3, \"choices\": [\"a\", \"b\"], \"gold\": 0}",
           "{\"query\": \"\", \"choices\": [\"a\", \"b\"], \"gold\": 0}",
           "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 0",
           "[1, 2]",
           "null",
           "\xff\xfe",
           "{\"query\": \"\xff\", \"choices\": [\"a\", \"b\"], \"gold\": 0}",
           "{\"context\": \"another\", \"continuation\": \"kind\"}",
           "{\"continuation\": \"alone\"}",
       }) {
    try {
      read_task(write(good + bad + "\n"));
      FAIL() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input) << bad;
      EXPECT_THAT(error.where(), testing::EndsWith(":2")) << bad;
    }
  }
  EXPECT_THROW(read_task(write("\n \n")), Error);
  EXPECT_THROW(read_task("does-not-exist.jsonl"), Error);
  EXPECT_THROW(read_task(write(std::string(200000, '['))), Error);
}

TEST(RunTask, ScoresAgreeWithBruteForce) {
  BigramModel model = BigramModel::random(256, 11);
  Task task{"choices", TaskKind::multiple_choice, {}};
  Random random(12);
  const auto word = [&random](std::uint64_t least, std::uint64_t spread) {
    std::string text;
    for (std::uint64_t n = least + random.below(spread); n > 0; --n) text += static_cast<char>('a' + random.below(26));
    return text;
  };
  for (int i = 0; i < 40; ++i) {
    task.items.push_back(
        {{word(3, 5)}, {word(1, 9), word(1, 9), word(1, 9)}, static_cast<std::int64_t>(random.below(3))});
  }
  const TaskResult result = run_task(model, encode_bytes, task, {.tokens_per_batch = 64});

  for (std::size_t i = 0; i < task.items.size(); ++i) {
    const TaskItem& item = task.items[i];
    std::vector<double> summed, per_byte;
    for (const std::string& choice : item.continuations) {
      const std::string text = item.contexts[0] + " " + choice;
      double log_likelihood = 0;
      for (std::size_t t = item.contexts[0].size(); t < text.size(); ++t) {
        const auto row =
            std::span<const float>(model.table).subspan(static_cast<unsigned char>(text[t - 1]) * 256UL, 256);
        log_likelihood += log_softmax(row)[static_cast<unsigned char>(text[t])];
      }
      summed.push_back(log_likelihood);
      per_byte.push_back(log_likelihood / static_cast<double>(choice.size()));
    }
    const auto best = [](const std::vector<double>& v) { return std::max_element(v.begin(), v.end()) - v.begin(); };
    EXPECT_EQ(result.correct[i], best(summed) == item.gold ? 1 : 0) << i;
    EXPECT_EQ(result.correct_norm[i], best(per_byte) == item.gold ? 1 : 0) << i;
  }
  EXPECT_NE(result.correct, result.correct_norm) << "the length must matter somewhere, or this tests nothing";
  EXPECT_EQ(result.primary().value, result.accuracy_norm.value);
}

TEST(RunTask, LastWordNeedsEveryTokenGreedily) {
  BigramModel model(256);
  model.logit('x', ' ') = model.logit(' ', 'a') = model.logit('a', 'b') = 1;
  const Task task{
      "words", TaskKind::last_word, {{{"x"}, {"a"}, 0}, {{"x"}, {"ab"}, 0}, {{"x"}, {"abc"}, 0}, {{"x"}, {"b"}, 0}}};
  const TaskResult result = run_task(model, encode_bytes, task);
  EXPECT_THAT(result.correct, testing::ElementsAre(1, 1, 0, 0));
  EXPECT_DOUBLE_EQ(result.accuracy.value, 0.5);
}

TEST(RunTask, SharedEndingChoosesTheContextAndScoresTheEndingAlone) {
  BigramModel model(256);
  model.logit('p', 'q') = 9;  // makes context 0 likely, which must not count
  model.logit('r', ' ') = 2;  // makes the ending likely after context 1
  const Task task{"ending", TaskKind::shared_ending, {{{"pq", "pr"}, {"z"}, 1}, {{"pq", "pr"}, {"z"}, 0}}};
  EXPECT_THAT(run_task(model, encode_bytes, task).correct, testing::ElementsAre(1, 0));
}

TEST(RunTask, SpaceAtTheContextsEndIsNotDoubled) {
  BigramModel model = BigramModel::random(256, 3);
  const Task plain{"t", TaskKind::last_word, {{{"ab"}, {"cd"}, 0}}},
      spaced{"t", TaskKind::last_word, {{{"ab "}, {"cd"}, 0}}};
  std::vector<std::string> plain_texts, spaced_texts;
  const auto record = [](std::vector<std::string>& texts) {
    return [&texts](std::string_view text) {
      texts.emplace_back(text);
      return encode_bytes(text);
    };
  };
  run_task(model, record(plain_texts), plain);
  run_task(model, record(spaced_texts), spaced);
  EXPECT_EQ(plain_texts, spaced_texts);
  EXPECT_THAT(plain_texts, testing::Contains("ab cd"));
}

TEST(RunTask, RefusesWhatItWouldHaveToCut) {
  BigramModel model(256);
  const Task task{"long", TaskKind::last_word, {{{std::string(70, 'a')}, {"b"}, 0}}};
  EXPECT_THROW(run_task(model, encode_bytes, task), Error);
  const auto outside = [](std::string_view text) { return std::vector<std::int32_t>(text.size(), 256); };
  EXPECT_THROW(run_task(model, outside, {"ids", TaskKind::last_word, {{{"a"}, {"b"}, 0}}}), Error);
}

TEST(TaskComparison, IsPairedAndAveragedOverTasks) {
  const auto result = [](const char* name, std::vector<double> correct) {
    TaskResult r{name, TaskKind::last_word, {}, {}, correct, correct};
    r.accuracy = r.accuracy_norm = bootstrap_mean(r.correct);
    return r;
  };
  std::vector<double> reference(200), worse(200);
  for (std::size_t i = 0; i < 200; ++i) {
    reference[i] = i % 2 == 0 ? 1 : 0;
    worse[i] = i % 2 == 0 && i % 20 != 0 ? 1 : 0;
  }
  const std::vector<TaskResult> a{result("one", worse), result("two", reference)};
  const std::vector<TaskResult> b{result("one", reference), result("two", reference)};
  EXPECT_NEAR(accuracy_difference(a[0], b[0]).value, -0.05, 1e-12);
  EXPECT_TRUE(accuracy_difference(a[0], b[0]).excludes_zero());
  const Interval mean = mean_accuracy_difference(a, b);
  EXPECT_NEAR(mean.value, -0.025, 1e-12);
  EXPECT_LT(mean.high, 0);
  EXPECT_NEAR(mean_accuracy(b).value, 0.5, 1e-12);
  EXPECT_THROW(accuracy_difference(a[0], b[1]), Error);
  const auto json = tasks_json(a, b);
  EXPECT_EQ(json[0]["name"], "one");
  EXPECT_EQ(json[0]["primary"], "accuracy");
  EXPECT_EQ(json[0]["reference"], 0.5);
}

}  // namespace
}  // namespace spear
