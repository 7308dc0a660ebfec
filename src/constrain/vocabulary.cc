#include "constrain/vocabulary.h"

#include <algorithm>

#include "text/tokenizer.h"

namespace spear::constrain {
namespace {

constexpr std::size_t kLongest = 4096;  // a longer token is never offered

std::vector<std::pair<std::string, std::int32_t>> tokens_of(const Tokenizer& tokenizer) {
  std::vector<std::pair<std::string, std::int32_t>> tokens;
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.is_special(id)) tokens.emplace_back(tokenizer.token_bytes(id), id);
  }
  return tokens;
}

}  // namespace

Vocabulary::Vocabulary(const Tokenizer& tokenizer) : Vocabulary(tokens_of(tokenizer), tokenizer.vocab_size()) {}

Vocabulary::Vocabulary(std::vector<std::pair<std::string, std::int32_t>> tokens, std::int32_t size) : size_(size) {
  bytes_.resize(static_cast<std::size_t>(size));
  std::erase_if(tokens, [](const auto& token) { return token.first.empty() || token.first.size() > kLongest; });
  for (const auto& [bytes, id] : tokens) {
    bytes_[static_cast<std::size_t>(id)] = bytes;
    longest_ = std::max(longest_, static_cast<std::uint32_t>(bytes.size()));
  }
  std::sort(tokens.begin(), tokens.end());  // std::string compares bytes as unsigned
  build(std::move(tokens));
}

void Vocabulary::build(std::vector<std::pair<std::string, std::int32_t>> tokens) {
  std::vector<std::uint32_t> path{0};
  nodes_.push_back({0, 0, 0, 0});
  std::string last;
  const auto close = [&](std::size_t depth) {
    for (; path.size() > depth + 1; path.pop_back()) nodes_[path.back()].end = num_nodes() + 1;
  };
  for (const auto& [bytes, id] : tokens) {
    const auto differ = std::mismatch(bytes.begin(), bytes.end(), last.begin(), last.end()).first;
    const auto common = static_cast<std::size_t>(differ - bytes.begin());
    close(common);
    for (std::size_t i = common; i < bytes.size(); ++i) {
      path.push_back(num_nodes() + 1);
      nodes_.push_back({0, static_cast<std::uint32_t>(ids_.size()), static_cast<std::uint16_t>(i + 1),
                        static_cast<std::uint8_t>(bytes[i])});
    }
    ids_.push_back(id);
    last = bytes;
  }
  close(0);
  nodes_[0].end = num_nodes() + 1;
  nodes_.push_back({num_nodes() + 1, static_cast<std::uint32_t>(ids_.size()), 0, 0});
}

}  // namespace spear::constrain
