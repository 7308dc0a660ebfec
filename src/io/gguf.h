// GGUF files, versions 2 and 3: metadata, tensors, the embedded tokenizer. Nothing in the file is trusted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "tensor/gguf_types.h"
#include "tensor/tensor.h"

namespace spear {

/// A metadata value as it lies in the file; GgufFile decodes it on request.
struct GgufValue {
  std::uint32_t type = 0;  ///< GGUF value type; of the elements for an array
  bool array = false;
  std::uint64_t count = 1;
  std::span<const std::byte> bytes;  ///< the value, or the elements
};

struct GgufTensor {
  const GgufType* type = nullptr;
  Shape shape;  ///< C order, slowest dimension first: a linear is [out_features, in_features]
  std::span<const std::byte> bytes;
};

/// A mapped GGUF file whose structure has been checked: every length, offset and type lies inside the file, keys and
/// tensor names are unique, tensors don't overlap. Values are decoded on request.
class GgufFile {
 public:
  /// Throws Error(bad_input) naming the file and the key or tensor that is wrong.
  explicit GgufFile(const std::filesystem::path& path);

  std::string where() const { return file_->path().string(); }

  /// Metadata by key. The typed accessors return nothing when the key is absent and throw Error(bad_input) when its
  /// value has another type; integers of any width and sign are accepted for `integer`, integers too for `real`.
  bool has(std::string_view key) const { return values_.contains(key); }
  std::vector<std::string> keys() const;
  /// The value as it lies in the file; throws Error(bad_input) when it is absent.
  const GgufValue& value(std::string_view key) const;
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<double> real(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string> text(std::string_view key) const;
  std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;
  std::optional<std::vector<double>> reals(std::string_view key) const;
  std::optional<std::vector<std::string>> texts(std::string_view key) const;

  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }
  /// A tensor that can be dequantized; throws Error(bad_input) when it is missing or its type can't be read (named).
  const GgufTensor& tensor(std::string_view tensor_name) const;
  /// Float32 copy of tensor(tensor_name).
  Tensor dequantize(std::string_view tensor_name) const;

 private:
  const GgufValue* find(std::string_view key, bool array) const;

  std::shared_ptr<const MappedFile> file_;
  std::map<std::string, GgufValue, std::less<>> values_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

/// The tokenizer a GGUF file carries, as stored (keys tokenizer.ggml.* and tokenizer.chat_template).
struct GgufTokenizer {
  std::string model;                      ///< "gpt2" (byte-level BPE), "llama" (SentencePiece), ...
  std::string pre;                        ///< pre-tokenizer name, e.g. "smollm"; empty if absent
  std::vector<std::string> tokens;        ///< text of each id, in the stored (byte-level) alphabet
  std::vector<std::int32_t> token_types;  ///< 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<float> scores;              ///< SentencePiece only, else empty
  std::vector<std::string> merges;        ///< "left right", by rank; BPE only
  std::optional<std::int64_t> bos_id, eos_id, eot_id, unknown_id, padding_id;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
  std::string chat_template;  ///< empty if absent
};

/// Throws Error(bad_input) when there is none, when lists disagree in length or an id lies outside the vocabulary.
GgufTokenizer read_gguf_tokenizer(const GgufFile& file);

}  // namespace spear
