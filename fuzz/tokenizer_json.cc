// tokenizer.json from anybody: refused, or a tokenizer that encodes and decodes any text, and can be written again.
#include <array>

#include "fuzz_file.h"
#include "io/untrusted.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(fuzz::as_text(data, size));
  constexpr std::array kTexts = {"", "It's 12 naïve  <s>日本\n", " a \u00a0\u0301\u200d🙂 the  and!! 2024",
                                 "\t\r\n\x01▁<0x41>"};
  fuzz::survives([&] {
    const nlohmann::json json = parse_json(text, "fuzz", false);
    // Members that belong to other files, from the same bytes.
    const nlohmann::json config = json.is_object() && json.contains("config") ? json["config"] : nlohmann::json();
    const Tokenizer tokenizer = Tokenizer::from_json(json, config, config, "fuzz");
    for (const char* sample : kTexts) {
      fuzz::survives([&] {
        const auto ids = tokenizer.encode(sample, {.add_special = true, .parse_special = true});
        for (const std::int32_t id : ids) (void)tokenizer.token_bytes(id);
        if (find_invalid_utf8(tokenizer.decode(ids)) != std::string::npos) std::abort();
      });
    }
    (void)tokenizer.template_tokens();
    (void)tokenizer.to_tokenizer_config_json();
    (void)Tokenizer::from_json(parse_json(tokenizer.to_tokenizer_json(), "written", false), nullptr, nullptr,
                               "written");
  });
  return 0;
}
