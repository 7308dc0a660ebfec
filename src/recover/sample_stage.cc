// The sampling stage: calibration text from the reference itself, and the user's own in the place of half of it.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "eval/text_windows.h"
#include "io/model_reader.h"
#include "ops/cpu_model.h"
#include "recover/stages.h"
#include "text/chat_template.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

Tensor int_tensor(Shape shape, const std::vector<std::int32_t>& values) {
  Tensor tensor(DType::i32, std::move(shape));
  std::copy(values.begin(), values.end(), tensor.mutable_as<std::int32_t>().begin());
  return tensor;
}

}  // namespace

SampleOptions Stages::sample_options() const {
  SampleOptions out = options_.recipe.samples;
  if (device_.is_cuda()) out.batch *= 4;  // launches, not arithmetic, take the time there
  return out;
}

SampleOptions Stages::quantizer_sample_options() const {
  const Recipe& r = options_.recipe;
  SampleOptions out = sample_options();
  out.batch = std::max<std::int64_t>(1, out.batch * out.length / r.quantizer_length);
  out.sequences = r.quantizer_sequences;
  out.length = r.quantizer_length;
  out.seed = mix64(out.seed ^ 0x7175616e74697a65);
  return out;
}

nlohmann::json Stages::sample_key(const SampleOptions& s) const {
  return {{"version", kVersion}, {"reference", reference_sha256_}, {"device", device_.str()}, {"compute", name(compute_)},
          {"sequences", s.sequences},
          {"length", s.length},       {"batch", s.batch},               {"seed", s.seed},
          {"calibration", options_.calibration.empty() ? "" : sha256_file(options_.calibration)}};
}

CalibrationSet Stages::sample(const std::string& stage, const SampleOptions& want) {
  CalibrationSet set{want.sequences, want.length, 0, {}};
  const auto key = sample_key(want);
  if (const auto kept = workspace_.load(stage, key)) {
    const auto tokens = kept->tensors.at("tokens").as<std::int32_t>();
    set.tokens.assign(tokens.begin(), tokens.end());
  }
  if (static_cast<std::int64_t>(set.tokens.size()) < want.sequences * want.length) {
    SampleOpenings openings;
    openings.separator = tokenizer_.token_id("<|endoftext|>").value_or(tokenizer_.named().bos.value_or(tokenizer_.named().eos.value_or(0)));
    openings.first = opening_token(tokenizer_);
    openings.chat = tokenizer_.encode(chat_opening(tokenizer_.chat_template(), tokenizer_.template_tokens()), {.parse_special = true});
    openings.plain = [this](std::int32_t id) { return id < tokenizer_.vocab_size() && !tokenizer_.is_special(id); };
    const auto keep = [&](std::span<const std::int32_t> tokens) {
      const auto rows = static_cast<std::int64_t>(tokens.size()) / want.length;
      workspace_.save(stage, key, {{"tokens", int_tensor({rows, want.length}, {tokens.begin(), tokens.end()})}});
    };
    set.tokens = timed(stage, [&] {
      if (device_.is_cuda()) return sample_sequences(reference_model(), openings, want, std::move(set.tokens), keep);
      // One token at a time is the online plane's trade: twice as fast as libtorch, with or without bfloat16 instructions,
      // and faster still where the reference is a quantized file, whose codes it takes as they are.
      drop_model();
      CpuModel online(read_backbone(options_.reference), {.threads = at::get_num_threads(), .activations = Activations::a8,
                                                          .head_type = HeadType::bf16, .kv_cache_type = KvCacheType::bf16});
      return sample_sequences(online, openings, want, std::move(set.tokens), keep);
    });
  }
  if (!options_.calibration.empty()) {
    const auto text = tokenizer_.encode(read_text_file(options_.calibration));
    const std::int64_t rows = std::min(want.sequences / 2, static_cast<std::int64_t>(text.size()) / want.length);
    if (rows == 0) throw bad_input(fmt::format("{} tokens are fewer than one sequence of {}", text.size(), want.length), options_.calibration.string());
    // Every other sequence, so that both kinds are among the held-out ones.
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto target = set.tokens.begin() + 2 * row * want.length;
      std::copy_n(text.begin() + row * want.length, want.length, target);
      if (const auto opening = opening_token(tokenizer_)) *target = *opening;
    }
  }
  return set;
}

const CalibrationSet& Stages::samples() {
  if (!samples_) {
    samples_ = sample("samples", sample_options());
    samples_->held_out = options_.recipe.held_out_sequences;
  }
  return *samples_;
}

torch::Tensor Stages::quantizer_tokens() {
  const auto set = sample("samples of the quantizer", quantizer_sample_options());
  return token_tensor({set.tokens, set.sequences, set.length}, reference_.config, device_);
}

}  // namespace spear
