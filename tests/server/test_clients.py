"""Clients that are not ours: the `openai` package, and `schemathesis` on the OpenAPI document (python/requirements-test.txt)."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import openai

sys.path.insert(0, str(Path(__file__).parent))
from harness import Server, ServerCase, clean_up  # noqa: E402

MESSAGES = [{"role": "user", "content": "x"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": {
    "type": "object", "additionalProperties": False, "required": ["city"], "properties": {"city": {"type": "string", "maxLength": 6}}}}}
POINT = {"type": "object", "additionalProperties": False, "required": ["x", "kind"],
         "properties": {"x": {"type": "integer", "minimum": -5, "maximum": 5}, "kind": {"enum": ["a", "b"]}}}


def tearDownModule():
    clean_up()


class OpenAi(ServerCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        self.addCleanup(self.client.close)

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["tiny"])
        self.assertEqual(self.client.models.list().data[0].owned_by, "spear")

    def test_completions(self):
        answer = self.client.completions.create(model="tiny", prompt="abc", max_tokens=12, seed=1, logprobs=2, echo=True,
                                                extra_body={"ignore_eos": True})
        self.assertTrue(answer.choices[0].text.startswith("abc"))
        self.assertEqual(len(answer.choices[0].logprobs.tokens), 15)
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (3, 12))
        stream = self.client.completions.create(model="tiny", prompt="abc", max_tokens=12, seed=1, stream=True,
                                                stream_options={"include_usage": True}, extra_body={"ignore_eos": True})
        pieces = list(stream)
        self.assertEqual("abc" + "".join(p.choices[0].text for p in pieces if p.choices), answer.choices[0].text)
        self.assertEqual(pieces[-1].usage.completion_tokens, 12)

    def test_chat(self):
        fields = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 1,
                  "extra_body": {"ignore_eos": True, "slo": {"itl_ms": 500}, "priority": 1}}
        answer = self.client.chat.completions.create(**fields)
        self.assertEqual([c.finish_reason for c in answer.choices], ["length", "length"])
        self.assertEqual(len(answer.choices[1].logprobs.content), 12)
        texts = ["", ""]
        for piece in self.client.chat.completions.create(**fields, stream=True):
            for choice in piece.choices:
                texts[choice.index] += choice.delta.content or ""
        self.assertEqual(texts, [c.message.content for c in answer.choices])

    def test_json_schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "point", "strict": True, "schema": POINT}}
        for seed in range(3):
            answer = self.client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=form, seed=seed, max_tokens=300)
            point = json.loads(answer.choices[0].message.content)
            self.assertIn(point["x"], range(-5, 6))
            self.assertIn(point["kind"], ("a", "b"))

    def test_tools_and_their_results(self):
        fields = {"model": "tiny", "messages": MESSAGES, "tools": [WEATHER], "tool_choice": "required",
                  "parallel_tool_calls": False, "seed": 1, "max_tokens": 400}
        answer = self.client.chat.completions.create(**fields)
        message = answer.choices[0].message
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        self.assertEqual(message.tool_calls[0].function.name, "get_weather")
        self.assertIn("city", json.loads(message.tool_calls[0].function.arguments))
        # What came back goes in again, as clients do it.
        again = MESSAGES + [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}]
        answer = self.client.chat.completions.create(model="tiny", messages=again, tools=[WEATHER], max_tokens=3)
        self.assertIsNotNone(answer.choices[0].message.content)

    def test_streamed_tools_through_the_accumulator(self):
        with self.client.chat.completions.stream(model="tiny", messages=MESSAGES, tools=[WEATHER], tool_choice="required",
                                                 parallel_tool_calls=False, seed=1, max_tokens=400) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        self.assertIn("tool_calls.function.arguments.done", kinds)
        call = final.choices[0].message.tool_calls[0]
        self.assertEqual(call.function.name, "get_weather")
        self.assertIn("city", json.loads(call.function.arguments))

    def test_errors_have_their_types(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model="tiny", prompt="x", temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.NotFoundError):
            self.client.completions.create(model="other", prompt="x")
        with self.assertRaises(openai.BadRequestError):
            self.client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[WEATHER], tool_choice="required",
                                                extra_body={"ignore_eos": True})

    def test_many_at_once(self):
        async def ask():
            async with openai.AsyncOpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0) as client:
                return await asyncio.gather(*(client.completions.create(model="tiny", prompt=f"{i}", max_tokens=8, seed=i,
                                                                        extra_body={"ignore_eos": True}) for i in range(60)))

        answers = asyncio.run(ask())
        self.assertEqual([a.usage.completion_tokens for a in answers], [8] * 60)

    def test_a_stream_that_is_left(self):
        stream = self.client.completions.create(model="tiny", prompt="x", max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        self.server.wait_idle()


class Keys(unittest.TestCase):
    def test_keys(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("secret\n")
            file.flush()
            with Server("--api-key-file", file.name) as server:
                with openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0) as client:
                    with self.assertRaises(openai.AuthenticationError):
                        client.models.list()
                with openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0) as client:
                    self.assertEqual(client.models.list().data[0].id, "tiny")


class Schemathesis(unittest.TestCase):
    # Rules between fields ("stream_options needs stream") are nothing that the document can say, so requests that fit it
    # may be refused; all else is checked: no 5xx, documented statuses and types, answers that fit, refusal of what does not.
    COMMAND = ("--exclude-checks", "positive_data_acceptance", "--phases", "coverage,fuzzing", "--max-examples", "40",
               "--suppress-health-check", "all", "--continue-on-failure", "--no-color")

    def test_the_document(self):
        self.assertIsNotNone(importlib.util.find_spec("schemathesis"), "pip install -r python/requirements-test.txt")
        with tempfile.TemporaryDirectory() as directory, Server("--no-request-log", "--max-queue", "64") as server:
            done = subprocess.run([sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json", *self.COMMAND],
                                  capture_output=True, text=True, cwd=directory, timeout=600)
            self.assertEqual(done.returncode, 0, done.stdout[-6000:] + done.stderr[-2000:])
            self.assertTrue(server.alive())
            server.wait_idle()


if __name__ == "__main__":
    unittest.main()
