// A tokenizer as a GGUF file holds it.
#pragma once

#include <string>

#include "io/gguf.h"
#include "text/tokenizer.h"

namespace spear {

/// `vocab_size`: rows of the model's embedding; ids without a token become unused ones. Throws Error(usage) naming
/// `where` for what GGUF cannot hold of it: a pre-tokenizer that llama.cpp has no name for, or a SentencePiece model,
/// whose scores tokenizer.json leaves out.
GgufTokenizer gguf_tokenizer_of(const Tokenizer& tokenizer, std::int64_t vocab_size, const std::string& where);

}  // namespace spear
