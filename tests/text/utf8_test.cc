#include "text/utf8.h"

#include "text_test_util.h"

namespace spear {
namespace {

TEST(Utf8, FindsTheFirstInvalidByte) {
  EXPECT_EQ(find_invalid_utf8(""), std::string_view::npos);
  EXPECT_EQ(find_invalid_utf8("aé漢😀\xF4\x8F\xBF\xBF"), std::string_view::npos);
  for (const std::string bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                                "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xE2\x82", "\xE2\x82z"}) {
    EXPECT_EQ(find_invalid_utf8("ab" + bad), 2u) << testing::PrintToString(bad);
  }
}

TEST(Utf8, EveryCharacterSurvives) {
  for (char32_t code = 0; code <= 0x10FFFF; ++code) {
    if (code == 0xD800) code = 0xE000;
    std::string text;
    append_utf8(text, code);
    const Utf8Char read = read_utf8(text);
    ASSERT_EQ(read.kind, Utf8Char::Kind::valid) << static_cast<std::uint32_t>(code);
    ASSERT_EQ(read.code, code);
    ASSERT_EQ(read.length, text.size());
  }
}

// Unicode 15, table 3-8 and section 3.9: one U+FFFD per maximal subpart.
TEST(Utf8, StreamReplacesMaximalSubparts) {
  const std::pair<std::string, std::string> cases[] = {
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "????????A"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "????????A"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "????A"},
      {"a\xF0\x9F\x98", "a?"},
  };
  for (const auto& [bytes, expected] : cases) {
    std::string with_replacements;
    for (const char c : expected) with_replacements += c == '?' ? std::string("\xEF\xBF\xBD") : std::string(1, c);
    for (std::size_t piece = 1; piece <= bytes.size(); ++piece) {
      Utf8Stream stream;
      std::string out;
      for (std::size_t i = 0; i < bytes.size(); i += piece)
        out += stream.push(std::string_view(bytes).substr(i, piece));
      EXPECT_EQ(out + stream.finish(), with_replacements);
    }
  }
}

TEST(Utf8, StreamGivesOutWholeCharactersOnly) {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    const std::string text = random_utf8(random, 30);
    Utf8Stream stream;
    std::string out;
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t length = 1 + random.below(3);
      const std::string part = stream.push(std::string_view(text).substr(i, length));
      EXPECT_EQ(find_invalid_utf8(part), std::string::npos);
      out += part;
      i += length;
    }
    EXPECT_EQ(stream.finish(), "");
    EXPECT_EQ(out, text);
  }
}

}  // namespace
}  // namespace spear
