#include <unistd.h>

#include <fstream>

#include "text/tokenizer.h"
#include "text_test_util.h"

namespace spear {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int32_t>;

class LoadTokenizer : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    directory_ =
        fs::path(testing::TempDir()) / (std::string("spear_text_") + test->name() + std::to_string(::getpid()));
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  void write(const std::string& name, const std::string& content) { std::ofstream(directory_ / name) << content; }
  void write_small() { write("tokenizer.json", read_text_file(text_data("small_tokenizer.json"))); }

  fs::path directory_;
};

TEST_F(LoadTokenizer, TokenizerJsonAloneIsEnough) {
  write_small();
  const Tokenizer tokenizer = load_tokenizer(directory_);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("the model")), "the model");
  EXPECT_FALSE(tokenizer.named().eos.has_value());
  EXPECT_EQ(tokenizer.chat_template(), "");
}

TEST_F(LoadTokenizer, CompanionsNameTokensAndTemplate) {
  write_small();
  write("config.json", R"({"eos_token_id": 0})");
  write("tokenizer_config.json", R"({"bos_token": "<|im_start|>", "chat_template": "in the configuration"})");
  EXPECT_EQ(load_tokenizer(directory_).named().eos, 0);
  EXPECT_EQ(load_tokenizer(directory_).chat_template(), "in the configuration");
  write("generation_config.json", R"({"eos_token_id": [2, 0]})");
  write("chat_template.jinja", "in a file");
  const Tokenizer tokenizer = load_tokenizer(directory_);
  EXPECT_EQ(tokenizer.named().eos, 2);
  EXPECT_EQ(tokenizer.named().end, (Ids{0, 2}));
  EXPECT_EQ(tokenizer.named().bos, 1);
  EXPECT_EQ(tokenizer.chat_template(), "in a file");
}

TEST_F(LoadTokenizer, SaysWhatIsMissing) {
  expect_refused([&] { load_tokenizer(directory_); }, "no tokenizer.json");
  write("tokenizer.model", "x");
  expect_refused([&] { load_tokenizer(directory_); }, "SentencePiece");
  EXPECT_THROW(load_tokenizer(directory_ / "absent.gguf"), Error);
}

TEST_F(LoadTokenizer, DamagedJson) {
  write("tokenizer.json", read_text_file(text_data("small_tokenizer.json")).substr(0, 5000));
  expect_refused([&] { load_tokenizer(directory_); }, "not valid JSON");
  write("tokenizer.json", std::string(100000, '['));
  expect_refused([&] { load_tokenizer(directory_); }, "nested more than 64 levels");
  write("tokenizer.json", "{\"model\": \"\xFF\"}");
  expect_refused([&] { load_tokenizer(directory_); }, "not valid JSON");
  write_small();
  write("tokenizer_config.json", "[]");
  EXPECT_THROW(load_tokenizer(directory_), Error);
  write("tokenizer_config.json", "");
  expect_refused([&] { load_tokenizer(directory_); }, "not valid JSON");
}

}  // namespace
}  // namespace spear
