// The built binary from outside: exit codes, streams, suggestions, schemas.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/temporary_directory.h"
#include "io/checkpoint.h"
#include "ops/random_model.h"

namespace spear {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int code = -1;
  std::string out, err;
};

/// A shell command with its streams and exit code (128 + signal if it was killed).
Outcome shell(const std::string& command) {
  const TemporaryDirectory directory;
  const auto out = directory / "out", err = directory / "err";
  const int status = std::system(fmt::format("({}) > {} 2> {}", command, out.string(), err.string()).c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text_file(out), read_text_file(err)};
}

Outcome spear(const std::string& arguments) { return shell(std::string(SPEAR_BINARY) + " " + arguments); }

/// A small checkpoint with compensators, a tokenizer and results, shared by all tests.
class CliTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new TemporaryDirectory();
    testing::RandomModelOptions options;
    options.vocabulary = 904;
    options.compensators = true;
    write("model", testing::random_model(options));
    options.packed = false;
    options.compensators = false;
    write("parent", testing::random_model(options));
    std::ofstream(text()) << [] {
      std::string words;
      for (int i = 0; i < 400; ++i) words += fmt::format("word{} and {} more. ", i % 17, i);
      return words;
    }();
  }
  static void TearDownTestSuite() { delete directory_; }

  static void write(const std::string& name, ModelWeights weights) {
    weights.config.eos_token_ids = {2};
    fs::create_directory(*directory_ / name);
    const fs::path data = fs::path(SPEAR_TEST_DATA) / "text" / "small_tokenizer.json";
    const json rows = {{{"name", "reference"}, {"perplexity", {{"value", 23.5}, {"low", 22}, {"high", 25}}}},
                       {{"name", "recovered"}, {"perplexity", {{"value", 26.5}, {"low", 25}, {"high", nullptr}}}}};
    write_checkpoint(*directory_ / name, weights, {read_text_file(data), "", ""},
                     {{"schema", "spear.manifest/1"}, {"results", {{"rows", rows}}}});
  }

  static std::string model() { return (*directory_ / "model").string(); }
  static std::string parent() { return (*directory_ / "parent").string(); }
  static fs::path text() { return *directory_ / "text.txt"; }
  static fs::path file(const std::string& name) { return *directory_ / name; }

 private:
  inline static TemporaryDirectory* directory_ = nullptr;
};

TEST_F(CliTest, HelpIsShortAndHasTwoExamples) {
  const Outcome top = spear("--help");
  EXPECT_EQ(top.code, 0);
  EXPECT_EQ(top.err, "");
  for (const char* command : {"generate", "eval", "inspect", "tokenize", "export", "report", "version", "completions"}) {
    EXPECT_THAT(top.out, HasSubstr(command));
    const Outcome help = spear(std::string(command) + " --help");
    EXPECT_EQ(help.code, 0);
    const auto examples = help.out.find("Examples:");
    ASSERT_NE(examples, std::string::npos) << command;
    EXPECT_EQ(std::count(help.out.begin() + static_cast<std::ptrdiff_t>(examples), help.out.end(), '\n'), 3) << command;
  }
  for (const char* command : {"recover", "quantize", "diagnose", "calibrate"}) EXPECT_THAT(top.out, HasSubstr(command));
}

TEST_F(CliTest, ExportWritesAdaptersAndBaseWeights) {
  const std::string gptq = file("export-gptq").string(), lora = file("lora.gguf").string(), peft = file("peft").string();
  // Rows of 24 and 44 weights are no blocks of 32, and 44 is no multiple of 8: both are refused, and nothing is left.
  EXPECT_EQ(spear("export " + model() + " --format gguf --out " + file("x.gguf").string()).code, 2);
  EXPECT_FALSE(fs::exists(file("x.gguf")));
  EXPECT_EQ(spear("export " + model() + " --format gptq --out " + gptq).code, 2);
  EXPECT_FALSE(fs::exists(gptq));
  const Outcome untold = spear("export " + model() + " --format peft --out " + peft);
  EXPECT_EQ(untold.code, 2);
  EXPECT_THAT(untold.err, HasSubstr("--text"));
  const std::string with_text = " --text " + text().string() + " --tokens 64 --json";
  for (const std::string format : {"peft", "gguf-lora"}) {
    const Outcome run = spear("export " + model() + " --format " + format + " --out " + (format == "peft" ? peft : lora) + with_text);
    ASSERT_EQ(run.code, 0) << run.err;
    const auto document = json::parse(run.out);
    EXPECT_EQ(document.at("schema"), "spear.export/1");
    EXPECT_EQ(document.at("exact"), false);
    EXPECT_GT(document.at("modules").get<int>(), 0);
  }
  EXPECT_TRUE(fs::exists(fs::path(peft) / "adapter_model.safetensors"));
  EXPECT_TRUE(fs::exists(lora));
  const Outcome again = spear("export " + model() + " --format gguf-lora --out " + lora + with_text);
  EXPECT_EQ(again.code, 2);
  EXPECT_THAT(again.err, HasSubstr("--force"));
}

TEST_F(CliTest, UsageErrorsEndWithTwoAndNameTheNearest) {
  const auto expect_usage = [](const std::string& arguments, const std::string& message) {
    const Outcome run = spear(arguments);
    EXPECT_EQ(run.code, 2) << arguments;
    EXPECT_EQ(run.out, "") << arguments;
    EXPECT_THAT(run.err, HasSubstr(message)) << arguments;
    EXPECT_THAT(run.err, HasSubstr("fix: ")) << arguments;
  };
  expect_usage("", "no command given");
  expect_usage("evla", "use 'eval'");
  expect_usage("generate --model x --promt y", "use '--prompt'");
  expect_usage("generate --model x --prompt y --max-token=3", "use '--max-tokens'");
  expect_usage("generate --prompt y", "--model is required");
  expect_usage("generate --model x --prompt y --threads 0", "--threads");
  expect_usage("generate --model x --prompt y --temperature hot", "--temperature");
  expect_usage("generate --model x --prompt y --temperature -1", "--temperature");
  expect_usage("generate --model x --prompt y --top-p 0", "--top-p");
  for (const char* part : {"maybe", "1.5", "-0.1", "nan", "0.5x", "both", "''"}) {
    expect_usage(std::string("generate --model x --prompt y --compensators ") + part, "--compensators");
  }
  expect_usage("generate --model x --prompt y --device cuda", "--device");
  expect_usage("generate --model x --prompt y --frequency-penalty 3", "--frequency-penalty");
  expect_usage("generate --model x --prompt y --repetition-penalty 0", "--repetition-penalty");
  for (const char* bias : {"x", "1", "1=", "=2", "1=2x", "1=200", "-1=2"}) {
    expect_usage(std::string("generate --model x --prompt y --logit-bias ") + bias, "--logit-bias");
  }
  expect_usage("generate --model x --prompt y --logprobs 2", "--json");
  expect_usage("generate --model x --prompt y --json --logprobs 21", "--logprobs");
  expect_usage("generate --model x --prompt y --kv-cache-dtype f16", "--kv-cache-dtype");
  expect_usage("eval --model " + model(), "nothing to evaluate");
  expect_usage("completions tcsh", "tcsh");
  expect_usage("inspect --model " + model() + " surplus", "surplus");
}

TEST_F(CliTest, BadInputEndsWithThreeAndNamesTheFile) {
  const auto expect_bad = [](const std::string& arguments, const std::string& named) {
    const Outcome run = spear(arguments);
    EXPECT_EQ(run.code, 3) << arguments << "\n" << run.err;
    EXPECT_EQ(run.out, "") << arguments;
    EXPECT_THAT(run.err, HasSubstr(named)) << arguments;
  };
  expect_bad("inspect --model /nonexistent", "/nonexistent");
  expect_bad("generate --model /nonexistent --prompt x", "/nonexistent");
  expect_bad("eval --model " + model() + " --text /nonexistent", "/nonexistent");
  expect_bad("eval --model " + model() + " --tasks /nonexistent", "/nonexistent");
  expect_bad("report --model /nonexistent --out x.html", "/nonexistent");

  const fs::path damaged = file("damaged");
  fs::copy(model(), damaged, fs::copy_options::recursive);
  fs::resize_file(damaged / "model.safetensors", 1000);
  expect_bad("inspect --model " + damaged.string(), "model.safetensors");
  std::ofstream(damaged / "spear.json") << "{\"schema\": 7";
  fs::copy_file(fs::path(model()) / "model.safetensors", damaged / "model.safetensors",
                fs::copy_options::overwrite_existing);
  expect_bad("inspect --model " + damaged.string(), "spear.json");
  std::ofstream(file("tasks.txt")) << "{\"query\": 1}\n";
  expect_bad(fmt::format("eval --model {} --tasks {}", model(), file("tasks.txt").string()), "tasks.txt");
}

TEST_F(CliTest, GenerateWritesTextToStdoutAndAllElseToStderr) {
  const std::string command = "generate --model " + model() + " --prompt 'One two' --max-tokens 12 --ignore-eos";
  const Outcome run = spear(command);
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.out, Not(HasSubstr("tokens/s")));
  EXPECT_THAT(run.err, HasSubstr("tokens/s"));
  EXPECT_THAT(run.err, HasSubstr("next: spear "));
  EXPECT_EQ(spear(command).out, run.out);
  const Outcome quiet = spear(command + " --quiet");
  EXPECT_EQ(quiet.out, run.out);
  EXPECT_EQ(quiet.err, "");

  const json document = json::parse(spear(command + " --json").out);
  EXPECT_EQ(document.at("schema"), "spear.generate/1");
  EXPECT_EQ(document.at("completion_tokens"), 12);
  EXPECT_EQ(document.at("finish_reason"), "length");
  EXPECT_EQ(document.at("text").get<std::string>() + "\n", run.out);
}

TEST_F(CliTest, GenerateSamplesBySeedAndStops) {
  const std::string command = "generate --quiet --model " + model() +
                              " --prompt 'One two' --max-tokens 30 --ignore-eos --temperature 2 --seed ";
  const Outcome one = spear(command + "1");
  EXPECT_EQ(spear(command + "1").out, one.out);
  EXPECT_NE(spear(command + "2").out, one.out);
  const std::string stop = one.out.substr(0, 1);
  const Outcome stopped = spear(command + "1 --stop nothing-like-this --stop '" + stop + "'");
  EXPECT_EQ(stopped.out, "\n") << stop;
}

TEST_F(CliTest, GenerateRefusesAPromptThatDoesNotFit) {
  const Outcome run = spear("generate --model " + model() + " --prompt '" + std::string(400, '7') + "'");
  EXPECT_EQ(run.code, 2);
  EXPECT_EQ(run.out, "");
  EXPECT_THAT(run.err, HasSubstr("128 positions"));
  EXPECT_EQ(spear("generate --model " + model() + " --prompt x --chat").code, 2);  // it has no chat template
}

TEST_F(CliTest, GenerateWithPenaltiesBiasAndLogprobs) {
  const std::string command = "generate --json --ignore-eos --max-tokens 6 --prompt 'One two' --model " + model();
  const json plain = json::parse(spear(command + " --logprobs 2").out);
  ASSERT_EQ(plain.at("logprobs").size(), 6U);
  for (std::size_t i = 0; i < 6; ++i) {
    const json& token = plain.at("logprobs").at(i);
    EXPECT_EQ(token.at("token"), plain.at("tokens").at(i));
    EXPECT_EQ(token.at("top").at(0).at("token"), token.at("token"));  // greedy
    EXPECT_LE(token.at("top").at(1).at("logprob"), token.at("logprob"));
  }
  const int first = plain.at("tokens").at(0);
  const json banned = json::parse(spear(command + fmt::format(" --logit-bias {}=-100 --logit-bias 1=0.5", first)).out);
  EXPECT_NE(banned.at("tokens").at(0), first);
  EXPECT_FALSE(banned.contains("logprobs"));
  const json penalized = json::parse(spear(command + " --presence-penalty 2 --frequency-penalty 2").out);
  EXPECT_EQ(penalized.at("tokens").at(0), first);
  EXPECT_EQ(spear(command + " --logit-bias 100000000=1").code, 3);
}

TEST_F(CliTest, EvalAgainstItselfAndAgainstTheParent) {
  const std::string data = " --text " + text().string() + " --context 32 --windows 4 --json";
  // As it is served: keys, values and inputs rounded, the reference's not.
  const std::string served = data + " --kv-cache-dtype bf16 --activations a16";
  const json rounded = json::parse(spear("eval --model " + model() + " --reference " + model() + served).out);
  EXPECT_EQ(rounded.at("kv_cache_dtype"), "bf16");
  EXPECT_GT(rounded.at("kl").at("value").get<double>(), 0);
  EXPECT_NEAR(rounded.at("kl").at("value").get<double>(), 0, 1e-3);
  const json self = json::parse(spear("eval --model " + model() + " --reference " + model() + data).out);
  EXPECT_EQ(self.at("schema"), "spear.eval/1");
  EXPECT_NEAR(self.at("kl").at("value").get<double>(), 0, 1e-6);
  EXPECT_EQ(self.at("top1_agreement").at("value"), 1.0);
  EXPECT_EQ(self.at("windows"), 4);
  EXPECT_EQ(self.at("context"), 32);
  EXPECT_EQ(self.at("tokens"), 4 * 31);
  EXPECT_GT(self.at("bytes").at("compensators").get<std::int64_t>(), 0);
  EXPECT_LE(self.at("perplexity").at("low").get<double>(), self.at("perplexity").at("value").get<double>());

  const json off =
      json::parse(spear("eval --compensators off --model " + model() + " --reference " + model() + data).out);
  EXPECT_GT(off.at("kl").at("value").get<double>(), 1e-4);
  EXPECT_EQ(off.at("bytes").at("compensators"), 0);
  const auto part = [&](const std::string& density) {
    return json::parse(spear("eval --compensators " + density + " --model " + model() + " --reference " + model() + data).out);
  };
  const json half = part("0.5");
  EXPECT_EQ(half.at("compensator_density"), 0.5);
  EXPECT_GT(half.at("bytes").at("compensators").get<std::int64_t>(), 0);
  EXPECT_LT(half.at("bytes").at("compensators").get<std::int64_t>(), self.at("bytes").at("compensators").get<std::int64_t>());
  EXPECT_GT(half.at("kl").at("value").get<double>(), 1e-4);
  EXPECT_NE(half.at("kl"), off.at("kl"));
  EXPECT_EQ(part("0").at("kl"), off.at("kl"));
  EXPECT_EQ(part("1").at("kl"), self.at("kl"));
  const json parent_kl = json::parse(spear("eval --model " + model() + " --reference " + parent() + data).out);
  EXPECT_GT(parent_kl.at("kl").at("value").get<double>(), 0.01);
  const json alone = json::parse(spear("eval --model " + model() + data).out);
  EXPECT_FALSE(alone.contains("kl"));
  EXPECT_EQ(alone.at("perplexity"), self.at("perplexity"));

  const Outcome shown = spear("eval --model " + model() + " --text " + text().string() + " --context 32 --windows 4");
  EXPECT_THAT(shown.out, HasSubstr("perplexity"));
  EXPECT_EQ(spear("eval --model " + model() + " --text " + text().string() + " --context 100000").code, 3);
}

TEST_F(CliTest, FasterActivationsStayCloseToTheOracle) {
  const auto kl = [&](const std::string& options) {
    const std::string data = " --text " + text().string() + " --context 32 --windows 4 --json " + options;
    const json result = json::parse(spear("eval --model " + model() + " --reference " + model() + data).out);
    return result.at("kl").at("value").get<double>();
  };
  const double a16 = kl("--activations a16 --head-dtype bf16"), a8 = kl("--activations a8 --head-dtype bf16");
  EXPECT_LT(a16, 1e-3);
  EXPECT_LT(a8, 1e-2);
  EXPECT_EQ(spear("eval --model " + model() + " --text " + text().string() + " --activations a4").code, 2);
}

TEST_F(CliTest, BenchMeasuresAModelOrAShape) {
  const std::string grid = " --prompt-tokens 8 --gen-tokens 2 --repeats 2 --threads 1 ";
  const json shape = json::parse(spear("bench --shape smollm2-135m --vocabulary 512 --json" + grid).out);
  EXPECT_EQ(shape.at("schema"), "spear.bench/1");
  EXPECT_EQ(shape.at("results").size(), 4U);  // prefill and decode, compensators on and off
  const Outcome table = spear("bench --quiet --model " + model() + grid + "--compensators on --activations a8 --kv-cache-dtype int8");
  EXPECT_EQ(table.code, 0);
  EXPECT_THAT(table.out, HasSubstr("roofline"));
  const json half = json::parse(spear("bench --json --model " + model() + grid + "--compensators 0.5").out);
  EXPECT_EQ(half.at("compensator_density"), 0.5);
  const json both = json::parse(spear("bench --json --model " + model() + grid).out);
  std::map<bool, std::int64_t> bytes;
  for (const auto& row : both.at("results")) {
    if (row.at("test") == "decode") bytes[row.at("compensators")] = row.at("bytes_per_token");
  }
  for (const auto& row : half.at("results")) {
    EXPECT_EQ(row.at("compensators"), true);
    if (row.at("test") != "decode") continue;
    EXPECT_GT(row.at("bytes_per_token").get<std::int64_t>(), bytes.at(false));
    EXPECT_LT(row.at("bytes_per_token").get<std::int64_t>(), bytes.at(true));
  }
  EXPECT_EQ(spear("bench" + grid).code, 2);
  EXPECT_EQ(spear("bench --shape llama-2t" + grid).code, 2);
}

TEST_F(CliTest, ProfileMeasuresATableThatSimulateReads) {
  const std::string small = " --seconds 0.2 --max-num-seqs 2 --max-chunk 16 --max-context 32 --threads 1 ";
  const std::string table = file("table.json").string();
  const Outcome run = spear("profile --json --model " + model() + small + "--out " + table);
  ASSERT_EQ(run.code, 0) << run.err;
  const json measured = json::parse(run.out);
  EXPECT_EQ(measured.at("schema"), "spear.latency/1");
  EXPECT_EQ(measured.at("held_out").size(), 24U);
  EXPECT_FALSE(measured.at("kernels").empty());
  EXPECT_EQ(spear("profile --quiet --model " + model() + small + "--out " + table).code, 0);  // its own is replaced
  EXPECT_EQ(spear("profile --quiet --model " + model() + small + "--out " + text().string()).code, 2);

  const std::string load = " --rate 20 --requests 30 --lengths 20:5 --ttft-ms 500 --itl-ms 50 --policies slo,8,64 ";
  const Outcome simulated = spear("simulate --json --table " + table + load);
  ASSERT_EQ(simulated.code, 0) << simulated.err;
  const json result = json::parse(simulated.out);
  ASSERT_EQ(result.at("results").size(), 3U);
  EXPECT_EQ(result.at("results")[0].at("completed"), 30);
  EXPECT_THAT(spear("simulate --quiet --table " + table + load).out, HasSubstr("attainment"));
  EXPECT_EQ(spear("simulate --table " + text().string() + load).code, 3);
  EXPECT_EQ(spear("simulate --table " + table + " --policies fast").code, 2);
}

TEST_F(CliTest, ProfileOfKernelsSaysWhatFixedChoicesLose) {
  const std::string small = " --kernels --seconds 0.05 --max-num-seqs 2 --max-chunk 16 --threads 1 ";
  const Outcome run = spear("profile --json --model " + model() + small);
  ASSERT_EQ(run.code, 0) << run.err;
  const json measured = json::parse(run.out);
  EXPECT_EQ(measured.at("schema"), "spear.kernels/1");
  EXPECT_EQ(measured.at("steps").size(), 5U);  // 1, 2, 4, 8, 16 tokens
  for (const char* way : {"late", "early", "separate"}) EXPECT_TRUE(measured.at("steps")[0].at("loss_us").contains(way));
  const Outcome table = spear("profile --quiet --model " + model() + small);
  EXPECT_THAT(table.out, HasSubstr("each fixed choice would lose"));
  EXPECT_EQ(spear("profile --activations a32 --model " + model() + small).code, 2);
  for (const auto& entry : fs::directory_iterator(model())) {
    EXPECT_THAT(entry.path().filename().string(), Not(HasSubstr("latency"))) << "nothing is written";
  }
}

TEST_F(CliTest, EvalOnTasks) {
  std::ofstream tasks(file("choices.jsonl"));
  for (int i = 0; i < 4; ++i)
    tasks << R"({"query": "One and", "choices": ["two", "blue sky"], "gold": 0})"
          << "\n";
  tasks.close();
  const Outcome run = spear(fmt::format("eval --model {} --reference {} --tasks {} --limit 3 --json", model(), parent(),
                                        file("choices.jsonl").string()));
  ASSERT_EQ(run.code, 0) << run.err;
  const json document = json::parse(run.out);
  ASSERT_EQ(document.at("tasks").size(), 1U);
  EXPECT_EQ(document.at("tasks")[0].at("name"), "choices");
  EXPECT_EQ(document.at("tasks")[0].at("items"), 3);
  EXPECT_TRUE(document.at("tasks")[0].contains("difference"));
  EXPECT_FALSE(document.contains("perplexity"));
  EXPECT_EQ(spear(fmt::format("eval --model {} --tasks {}", model(), file("choices.jsonl").string())).code, 0);
}

TEST_F(CliTest, InspectCountsBytesAndVerifiesHashes) {
  const Outcome run = spear("inspect --verify --json " + model());
  ASSERT_EQ(run.code, 0) << run.err;
  const json document = json::parse(run.out);
  EXPECT_EQ(document.at("schema"), "spear.inspect/1");
  EXPECT_EQ(document.at("kind"), "SPEAR checkpoint");
  EXPECT_EQ(document.at("config").at("num_hidden_layers"), 2);
  EXPECT_EQ(document.at("compensators").at("modules").size(), 12U);
  EXPECT_EQ(document.at("results").size(), 2U);
  EXPECT_EQ(document.at("verified"), true);
  std::int64_t sum = 0, modules = 0;
  for (const auto& part : document.at("parts")) sum += part.at("bytes").get<std::int64_t>();
  for (const auto& module : document.at("compensators").at("modules"))
    modules += module.at("bytes").get<std::int64_t>();
  EXPECT_EQ(document.at("bytes"), sum);
  EXPECT_EQ(document.at("compensators").at("bytes"), modules);
  // 4 bits, and one f16 scale per row of 24 or 44 columns.
  EXPECT_GT(document.at("bits_per_linear_weight").get<double>(), 4.3);
  EXPECT_LT(document.at("bits_per_linear_weight").get<double>(), 4.8);

  const Outcome shown = spear("inspect --modules --model " + model());
  EXPECT_THAT(shown.out, HasSubstr("model.layers.1.mlp.down_proj"));
  EXPECT_THAT(shown.out, HasSubstr("26.5 [25, -]"));

  const fs::path damaged = file("flipped");
  fs::copy(model(), damaged, fs::copy_options::recursive);
  std::fstream bytes(damaged / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  bytes.seekp(-1, std::ios::end);
  bytes.put('\x55');
  bytes.close();
  EXPECT_EQ(spear("inspect --verify --model " + damaged.string()).code, 3);
  EXPECT_EQ(spear("inspect --verify --model " + std::string(SPEAR_TEST_DATA) + "/tiny-llama").code, 2);
}

TEST_F(CliTest, ReportIsWrittenOnceUnlessForced) {
  const std::string command = fmt::format("report --model {} --out {}", model(), file("report.html").string());
  const Outcome first = spear(command);
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(read_text_file(file("report.html")), HasSubstr("<html"));
  EXPECT_EQ(spear(command).code, 2);
  EXPECT_EQ(spear(command + " --force").code, 0);
}

TEST_F(CliTest, OfflineCommandsGoToTheirProgram) {
  const TemporaryDirectory prefix;
  fs::create_directories(prefix / "bin");
  fs::copy_file(SPEAR_BINARY, prefix / "bin/spear");
  const std::string binary = (prefix / "bin/spear").string();
  const Outcome missing = shell(binary + " recover --model x");
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.err, HasSubstr("libexec/spear/spear-offline"));
  EXPECT_THAT(missing.err, HasSubstr("SPEAR_OFFLINE=ON"));

  fs::create_directories(prefix / "libexec/spear");
  const fs::path program = prefix / "libexec/spear/spear-offline";
  std::ofstream(program) << "#!/bin/sh\nfor a in \"$@\"; do echo \"<$a>\"; done\nexit 5\n";
  fs::permissions(program, fs::perms::owner_all);
  const Outcome passed = shell(binary + " recover --model 'a b' --json --help --unknown");
  EXPECT_EQ(passed.code, 5);
  EXPECT_EQ(passed.out, "<recover>\n<--model>\n<a b>\n<--json>\n<--help>\n<--unknown>\n");
  EXPECT_EQ(shell("cd / && PATH=" + (prefix / "bin").string() + " spear diagnose").out, "<diagnose>\n");
}

TEST_F(CliTest, CompletionsAreScriptsThatComplete) {
  const std::string binary = SPEAR_BINARY;
  const auto complete = [&](const std::string& words, int position) {
    return shell(fmt::format("bash -c 'spear() {{ {} \"$@\"; }}; source <(spear completions bash); COMP_WORDS=({}); "
                             "COMP_CWORD={}; _spear; echo \"${{COMPREPLY[@]}}\"'",
                             binary, words, position))
        .out;
  };
  EXPECT_EQ(complete("spear gen", 1), "generate\n");
  EXPECT_EQ(complete("spear generate --max", 2), "--max-tokens\n");
  EXPECT_EQ(complete("spear eval --compensators o", 3), "on off\n");
  EXPECT_EQ(complete("spear completions f", 2), "fish\n");
  for (const char* shell_name : {"bash", "zsh", "fish"}) {
    const Outcome script = spear(std::string("completions ") + shell_name);
    EXPECT_EQ(script.code, 0);
    for (const char* name : {"recover", "generate", "min-p", "verify"}) EXPECT_THAT(script.out, HasSubstr(name));
  }
}

TEST_F(CliTest, TheEnvironmentChoosesTheKernels) {
  const Outcome generic = shell(std::string("SPEAR_FORCE_ISA=generic ") + SPEAR_BINARY + " version --json");
  EXPECT_EQ(json::parse(generic.out).at("isa"), "generic");
  const Outcome unknown = shell(std::string("SPEAR_FORCE_ISA=vax ") + SPEAR_BINARY + " version");
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("SPEAR_FORCE_ISA"));
}

TEST_F(CliTest, AFullStdoutIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const Outcome run = spear("inspect --model " + model() + " > /dev/full");
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.err, HasSubstr("stdout"));
}

TEST_F(CliTest, AnInterruptEndsWith130) {
  testing::RandomModelOptions options;
  options.vocabulary = 904;
  ModelWeights weights = testing::random_model(options);
  weights.config.max_position_embeddings = 1000000;
  write("endless", weights);
  const Outcome run =
      shell(fmt::format("timeout --preserve-status -s INT 1 {} generate --quiet --ignore-eos --model {} "
                        "--prompt x --max-tokens 500000 > /dev/null",
                        SPEAR_BINARY, file("endless").string()));
  EXPECT_EQ(run.code, 130);
}

TEST_F(CliTest, LinksNoTorch) {
  const Outcome run = shell(std::string("ldd ") + SPEAR_BINARY);
  if (run.code != 0) GTEST_SKIP() << "no ldd";
  EXPECT_THAT(run.out, HasSubstr("libstdc++"));
  for (const char* library : {"libtorch", "libc10", "libpython"}) EXPECT_THAT(run.out, Not(HasSubstr(library)));
}

}  // namespace
}  // namespace spear
