#!/usr/bin/env python3
"""Thousands of requests of every kind against one server: no block may stay, memory must stay flat.

    tests/server/soak.py --requests 10000                    a tiny random model
    tests/server/soak.py --requests 10000 --model recovered  a real one

The server is SPEAR_BINARY, by default build/release/bin/spear. Not part of scripts/test: it takes minutes.
"""

import argparse
import json
import random
import socket
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import Server, clean_up, events, post_bytes  # noqa: E402

WORDS = "the engine reads a prompt and gives tokens one by one until it ends or its client leaves".split()


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Load:
    def __init__(self, server: Server, seed: int, real: bool):
        self.real = real  # its template may know no tools
        self.server, self.rng, self.lock = server, random.Random(seed), threading.Lock()
        self.left, self.done, self.errors = 0, {}, []

    def prompt(self, rng: random.Random) -> str:
        shared = "You are a helpful assistant of few words. " * rng.randrange(4)
        return shared + " ".join(rng.choices(WORDS, k=rng.randrange(1, 60)))

    def one(self, rng: random.Random) -> str:
        fields = {"prompt": self.prompt(rng), "max_tokens": rng.randrange(1, 40), "ignore_eos": rng.random() < 0.5,
                  "temperature": rng.choice([0, 0.7, 1.0]), "seed": rng.randrange(1 << 30)}
        if rng.random() < 0.2:
            fields["stop"] = rng.choice([["the"], ["e", "xyz"], "\n"])
        if rng.random() < 0.1:
            fields |= {"n": rng.randrange(1, 4)}
        if rng.random() < 0.1:
            fields |= {"logprobs": 2, "echo": True}
        kinds = {"whole": 4, "stream": 4, "leave": 2, "chat": 2, "json": 2, "bad": 1, "tokenize": 1} | ({} if self.real else {"tools": 2})
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        if kind == "whole":
            status, _, body = self.server.post("/v1/completions", fields)
            if status not in (200, 429):
                raise AssertionError((status, body[:200]))
            return f"whole {status}"
        if kind == "stream":
            status, _, body = self.server.post("/v1/completions", fields | {"stream": True})
            if status == 200:
                events(body)
            elif status != 429:
                raise AssertionError((status, body[:200]))
            return f"stream {status}"
        if kind == "leave":
            with socket.create_connection(self.server.address, 60) as peer:
                peer.sendall(post_bytes("/v1/completions", fields | {"stream": rng.random() < 0.5, "max_tokens": 200}))
                if rng.random() < 0.5:
                    peer.settimeout(rng.random() * 0.2)
                    try:
                        peer.recv(1000)
                    except TimeoutError:
                        pass
            return "left"
        if kind == "chat":
            status, _, body = self.server.post("/v1/chat/completions", {
                "messages": [{"role": "user", "content": fields["prompt"]}], "max_tokens": fields["max_tokens"]})
            if status not in (200, 429):
                raise AssertionError((status, body[:200]))
            return f"chat {status}"
        if kind in ("json", "tools"):
            return self.structured(rng, kind)
        if kind == "bad":
            status = self.server.post("/v1/completions", rng.choice([b"{", {"prompt": "x", "n": -1}, {"nothing": 1}]))[0]
            if status != 400:
                raise AssertionError(status)
            return "refused"
        if self.server.post("/tokenize", {"prompt": fields["prompt"]})[0] != 200:
            raise AssertionError("tokenize")
        return "tokenize"

    def structured(self, rng: random.Random, kind: str) -> str:
        """A schema of its own every second time; some leave before its end."""
        names = [f"p{rng.randrange(1000)}" for _ in range(rng.randrange(1, 5))] if rng.random() < 0.5 else ["a", "b"]
        schema = {"type": "object", "additionalProperties": False, "required": names,
                  "properties": {name: {"enum": ["x", 1, None]} for name in names}}
        body = {"messages": [{"role": "user", "content": self.prompt(rng)}], "max_tokens": 200, "stream": rng.random() < 0.5}
        if kind == "json":
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        else:
            body |= {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}], "parallel_tool_calls": False,
                     "tool_choice": "required"}
        if rng.random() < 0.2:
            with socket.create_connection(self.server.address, 60) as peer:
                peer.sendall(post_bytes("/v1/chat/completions", body))
                time.sleep(rng.random() * 0.02)
            return f"{kind} left"
        status, _, content = self.server.post("/v1/chat/completions", body)
        if status == 200 and not body["stream"]:
            choice = json.loads(content)["choices"][0]
            if kind == "json" and choice["finish_reason"] == "stop":
                assert set(json.loads(choice["message"]["content"])) == set(names), choice
            if kind == "tools" and choice["finish_reason"] == "tool_calls":
                assert set(json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])) == set(names), choice
        elif status == 200:
            events(content)
        elif status != 429:
            raise AssertionError((status, content[:200]))
        return f"{kind} {status}"

    def worker(self, seed: int) -> None:
        rng = random.Random(seed)
        while True:
            with self.lock:
                if self.left == 0:
                    return
                self.left -= 1
            try:
                result = self.one(rng)
            except Exception as error:  # noqa: BLE001 - counted, shown, and a failure of the run
                result = "error"
                self.errors.append(repr(error))
            with self.lock:
                self.done[result] = self.done.get(result, 0) + 1

    def run(self, requests: int, clients: int) -> None:
        self.left = requests
        threads = [threading.Thread(target=self.worker, args=(self.rng.randrange(1 << 60),)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most-growth-mb", type=float, default=16, help="of resident memory over the last three quarters")
    args = parser.parse_args()
    # A cache that is small enough for preemptions.
    options = ["--max-num-seqs", "8", "--no-request-log", "--max-queue", "64", "--max-model-len", "1024", "--kv-cache-memory",
               "64MB" if args.model else "3MB"]
    ok = True
    with Server(*options, path=args.model) as server:
        load, sizes, began = Load(server, args.seed, args.model is not None), [], time.monotonic()
        for quarter in range(4):
            load.run(args.requests // 4, args.clients)
            metrics = server.wait_idle(30)  # throws when a block stays
            sizes.append(resident_mb(server.process.pid))
            print(f"{(quarter + 1) * (args.requests // 4)} requests in {time.monotonic() - began:.0f} s: {sizes[-1]:.1f} MB "
                  f"resident, {metrics['vllm:num_preemptions_total']:.0f} preemptions, all blocks free", flush=True)
        growth = sizes[-1] - sizes[0]
        code = server.terminate(60)
        print(json.dumps({"requests": sum(load.done.values()), "results": dict(sorted(load.done.items())),
                          "resident_mb": [round(s, 1) for s in sizes], "growth_mb": round(growth, 1), "exit_code": code}))
        for error in load.errors[:5]:
            print("error:", error, file=sys.stderr)
        if load.errors or code != 0:
            ok = False
        if growth > args.most_growth_mb:
            print(f"error: memory grew by {growth:.1f} MB", file=sys.stderr)
            ok = False
        if not ok:
            print("".join(server.log[-20:]), file=sys.stderr)
    clean_up()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
