#include "constrain/matcher.h"

#include <algorithm>
#include <limits>

namespace spear::constrain {
namespace {

constexpr std::size_t kMostSets = 4096;  // of 1 KB

void set_bit(TokenBits& bits, std::int32_t token) {
  bits[static_cast<std::size_t>(token) / 64] |= std::uint64_t{1} << (token % 64);
}

}  // namespace

Matcher::Matcher(std::shared_ptr<const TokenGrammar> grammar)
    : grammar_(std::move(grammar)),
      machine_(grammar_->grammar),
      set_(machine_.start()),
      bits_((static_cast<std::size_t>(grammar_->vocabulary->size()) + 63) / 64) {}

const TokenBits& Matcher::allowed() {
  if (masked_ == set_) return bits_;
  if (machine_.num_sets() > kMostSets) set_ = machine_.forget_all_but(set_);
  masked_ = ~SetId{0};
  machine_.renew_budget();
  std::fill(bits_.begin(), bits_.end(), 0);
  // The kernel may move when sets are made below.
  const std::vector<Machine::Config> kernel(machine_.kernel(set_).begin(), machine_.kernel(set_).end());
  for (const auto& [state, stack] : kernel) {
    const auto mask = grammar_->masks.of(state);
    for (std::size_t i = 0; i < mask->many.size(); ++i) bits_[i] |= mask->many[i];
    for (const std::int32_t token : mask->few) set_bit(bits_, token);
    add_exits(stack, mask->exits);
  }
  masked_ = set_;
  return bits_;
}

/// Tokens that go on behind the end of the rule.
void Matcher::add_exits(StackId stack, std::span<const std::uint32_t> exits) {
  if (exits.empty()) return;
  const SetId behind = machine_.returned(stack);
  if (behind == Machine::kDead) return;
  for (const std::uint32_t exit : exits) {
    walk(machine_, *grammar_->vocabulary, exit, behind, by_depth_, [&](std::uint32_t node, SetId) {
      for (const std::int32_t token : grammar_->vocabulary->tokens(node)) set_bit(bits_, token);
    });
  }
}

bool Matcher::accept(std::int32_t token) {
  if (token < 0 || token >= grammar_->vocabulary->size()) return false;
  const std::string& bytes = grammar_->vocabulary->bytes(token);
  return !bytes.empty() && accept_text(bytes);
}

bool Matcher::accept_text(std::string_view bytes) {
  SetId set = set_;
  machine_.renew_budget();
  for (const char c : bytes) {
    set = machine_.step(set, static_cast<std::uint8_t>(c));
    if (set == Machine::kDead) return false;
  }
  set_ = set;
  return true;
}

void mask_logits(const TokenBits& bits, std::span<float> logits) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const std::size_t words = std::min(bits.size(), (logits.size() + 63) / 64);
  for (std::size_t word = 0; word < words; ++word) {
    const std::size_t begin = word * 64, end = std::min(begin + 64, logits.size());
    const std::uint64_t allowed = bits[word];
    if (allowed == ~std::uint64_t{0}) continue;
    if (allowed == 0) {
      std::fill(logits.begin() + static_cast<std::ptrdiff_t>(begin), logits.begin() + static_cast<std::ptrdiff_t>(end),
                kNever);
      continue;
    }
    for (std::size_t i = begin; i < end; ++i) logits[i] = allowed >> (i - begin) & 1 ? logits[i] : kNever;
  }
  if (bits.size() * 64 < logits.size()) {
    std::fill(logits.begin() + static_cast<std::ptrdiff_t>(bits.size() * 64), logits.end(), kNever);
  }
}

}  // namespace spear::constrain
