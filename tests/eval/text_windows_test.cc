#include "eval/text_windows.h"

#include <gtest/gtest.h>

#include "io/gguf.h"

namespace spear {
namespace {

using Ids = std::vector<std::int32_t>;

/// A token per byte, and BOS.
Tokenizer byte_tokenizer(bool add_bos) {
  GgufTokenizer gguf;
  gguf.model = "gpt2";
  gguf.pre = "gpt-2";
  for (int byte = 0; byte < 256; ++byte) gguf.tokens.push_back(bytes_to_spelling(std::string(1, static_cast<char>(byte))));
  gguf.tokens.push_back("<s>");
  gguf.token_types.assign(256, 1);
  gguf.token_types.push_back(3);
  gguf.bos_id = 256;
  gguf.add_bos = add_bos;
  return Tokenizer::from_gguf(gguf, "test");
}

TEST(TextWindowsTest, BosTakesThePlaceOfEachFirstTokenWhereTheModelWantsIt) {
  const Tokenizer with = byte_tokenizer(true), without = byte_tokenizer(false);
  EXPECT_EQ(opening_token(with), 256);
  EXPECT_EQ(opening_token(without), std::nullopt);
  EXPECT_EQ(encode_sequence(with, "ab"), (Ids{256, 'a', 'b'}));
  EXPECT_EQ(encode_sequence(without, "ab"), (Ids{'a', 'b'}));
  EXPECT_EQ(first_windows(with, "abcdefgh", 2, 3, "text").tokens, (Ids{256, 'b', 'c', 256, 'e', 'f'}));
  EXPECT_EQ(first_windows(without, "abcdefgh", 2, 3, "text").tokens, (Ids{'a', 'b', 'c', 'd', 'e', 'f'}));
}

}  // namespace
}  // namespace spear
