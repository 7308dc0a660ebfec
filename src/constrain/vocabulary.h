// The bytes of every token as a prefix tree in one array, in the order of a walk that visits parents first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace spear {
class Tokenizer;
}

namespace spear::constrain {

class Vocabulary {
 public:
  struct Node {
    std::uint32_t end;     ///< behind its last descendant
    std::uint32_t tokens;  ///< the first of its own tokens; the next node's first is behind its last
    std::uint16_t depth;   ///< bytes
    std::uint8_t byte;
  };

  /// Special tokens stand for no text and are left out.
  explicit Vocabulary(const Tokenizer& tokenizer);
  /// (bytes, id), in any order; empty ones are left out.
  Vocabulary(std::vector<std::pair<std::string, std::int32_t>> tokens, std::int32_t size);

  /// Node 0 is the root: the empty text.
  const std::vector<Node>& nodes() const { return nodes_; }
  /// nodes()[i] for i below this; there is one more, for the ends of the tokens.
  std::uint32_t num_nodes() const { return static_cast<std::uint32_t>(nodes_.size() - 1); }
  std::span<const std::int32_t> tokens(std::uint32_t node) const {
    return std::span(ids_).subspan(nodes_[node].tokens, nodes_[node + 1].tokens - nodes_[node].tokens);
  }
  std::int32_t size() const { return size_; }
  std::uint32_t longest() const { return longest_; }
  /// Bytes of a token; empty for those left out.
  const std::string& bytes(std::int32_t token) const { return bytes_[static_cast<std::size_t>(token)]; }

 private:
  void build(std::vector<std::pair<std::string, std::int32_t>> tokens);

  std::vector<Node> nodes_;
  std::vector<std::int32_t> ids_;
  std::vector<std::string> bytes_;
  std::int32_t size_ = 0;
  std::uint32_t longest_ = 0;
};

}  // namespace spear::constrain
