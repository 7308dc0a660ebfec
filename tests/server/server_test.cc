// The server without sockets: a model of no arithmetic behind it, exchanges that only remember.
#include "server/server.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <thread>

#include "engine/hash_model.h"
#include "engine/synthetic_table.h"
#include "text/tokenizer.h"

namespace spear {
namespace {

using testing::HashModel;
using Json = nlohmann::json;

class FakeExchange final : public HttpExchange {
 public:
  explicit FakeExchange(HttpRequest request) : request_(std::move(request)) {}
  const HttpRequest& request() const override { return request_; }
  void respond(HttpResponse answer) override {
    EXPECT_FALSE(done) << "two answers";
    response = std::move(answer);
    done = true;
  }
  void start_stream(std::string_view type) override {
    EXPECT_FALSE(std::exchange(streaming, true));
    EXPECT_EQ(type, "text/event-stream");
  }
  void write(std::string piece) override {
    EXPECT_TRUE(streaming && !done);
    stream += piece;
  }
  void finish() override {
    EXPECT_FALSE(done);
    done = true;
  }
  void on_close(std::function<void()> callback) override { close_ = std::move(callback); }
  bool closed() const override { return false; }
  void leave() { close_(); }

  HttpRequest request_;
  HttpResponse response;
  std::string stream;
  bool streaming = false, done = false;

 private:
  std::function<void()> close_;
};

/// A tokenizer of the 101 tokens that HashModel knows: bytes ' ' ... and a few words.
Tokenizer small_tokenizer() {
  Json vocabulary = Json::object();
  for (int i = 0; i < 94; ++i) vocabulary[std::string(1, static_cast<char>('!' + i))] = i;
  vocabulary["\xC4\xA0"] = 94;  // a space, in byte-level spelling
  const Json json = {{"version", "1.0"},
                     {"added_tokens", Json::array()},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
                     {"post_processor", nullptr},
                     {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
                     {"model", {{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", nullptr}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
  return Tokenizer::from_json(json, nullptr, nullptr, "test");
}

/// Its steps wait while they are told to.
class SlowModel final : public PagedModel {
 public:
  const ModelConfig& config() const override { return model.config(); }
  std::int64_t block_size() const override { return model.block_size(); }
  std::int64_t block_bytes(KvCacheType type) const override { return model.block_bytes(type); }
  std::unique_ptr<PagedKvCache> make_paged_cache(std::int64_t blocks, KvCacheType type) override { return model.make_paged_cache(blocks, type); }
  std::span<const float> step(std::span<const SequenceChunk> chunks, PagedKvCache& cache) override {
    std::unique_lock lock(mutex);
    released.wait(lock, [this] { return !stuck; });
    if (fails) throw std::runtime_error("planted");
    return model.step(chunks, cache);
  }
  void logits(std::span<const float> hidden, std::span<float> out) override { model.logits(hidden, out); }
  void set_compensator_density(double density) override { model.set_compensator_density(density); }
  void stick(bool on) {
    const std::lock_guard lock(mutex);
    stuck = on;
    released.notify_all();
  }
  void fail(bool on) {
    const std::lock_guard lock(mutex);
    fails = on;
  }

  HashModel model;
  std::mutex mutex;
  std::condition_variable released;
  bool stuck = false, fails = false;
};

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() { start({}); }
  ~ServerTest() override {
    model.stick(false);
    server.reset();
  }

  void start(ServerOptions options) {
    options.log_requests = false;
    options.watchdog_seconds = 0.2;
    server.reset();
    served.name = "m";
    served.root = "/models/m";
    served.tokenizer = &tokenizer;
    served.chat_template.emplace("{% for m in messages %}{{ m.content }}{% endfor %}");
    served.max_model_len = 200;
    served.vocab_size = 101;
    engine = std::make_unique<Engine>(model, policy, EngineOptions{.num_blocks = 60, .max_num_seqs = 4});
    server = std::make_unique<Server>(*engine, served, options, [this](std::function<void()> work) {
      const std::lock_guard lock(mutex);
      posted.push_back(std::move(work));
      arrived.notify_one();
    });
  }

  std::shared_ptr<FakeExchange> send(const std::string& path, const std::string& body = "", const std::string& key = "", const char* method = nullptr) {
    HttpRequest request;
    request.method = method != nullptr ? method : body.empty() ? "GET" : "POST";
    request.path = path;
    request.body = body;
    request.id = "id";
    request.authorization = key;
    auto exchange = std::make_shared<FakeExchange>(request);
    server->handle(exchange);
    return exchange;
  }

  void run_until(const std::function<bool()>& done) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!done() && std::chrono::steady_clock::now() < end) {
      std::function<void()> work;
      {
        std::unique_lock lock(mutex);
        if (!arrived.wait_for(lock, std::chrono::milliseconds(20), [this] { return !posted.empty(); })) continue;
        work = std::move(posted.front());
        posted.pop_front();
      }
      work();
    }
    ASSERT_TRUE(done());
  }

  std::string text_of(const std::string& body, const std::string& path = "/v1/completions") {
    const auto exchange = send(path, body);
    run_until([&] { return exchange->done; });
    EXPECT_EQ(exchange->response.status, 200) << exchange->response.body;
    return Json::parse(exchange->response.body).at("choices").at(0).at("text");
  }

  Tokenizer tokenizer = small_tokenizer();
  SlowModel model;
  TokenBudgetPolicy policy{16};
  ServedModel served;
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<std::function<void()>> posted;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Server> server;
};

TEST_F(ServerTest, StreamedAndWholeAnswersAreTheSame) {
  const std::string body = R"({"prompt":"hello","max_tokens":30,"temperature":0)";
  const std::string whole = text_of(body + "}");
  const auto exchange = send("/v1/completions", body + R"(,"stream":true,"stream_options":{"include_usage":true}})");
  run_until([&] { return exchange->done; });
  std::string text, last;
  Json usage;
  for (std::size_t begin = 0; begin < exchange->stream.size();) {
    const std::size_t end = exchange->stream.find("\n\n", begin);
    ASSERT_NE(end, std::string::npos);
    last = exchange->stream.substr(begin, end - begin);
    begin = end + 2;
    ASSERT_TRUE(last.starts_with("data: "));
    if (last == "data: [DONE]") break;
    const Json document = Json::parse(last.substr(6));
    if (document.at("choices").empty()) usage = document.at("usage");
    else text += document.at("choices").at(0).at("text").get<std::string>();
  }
  EXPECT_EQ(last, "data: [DONE]");
  EXPECT_EQ(text, whole);
  EXPECT_FALSE(whole.empty());
  EXPECT_EQ(usage.at("completion_tokens"), 30);
  EXPECT_EQ(usage.at("prompt_tokens"), 5);
}

TEST_F(ServerTest, StopStringsNeverLeak) {
  const std::string whole = text_of(R"({"prompt":"hello","max_tokens":30,"temperature":0})");
  ASSERT_GE(whole.size(), 10U);
  const std::string stop = whole.substr(4, 3);
  const auto at = whole.find(stop);
  EXPECT_EQ(text_of(R"({"prompt":"hello","max_tokens":30,"temperature":0,"stop":)" + Json(stop).dump() + "}"), whole.substr(0, at));
  run_until([&] { return server->stats().free_blocks == 60 && server->stats().running == 0; });
}

TEST_F(ServerTest, EchoGivesThePromptAndItsLogprobs) {
  const auto exchange = send("/v1/completions", R"({"prompt":"hello","max_tokens":2,"temperature":0,"echo":true,"logprobs":1})");
  run_until([&] { return exchange->done; });
  const Json choice = Json::parse(exchange->response.body).at("choices").at(0);
  const Json& logprobs = choice.at("logprobs");
  ASSERT_EQ(logprobs.at("tokens").size(), 7U);
  EXPECT_TRUE(choice.at("text").get<std::string>().starts_with("hello"));
  EXPECT_TRUE(logprobs.at("token_logprobs").at(0).is_null());
  EXPECT_EQ(logprobs.at("text_offset").at(3), 3);
  // Greedy output is the likeliest token: its logprob is the largest one.
  for (std::size_t i : {5U, 6U}) EXPECT_EQ(logprobs.at("top_logprobs").at(i).size(), 1U);
  // The same number as when the token is generated: the prompt of 5 is the prompt of 4 and one token more.
  const auto again = send("/v1/completions", R"({"prompt":"hell","max_tokens":1,"logit_bias":{"78":100},"temperature":0,"logprobs":0})");
  run_until([&] { return again->done; });
  const Json one = Json::parse(again->response.body).at("choices").at(0);
  EXPECT_EQ(one.at("text"), "o");
  EXPECT_NEAR(one.at("logprobs").at("token_logprobs").at(0).get<double>(), logprobs.at("token_logprobs").at(4).get<double>(), 1e-5);
}

TEST_F(ServerTest, AClientThatLeavesFreesItsBlocks) {
  model.stick(true);
  std::vector<std::shared_ptr<FakeExchange>> exchanges;
  for (int i = 0; i < 8; ++i) exchanges.push_back(send("/v1/completions", R"({"prompt":"hello","max_tokens":100,"stream":true})"));
  for (const auto& exchange : exchanges) exchange->leave();
  model.stick(false);
  run_until([&] { return server->stats().running == 0 && server->stats().waiting == 0 && server->stats().free_blocks == 60; });
  for (const auto& exchange : exchanges) EXPECT_FALSE(exchange->done);
}

TEST_F(ServerTest, AStuckEngineTurnsHealthRed) {
  EXPECT_EQ(send("/health")->response.status, 200);
  model.stick(true);
  const auto exchange = send("/v1/completions", R"({"prompt":"hello","max_tokens":2})");
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  EXPECT_EQ(send("/health")->response.status, 503);
  EXPECT_EQ(send("/ready")->response.status, 503);
  model.stick(false);
  run_until([&] { return exchange->done; });
  EXPECT_EQ(send("/health")->response.status, 200);
}

TEST_F(ServerTest, AStepThatFailsEndsItsRequestsAndNothingElse) {
  const std::string body = R"({"prompt":"hello","max_tokens":8,"temperature":0})";
  const std::string expected = text_of(body);
  model.fail(true);
  const auto exchange = send("/v1/completions", R"({"prompt":"hello","max_tokens":2})");
  run_until([&] { return exchange->done; });
  EXPECT_EQ(exchange->response.status, 500);
  model.fail(false);
  EXPECT_EQ(text_of(body), expected);
  run_until([&] { return server->stats().free_blocks == 60; });
}

TEST_F(ServerTest, ADrainFinishesWhatItHasAndRefusesTheRest) {
  model.stick(true);
  const auto admitted = send("/v1/completions", R"({"prompt":"hello","max_tokens":20})");
  bool done = false;
  server->drain([&] { done = true; });
  const auto refused = send("/v1/completions", R"({"prompt":"hello","max_tokens":20})");
  EXPECT_EQ(refused->response.status, 503);
  EXPECT_EQ(send("/ready")->response.status, 503);
  EXPECT_FALSE(done);
  model.stick(false);
  run_until([&] { return done; });
  EXPECT_EQ(admitted->response.status, 200);
}

TEST_F(ServerTest, WhatADrainCannotWaitForIsToldSo) {
  model.stick(true);
  const auto whole = send("/v1/completions", R"({"prompt":"hello","max_tokens":20})");
  server->drain([] {});
  server->abandon_all();
  EXPECT_EQ(whole->response.status, 503);
  model.stick(false);
}

TEST_F(ServerTest, KeysGuardEverythingButHealth) {
  ServerOptions options;
  options.api_keys = {"alpha", "beta"};
  start(options);
  for (const char* path : {"/v1/models", "/metrics", "/version", "/openapi.json"}) {
    EXPECT_EQ(send(path)->response.status, 401) << path;
    EXPECT_EQ(send(path, "", "Bearer alph")->response.status, 401) << path;
    EXPECT_EQ(send(path, "", "Basic alpha")->response.status, 401) << path;
    EXPECT_EQ(send(path, "", "Bearer beta")->response.status, 200) << path;
  }
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}) EXPECT_EQ(send(path, "{}")->response.status, 401) << path;
  EXPECT_EQ(send("/health")->response.status, 200);
  EXPECT_EQ(send("/ready")->response.status, 200);
}

TEST_F(ServerTest, RefusesWhatDoesNotFit) {
  const auto error = [&](const std::string& body, const std::string& path = "/v1/completions") {
    const auto exchange = send(path, body);
    EXPECT_TRUE(exchange->done) << body;
    return std::to_string(exchange->response.status) + " " + exchange->response.body;
  };
  EXPECT_TRUE(error(R"({"prompt":")" + std::string(300, 'a') + R"("})").starts_with("400")) << "never cut";
  EXPECT_NE(error(R"({"prompt":"a","max_tokens":500})").find("context_length_exceeded"), std::string::npos);
  EXPECT_TRUE(error(R"({"prompt":"a","model":"other"})").starts_with("404"));
  EXPECT_TRUE(error(R"({"prompt":[500]})").starts_with("400"));
  EXPECT_TRUE(error(R"({"prompt":"a","logit_bias":{"500":1}})").starts_with("400"));
  EXPECT_TRUE(error(R"({"prompt":"a","max_tokens":0})").starts_with("400"));
  EXPECT_TRUE(error(R"({"messages":[{"role":"user","content":"a"}],"top_logprobs":1})", "/v1/chat/completions").starts_with("400"));
  EXPECT_EQ(send("/nothing")->response.status, 404);
  EXPECT_EQ(send("/v1/completions", "", "", "GET")->response.status, 405);
}

TEST_F(ServerTest, CompensatorsOnAndOffSideBySide) {
  const auto answer = [&](const char* more) {
    return text_of(R"({"prompt":"hello","max_tokens":20,"temperature":0)" + std::string(more) + "}");
  };
  EXPECT_EQ(send("/v1/completions", R"({"prompt":"a","compensators":true})")->response.status, 400);  // it has none
  served.compensator_density = 1;
  const std::string usual = answer("");
  EXPECT_EQ(answer(R"(,"compensators":true)"), usual);
  EXPECT_NE(answer(R"(,"compensators":false)"), usual);
  EXPECT_EQ(answer(""), usual);  // nothing of the other one was found in the cache
  for (const bool on : {true, false}) {
    const auto exchange = send("/v1/completions", R"({"prompt":"hello","max_tokens":3,"compensators":)" + Json(on).dump() + "}");
    run_until([&] { return exchange->done; });
    const Json choice = Json::parse(exchange->response.body).at("choices").at(0);
    EXPECT_EQ(choice.contains("compensator_density"), !on);
    if (!on) {
      EXPECT_EQ(choice.at("compensator_density"), 0);
    }
  }
}

TEST_F(ServerTest, AFirstTokenThatCannotComeInTimeIsRefused) {
  LatencyModel latency(testing::synthetic_table());
  EngineOptions options{.num_blocks = 60, .max_num_seqs = 1};
  options.scheduler.refuse_unattainable = true;
  Engine strict(model, latency, options);
  server.reset();
  ServerOptions quiet;
  quiet.log_requests = false;
  server = std::make_unique<Server>(strict, served, quiet, [this](auto work) {
    const std::lock_guard lock(mutex);
    posted.push_back(std::move(work));
    arrived.notify_one();
  });
  const auto refused = send("/v1/completions", R"({"prompt":"a","max_tokens":2,"slo":{"ttft_ms":0.001}})");
  run_until([&] { return refused->done; });
  EXPECT_EQ(refused->response.status, 503) << refused->response.body;
  EXPECT_EQ(Json::parse(refused->response.body).at("error").at("param"), "slo.ttft_ms");
  const auto served_well = send("/v1/completions", R"({"prompt":"a","max_tokens":2,"slo":{"ttft_ms":60000}})");
  run_until([&] { return served_well->done; });
  EXPECT_EQ(served_well->response.status, 200);
  server.reset();  // before its engine
}

TEST_F(ServerTest, AFullQueueSaysWhenToComeBack) {
  ServerOptions options;
  options.max_queue = 2;
  start(options);
  model.stick(true);
  const auto first = send("/v1/completions", R"({"prompt":"a","n":2,"max_tokens":2})");
  const auto second = send("/v1/completions", R"({"prompt":"a","max_tokens":2})");
  EXPECT_EQ(second->response.status, 429);
  EXPECT_TRUE(std::any_of(second->response.headers.begin(), second->response.headers.end(), [](const auto& h) { return h.first == "Retry-After"; }));
  model.stick(false);
  run_until([&] { return first->done; });
  EXPECT_EQ(Json::parse(first->response.body).at("choices").size(), 2U);
}

}  // namespace
}  // namespace spear
