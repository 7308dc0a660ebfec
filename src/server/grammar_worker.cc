#include "server/grammar_worker.h"

#include <pthread.h>

#include "base/log.h"

namespace spear {

GrammarWorker::GrammarWorker(const Tokenizer& tokenizer, Post post)
    : tokenizer_(tokenizer), post_(std::move(post)), thread_([this] {
        pthread_setname_np(pthread_self(), "spear-grammar");
        run();
      }) {}

GrammarWorker::~GrammarWorker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void GrammarWorker::make(OutputFormat format, Done done) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.emplace_back(std::move(format), std::move(done));
  }
  wake_.notify_one();
}

void GrammarWorker::run() {
  std::optional<StructuredOutput> structured;  // sorts the vocabulary: only where somebody asks
  while (true) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
    if (stop_) return;
    auto [format, done] = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    StructuredOutput::GrammarPtr grammar;
    std::optional<ApiError> error;
    try {
      if (!structured) structured.emplace(tokenizer_);
      grammar = compile(format, *structured);
    } catch (const ApiError& refused) {
      error = refused;
    } catch (const std::exception& unexpected) {
      log::error("a grammar could not be made: {}", unexpected.what());
      error.emplace(500, "server_error", "an internal error while the schema was read");
    }
    post_([done = std::move(done), grammar = std::move(grammar), error = std::move(error)] { done(grammar, error); });
  }
}

}  // namespace spear
