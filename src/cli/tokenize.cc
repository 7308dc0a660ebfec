#include <fmt/format.h>

#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "base/file.h"
#include "cli/commands.h"
#include "io/untrusted.h"
#include "text/tokenizer.h"

namespace spear::cli {
namespace {

using nlohmann::json;

struct Options {
  std::string model, prompt, text, format = "whole";
  bool add_special = false, parse_special = false;
};

/// What is tokenized at once: a text, or ids to be decoded.
struct Document {
  std::string text;
  std::optional<std::vector<std::int32_t>> ids;
};

Document parse_line(const std::string& line, const std::string& where) {
  const json value = parse_json(line, where);
  if (value.is_string()) return {value.get<std::string>(), std::nullopt};
  std::vector<std::int32_t> ids;
  bool sound = value.is_array();
  for (std::size_t i = 0; sound && i < value.size(); ++i) {
    sound = value[i].is_number_integer() && value[i] >= 0 && value[i] <= kMaxTokenId;
    if (sound) ids.push_back(value[i].get<std::int32_t>());
  }
  if (!sound) throw bad_input("neither a string nor a list of token ids", where, "write one JSON value per line");
  return {{}, std::move(ids)};
}

std::vector<Document> documents_of(const Options& options) {
  if (options.text.empty()) return {{options.prompt, std::nullopt}};
  const bool from_stdin = options.text == "-";
  std::string content =
      from_stdin ? std::string(std::istreambuf_iterator<char>(std::cin), {}) : read_text_file(options.text);
  if (options.format == "whole") return {{std::move(content), std::nullopt}};
  std::vector<Document> documents;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const std::string line = content.substr(begin, end - begin);
    begin = end + 1;
    if (options.format == "lines") {
      documents.push_back({line, std::nullopt});
    } else if (line.find_first_not_of(" \t\r") != std::string::npos) {
      documents.push_back(
          parse_line(line, fmt::format("{}:{}", from_stdin ? "stdin" : options.text, documents.size() + 1)));
    }
  }
  return documents;
}

/// {"ids", "pieces": the text that became complete with each id, "text": of all ids}.
json result_of(const Tokenizer& tokenizer, const Document& document, const Options& options) {
  const auto ids = document.ids ? *document.ids
                                : tokenizer.encode(document.text, {.add_special = options.add_special,
                                                                   .parse_special = options.parse_special});
  StreamDecoder stream(tokenizer, /*skip_special=*/false);
  json pieces = json::array();
  for (const std::int32_t id : ids) pieces.push_back(stream.push(id));
  if (const std::string rest = stream.finish(); !rest.empty()) pieces.push_back(rest);
  return {{"ids", ids}, {"pieces", std::move(pieces)}, {"text", tokenizer.decode(ids)}};
}

int run(const CommonOptions& common, const Options& options) {
  apply(common);
  if (options.text.empty() == options.prompt.empty()) {
    throw usage_error("give either a text or a file", "tokenize", "use --prompt TEXT, or --text FILE (- is stdin)");
  }
  const Tokenizer tokenizer = load_tokenizer(options.model);
  json results = json::array();
  for (const Document& document : documents_of(options)) {
    json result = result_of(tokenizer, document, options);
    if (common.json) {
      results.push_back(std::move(result));
    } else if (document.ids) {
      fmt::print("{}\n", result["text"].get<std::string>());
    } else {
      fmt::print("{}\n", fmt::join(result["ids"].get<std::vector<std::int32_t>>(), " "));
    }
  }
  if (common.json) {
    print_json(
        {{"schema", "spear.tokenize/1"}, {"vocabulary", tokenizer.vocab_size()}, {"documents", std::move(results)}});
  }
  return 0;
}

}  // namespace

void add_tokenize(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command = line.add("tokenize", "Show the token ids of texts, or the texts of ids",
                               {"spear tokenize --model recovered --prompt \"Hello, world\" --json",
                                "spear tokenize --model model.gguf --text lines.txt --format lines"},
                               [=] { return run(*common, *options); });
  command.add_option("--model", options->model, "GGUF file, Hugging Face directory or SPEAR checkpoint")
      ->type_name("PATH")
      ->required()
      ->group("Model");
  command.add_option("--prompt", options->prompt, "The text")->type_name("TEXT")->group("Text");
  command.add_option("--text", options->text, "File with the text; - is stdin")->type_name("FILE")->group("Text");
  command
      .add_option("--format", options->format,
                  "What in the file is a text: whole, lines, or jsonl (each line a JSON string, or a list of ids)")
      ->check(CLI::IsMember({"whole", "lines", "jsonl"}).description(""))
      ->capture_default_str()
      ->group("Text");
  command.add_flag("--add-special", options->add_special, "Add what the model begins and ends texts with")
      ->group("Text");
  command.add_flag("--parse-special", options->parse_special, "Texts such as <|im_end|> are those tokens")
      ->group("Text");
  add_common_options(command, common);
}

}  // namespace spear::cli
