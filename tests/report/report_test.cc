#include "report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "base/error.h"

namespace spear {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

json interval(double value) { return {{"value", value}, {"low", 0.9 * value}, {"high", 1.1 * value}}; }

/// Every part of the schema, for two layers.
json full_manifest(const std::string& text = "plain") {
  const std::vector<double> modules{1e-3, 2e-3, 5e-3, 1e-3, 2e-3, 3e-3, 9e-3, 1e-3, 2e-3, 5e-3, 1e-3, 2e-3, 3e-3, 4e-3};
  json ranks = json::array();
  for (std::size_t i = 0; i < modules.size(); ++i) ranks.push_back(i == 3 ? json(nullptr) : json(i % 4));
  const auto row = [&](const char* name, double ppl, double kl, double bytes) {
    return json{{"name", name},
                {"perplexity", interval(ppl)},
                {"kl", interval(kl)},
                {"top1_agreement", interval(0.8)},
                {"bytes", bytes}};
  };
  return {
      {"schema", "spear.manifest/1"},
      {"spear_version", text},
      {"created", text},
      {"command", text},
      {"commands", {text}},
      {"machine", text},
      {"seed", 1},
      {"threads", 2},
      {"reference", {{"name", text}, {"path", text}, {"sha256", text}, {"bytes", 269e6}}},
      {"backbone", {{"path", text}, {"sha256", text}}},
      {"files", {{text, text}, {"model.safetensors", {{"sha256", text}, {"bytes", 3}}}}},
      {"recipe",
       {{text, text},
        {"budget", 0.01},
        {"preset", text},
        {"list", {text, 1, json::array({text})}},
        {"nested", {{text, text}}}}},
      {"bytes",
       {{"base", 83.4e6},
        {"compensators", 8e5},
        {"fraction", 0.0096},
        {"linears_fraction", 0.015},
        {"bits_per_linear_weight", 4.13},
        {"reference", 269e6}}},
      {"diagnosis",
       {{"metric", text},
        {"damage", modules},
        {"delta_kl", modules},
        {"restore", modules},
        {"fisher", modules},
        {"entropy", 2.1},
        {"n_eff", 8.2},
        {"spearman", {{text, 0.7}}}}},
      {"placement", {{"policy", text}, {"ranks", ranks}, {"bytes", ranks}, {"shared_a", true}}},
      {"calibration",
       {{"steps",
         {{{"step", 0}, {"loss", 0.3}, {"held_out_kl", 0.2}},
          {{"step", 1}, {"loss", 0.2}},
          {{"step", 2}, {"loss", 0.1}, {"held_out_kl", 0.1}}}},
        {"tokens", 1000},
        {"sequences", 10},
        {"best_step", 2}}},
      {"gates",
       {{{"module", "model.layers.1.mlp.up_proj"}, {"mean", 1.0}, {"std", 0.1}, {"min", 0.5}, {"max", 1.5}},
        {{"module", text}, {"mean", 1.0}, {"std", 0.2}}}},
      {"results",
       {{"text", {{"name", text}, {"sha256", text}, {"context", 1024}, {"windows", 20}}},
        {"rows",
         {row("reference", 16.66, 0, 269e6),
          row("rtn", 32.73, 0.749, 83.4e6),
          row("quantized", 18.4, 0.118, 83.4e6),
          row("recovered", 17.79, 0.091, 84.2e6),
          {{"name", text}, {"label", text}, {"perplexity", 20}, {"kl", 0.3}, {"bytes", 9e7}}}},
        {"gap",
         {{"rtn", {{"perplexity", interval(0.93)}, {"log_perplexity", interval(0.9)}, {"kl", interval(0.878)}}},
          {text, {{"kl", interval(0.3)}}}}},
        {"paired",
         {{{"a", "recovered"},
           {"b", "quantized"},
           {"perplexity", interval(-0.63)},
           {"kl", {{"value", -0.027}, {"low", -0.03}, {"high", -0.02}}}},
          {{"a", text}, {"b", text}, {"perplexity", interval(1)}}}},
        {"tasks",
         {{{"name", text},
           {"items", 100},
           {"accuracy", interval(0.5)},
           {"accuracy_norm", interval(0.6)},
           {"primary", "accuracy_norm"},
           {"difference", interval(0.01)},
           {"reference", 0.59}}}}}},
      {"controls",
       {{{"name", text}, {"bytes", 84.2e6}, {"kl", 0.095}, {"perplexity", 17.9}},
        {{"name", "finer groups"}, {"bytes", 86e6}, {"kl", interval(0.08)}}}},
      {"tokens",
       {{"from", text},
        {"to", text},
        {"gained", {{{"context", text}, {"token", text}, {"before", -3.0}, {"after", -0.1}}}},
        {"lost", {{{"context", text}, {"token", text}, {"before", -0.1}, {"after", -3.0}}}}}},
      {"stages", {{{"name", text}, {"seconds", 12.5}, {"peak_bytes", 1e9}}, {{"name", "write"}, {"seconds", 1}}}},
  };
}

/// Tags are closed in order and attributes quoted: the page would also parse as XML. Returns what is wrong.
std::string markup_error(const std::string& page) {
  std::vector<std::string> open;
  static const std::regex kTag(R"re(<(/?)([a-z][a-z0-9]*)((?:\s+[a-zA-Z0-9:-]+="[^"<>]*")*)\s*(/?)>)re");
  std::size_t at = page.find("<html");
  while ((at = page.find('<', at)) != std::string::npos) {
    std::smatch match;
    const std::string rest = page.substr(at, page.find('>', at) - at + 1);
    if (!std::regex_match(rest, match, kTag)) return "not a tag: " + rest.substr(0, 80);
    if (match[1] == "/") {
      if (open.empty() || open.back() != match[2]) return "closed out of order: " + rest;
      open.pop_back();
    } else if (match[4] != "/") {
      open.push_back(match[2]);
    }
    at += rest.size();
  }
  return open.empty() ? "" : "left open: " + open.back();
}

TEST(Report, ShowsWhatWasMeasured) {
  const std::string page = render_report(full_manifest());
  EXPECT_EQ(markup_error(page), "");
  for (const char* shown :
       {"16.66", "32.73", "17.79", "0.7490", "93.0", "87.8", "84.2\u00a0MB", "Before and after", "Tasks",
        "Bytes against quality", "Where quantization hurts", "Compensators", "Training", "Tokens that changed most",
        "How to make this again", "model.layers.1.mlp.up_proj", "held-out KL", "prefers-color-scheme:dark"}) {
    EXPECT_THAT(page, HasSubstr(shown));
  }
  EXPECT_THAT(page, HasSubstr("KL against \u201cQuantized, no compensators\u201d"));
}

TEST(Report, MeanOverTasksIsARowOfItsOwn) {
  json manifest = full_manifest();
  EXPECT_THAT(render_report(manifest), Not(HasSubstr("<b>Mean</b>")));
  manifest["results"]["tasks_mean"] = {{"accuracy", 0.515}, {"difference", interval(-0.004)}, {"reference", 0.519}};
  const std::string page = render_report(manifest);
  EXPECT_EQ(markup_error(page), "");
  EXPECT_THAT(page, HasSubstr("<b>Mean</b>"));
  EXPECT_THAT(page, HasSubstr("51.5"));
}

TEST(Report, IsSelfContained) {
  const std::string page = render_report(full_manifest());
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  for (const char* outside : {"http://", "https://", "src=", "href=", "@import", "url(", "<script"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
}

TEST(Report, HostileStringsStayText) {
  for (const std::string hostile : {"<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onload='x",
                                    "</style></svg><b>", "&lt;i&gt;", "<!-- x", "]]>", "<svg/onload=x>"}) {
    const std::string page = render_report(full_manifest(hostile));
    EXPECT_EQ(markup_error(page), "") << hostile;
    if (hostile.find('<') != std::string::npos) {
      EXPECT_THAT(page, Not(HasSubstr(hostile)));
    }
    EXPECT_THAT(page, Not(HasSubstr("<img"))) << hostile;
    EXPECT_THAT(page, Not(HasSubstr("<script"))) << hostile;
  }
}

TEST(Report, BytesThatAreNoTextDoNotBreakThePage) {
  const std::string page = render_report(full_manifest(std::string("a\0b\x01\xff\xf0\x9f\x1f", 8)));
  EXPECT_EQ(markup_error(page), "");
  EXPECT_EQ(page.find('\0'), std::string::npos);
  EXPECT_THAT(page, HasSubstr("\u2400"));
  EXPECT_EQ(json(page).dump().empty(), false) << "the page must be UTF-8";
}

TEST(Report, EveryPartMayBeMissing) {
  const json whole = full_manifest();
  EXPECT_EQ(markup_error(render_report({{"schema", "spear.manifest/1"}})), "");
  for (const auto& [name, value] : whole.items()) {
    if (name == "schema") continue;
    json less = whole;
    less.erase(name);
    EXPECT_EQ(markup_error(render_report(less)), "") << name;
    less[name] = nullptr;
    EXPECT_EQ(markup_error(render_report(less)), "") << name;
    if (!value.is_object()) continue;
    for (const auto& [inner, unused] : value.items()) {
      json partial = whole;
      partial[name].erase(inner);
      EXPECT_EQ(markup_error(render_report(partial)), "") << name << "." << inner;
    }
  }
  json only = {{"schema", "spear.manifest/1"}, {"diagnosis", whole["diagnosis"]}};
  const std::string page = render_report(only);
  EXPECT_THAT(page, HasSubstr("Where quantization hurts"));
  EXPECT_THAT(page, Not(HasSubstr("Before and after")));
}

TEST(Report, IntervalsMayBeUnknown) {
  json manifest = full_manifest();
  manifest["results"]["rows"][3]["perplexity"] = {{"value", 17.79}, {"low", nullptr}, {"high", nullptr}};
  manifest["results"]["rows"][1]["kl"] = nullptr;
  EXPECT_EQ(markup_error(render_report(manifest)), "");
}

TEST(Report, WrongTypesAreNamed) {
  const auto expect_named = [](const json& manifest, const std::string& field) {
    try {
      render_report(manifest);
      ADD_FAILURE() << field;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input);
      EXPECT_THAT(error.where(), HasSubstr(field));
    }
  };
  json manifest = full_manifest();
  manifest["diagnosis"]["damage"][3] = "much";
  expect_named(manifest, "diagnosis.damage[3]");
  manifest = full_manifest();
  manifest["diagnosis"]["damage"].erase(0);
  expect_named(manifest, "diagnosis.damage");
  manifest = full_manifest();
  manifest["results"]["rows"][1]["perplexity"]["low"] = json::array();
  expect_named(manifest, "results.rows[1].perplexity.low");
  manifest = full_manifest();
  manifest["stages"] = 3;
  expect_named(manifest, "stages");
  expect_named({{"schema", "spear.manifest/2"}}, "schema");
  expect_named(json::object(), "schema");
  expect_named(json::array(), "");
}

TEST(Report, DegenerateNumbersDoNotReachTheDrawing) {
  json manifest = full_manifest();
  for (auto& row : manifest["results"]["rows"]) row["perplexity"] = row["kl"] = 5;  // no spread at all
  for (auto& value : manifest["diagnosis"]["damage"]) value = 0;
  manifest["diagnosis"]["fisher"] = std::vector<double>(14, -1e300);
  manifest["calibration"]["steps"] = {{{"step", 3}, {"loss", 0}}};
  manifest["controls"][0]["kl"] = -1;
  manifest["controls"][1]["kl"] = 1e-300;
  manifest["placement"]["ranks"] = std::vector<double>(14, INFINITY);
  manifest["gates"][0]["module"] = "model.layers.99999999999999999999.mlp.up_proj";
  manifest["tokens"]["gained"][0]["after"] = 1e308;
  const std::string page = render_report(manifest);
  EXPECT_EQ(markup_error(page), "");
  EXPECT_FALSE(std::regex_search(page, std::regex("=\"-?(nan|inf)"))) << "coordinates must be numbers";
}

TEST(Report, SaysWhenCompensatorsOrPlacementDoNotPay) {
  json manifest = full_manifest();
  manifest["results"]["paired"][0]["kl"] = {{"value", -0.001}, {"low", -0.003}, {"high", 0.002}};
  manifest["controls"][0]["kl"] = 0.05;
  const std::string page = render_report(manifest);
  EXPECT_THAT(page, HasSubstr("No proven gain over"));
  EXPECT_THAT(page, HasSubstr("is better for no more bytes"));
}

TEST(Report, DeepNestingIsNoTrap) {
  json manifest = full_manifest();
  std::string text(100000, '[');
  text += std::string(100000, ']');
  manifest["recipe"]["deep"] = json::parse(text);
  EXPECT_EQ(markup_error(render_report(manifest)), "");
}

}  // namespace
}  // namespace spear
