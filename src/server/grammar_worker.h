// Compiles the grammars of requests on a thread of its own: a schema that takes long must not hold up other streams.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "server/api_error.h"
#include "server/output_format.h"

namespace spear {

class Tokenizer;

class GrammarWorker {
 public:
  using Post = std::function<void(std::function<void()>)>;
  /// A grammar, or why there is none.
  using Done = std::function<void(StructuredOutput::GrammarPtr, std::optional<ApiError>)>;

  /// `post` takes Done to the server's thread.
  GrammarWorker(const Tokenizer& tokenizer, Post post);
  /// Ends after the grammar that is being made; what still waits is dropped.
  ~GrammarWorker();
  GrammarWorker(const GrammarWorker&) = delete;
  GrammarWorker& operator=(const GrammarWorker&) = delete;

  /// Any thread; one after the other.
  void make(OutputFormat format, Done done);

 private:
  void run();

  const Tokenizer& tokenizer_;
  Post post_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::pair<OutputFormat, Done>> waiting_;
  bool stop_ = false;
  std::thread thread_;  // last: it uses the members above
};

}  // namespace spear
