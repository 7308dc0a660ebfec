"""What the API takes, refuses and answers, on the running binary."""

import json
import random
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import POSITIONS, ServerCase, clean_up, events  # noqa: E402


def tearDownModule():
    clean_up()


class Refusals(ServerCase):
    OPTIONS = ("--max-queue", "64")

    def refused(self, body, param=None, path="/v1/completions", status=400):
        got, _, content = self.server.post(path, body)
        self.assertEqual(got, status, (str(body)[:200], content[:300]))
        error = json.loads(content)["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        if param is not None:
            self.assertEqual(error["param"], param, content)
        return error["message"]

    def test_numbers(self):
        huge = (-1, 0, 2**31, 2**63, 2**64 - 1, -2**63, 1e308, -1e308, 1.5, "1", True, [], {})
        for field in ("n", "max_tokens"):
            for value in huge:
                if field == "max_tokens" and value == 0:
                    continue
                self.refused({"prompt": "a", field: value}, field if not isinstance(value, int) or value < 2**20 else None)
        for field, values in {"temperature": (-0.1, 1e9), "top_p": (0, -1, 1.1), "min_p": (-1, 2), "top_k": (-2, 2**40),
                              "frequency_penalty": (-3, 3), "presence_penalty": (9,), "repetition_penalty": (0, -1),
                              "seed": (1.5, 2**65), "logprobs": (-1, 21), "priority": (101, 1.5),
                              "best_of": (0, 2)}.items():
            for value in values:
                self.refused({"prompt": "a", field: value}, field)
        for text in ("1e999", "-1e999", "NaN", "Infinity", "00", "1" * 5000):
            self.refused(b'{"prompt":"a","temperature":%s}' % text.encode())

    def test_sizes(self):
        self.refused({"prompt": "a", "n": 17}, "n")
        self.refused({"prompt": ["a"] * 65}, "n")
        self.refused({"prompt": ["a"] * 3000}, "prompt")
        self.refused({"prompt": "a", "stop": ["x"] * 17}, "stop")
        self.refused({"prompt": "a", "stop": "x" * 2000}, "stop")
        self.refused({"prompt": "a", "stop": ["ok", ""]}, "stop")
        self.refused({"prompt": "a", "logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias")
        self.refused({"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias")
        self.refused({"prompt": "a", "logit_bias": {"1x": 1}}, "logit_bias")
        self.refused({"prompt": "a", "logit_bias": {"999999999999999999999": 1}}, "logit_bias")
        self.refused({"prompt": [258]}, "prompt")
        self.refused({"prompt": [-1]}, "prompt")
        self.refused({"prompt": [[1], [2**40]]}, "prompt")
        self.refused({"prompt": ["a"] * 60, "echo": True, "logprobs": 20, "max_tokens": 500}, "logprobs")

    def test_prompts_are_never_cut(self):
        message = self.refused({"prompt": "a" * (POSITIONS + 1)}, "prompt")
        self.assertIn(str(POSITIONS), message)
        self.refused({"prompt": "a" * 4000, "max_tokens": 200}, "prompt")
        self.refused({"messages": [{"role": "user", "content": "a" * 5000}]}, "messages", "/v1/chat/completions")
        self.refused({"prompt": "a" * 4_000_000}, "prompt")

    def test_not_json(self):
        for body in (b"", b"{", b"[]", b"null", b"\x00", b'{"prompt":"\xff"}', b'{"prompt":"\xed\xa0\x80"}', b'{"prompt":"a"}x',
                     b'{"prompt":"\\ud800"}', b'\xef\xbb\xbf{"prompt":', b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
                     b'{"messages":' + b"[" * 3000 + b"]" * 3000 + b"}"):
            self.refused(body)
            self.refused(body, path="/v1/chat/completions")
            self.refused(body, path="/tokenize")

    def test_unknown_fields_by_name(self):
        for field in ("best", "suffix", "grammar", "min_tokens", "functions", "audio"):
            self.assertIn(field, self.refused({"prompt": "a", field: 1}, field))
        self.assertIn("slo.x", self.refused({"prompt": "a", "slo": {"x": 1}}, "slo.x"))
        self.refused({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options")
        self.refused({"prompt": "a", "model": "other"}, "model", status=404)
        chat = "/v1/chat/completions"
        image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
        self.refused({"messages": [image]}, "messages[0].content", chat)
        self.refused({"messages": []}, "messages", chat)
        self.refused({"messages": [{"content": "x"}]}, "messages[0].role", chat)
        self.refused({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}, "top_logprobs", chat)

    def test_nulls_are_absent_fields(self):
        body = {"prompt": "a", "max_tokens": 1}
        for field in ("n", "stop", "seed", "temperature", "logprobs", "logit_bias", "stream", "stream_options", "user", "slo"):
            self.assertEqual(self.server.post("/v1/completions", body | {field: None})[0], 200, field)
        self.assertEqual(self.server.post("/v1/completions", body | {"slo": {"itl_ms": None}})[0], 200)
        self.refused({"prompt": None}, "prompt")

    def test_random_bodies(self):
        """Anything at all is answered, and nothing but our own mistakes with a 5xx."""
        rng = random.Random(5)
        fields = ["prompt", "messages", "n", "max_tokens", "stop", "logprobs", "echo", "temperature", "top_k", "seed",
                  "stream_options", "logit_bias", "slo", "response_format", "tools", "role", "content", "type"]

        def value(depth=0):
            kind = rng.randrange(9 if depth < 4 else 6)
            if kind < 6:
                return rng.choice([None, True, 0, 1, -1, 2**63, 1.5, "", "a", "\u0000", "\U0001f600", 1e300, "text"])
            if kind == 6:
                return [value(depth + 1) for _ in range(rng.randrange(4))]
            return {rng.choice(fields): value(depth + 1) for _ in range(rng.randrange(4))}

        for i in range(400):
            body = {rng.choice(fields): value() for _ in range(rng.randrange(5))} | {"max_tokens": rng.choice([1, 2, value()])}
            path = rng.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
            status = self.server.post(path, body)[0]
            self.assertIn(status, (200, 400, 404), (path, body))


class Answers(ServerCase):
    def test_a_stream_is_the_whole_answer_in_valid_characters(self):
        for seed in range(6):
            fields = {"prompt": "abc", "max_tokens": 200, "seed": seed, "ignore_eos": True}
            whole = self.server.complete(**fields)
            status, headers, body = self.server.post("/v1/completions", fields | {
                "stream": True, "stream_options": {"include_usage": True}})
            self.assertEqual((status, headers["content-type"]), (200, "text/event-stream"))
            documents = events(body)  # decodes strictly: a cut character would fail
            text = "".join(d["choices"][0]["text"] for d in documents if d["choices"])
            self.assertEqual(text, whole["choices"][0]["text"])
            self.assertEqual(documents[-1]["usage"]["completion_tokens"], 200)
            self.assertEqual(documents[-1]["choices"], [])
            self.assertEqual([d["choices"][0]["finish_reason"] for d in documents[:-1] if d["choices"]][-1], "length")

    def test_stop_strings_across_tokens(self):
        """Tokens are single bytes here: every stop string of two characters crosses borders."""
        for seed in range(8):
            fields = {"prompt": "abc", "max_tokens": 120, "seed": seed, "ignore_eos": True}
            text = self.server.complete(**fields)["choices"][0]["text"]
            for start in (0, 7, 30):
                stop = text[start:start + 3]
                if "\ufffd" in stop or len(stop) < 3:
                    continue
                choice = self.server.complete(**fields, stop=["never there", stop])["choices"][0]
                self.assertEqual(choice["text"], text[:text.index(stop)])
                self.assertEqual(choice["finish_reason"], "stop")
                _, _, body = self.server.post("/v1/completions", fields | {"stop": stop, "stream": True})
                self.assertEqual("".join(d["choices"][0]["text"] for d in events(body)), text[:text.index(stop)])
        # What could have become a stop string and did not is given out at the end.
        text = self.server.complete(prompt="abc", max_tokens=20, seed=3, ignore_eos=True)["choices"][0]["text"]
        held = self.server.complete(prompt="abc", max_tokens=20, seed=3, ignore_eos=True, stop=text[-2:] + "more")
        self.assertEqual(held["choices"][0]["text"], text)

    def test_logprobs_of_the_prompt(self):
        answer = self.server.complete(prompt="hello", max_tokens=0, echo=True, logprobs=3)
        logprobs = answer["choices"][0]["logprobs"]
        self.assertEqual(answer["choices"][0]["text"], "hello")
        self.assertEqual(answer["usage"]["completion_tokens"], 0)
        self.assertEqual(logprobs["tokens"], list("hello"))
        self.assertIsNone(logprobs["token_logprobs"][0])
        self.assertEqual(logprobs["text_offset"], [0, 1, 2, 3, 4])
        # The same numbers as when the model is asked for them one token at a time.
        for i in range(1, 5):
            one = self.server.complete(prompt="hello"[:i], max_tokens=1, logprobs=3, temperature=0,
                                       logit_bias={str(ord("hello"[i])): 100})
            self.assertEqual(one["choices"][0]["text"], "hello"[i])
            self.assertAlmostEqual(one["choices"][0]["logprobs"]["token_logprobs"][0], logprobs["token_logprobs"][i], 4)

    def test_seeds_and_choices(self):
        fields = {"prompt": ["abc", "xyz"], "n": 3, "seed": 11, "max_tokens": 12, "ignore_eos": True}
        first, second = (self.server.complete(**fields) for _ in range(2))
        texts = [c["text"] for c in first["choices"]]
        self.assertEqual(texts, [c["text"] for c in second["choices"]])
        self.assertEqual([c["index"] for c in first["choices"]], list(range(6)))
        self.assertEqual(len(set(texts)), 6)
        free = [self.server.complete(prompt="abc", max_tokens=30, ignore_eos=True)["choices"][0]["text"] for _ in range(2)]
        self.assertNotEqual(*free)

    def test_cached_tokens(self):
        prompt = "the same beginning " * 20
        self.server.complete(prompt=prompt)
        usage = self.server.complete(prompt=prompt + "and more")["usage"]
        self.assertGreater(usage["prompt_tokens_details"]["cached_tokens"], 300)
        self.assertEqual(usage["prompt_tokens"], len(prompt) + 8)

    def test_chat(self):
        messages = [{"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]}]
        fields = {"messages": messages, "max_completion_tokens": 9, "temperature": 0, "ignore_eos": True, "logprobs": True,
                  "top_logprobs": 2}
        status, _, body = self.server.post("/v1/chat/completions", fields)
        self.assertEqual(status, 200, body)
        choice = json.loads(body)["choices"][0]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertEqual(len(choice["logprobs"]["content"]), 9)
        self.assertEqual(len(choice["logprobs"]["content"][0]["top_logprobs"]), 2)
        documents = events(self.server.post("/v1/chat/completions", fields | {"stream": True})[2])
        self.assertEqual(documents[0]["choices"][0]["delta"]["role"], "assistant")
        text = "".join(d["choices"][0]["delta"].get("content", "") for d in documents)
        self.assertEqual(text, choice["message"]["content"])
        # The template, by hand.
        text = self.server.complete(prompt="user: hello\na:", max_tokens=9, temperature=0, ignore_eos=True)
        self.assertEqual(text["choices"][0]["text"], choice["message"]["content"])

    def test_tokenize_and_back(self):
        for text in ("hello", "", "\u00e9\u4e2d\U0001f600 x\n"):
            answer = json.loads(self.server.post("/tokenize", {"prompt": text, "add_special_tokens": False})[2])
            self.assertEqual(answer["count"], len(text.encode()))
            self.assertEqual(answer["max_model_len"], POSITIONS)
            self.assertEqual(answer["tokens"], json.loads(self.server.post("/tokenize", {"content": text})[2])["tokens"])
            back = json.loads(self.server.post("/detokenize", {"tokens": answer["tokens"]})[2])
            self.assertEqual((back["prompt"], back["content"]), (text, text))
        chat = {"messages": [{"role": "user", "content": "hello"}]}
        tokens = json.loads(self.server.post("/tokenize", chat)[2])["tokens"]
        self.assertEqual(json.loads(self.server.post("/detokenize", {"tokens": tokens})[2])["prompt"], "user: hello\na:")
        self.assertEqual(self.server.post("/detokenize", {"tokens": [258]})[0], 400)

    def test_documents(self):
        model = json.loads(self.server.get("/v1/models")[2])["data"][0]
        self.assertEqual(model["id"], "tiny")
        self.assertTrue(model["root"].endswith("/tiny"))
        document = json.loads(self.server.get("/openapi.json")[2])
        self.assertEqual(document["openapi"], "3.1.0")
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/detokenize", "/health", "/ready",
                     "/metrics", "/version"):
            self.assertIn(path, document["paths"])
        self.server.complete(prompt="x")
        names = self.server.metrics()
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
                     "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total",
                     "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total",
                     "vllm:time_to_first_token_seconds_bucket", "vllm:inter_token_latency_seconds_sum",
                     "vllm:e2e_request_latency_seconds_count", "vllm:request_queue_time_seconds_count",
                     "vllm:request_prefill_time_seconds_count", "vllm:request_decode_time_seconds_count",
                     "vllm:request_prompt_tokens_count", "vllm:request_generation_tokens_count",
                     "vllm:request_max_num_generation_tokens_count", "vllm:iteration_tokens_total_count",
                     "spear:build_info", "spear:compensator_density"):
            self.assertIn(name, names)

    def test_slo_attainment_is_counted(self):
        before = self.server.metrics()
        self.server.complete(prompt="x", max_tokens=5, ignore_eos=True, slo={"ttft_ms": 1e6, "itl_ms": 0.000001})
        after = self.server.metrics()
        self.assertEqual(after["spear:slo_attained_total"] - before["spear:slo_attained_total"], 1)
        self.assertEqual(after["spear:slo_missed_total"] - before["spear:slo_missed_total"], 4)

    def test_texts_are_not_logged(self):
        self.server.complete(prompt="very secret prompt", stop=["secret stop"])
        self.server.post("/v1/completions", b'{"prompt":"secret json"')
        self.server.get("/secret-path")
        self.assertTrue(self.server.alive())
        self.assertNotIn("secret", "".join(self.server.log))


if __name__ == "__main__":
    unittest.main()
