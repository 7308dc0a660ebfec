// A whole recovery of a tiny random model: what it writes, what it refuses, and that it ends in the same bytes however
// often it was stopped.
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/temporary_directory.h"
#include "eval/evaluate.h"
#include "io/checkpoint.h"
#include "io/model_reader.h"
#include "io/safetensors.h"
#include "model/stream_rotation.h"
#include "ops/cpu_model.h"
#include "ops/random_model.h"
#include "recover/pipeline.h"
#include "text/tokenizer.h"

extern char** environ;

namespace spear {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kVocabulary = 904;  // of tests/data/text/small_tokenizer.json
constexpr std::int64_t kContext = 24, kWindows = 5;

/// A random two-layer model as a Hugging Face directory.
void write_model(const fs::path& folder) {
  testing::RandomModelOptions options;
  options.packed = false;
  options.vocabulary = kVocabulary;
  options.dense = DType::bf16;  // as it stays in the checkpoint: an f32 embedding would be rounded to F16 there
  const ModelWeights weights = testing::random_model(options);
  const ModelConfig& c = weights.config;
  TensorMap tensors = {{"model.embed_tokens.weight", weights.embed_tokens}, {"model.norm.weight", weights.norm}};
  for (int i = 0; i < module_count(c); ++i)
    tensors.emplace(ModuleId{i}.name() + ".weight", std::get<Tensor>(weights.linear({i}).weight));
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    const std::string layer = "model.layers." + std::to_string(i);
    tensors.emplace(layer + ".input_layernorm.weight", weights.layers[i].input_layernorm);
    tensors.emplace(layer + ".post_attention_layernorm.weight", weights.layers[i].post_attention_layernorm);
  }
  fs::create_directories(folder);
  write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                 {"model_type", "llama"},
                                 {"hidden_act", "silu"},
                                 {"hidden_size", c.hidden_size},
                                 {"intermediate_size", c.intermediate_size},
                                 {"num_hidden_layers", c.num_hidden_layers},
                                 {"num_attention_heads", c.num_attention_heads},
                                 {"num_key_value_heads", c.num_key_value_heads},
                                 {"head_dim", c.head_dim},
                                 {"vocab_size", c.vocab_size},
                                 {"max_position_embeddings", 128},
                                 {"rms_norm_eps", c.rms_norm_eps},
                                 {"rope_theta", c.rope_theta},
                                 {"tie_word_embeddings", true}};
  write_file_atomic(folder / "config.json", config.dump(1));
  fs::copy_file(fs::path(SPEAR_TEST_DATA) / "text/small_tokenizer.json", folder / "tokenizer.json");
}

std::string measured_text() {
  std::string text;
  for (int i = 0; i < 60; ++i) text += "line " + std::to_string(i * 37 % 101) + " of a text that no sample holds\n";
  return text;
}

/// Codes, scales, gains and gated compensators all train; a few seconds of work.
RecoverOptions small_recovery(const fs::path& folder, const std::string& out) {
  RecoverOptions o;
  o.reference = folder / "model";
  o.out = folder / out;
  o.text = folder / "text.txt";
  o.context = kContext;
  o.windows = kWindows;
  Recipe& r = o.recipe;
  r = preset_recipe("quick");
  r.samples = {.sequences = 24, .length = 32, .batch = 8, .seed = 3};
  r.held_out_sequences = 6;
  r.quantizer_sequences = 12;
  r.quantizer_length = 32;
  r.diagnose = {.sequences = 3, .length = 32};
  r.budget = 0.08;
  r.gate_hidden = 2;
  r.gate_rows = 1;
  set_tune(r, Tune::codes);
  r.train.steps = 60;
  r.train.tokens_per_step = 64;
  r.train.sequence_length = 32;
  return o;
}

class RecoverTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder = new TemporaryDirectory;
    write_model(*folder / "model");
    std::ofstream(*folder / "text.txt") << measured_text();
    manifest = new nlohmann::json(recover(small_recovery(folder->path(), "whole")));
  }
  static void TearDownTestSuite() {
    delete manifest;
    delete folder;
  }
  static std::string bytes_of(const std::string& out, const char* file) { return read_text_file(*folder / out / file); }
  static void expect_same_artifact(const std::string& out) {
    for (const char* file : {"model.safetensors", "compensators.safetensors"}) {
      EXPECT_TRUE(bytes_of(out, file) == bytes_of("whole", file)) << out << ": " << file;
    }
  }
  static ExitCode code_of(const RecoverOptions& options) {
    try {
      recover(options);
    } catch (const Error& error) {
      EXPECT_FALSE(error.remedy().empty()) << error.what();
      return error.code();
    }
    return ExitCode::ok;
  }

  static inline TemporaryDirectory* folder = nullptr;
  static inline nlohmann::json* manifest = nullptr;
};

const nlohmann::json& row(const nlohmann::json& manifest, const std::string& name) {
  for (const auto& row : manifest.at("results").at("rows")) {
    if (row.at("name") == name) return row;
  }
  throw std::runtime_error("no row " + name);
}

double kl_of(const nlohmann::json& manifest, const std::string& name) {
  return row(manifest, name).at("kl").at("value").get<double>();
}

TEST_F(RecoverTest, TheCheckpointReadsBackAndKeepsTheBudget) {
  EXPECT_NO_THROW(verify_checkpoint(*folder / "whole"));
  EXPECT_EQ(read_manifest(*folder / "whole"), *manifest);
  const ModelWeights weights = read_model(*folder / "whole"), reference = read_model(*folder / "model");
  int compensated = 0, gated = 0;
  for (int i = 0; i < module_count(weights.config); ++i) {
    EXPECT_TRUE(std::holds_alternative<W4Matrix>(weights.linear({i}).weight));
    const auto& c = weights.linear({i}).compensator;
    const std::int64_t rank = manifest->at("placement").at("ranks").at(static_cast<std::size_t>(i));
    EXPECT_EQ(c ? c->rank : 0, rank) << ModuleId{i}.name();
    compensated += c ? 1 : 0;
    gated += c && c->gate.hidden == 2 ? 1 : 0;
  }
  EXPECT_GT(compensated, 0);
  EXPECT_EQ(gated, compensated);
  const std::int64_t base = budget_base_bytes(reference, {}), added = compensator_bytes(weights);
  EXPECT_EQ(manifest->at("bytes").at("base"), base);
  EXPECT_EQ(manifest->at("bytes").at("compensators"), fs::file_size(*folder / "whole" / "compensators.safetensors"))
      << "every byte that was added counts, the header too";
  EXPECT_LE(static_cast<double>(added), 0.08 * static_cast<double>(base));
  EXPECT_GT(static_cast<double>(added), 0.04 * static_cast<double>(base));
  EXPECT_EQ(load_tokenizer(*folder / "whole").encode("a text"), load_tokenizer(*folder / "model").encode("a text"));
  EXPECT_GT(fs::file_size(*folder / "whole" / "report.html"), 1000U);
  EXPECT_FALSE(fs::exists(folder->path() / "whole.work")) << "intermediate results are removed after success";
}

TEST_F(RecoverTest, TheOnlinePlaneMeasuresWhatTheManifestSays) {
  const auto tokens = load_tokenizer(*folder / "model").encode(measured_text());
  const auto windows = first_windows(tokens, kWindows, kContext, "text");
  CpuModel reference(read_model(*folder / "model"));
  const auto states = final_states(reference, windows);
  const auto expect_row = [&](const char* name, ForwardModel& model) {
    const auto found = evaluate(model, windows, &states);
    const auto& stated = row(*manifest, name);
    const double perplexity = stated.at("perplexity").at("value"), kl = stated.at("kl").at("value");
    EXPECT_NEAR(perplexity, found.perplexity.value, 1e-4 * found.perplexity.value) << name;
    EXPECT_NEAR(kl, found.kl->value, 1e-4 * found.kl->value + 1e-6) << name;
    return kl;
  };
  CpuModel recovered(read_model(*folder / "whole"));
  EXPECT_LT(expect_row("recovered", recovered), row(*manifest, "quantized").at("kl").at("value").get<double>());
  expect_row("reference", reference);
}

TEST_F(RecoverTest, ARotatedStreamIsMeasuredAlikeOnBothPlanes) {
  auto options = small_recovery(folder->path(), "turned");
  options.recipe.rotation = Rotation::stream;  // and the rates of the fixture, for a model this small
  options.recipe.samples.sequences = 240;      // fewer, and what training learns of them does not carry over to the text
  options.recipe.samples.seed = 0;             // gains a quarter and more in either type; of 14 runs with other seeds 3 lost by chance
  options.recipe.quantizer_sequences = 120;
  const auto found = recover(options);
  EXPECT_EQ(found.at("recipe").at("rotation"), "stream");
  EXPECT_EQ(row(found, "reference"), row(*manifest, "reference")) << "the reference is what it was";
  EXPECT_EQ(row(found, "rtn"), row(*manifest, "rtn")) << "and so is the row that others are held against";
  const ModelWeights recovered = read_model(options.out);
  EXPECT_TRUE(recovered.config.rotated_stream);
  EXPECT_TRUE(recovered.lm_head.empty()) << "still tied: no byte is added";
  const auto windows = first_windows(load_tokenizer(*folder / "model").encode(measured_text()), kWindows, kContext, "text");
  CpuModel reference(read_model(*folder / "model")), online(recovered), folded(fold_stream_rotation(recovered));
  const auto states = final_states(reference, windows);
  const double kl = kl_of(found, "recovered");
  EXPECT_NEAR(evaluate(online, windows, &states).kl->value, kl, 1e-4 * kl + 1e-6);
  EXPECT_NEAR(evaluate(folded, windows, &states).kl->value, kl, 1e-2 * kl) << "as other programs get it, its embedding rounded to bf16";
  EXPECT_LT(kl, kl_of(found, "quantized"));
}

/// One of the two is what this machine would choose by itself.
TEST_F(RecoverTest, LinearsInEitherTypeRecover) {
  const char* outside = std::getenv("SPEAR_FORCE_COMPUTE");
  const std::string before = outside == nullptr ? "" : outside;
  for (const char* type : {"bfloat16", "float32"}) {
    ASSERT_EQ(setenv("SPEAR_FORCE_COMPUTE", type, 1), 0);
    auto options = small_recovery(folder->path(), type);
    options.recipe.samples.sequences = 240;  // as above
    options.recipe.samples.seed = 0;
    options.recipe.quantizer_sequences = 120;
    const auto found = recover(options);
    EXPECT_EQ(found.at("compute"), type);
    EXPECT_LT(kl_of(found, "recovered"), kl_of(found, "quantized"));
  }
  ASSERT_EQ(setenv("SPEAR_FORCE_COMPUTE", "float8", 1), 0);
  EXPECT_EQ(code_of(small_recovery(folder->path(), "float8")), ExitCode::usage);
  before.empty() ? unsetenv("SPEAR_FORCE_COMPUTE") : setenv("SPEAR_FORCE_COMPUTE", before.c_str(), 1);
}

TEST_F(RecoverTest, TheSameSeedGivesTheSameBytesAndAnotherDoesNot) {
  recover(small_recovery(folder->path(), "again"));
  expect_same_artifact("again");
  auto other = small_recovery(folder->path(), "other");
  other.recipe.seed = other.recipe.samples.seed = other.recipe.train.seed = 8;
  recover(other);
  EXPECT_FALSE(bytes_of("other", "compensators.safetensors") == bytes_of("whole", "compensators.safetensors"));
}

/// Everything that Gemma adds (norms, windows, two rotations, GeLU) and biases, from reference to checkpoint.
TEST_F(RecoverTest, AModelOfAnotherFamily) {
  testing::RandomModelOptions options;
  options.packed = false;
  options.every_option = true;
  options.layers = 3;
  options.vocabulary = kVocabulary;
  options.dense = DType::bf16;
  ModelWeights weights = testing::random_model(options);
  weights.config.model_type = "gemma3_text";
  weights.config.mlp_bias = false;
  for (int i = 0; i < module_count(weights.config); ++i) {
    if (!has_bias(weights.config, ModuleId{i}.kind())) weights.linear({i}).bias = {};
  }
  const fs::path model = *folder / "gemma";
  fs::create_directories(model);
  write_checkpoint(model, weights, {}, nlohmann::json::object());
  fs::remove(model / "spear.json");
  fs::copy_file(fs::path(SPEAR_TEST_DATA) / "text/small_tokenizer.json", model / "tokenizer.json");
  auto how = small_recovery(folder->path(), "gemma-out");
  how.reference = model;
  how.recipe.samples.sequences = 240;  // as above
  how.recipe.samples.seed = 0;
  how.recipe.quantizer_sequences = 120;
  const auto found = recover(how);
  const double kl = kl_of(found, "recovered");
  EXPECT_LT(kl, kl_of(found, "quantized"));
  const ModelWeights reference = read_model(model), recovered = read_model(*folder / "gemma-out");
  EXPECT_EQ(recovered.config.local_layers, reference.config.local_layers);
  EXPECT_EQ(recovered.config.embedding_scale, reference.config.embedding_scale);
  EXPECT_EQ(recovered.config.rope_scaling, reference.config.rope_scaling);
  for (const NormId id : norms_of(reference.config)) {
    EXPECT_NE(recovered.gain(id).to_floats(), reference.gain(id).to_floats()) << id.name(reference.config) << " trains";
  }
  for (const LinearKind kind : {LinearKind::q_proj, LinearKind::v_proj, LinearKind::o_proj}) {
    EXPECT_EQ(recovered.linear(ModuleId::of(1, kind)).bias.to_floats(), reference.linear(ModuleId::of(1, kind)).bias.to_floats());
  }
  const auto windows = first_windows(load_tokenizer(model).encode(measured_text()), kWindows, kContext, "text");
  CpuModel online(reference), online_recovered(recovered);
  const auto states = final_states(online, windows);
  EXPECT_NEAR(evaluate(online_recovered, windows, &states).kl->value, kl, 1e-4 * kl + 1e-6) << "the online plane agrees";
}

// ---------------------------------------------------------------- stopping and going on

/// The child of StoppedRun: recovers until `SPEAR_TEST_STOP` (a prefix of a file of the workspace) appears.
TEST(RecoverChild, RunsUntilStopped) {
  const char* folder = std::getenv("SPEAR_TEST_FOLDER");
  if (folder == nullptr) GTEST_SKIP() << "started by RecoverTest";
  const std::string stop = std::getenv("SPEAR_TEST_STOP");
  const int signal = std::atoi(std::getenv("SPEAR_TEST_SIGNAL"));
  auto options = small_recovery(folder, std::getenv("SPEAR_TEST_OUT"));
  options.resume = true;
  install_interrupt_handlers();
  std::thread([=] {
    const fs::path work = options.out.string() + ".work";
    for (;;) {
      std::error_code none;
      for (const auto& entry : fs::directory_iterator(work, none)) {
        if (entry.path().filename().string().starts_with(stop) && entry.path().extension() != ".tmp") {
          // A moment later the next stage is under way.
          std::this_thread::sleep_for(std::chrono::milliseconds(40));
          kill(getpid(), signal);
          return;
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }).detach();
  try {
    recover(options);
  } catch (const Error& error) {
    _exit(static_cast<int>(error.code()));
  }
  _exit(0);
}

/// Exit code of a child that is stopped so, or minus the signal that ended it.
int stopped_run(const fs::path& folder, const std::string& out, const std::string& stop, int signal) {
  setenv("SPEAR_TEST_FOLDER", folder.c_str(), 1);
  setenv("SPEAR_TEST_OUT", out.c_str(), 1);
  setenv("SPEAR_TEST_STOP", stop.c_str(), 1);
  setenv("SPEAR_TEST_SIGNAL", std::to_string(signal).c_str(), 1);
  const std::string self = fs::read_symlink("/proc/self/exe").string();
  const char* arguments[] = {self.c_str(), "--gtest_filter=RecoverChild.RunsUntilStopped", nullptr};
  pid_t child = 0;
  int status = 0;
  EXPECT_EQ(posix_spawn(&child, self.c_str(), nullptr, nullptr, const_cast<char**>(arguments), environ), 0);
  waitpid(child, &status, 0);
  unsetenv("SPEAR_TEST_FOLDER");
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST_F(RecoverTest, AStoppedRunGoesOnToTheSameBytes) {
  // Killed while sampling and while quantizing, interrupted in training, then left alone.
  EXPECT_EQ(stopped_run(folder->path(), "stopped", "samples", SIGKILL), -SIGKILL);
  EXPECT_EQ(stopped_run(folder->path(), "stopped", "quantize-", SIGKILL), -SIGKILL);
  EXPECT_EQ(stopped_run(folder->path(), "stopped", "quantize behind", SIGINT), static_cast<int>(ExitCode::interrupted));
  EXPECT_FALSE(fs::exists(*folder / "stopped")) << "nothing half written";
  EXPECT_EQ(code_of(small_recovery(folder->path(), "stopped")), ExitCode::usage) << "--resume has to be asked for";
  auto options = small_recovery(folder->path(), "stopped");
  options.resume = true;
  const auto resumed = recover(options);
  expect_same_artifact("stopped");
  EXPECT_EQ(resumed.at("results").at("rows"), manifest->at("results").at("rows"));
}

// ---------------------------------------------------------------- refusals

TEST_F(RecoverTest, AnExistingOutputIsLeftAlone) {
  const std::string before = bytes_of("whole", "spear.json");
  EXPECT_EQ(code_of(small_recovery(folder->path(), "whole")), ExitCode::usage);
  EXPECT_EQ(bytes_of("whole", "spear.json"), before);
}

TEST_F(RecoverTest, PreflightRefusesWhatCannotFit) {
  auto options = small_recovery(folder->path(), "none");
  ModelConfig config = read_model_config(options.reference);
  EXPECT_NO_THROW(preflight(options, config));
  config.num_hidden_layers = 100000;
  config.hidden_size = config.intermediate_size = 1 << 15;
  try {
    preflight(options, config);
    ADD_FAILURE() << "started a run of petabytes";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::out_of_resources);
    EXPECT_FALSE(error.remedy().empty());
  }
  EXPECT_GT(estimate_needs(config, options.recipe, PlannedCommand::recover, 2, 2).memory, std::int64_t{1} << 45);
}

TEST_F(RecoverTest, PagesOfMappedFilesAreNotMemoryThatMustBeFree) {
  const auto options = small_recovery(folder->path(), "none");
  const ModelConfig config = read_model_config(options.reference);
  double linears = 0;
  for (int index = 0; index < module_count(config); ++index) {
    linears += static_cast<double>(in_features(config, ModuleId{index}.kind()) * out_features(config, ModuleId{index}.kind()));
  }
  Recipe recipe = options.recipe;
  for (const PlannedCommand command : {PlannedCommand::recover, PlannedCommand::quantize}) {
    const auto mapped = [&](Rotation rotation, std::int64_t reference_bytes) {
      set_rotation(recipe, rotation);
      const Needs needs = estimate_needs(config, recipe, command, 4, reference_bytes);
      EXPECT_GT(needs.memory, needs.mapped);
      return static_cast<double>(needs.mapped);
    };
    EXPECT_DOUBLE_EQ(mapped(Rotation::none, 4), 0);  // a GGUF file, dequantized
    EXPECT_DOUBLE_EQ(mapped(Rotation::stream, 4), 4 * linears);
    EXPECT_DOUBLE_EQ(mapped(Rotation::none, 2), 2 * linears);
    EXPECT_DOUBLE_EQ(mapped(Rotation::stream, 2), 4 * linears);
  }
}

TEST_F(RecoverTest, QuantizersAndEvaluationArePlannedByFloat32Products) {
  const auto options = small_recovery(folder->path(), "none");
  Recipe recipe = options.recipe;
  set_quantizer(recipe, "tuned");
  const auto seconds = [&](const std::string& name, const ProductSpeed& speed) {
    for (const PlannedStage& stage : planned_stages(read_model_config(options.reference), recipe, PlannedCommand::recover, 0, speed)) {
      if (stage.name == name) return stage.seconds;
    }
    ADD_FAILURE() << "no stage " << name;
    return 0.0;
  };
  const ProductSpeed slow = {100, 100, 2}, bf16 = {400, 100, 2}, both = {400, 400, 2};
  for (const char* stage : {"quantize", "quantize behind compensators", "evaluate"}) {
    EXPECT_DOUBLE_EQ(seconds(stage, bf16), seconds(stage, slow)) << stage;
    EXPECT_DOUBLE_EQ(seconds(stage, both), seconds(stage, slow) / 4) << stage;
  }
  for (const char* stage : {"samples", "calibrate"}) {
    EXPECT_LT(seconds(stage, bf16), seconds(stage, slow)) << stage;
    EXPECT_LT(seconds(stage, both), seconds(stage, bf16)) << stage;
  }
}

TEST_F(RecoverTest, APlanNamesEveryStageOfTheQuantizer) {
  const auto options = small_recovery(folder->path(), "none");
  const ModelConfig config = read_model_config(options.reference);
  Recipe recipe = options.recipe;
  const auto samples = [&](PlannedCommand command) {
    const auto stages = planned_stages(config, recipe, command, 0);
    return std::any_of(stages.begin(), stages.end(), [](const PlannedStage& stage) { return stage.name == "samples of the quantizer"; });
  };
  for (const auto& [quantizer, expected] : {std::pair("rtn", false), std::pair("clip", true), std::pair("tuned", true)}) {
    set_quantizer(recipe, quantizer);
    EXPECT_EQ(samples(PlannedCommand::quantize), expected) << quantizer;
    EXPECT_TRUE(samples(PlannedCommand::recover)) << quantizer;  // the closed form
    recipe.budget = 0;
    EXPECT_EQ(samples(PlannedCommand::recover), expected) << quantizer;
    recipe.budget = options.recipe.budget;
  }
}

TEST_F(RecoverTest, UnusableTextIsRefusedWithItsName) {
  auto options = small_recovery(folder->path(), "none");
  std::ofstream(*folder / "short.txt") << "too short";
  options.calibration = *folder / "short.txt";
  try {
    recover(options);
    ADD_FAILURE() << "took a text of six tokens";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    EXPECT_NE(error.where().find("short.txt"), std::string::npos);
  }
  EXPECT_FALSE(fs::exists(*folder / "none"));
}

// ---------------------------------------------------------------- the other tracks

TEST_F(RecoverTest, TrackALeavesTheRoundedCodesAndScalesAlone) {
  auto options = small_recovery(folder->path(), "track-a");
  set_quantizer(options.recipe, "rtn");
  set_tune(options.recipe, Tune::none);
  options.recipe.gate_hidden = options.recipe.gate_rows = 0;
  options.recipe.train.steps = 20;
  const auto result = recover(options);
  const ModelWeights weights = read_model(*folder / "track-a"), reference = read_model(*folder / "model");
  for (int i = 0; i < module_count(weights.config); ++i) {
    const auto& tensor = std::get<Tensor>(reference.linear({i}).weight);
    const auto& packed = std::get<W4Matrix>(weights.linear({i}).weight);
    const auto dense = tensor.to_floats();
    for (std::int64_t r = 0; r < packed.rows; ++r) {
      float largest = 0;
      for (std::int64_t c = 0; c < packed.cols; ++c)
        largest = std::max(largest, std::fabs(dense[static_cast<std::size_t>(r * packed.cols + c)]));
      EXPECT_NEAR(packed.scale(r, 0), largest / 7, largest * 1e-4);
      for (std::int64_t c = 0; c < packed.cols; ++c) {
        EXPECT_LE(std::fabs(packed.value(r, c) - dense[static_cast<std::size_t>(r * packed.cols + c)]),
                  0.501F * packed.scale(r, 0));
      }
    }
  }
  EXPECT_LT(row(result, "recovered").at("kl").at("value").get<double>(),
            row(result, "rtn").at("kl").at("value").get<double>());
}

TEST_F(RecoverTest, ABackboneKeepsTheOrderOfItsGroups) {
  auto quantizing = small_recovery(folder->path(), "in-order");
  set_quantizer(quantizing.recipe, "rtn");
  quantizing.recipe.scheme = parse_scheme("w4-g32-asym");
  quantizing.recipe.budget = 0;
  quantize(quantizing);
  // Another 4-bit model of the same codes: what counts is that nothing of it moves.
  ModelWeights given = read_model(*folder / "in-order");
  for (int i = 0; i < module_count(given.config); ++i) {
    testing::shuffle_groups(std::get<W4Matrix>(given.linear({i}).weight), static_cast<std::uint64_t>(i));
  }
  fs::create_directories(*folder / "act-order");
  write_checkpoint(*folder / "act-order", given, {read_text_file(*folder / "in-order/tokenizer.json"), {}, {}}, {});
  for (const Tune tune : {Tune::none, Tune::scales}) {
    auto options = small_recovery(folder->path(), tune == Tune::none ? "on-act-order" : "on-act-order-scales");
    options.backbone = *folder / "act-order";
    options.recipe.scheme = parse_scheme("w4-g32-asym");
    set_quantizer(options.recipe, "rtn");
    set_tune(options.recipe, tune);
    const auto result = recover(options);
    const ModelWeights after = read_model(options.out);
    bool reordered = false;
    for (int i = 0; i < module_count(given.config); ++i) {
      const auto &a = std::get<W4Matrix>(given.linear({i}).weight), &b = std::get<W4Matrix>(after.linear({i}).weight);
      EXPECT_EQ(a.packed, b.packed);
      EXPECT_EQ(a.zeros, b.zeros);
      EXPECT_EQ(a.scales == b.scales, tune == Tune::none);
      EXPECT_EQ(a.group_index, b.group_index);
      reordered |= a.dequantize() != std::get<W4Matrix>(read_model(*folder / "in-order").linear({i}).weight).dequantize();
    }
    EXPECT_TRUE(reordered);
    EXPECT_GT(compensator_bytes(after), 0);
    // Measured with the order: the online plane finds the same as the pipeline did.
    EXPECT_LT(row(result, "recovered").at("kl").at("value").get<double>(), row(result, "quantized").at("kl").at("value").get<double>());
    std::int64_t linears = 0;
    for (int i = 0; i < module_count(given.config); ++i) linears += std::get<W4Matrix>(given.linear({i}).weight).storage_bytes();
    EXPECT_EQ(result.at("bytes").at("base").get<std::int64_t>(), linears + read_model(*folder / "model").embedding_budget_bytes);
  }
}

TEST_F(RecoverTest, ABackboneIsComparedWithTheReferenceInItsOwnBasis) {
  auto quantizing = small_recovery(folder->path(), "rotated");
  quantizing.recipe.rotation = Rotation::stream;
  quantizing.recipe.budget = 0;
  quantize(quantizing);
  ASSERT_TRUE(read_model(*folder / "rotated").config.rotated_stream);
  // The same with gains that a method has moved into the linears behind them, as AWQ does.
  quantizing = small_recovery(folder->path(), "moved");
  ModelWeights scaled = read_model(*folder / "model");
  const auto factor = testing::random_floats(scaled.config.hidden_size, 4, 0.5);
  for (LayerWeights& layer : scaled.layers) {
    const auto move = [&](Tensor& gain, std::initializer_list<LinearKind> readers) {
      auto gains = gain.to_floats();
      for (std::size_t j = 0; j < gains.size(); ++j) gains[j] /= std::exp(factor[j]);
      gain = Tensor::from_floats(gain.shape(), gains);
      for (const LinearKind kind : readers) {
        LinearModule& module = layer.linears[static_cast<std::size_t>(kind)];
        auto values = dequantize(module.weight);
        for (std::size_t i = 0; i < values.size(); ++i) values[i] *= std::exp(factor[i % gains.size()]);
        module.weight = Tensor::from_floats(shape_of(module.weight), values);
      }
    };
    move(layer.input_layernorm, {LinearKind::q_proj, LinearKind::k_proj, LinearKind::v_proj});
    move(layer.post_attention_layernorm, {LinearKind::gate_proj, LinearKind::up_proj});
  }
  fs::create_directories(*folder / "scaled");
  write_checkpoint(*folder / "scaled", scaled, {read_text_file(*folder / "model/tokenizer.json"), {}, {}}, nlohmann::json::object());
  quantizing.reference = *folder / "scaled";
  set_quantizer(quantizing.recipe, "rtn");
  quantizing.recipe.budget = 0;
  quantize(quantizing);
  for (const char* name : {"rotated", "moved"}) {
    auto options = small_recovery(folder->path(), std::string("on-") + name);
    options.backbone = *folder / name;
    set_quantizer(options.recipe, "rtn");
    set_tune(options.recipe, Tune::none);
    options.recipe.train.steps = 0;  // the closed form alone: it has to see what rounding did, and nothing else
    const auto result = recover(options);
    const ModelWeights before = read_model(*folder / name), after = read_model(options.out);
    EXPECT_EQ(after.config.rotated_stream, before.config.rotated_stream) << name;
    for (const NormId id : norms_of(before.config)) EXPECT_EQ(after.gain(id).to_floats(), before.gain(id).to_floats()) << name;
    EXPECT_LT(row(result, "recovered").at("kl").at("value").get<double>(), 0.9 * row(result, "quantized").at("kl").at("value").get<double>())
        << name;
  }
}

TEST_F(RecoverTest, ABackboneKeepsItsCodes) {
  auto quantizing = small_recovery(folder->path(), "backbone");
  set_quantizer(quantizing.recipe, "gptq");
  quantizing.recipe.budget = 0;
  quantize(quantizing);
  auto options = small_recovery(folder->path(), "on-backbone");
  options.backbone = *folder / "backbone";
  set_tune(options.recipe, Tune::none);
  options.recipe.train.steps = 10;
  recover(options);
  const ModelWeights before = read_model(*folder / "backbone"), after = read_model(*folder / "on-backbone");
  for (int i = 0; i < module_count(before.config); ++i) {
    const auto &a = std::get<W4Matrix>(before.linear({i}).weight), &b = std::get<W4Matrix>(after.linear({i}).weight);
    EXPECT_EQ(a.packed, b.packed);
    EXPECT_EQ(a.scales, b.scales);
    EXPECT_FALSE(before.linear({i}).compensator);
  }
  EXPECT_GT(compensator_bytes(after), 0);
}

}  // namespace
}  // namespace spear
