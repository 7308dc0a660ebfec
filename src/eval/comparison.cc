#include "eval/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace spear {
namespace {

double mean_per_token(const EvalResult& result, const std::vector<double>& sums,
                      std::span<const std::int32_t> windows) {
  double sum = 0;
  for (const std::int32_t window : windows) sum += sums[static_cast<std::size_t>(window)];
  return sum / (static_cast<double>(windows.size()) * static_cast<double>(result.context - 1));
}

double mean_nll(const EvalResult& result, std::span<const std::int32_t> windows) {
  return mean_per_token(result, result.window_nll, windows);
}
double perplexity(const EvalResult& result, std::span<const std::int32_t> windows) {
  return std::exp(mean_nll(result, windows));
}
double mean_kl(const EvalResult& result, std::span<const std::int32_t> windows) {
  return mean_per_token(result, result.window_kl, windows);
}

void require_same_windows(const EvalResult& a, const EvalResult& b) {
  if (a.windows != b.windows || a.context != b.context || a.window_nll.size() != b.window_nll.size()) {
    throw failed(fmt::format("evaluations on {} windows of {} and {} windows of {} tokens can't be compared", a.windows,
                             a.context, b.windows, b.context));
  }
}

/// Half of a character decodes to bytes that JSON refuses: U+FFFD in their place.
nlohmann::json valid_utf8(const std::string& text) {
  return nlohmann::json::parse(nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

nlohmann::json number(double value) { return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr); }

}  // namespace

GapRecovered gap_recovered(const EvalResult& reference, const EvalResult& baseline, const EvalResult& candidate,
                           const BootstrapOptions& options) {
  require_same_windows(reference, baseline);
  require_same_windows(reference, candidate);
  if (!baseline.kl || !candidate.kl) throw failed("the gap recovered needs the KL of baseline and candidate");
  const auto share = [&](auto measure) {
    return bootstrap(
        reference.windows,
        [&](std::span<const std::int32_t> windows) {
          const double from = measure(baseline, windows);
          return (from - measure(candidate, windows)) / (from - measure(reference, windows));
        },
        options);
  };
  const auto kl_or_zero = [&](const EvalResult& result, std::span<const std::int32_t> windows) {
    return &result == &reference ? 0.0 : mean_kl(result, windows);
  };
  return {share(perplexity), share(mean_nll), share(kl_or_zero)};
}

PairedDifference paired_difference(const EvalResult& candidate, const EvalResult& baseline,
                                   const BootstrapOptions& options) {
  require_same_windows(candidate, baseline);
  const auto difference = [&](auto measure) {
    return bootstrap(
        candidate.windows,
        [&](std::span<const std::int32_t> windows) { return measure(candidate, windows) - measure(baseline, windows); },
        options);
  };
  PairedDifference result{difference(perplexity), difference(mean_nll), {}, {}};
  if (candidate.kl && baseline.kl) {
    result.kl = difference(mean_kl);
    result.top1_agreement = difference([](const EvalResult& eval, std::span<const std::int32_t> windows) {
      return mean_per_token(eval, eval.window_agree, windows);
    });
  }
  return result;
}

TokenChanges tokens_changed_most(const TextWindows& windows, const EvalResult& before, const EvalResult& after,
                                 std::int64_t count) {
  require_same_windows(before, after);
  const auto predictions = static_cast<std::size_t>(windows.predictions());
  if (before.token_nll.size() != predictions || after.token_nll.size() != predictions) {
    throw failed("the tokens that changed most need evaluations with per_token on the same windows");
  }
  std::vector<std::size_t> order(predictions);
  std::iota(order.begin(), order.end(), 0);
  const auto gain = [&](std::size_t i) { return before.token_nll[i] - after.token_nll[i]; };
  const auto taken =
      static_cast<std::ptrdiff_t>(std::clamp<std::int64_t>(count, 0, static_cast<std::int64_t>(predictions)));
  const auto collect = [&](double sign) {
    std::partial_sort(order.begin(), order.begin() + taken, order.end(), [&](std::size_t a, std::size_t b) {
      const double gain_a = sign * gain(a), gain_b = sign * gain(b);
      return gain_a != gain_b ? gain_a > gain_b : a < b;
    });
    std::vector<TokenChange> changes;
    for (auto i = order.begin(); i != order.begin() + taken && sign * gain(*i) > 0; ++i) {
      const auto place = static_cast<std::int64_t>(*i);
      const std::int64_t window = place / (windows.context - 1), position = place % (windows.context - 1) + 1;
      changes.push_back({window, position, windows.window(window)[static_cast<std::size_t>(position)],
                         -static_cast<double>(before.token_nll[*i]), -static_cast<double>(after.token_nll[*i])});
    }
    return changes;
  };
  return {collect(1.0), collect(-1.0)};
}

nlohmann::json to_json(const TokenChanges& changes, const TextWindows& windows, const Decode& decode,
                       std::int64_t context_tokens) {
  const auto list = [&](const std::vector<TokenChange>& tokens) {
    auto rows = nlohmann::json::array();
    for (const TokenChange& change : tokens) {
      const std::int64_t first = std::max<std::int64_t>(0, change.position - context_tokens);
      const auto context =
          windows.window(change.window)
              .subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(change.position - first));
      rows.push_back({{"context", valid_utf8(decode(context))},
                      {"token", valid_utf8(decode(std::span(&change.token, 1)))},
                      {"before", change.before},
                      {"after", change.after}});
    }
    return rows;
  };
  return {{"gained", list(changes.gained)}, {"lost", list(changes.lost)}};
}

nlohmann::json to_json(const Interval& interval) {
  return {{"value", number(interval.value)}, {"low", number(interval.low)}, {"high", number(interval.high)}};
}

nlohmann::json to_json(const GapRecovered& gap) {
  return {{"perplexity", to_json(gap.perplexity)},
          {"log_perplexity", to_json(gap.log_perplexity)},
          {"kl", to_json(gap.kl)}};
}

nlohmann::json to_json(const PairedDifference& difference) {
  nlohmann::json json = {{"perplexity", to_json(difference.perplexity)},
                         {"log_perplexity", to_json(difference.log_perplexity)}};
  if (difference.kl) json["kl"] = to_json(*difference.kl);
  if (difference.top1_agreement) json["top1_agreement"] = to_json(*difference.top1_agreement);
  return json;
}

nlohmann::json to_json(const EvalResult& result) {
  nlohmann::json json = {{"perplexity", to_json(result.perplexity)},
                         {"tokens", result.tokens},
                         {"windows", result.windows},
                         {"context", result.context}};
  if (result.kl) json["kl"] = to_json(*result.kl);
  if (result.top1_agreement) json["top1_agreement"] = to_json(*result.top1_agreement);
  if (!result.window_nll.empty()) json["window_nll"] = result.window_nll;
  if (!result.window_kl.empty()) json["window_kl"] = result.window_kl;
  return json;
}

nlohmann::json eval_document(const EvalResult& result, const std::optional<EvalBytes>& bytes,
                             const nlohmann::json& tasks) {
  nlohmann::json json = to_json(result);
  json["schema"] = "spear.eval/1";
  if (bytes) {
    const auto weights = static_cast<double>(std::max<std::int64_t>(bytes->weights, 1));
    json["bytes"] = {{"weights", bytes->weights},
                     {"compensators", bytes->compensators},
                     {"fraction", static_cast<double>(bytes->compensators) / weights}};
  }
  if (!tasks.is_null()) json["tasks"] = tasks;
  return json;
}

}  // namespace spear
