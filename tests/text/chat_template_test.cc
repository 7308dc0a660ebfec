#include "text/chat_template.h"

#include <array>
#include <chrono>
#include <ctime>
#include <map>
#include <set>

#include "text/tokenizer.h"
#include "text_test_util.h"

namespace spear {
namespace {

using nlohmann::ordered_json;

const std::map<std::string, std::string> kTokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
constexpr std::time_t kDate = 1721952000;  // 26 July 2024, which templates that have no clock write, too
constexpr const char* kChatml =
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}";

std::string render(std::string_view source, const ordered_json& extra = ordered_json::object(),
                   TemplateLimits limits = {}) {
  return ChatTemplate(source, limits).render(ordered_json::array(), false, kTokens, extra);
}

// jinja2 renders these; we refuse them by name.
const std::set<std::string> kOutsideTheSubset = {
    "{{ 10 ** 2 }}", "{{ 1e400 is defined }}", "{{ 1e16 is defined }}", "{{ 1.5e3 }}", "{{ 'a' * 3 }}", "{{ {} }}",
};

TEST(ChatTemplate, RendersAsJinja2) {
  const auto golden = ordered_json::parse(read_text_file(text_data("template_golden.json")));
  int rendered = 0, refused = 0;
  for (const ordered_json& item : golden["cases"]) {
    const std::string source = golden["templates"][item["template"].get<std::size_t>()];
    const ordered_json& messages = golden["conversations"][item["messages"].get<std::size_t>()];
    const bool fails = item.contains("error") || kOutsideTheSubset.contains(source);
    try {
      const std::string text =
          ChatTemplate(source, {}, kDate).render(messages, item["add_generation_prompt"], kTokens, item["extra"]);
      EXPECT_FALSE(fails) << source.substr(0, 200) << "\ngave " << text
                          << "\nbut should fail: " << item.value("error", "");
      if (!fails) {
        EXPECT_EQ(text, item["text"].get<std::string>()) << source.substr(0, 200) << "\n" << messages.dump();
      }
      ++rendered;
    } catch (const Error& error) {
      const bool prints_container = error.problem().find("not supported (use tojson)") != std::string::npos;
      EXPECT_TRUE(fails || prints_container) << source.substr(0, 200) << "\n"
                                             << messages.dump() << "\n"
                                             << error.what();
      EXPECT_NE(error.where().find("chat template, line "), std::string::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(rendered, 400);
  EXPECT_GT(refused, 50);
}

TEST(ChatTemplate, RaisedExceptionIsTheMessage) {
  const ChatTemplate chat("line one\n  {{ raise_exception('Roles must alternate') }}");
  try {
    chat.render(ordered_json::array(), false, kTokens);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.problem(), "Roles must alternate");
    EXPECT_EQ(error.where(), "chat template, line 2, column 6");
  }
}

TEST(ChatTemplate, RefusesWithLineAndColumn) {
  const std::pair<std::string, std::string> cases[] = {
      {"{% macro f() %}{% endmacro %}", "line 1, column 4: the statement 'macro' is not supported"},
      {"a\n{% include 'x' %}", "line 2, column 4: the statement 'include'"},
      {"{{ x | bogus }}", "line 1, column 6: the filter 'bogus' is not supported"},
      {"{{ x is bogus }}", "the test 'bogus' is not supported"},
      {"{{ x.__class__() }}", "the method '__class__' is not supported"},
      {"{{ x.format(1) }}", "the method 'format' is not supported"},
      {"{{ f(1)(2) }}", "only functions and methods"},
      {"{{ f(*x) }}", "'*' in a call"},
      {"{{ (1, 2) }}", "tuples"},
      {"{% set x %}a{% endset %}", "block assignments"},
      {"{% for x in y recursive %}{% endfor %}", "recursive"},
      {"{% if x %}", "expected {% endif %}"},
      {"{% for x in y %}", "expected {% endfor %}"},
      {"{% endif %}", "unexpected 'endif'"},
      {"{% if x %}{% endfor %}{% endif %}", "'endfor'"},
      {"{{ x", "{{ is not closed"},
      {"{{ 'x }}", "a string is not closed"},
      {"{# x", "a comment is not closed"},
      {"{% %}", "expected a name"},
      {"{{ }}", "expected an expression"},
      {"{{ 1 2 }}", "expected }} instead of '2'"},
      {"{{ [1 }}", "unexpected '}'"},
      {"{{ x ? }}", "unexpected character"},
      {"{{ '\\ud800' }}", "surrogate"},
      {"{{ '\\xg0' }}", "malformed escape"},
      {"{{ '\\N{DASH}' }}", "\\N"},
      {"{{ 99999999999999999999 }}", "too many digits"},
      {"{{ nope('x') }}", "'nope' is not a function"},
      {"{{ [1] }}", "use tojson"},
      {"{{ 9223372036854775807 }}", "digits"},
      {"{{ 999999999999999999 * 999999999999999999 }}", "overflow"},
      {"{% set x.y = 1 %}", "not a namespace"},
      {"{% for a, b in [[1]] %}{% endfor %}", "2 names for 1 values"},
      {"\xFF", "not UTF-8"},
  };
  for (const auto& [source, message] : cases) expect_refused([&, source = source] { render(source); }, message);
}

// Templates of the families' kinds on conversations with system messages, tools, calls and results; the oracle is
// jinja2 in transformers' environment (tests/golden/make_family_template_golden.py).
TEST(ChatTemplate, FamiliesRenderAsInTransformers) {
  const auto golden = ordered_json::parse(read_text_file(text_data("family_template_golden.json")));
  std::map<std::string, int> rendered, refused;
  for (const ordered_json& item : golden["cases"]) {
    const std::string family = item["family"];
    const ChatTemplate chat(golden["templates"][family].get<std::string>(), {}, golden["now"].get<std::time_t>());
    const ordered_json& conversation = golden["conversations"][item["conversation"].get<std::size_t>()];
    const std::string about = family + "\n" + conversation.dump();
    try {
      const std::string text =
          chat.render(conversation["messages"], item["add_generation_prompt"], kTokens, conversation["extra"]);
      EXPECT_FALSE(item.contains("error"))
          << about << "\ngave " << text << "\nbut should fail: " << item.value("error", "");
      if (item.contains("text")) {
        EXPECT_EQ(text, item["text"].get<std::string>()) << about;
      }
      ++rendered[family];
    } catch (const Error& error) {
      // Python's spelling of lists and dicts is not reproduced, but refused.
      const bool prints_container = error.problem().find("not supported (use tojson)") != std::string::npos;
      EXPECT_TRUE(item.contains("error") || prints_container) << about << "\n" << error.what();
      EXPECT_NE(error.where().find("chat template, line "), std::string::npos) << error.what();
      if (const std::string raised = item.value("raised", ""); !raised.empty()) {
        EXPECT_EQ(error.problem(), raised) << about;
      }
      ++refused[family];
    }
  }
  EXPECT_EQ(rendered.size(), 8U);
  for (const auto& [family, count] : rendered) EXPECT_GE(count, 8) << family;
  EXPECT_GT(refused["mistral-nemo"] + refused["gemma-3"], 2);
}

TEST(ChatTemplate, TheDateIsTheGivenOne) {
  const auto at = [](const char* format) {
    return ChatTemplate(std::string("{{ strftime_now('") + format + "') }}", {}, 1721952000)
        .render(ordered_json::array(), false, kTokens);
  };
  EXPECT_EQ(at("%d %b %Y"), "26 Jul 2024");
  EXPECT_EQ(at("%Y-%m-%d, %-d %B %H:%M%%"), "2024-07-26, 26 July 00:00%");
  EXPECT_EQ(at(""), "");
  for (const char* format : {"%", "%-", "%n", "%E", "%-b", "%9999d", "%\\0", "a\\0b"}) {
    expect_refused([&] { at(format); }, "format of a date");
  }
  expect_refused([&] { at(std::string(201, 'x').c_str()); }, "format of a date");
  std::array<char, 64> today{};
  const std::time_t before = std::time(nullptr);
  std::tm date{};
  std::strftime(today.data(), today.size(), "%Y", localtime_r(&before, &date));
  EXPECT_EQ(render("{{ strftime_now('%Y') }}"), today.data());
}

TEST(ChatTemplate, GenerationMarksWriteNothingAndKeepTheirNames) {
  EXPECT_EQ(render("{% set x = 1 %}a{% generation %}b{% set x = 2 %}{{ x }}{% endgeneration %}c{{ x }}"), "ab2c1");
  expect_refused([] { render("{% generation %}"); }, "expected");
}

TEST(ChatTemplate, ArgumentsAreChecked) {
  const ChatTemplate chat(kChatml);
  expect_refused([&] { chat.render({{"role", "user"}}, false, kTokens); }, "array", ExitCode::usage);
  expect_refused([&] { chat.render(ordered_json::array(), false, kTokens, 5); }, "object", ExitCode::usage);
  expect_refused([&] { chat.render({{{"role", "user"}, {"content", "\xFF"}}}, false, kTokens); }, "UTF-8");
  expect_refused([&] { chat.render({{{"role", "user"}, {"content", 5}}}, false, kTokens); }, "can't combine");
  ordered_json nested = 1;
  for (int i = 0; i < 100000; ++i) {
    ordered_json outer = ordered_json::array();
    outer.push_back(std::move(nested));
    nested = std::move(outer);
  }
  expect_refused([&] { chat.render(nested, false, kTokens); }, "nested");
}

std::string repeat(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

TEST(ChatTemplateHostile, NestingIsBounded) {
  const int n = 100000;
  for (const std::string& source :
       {"{{ " + repeat("(", n) + "1" + repeat(")", n) + " }}", "{{ " + repeat("[", n) + repeat("]", n) + " }}",
        "{{ " + repeat("not ", n) + "1 }}", "{{ " + repeat("-", n) + "1 }}", "{{ 1" + repeat(" + 1", n) + " }}",
        "{{ x" + repeat("|trim", n) + " }}", "{{ x" + repeat(".x", n) + " }}",
        "{{ 1" + repeat(" if 1 else 1", n) + " }}", "{{ 1" + repeat(" if 1", n) + " }}",
        "{{ 1" + repeat(" is eq 1", n) + " }}", "{{ range" + repeat("(range", n), "{{ " + repeat("{'a':", n),
        "{{ 1" + repeat(" == 1 and 1", n) + " }}", repeat("{% if 1 %}", n), repeat("{% for x in 'a' %}", n)}) {
    EXPECT_THROW(render(source), Error) << source.substr(0, 40);
  }
  EXPECT_EQ(render("{{ 1" + repeat(" + 1", 300) + " }}"), "301");
  EXPECT_EQ(render("{% if false %}" + repeat("{% elif false %}", 5000) + "{% else %}x{% endif %}"), "x");
}

TEST(ChatTemplateHostile, WorkAndOutputAreBounded) {
  expect_refused([] { render(std::string(2 << 20, 'a')); }, "longer than");
  expect_refused([] { render("{% for i in range(9000000) %}{% endfor %}"); }, "steps");
  expect_refused([] { render(repeat("{% for i in range(1000) %}", 5) + repeat("{% endfor %}", 5)); }, "steps");
  expect_refused(
      [] {
        render("{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}");
      },
      "grows beyond");
  expect_refused(
      [] {
        render(
            "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aaab') %}{% "
            "endfor %}");
      },
      "beyond");
  const std::string grow = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}";
  expect_refused([&] { render(grow + "{% set ns.x = ns.x + ns.x %}{% endfor %}"); }, "");
  expect_refused([&] { render(grow + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}"); }, "");
  expect_refused([&] { render(grow + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x }}"); }, "");
  expect_refused(
      [&] { render("{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x] %}{% endfor %}"); },
      "nested");
  expect_refused([] { render("{% set ns = namespace() %}{% set ns.ns = ns %}"); }, "namespace");
  expect_refused([] { render("{% set ns = namespace() %}{{ [ns] | tojson }}"); }, "namespace");
  expect_refused(
      [] { render("{% for i in range(100) %}0123456789{% endfor %}", ordered_json::object(), {.output_bytes = 500}); },
      "500 bytes");
}

/// One line of a loop that costs few steps and, unless it is charged for what it does, much time or memory.
TEST(ChatTemplateHostile, CheapLookingOperationsAreCharged) {
  const auto takes_long = [](const std::string& set_up, const std::string& repeated) {
    const auto start = std::chrono::steady_clock::now();
    const std::string source = set_up + "{% for i in range(100000) %}{{ " + repeated + " }}{% endfor %}";
    EXPECT_THROW(render(source), Error) << repeated;
    [[maybe_unused]] const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
#if !defined(SPEAR_SANITIZED)  // with them, on a slow machine, a minute is too little
    EXPECT_LT(taken.count(), 60) << repeated;  // quadratic ones take hours
#endif
  };
  // 4 MiB of "a", and half as many before a "b": what naive searches dislike most.
  const std::string texts =
      "{% set ns = namespace(x='a') %}{% for i in range(22) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
      "{% set ns.y = 'a' %}{% for i in range(15) %}{% set ns.y = ns.y + ns.y %}{% endfor %}"
      "{% set part = ns.y + 'b' %}";
  takes_long(texts, "part in ns.x");
  takes_long(texts, "ns.x.replace(part, '') | length");
  takes_long(texts, "ns.x.split(part) | length");
  takes_long(texts, "ns.x.strip(part) | length");
  std::string dict = "{% set d = {";
  for (int i = 0; i < 40'000; ++i) dict += "'" + std::to_string(i) + "':1,";
  dict += "} %}";
  takes_long(dict, "d == d");
  takes_long(dict, "d.get('39999')");
  takes_long(dict, "'39999' in d");
  takes_long(dict, "d['39999']");
  // Costs little, as long as the key is not copied for a message that nobody sees.
  EXPECT_EQ(render(texts + "{% for i in range(100000) %}{{ [1][ns.x] }}{% endfor %}"), "");
}

TEST(ChatTemplateHostile, IndentedJsonIsBounded) {  // shared parts and margins: gigabytes from a few steps
  expect_refused(
      [] {
        render(
            "{% set ns = namespace(x=range(40000) | list) %}{% for i in range(50) %}{% set ns.x = [ns.x] %}{% endfor %}"
            "{{ [ns.x, ns.x, ns.x, ns.x, ns.x, ns.x, ns.x, ns.x] | tojson(indent=16) }}");
      },
      "grows beyond");
}

TEST(ChatTemplateHostile, RandomBytesNeverCrash) {
  Random random(5);
  static const std::vector<std::string> parts = {
      "{{",   "}}",   "{%",    "%}",      "{#",       "#}",   "-",        "+",           " ",   "\n",
      "if ",  "else", "elif ", "endif",   "for ",     "in ",  "endfor",   "set ",        "x",   "=",
      "==",   "'",    "\"",    "\\",      "a",        "(",    ")",        "[",           "]",   "{",
      "}",    "|",    "trim",  "tojson",  ".",        ",",    ":",        "1",           "0.5", "not ",
      "and ", "or ",  "is ",   "defined", "messages", "loop", "range(3)", "namespace()", "~",   "*",
      "/",    "%",    "é",     "<",       ">",        "!"};
  for (int round = 0; round < 20000; ++round) {
    std::string source = random.below(2) == 0 ? "{{ " : "{% set x = ";
    for (std::uint64_t i = random.below(14); i > 0; --i) source += parts[random.below(parts.size())];
    source += source[1] == '{' ? " }}" : " %}{{ x }}";
    try {
      render(source);
    } catch (const Error&) {
    }
  }
}

TEST(ChatOpening, EndsWhereTheUsersTextBegins) {
  EXPECT_EQ(chat_opening(kChatml, kTokens), "<|im_start|>user\n");
  EXPECT_EQ(chat_opening(kChatml, kTokens, "Be brief."), "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n");
  EXPECT_EQ(chat_opening("", kTokens), "");
  EXPECT_EQ(chat_opening("{{ bos_token }}", kTokens), "");
  EXPECT_EQ(chat_opening("{% for m in messages %}[{{ m.content | trim | upper }}]{% endfor %}", kTokens), "");
}

TEST(ChatOpening, OfTheRealModel) {
  if (real_model().empty())
    GTEST_SKIP() << "no models/SmolLM2-135M-Instruct.Q4_1.gguf (scripts/fetch-model smollm2-135m)";
  const Tokenizer tokenizer = load_tokenizer(real_model());
  const std::string opening = chat_opening(tokenizer.chat_template(), tokenizer.template_tokens());
  EXPECT_EQ(opening,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\n");
  const auto ids = tokenizer.encode(opening, {.parse_special = true});
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 1);
}

}  // namespace
}  // namespace spear
