"""Outputs that fit: response_format and tools, on the running binary. The model is random: only the grammar makes sense of it."""

import json
import random
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import EOS, Server, ServerCase, clean_up, events  # noqa: E402

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 400}
PERSON = {"type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
          "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                         "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "the weather", "parameters": {
            "type": "object", "additionalProperties": False, "required": ["city"],
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}}}},
         {"type": "function", "function": {"name": "stop_all"}}]


def tearDownModule():
    clean_up()


def schema_format(schema, **more) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


class StructuredCase(ServerCase):
    OPTIONS = ("--max-queue", "64")

    def chat(self, **fields) -> dict:
        status, _, body = self.server.post(CHAT, ASK | fields)
        self.assertEqual(status, 200, body)
        return json.loads(body)["choices"][0]

    def stream(self, **fields) -> tuple[str, list[dict], str]:
        """Text, calls put together from their deltas as a client does it, finish reason."""
        status, _, body = self.server.post(CHAT, ASK | fields | {"stream": True})
        self.assertEqual(status, 200, body)
        text, calls, reason = "", [], ""
        for document in events(body):
            choice = document["choices"][0]
            text += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", []):
                if call["index"] == len(calls):
                    self.assertEqual(call["type"], "function")
                    calls.append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                calls[call["index"]]["arguments"] += call["function"].get("arguments", "")
            reason = choice["finish_reason"] or reason
        return text, calls, reason

    def refused(self, fields, param=None, path=CHAT, status=400) -> str:
        got, _, body = self.server.post(path, fields)
        self.assertEqual(got, status, body)
        error = json.loads(body)["error"]
        if param is not None:
            self.assertEqual(error["param"], param, body)
        return error["message"]


class ResponseFormat(StructuredCase):
    def check_person(self, text: str) -> None:
        person = json.loads(text)
        self.assertEqual(list(person), ["name", "age", "tags"])
        self.assertLessEqual(len(person["name"]), 8)
        self.assertTrue(0 <= person["age"] <= 150 and isinstance(person["age"], int))
        self.assertTrue(set(person["tags"]) <= {"a", "b"} and len(person["tags"]) <= 3)

    def test_every_seed_fits_the_schema(self):
        for seed in range(8):
            for strict in (False, True):
                choice = self.chat(seed=seed, response_format=schema_format(PERSON, strict=strict))
                self.assertEqual(choice["finish_reason"], "stop")
                self.check_person(choice["message"]["content"])
        text, calls, reason = self.stream(seed=1, response_format=schema_format(PERSON))
        self.assertEqual((calls, reason), ([], "stop"))
        self.check_person(text)
        self.assertEqual(text, self.chat(seed=1, response_format=schema_format(PERSON))["message"]["content"])

    def test_every_choice_has_its_own_place_in_the_grammar(self):
        fields = {"prompt": ["x", "yy"], "n": 3, "max_tokens": 400, "seed": 5, "response_format": schema_format(PERSON)}
        for choice in self.server.complete(**fields)["choices"]:
            self.check_person(choice["text"])

    def test_json_object(self):
        finished = 0
        for seed in range(6):
            choice = self.chat(seed=seed, response_format={"type": "json_object"}, max_tokens=600)
            if choice["finish_reason"] == "stop":
                finished += 1
                self.assertIsInstance(json.loads(choice["message"]["content"]), dict)
            else:
                self.assertTrue(choice["message"]["content"].startswith("{"))
        self.assertGreater(finished, 0)
        self.assertEqual(self.chat(response_format={"type": "text"}, max_tokens=3, ignore_eos=True)["finish_reason"], "length")

    def test_length_cuts(self):
        choice = self.chat(max_tokens=3, response_format=schema_format(PERSON))
        self.assertEqual(choice["finish_reason"], "length")
        self.assertTrue(choice["message"]["content"].startswith("{"))

    def test_refusals_name_the_place(self):
        at = "#/response_format/json_schema/schema"
        for schema, pointer in (({"type": "object", "properties": {"a": {"not": {}}}}, "/properties/a/not"),
                                ({"type": "strong"}, "/type"), ({"type": "integer", "minimum": 5, "maximum": 4}, ""),
                                ({"$ref": "#/$defs/none"}, "/$ref"), ({"pattern": "(?=a)", "type": "string"}, "/pattern"),
                                (False, "")):
            message = self.refused(ASK | {"response_format": schema_format(schema)}, at + pointer)
            self.assertIn(at, message)
        self.refused(ASK | {"response_format": schema_format({"type": "object", "properties": {"a": {}}}, strict=True)},
                     at + "/additionalProperties")
        self.refused(ASK | {"response_format": {"type": "json_schema"}}, "response_format.json_schema")
        self.refused(ASK | {"response_format": {"type": "xml"}}, "response_format.type")
        self.refused(ASK | {"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}},
                     "response_format.json_schema")
        self.refused(ASK | {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
                     "response_format.json_schema.schema")
        self.refused(ASK | {"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos")
        self.refused({"prompt": "x", "response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos",
                     "/v1/completions")

    def test_limits(self):
        deep = {"type": "null"}
        for _ in range(70):
            deep = {"items": deep}
        self.refused(ASK | {"response_format": schema_format(deep)})
        wide = {"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}
        self.refused(ASK | {"response_format": schema_format(wide)}, "#/response_format/json_schema/schema/properties")
        rng = random.Random(1)
        self.refused(ASK | {"response_format": schema_format({"enum": [f"{rng.getrandbits(240):060x}" for _ in range(1500)]})})
        self.refused(ASK | {"response_format": schema_format({"type": "string", "pattern": "^(a{1,900}b{1,900}){1,900}$"})})
        crosses = {"allOf": [{"anyOf": [{"minimum": 1}, {"maximum": 2}, {"minLength": 1}]}] * 30}
        self.refused(ASK | {"response_format": schema_format(crosses)})

    def test_streams_go_on_while_a_schema_is_compiled(self):
        stream = self.server.start_stream(prompt="x", max_tokens=1500)
        stream.recv(100)
        alternatives = {"anyOf": [{"type": "object", "properties": {f"{i}k{j}": {"type": "string", "maxLength": 40} for j in range(30)}}
                                  for i in range(60)]}
        for _ in range(3):
            status = self.server.post(CHAT, ASK | {"max_tokens": 5, "response_format": schema_format(alternatives)})[0]
            self.assertIn(status, (200, 400))
        stream.close()
        self.server.wait_idle()

    def test_clients_that_leave(self):
        for delay in (0, 0, 0.002, 0.01, 0.05):
            peer = self.server.start_stream(prompt="x", max_tokens=900, ignore_eos=False, response_format={"type": "json_object"})
            time.sleep(delay)
            peer.close()
        self.server.wait_idle()


class Tools(StructuredCase):
    def check_call(self, name: str, arguments: str) -> None:
        self.assertIn(name, ("get_weather", "stop_all"))
        values = json.loads(arguments)
        self.assertIsInstance(values, dict)
        if name == "get_weather":
            self.assertLessEqual(set(values), {"city", "days"})
            self.assertLessEqual(len(values["city"]), 6)
            self.assertIn(values.get("days", 1), range(1, 10))

    def test_required(self):
        seen = set()
        for seed in range(10):
            choice = self.chat(seed=seed, tools=TOOLS, tool_choice="required", max_tokens=600)
            if choice["finish_reason"] == "length":
                continue
            self.assertEqual(choice["finish_reason"], "tool_calls")
            self.assertIsNone(choice["message"]["content"])
            for call in choice["message"]["tool_calls"]:
                self.assertEqual(call["type"], "function")
                self.check_call(call["function"]["name"], call["function"]["arguments"])
                seen.add(call["id"])
        self.assertGreater(len(seen), 3, "ids are unlike each other")

    def test_named(self):
        for stream in (False, True):
            named = {"type": "function", "function": {"name": "get_weather"}}
            if stream:
                text, calls, reason = self.stream(seed=2, tools=TOOLS, tool_choice=named)
                calls = [(c["name"], c["arguments"]) for c in calls]
            else:
                choice = self.chat(seed=2, tools=TOOLS, tool_choice=named)
                text, reason = choice["message"]["content"] or "", choice["finish_reason"]
                calls = [(c["function"]["name"], c["function"]["arguments"]) for c in choice["message"]["tool_calls"]]
            self.assertEqual((text, reason, len(calls), calls[0][0]), ("", "tool_calls", 1, "get_weather"))
            self.check_call(*calls[0])

    def test_parallel(self):
        for seed in range(4):
            fields = {"seed": seed, "tools": TOOLS[:1], "tool_choice": "required", "max_tokens": 900}
            one = self.chat(**fields, parallel_tool_calls=False)
            self.assertEqual(len(one["message"]["tool_calls"]), 1)
            # Without its end token the model goes on to call.
            _, calls, reason = self.stream(**fields, logit_bias={str(EOS): -100})
            self.assertEqual(reason, "length")
            self.assertGreater(len(calls), 1)
            self.assertEqual(len({call["id"] for call in calls}), len(calls))
            for call in calls:
                self.check_call(call["name"], call["arguments"])

    def test_none_and_auto(self):
        # Shown to the model in auto, and not in none: the prompts differ.
        def prompt(**fields):
            status, _, body = self.server.post(CHAT, ASK | {"max_tokens": 1} | fields)
            self.assertEqual(status, 200, body)
            return json.loads(body)["usage"]["prompt_tokens"]

        plain = prompt()
        self.assertEqual(prompt(tools=TOOLS, tool_choice="none"), plain)
        self.assertGreater(prompt(tools=TOOLS), plain + 100)
        self.assertEqual(prompt(tools=TOOLS), prompt(tools=TOOLS, tool_choice="auto"))
        choice = self.chat(tools=TOOLS, max_tokens=5, ignore_eos=True)
        self.assertNotIn("tool_calls", choice["message"])
        self.assertEqual(choice["finish_reason"], "length")
        # The rest of an answer that begins like a call and is none comes out as text.
        text = self.chat(tools=TOOLS, max_tokens=40, seed=4, ignore_eos=True)["message"]["content"]
        self.assertEqual(self.stream(tools=TOOLS, max_tokens=40, seed=4, ignore_eos=True)[0], text)

    def test_a_conversation_with_calls(self):
        call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
        status, _, body = self.server.post("/tokenize", {"messages": messages, "tools": TOOLS})
        self.assertEqual(status, 200, body)
        text = json.loads(self.server.post("/detokenize", {"tokens": json.loads(body)["tokens"]})[2])["prompt"]
        self.assertIn('assistant: <tool_call>get_weather {"city": "Rome"}</tool_call>\ntool: sunny\na:', text)
        self.assertIn('"name": "get_weather"', text)
        self.assertEqual(self.server.post(CHAT, {"messages": messages, "tools": TOOLS, "max_tokens": 2})[0], 200)
        for arguments in ("", "[]", "{", "nan", "[" * 5000):
            bad = [messages[0], {"role": "assistant", "tool_calls": [call | {"function": {"name": "f", "arguments": arguments}}]}]
            self.refused({"messages": bad}, "messages[1].tool_calls[0].function.arguments")

    def test_refusals(self):
        self.refused(ASK | {"tool_choice": "auto"}, "tool_choice")
        self.refused(ASK | {"parallel_tool_calls": True}, "parallel_tool_calls")
        self.refused(ASK | {"tools": []}, "tools")
        self.refused(ASK | {"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name")
        self.refused(ASK | {"tools": [{"type": "web_search"}]}, "tools[0].function")
        self.refused(ASK | {"tools": TOOLS, "tool_choice": "any"}, "tool_choice")
        self.refused(ASK | {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}},
                     "tool_choice.function.name")
        self.refused(ASK | {"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format")
        self.refused(ASK | {"tools": TOOLS, "tool_choice": "required", "ignore_eos": True}, "ignore_eos")
        bad = {"type": "function", "function": {"name": "bad", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}}
        self.refused(ASK | {"tools": [TOOLS[0], bad], "tool_choice": "required"}, "#/tools/1/function/parameters/properties/a/not")
        named = {"type": "function", "function": {"name": "bad"}}
        self.refused(ASK | {"tools": [TOOLS[0], bad], "tool_choice": named}, "#/tools/1/function/parameters/properties/a/not")
        for field in ("tools", "tool_choice"):
            self.refused({"prompt": "x", field: TOOLS}, field, "/v1/completions")


class Drain(unittest.TestCase):
    def test_constrained_requests_are_finished(self):
        with Server() as server:
            answers = []

            def ask():
                answers.append(server.post(CHAT, ASK | {"response_format": schema_format(PERSON)})[0])

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            server.wait_for("vllm:prompt_tokens_total", lambda n: n > 0)
            self.assertEqual(server.terminate(), 0)
            for thread in threads:
                thread.join()
            self.assertEqual(answers, [200] * 4)


class ToolFormats(unittest.TestCase):
    def test_a_model_that_knows_no_tools(self):
        with Server("--tool-format", "none") as server:
            status, _, body = server.post(CHAT, ASK | {"tools": TOOLS})
            self.assertEqual((status, json.loads(body)["error"]["param"]), (400, "tools"))

    def test_every_format_is_parsed_back(self):
        for name in ("smollm", "llama3_json", "mistral"):
            with Server("--tool-format", name) as server:
                fields = ASK | {"tools": TOOLS[:1], "tool_choice": "required", "parallel_tool_calls": False, "seed": 3}
                status, _, body = server.post(CHAT, fields)
                self.assertEqual(status, 200, body)
                choice = json.loads(body)["choices"][0]
                self.assertEqual(choice["finish_reason"], "tool_calls", choice)
                self.assertEqual(choice["message"]["tool_calls"][0]["function"]["name"], "get_weather")
                self.assertIn("city", json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]))

    def test_chat_template_of_the_operator(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as file:
            file.write("<{{ messages[0].content }}>")
            file.flush()
            with Server("--chat-template", file.name) as server:
                tokens = json.loads(server.post("/tokenize", {"messages": ASK["messages"]})[2])["tokens"]
                self.assertEqual(bytes(tokens), b"<x>")
            with self.assertRaisesRegex(RuntimeError, "no-such-file"):
                Server("--chat-template", "/no-such-file")


if __name__ == "__main__":
    unittest.main()
