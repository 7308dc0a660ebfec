"""Leaving clients, full caches, signals, and an engine that stands still."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import BINARY, Server, ServerCase, clean_up, events, model, post_bytes, read_all, status_of  # noqa: E402


def tearDownModule():
    clean_up()


class Leavers(ServerCase):
    OPTIONS = ("--max-num-seqs", "4", "--max-num-batched-tokens", "64")

    def test_in_every_state(self):
        """Waiting, reading the prompt, decoding streamed and whole, while the answer is written: nothing stays."""
        endless = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True}
        for round_ in range(3):
            decoding = [self.server.start_stream(**endless) for _ in range(2)]
            for peer in decoding:
                self.assertIn(b"data:", peer.recv(4096) + peer.recv(4096))
            whole = self.server.connect()
            whole.sendall(post_bytes("/v1/completions", endless))
            reading = self.server.start_stream(prompt="p" * 3900, max_tokens=100)
            waiting = [self.server.start_stream(**endless) for _ in range(5)]
            self.server.wait_for("vllm:num_requests_waiting", lambda n: n >= 5)
            many = self.server.connect()
            many.sendall(post_bytes("/v1/completions", endless | {"n": 8}))
            half = self.server.connect()
            half.sendall(post_bytes("/v1/completions", endless)[:-10])
            if round_ == 1:  # a reset instead of an end
                for peer in decoding:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            for peer in (*waiting, reading, whole, *decoding, many, half):
                peer.close()
            self.server.wait_idle(5)

    def test_one_leaver_takes_nobody_along(self):
        fields = {"prompt": "stay", "max_tokens": 300, "ignore_eos": True, "seed": 1}
        expected = self.server.complete(**fields)["choices"][0]["text"]
        results = []
        stayers = [threading.Thread(target=lambda: results.append(self.server.complete(**fields)["choices"][0]["text"]))
                   for _ in range(2)]
        for thread in stayers:
            thread.start()
        for _ in range(20):
            self.server.start_stream(prompt="go", max_tokens=1000).close()
        for thread in stayers:
            thread.join()
        self.assertEqual(results, [expected] * 2)
        self.server.wait_idle()

    def test_a_pipelining_client_that_leaves(self):
        peer = self.server.connect()
        peer.sendall(post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 4000, "ignore_eos": True}) + b"GET /v")
        self.server.wait_for("vllm:num_requests_running", lambda n: n == 1)
        peer.close()
        self.server.wait_idle(5)


class Exhaustion(unittest.TestCase):
    def test_a_full_cache_preempts_and_finishes(self):
        """Room for about one request and a half; ten run at once and give what they would give alone."""
        with Server("--kv-cache-memory", "1600KB", "--max-model-len", "512", "--no-prefix-caching") as server:
            fields = {"max_tokens": 400, "ignore_eos": True, "temperature": 0}
            prompts = [f"prompt number {i}" for i in range(6)]
            alone = [server.complete(prompt=p, **fields)["choices"][0]["text"] for p in prompts]
            together: dict[int, str] = {}

            def ask(i: int) -> None:
                together[i] = server.complete(prompt=prompts[i], **fields)["choices"][0]["text"]

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual([together[i] for i in range(6)], alone)
            self.assertGreater(server.wait_idle()["vllm:num_preemptions_total"], 0)

    def test_a_full_queue(self):
        with Server("--max-queue", "4", "--max-num-seqs", "1") as server:
            peers = [server.start_stream(prompt="x", max_tokens=4000) for _ in range(4)]
            server.wait_for("vllm:num_requests_waiting", lambda n: n == 3)
            status, headers, body = server.post("/v1/completions", {"prompt": "x"})
            self.assertEqual((status, headers["retry-after"]), (429, "1"))
            self.assertEqual(json.loads(body)["error"]["code"], "queue_full")
            self.assertEqual(server.get("/ready")[0], 200)
            for peer in peers:
                peer.close()
            server.wait_idle(5)
            self.assertEqual(server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})[0], 200)


class Shutdown(unittest.TestCase):
    def test_a_drain_loses_nothing_admitted(self):
        with Server("--max-num-seqs", "2", "--drain-timeout", "60") as server:
            fields = {"prompt": "x", "max_tokens": 600, "ignore_eos": True}
            whole = [server.connect() for _ in range(3)]
            for peer in whole:
                peer.sendall(post_bytes("/v1/completions", fields))
            streams = [server.start_stream(**fields, stream_options={"include_usage": True}) for _ in range(3)]
            server.wait_for("vllm:num_requests_waiting", lambda n: n == 4)
            server.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + 5
            while server.get("/ready")[0] != 503 and time.monotonic() < end:
                time.sleep(0.01)
            self.assertEqual(server.get("/health")[0], 200, "alive, though not ready")
            status, headers, _ = server.post("/v1/completions", {"prompt": "x"})
            self.assertEqual((status, headers["retry-after"]), (503, "1"))
            for peer in whole:
                answer = read_all(peer)
                self.assertEqual(status_of(answer), 200)
                usage = json.loads(answer.split(b"\r\n\r\n", 1)[1])["usage"]
                self.assertEqual(usage["completion_tokens"], 600)
            for peer in streams:
                self.assertIn(b'"completion_tokens":600', read_all(peer).replace(b'"completion_tokens": ', b'"completion_tokens":'))
            self.assertEqual(server.process.wait(10), 0)
            self.assertIn("blocks free", "".join(server.log))

    def test_a_drain_has_an_end(self):
        with Server("--drain-timeout", "0.5", "--max-num-seqs", "1") as server:
            stream = server.start_stream(prompt="x", max_tokens=4000)
            server.wait_for("vllm:num_requests_running", lambda n: n == 1)
            whole = server.connect()
            whole.sendall(post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 4000, "ignore_eos": True}))
            server.wait_for("vllm:num_requests_waiting", lambda n: n == 1)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(status_of(read_all(whole)), 503)
            answer = read_all(stream)
            self.assertTrue(answer.endswith(b"0\r\n\r\n"), answer[-100:])
            self.assertIn(b'"finish_reason":"abort"', answer)
            self.assertEqual(server.process.wait(10), 0)
            self.assertLess(time.monotonic() - began, 5)

    def test_a_second_signal_ends_at_once(self):
        with Server() as server:
            server.start_stream(prompt="x", max_tokens=4000)
            server.wait_for("vllm:num_requests_running", lambda n: n == 1)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(8)

    def test_an_idle_server_leaves_at_once(self):
        with Server() as server:
            with server.connect() as peer:  # keep-alive connections do not hold it
                began = time.monotonic()
                self.assertEqual(server.terminate(), 0)
                self.assertLess(time.monotonic() - began, 3)
                self.assertEqual(peer.recv(1), b"")


def engine_thread(pid: int) -> int:
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "spear-engine":
            return int(task.name)
    raise AssertionError("no thread is called spear-engine")


class Stopped:
    """A server's engine thread stands still inside the with, in the middle of its work and holding no lock that others need:
    ptrace can do that, signals cannot."""

    SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000

    def __init__(self, server: Server):
        self.server, self.thread = server, engine_thread(server.process.pid)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.argtypes = [ctypes.c_long] * 4

    def __enter__(self):
        for _ in range(60):
            self.stop()
            if self.others_move():
                return self
            self.__exit__()
            time.sleep(0.02)  # on a busy machine it would be found where it was left
        raise AssertionError("the engine's thread was stopped 60 times, and always within a lock")

    def others_move(self) -> bool:
        try:
            self.server.start_stream(prompt="x", max_tokens=1).close()  # submitted, and cancelled
            return self.server.get("/metrics", timeout=1)[0] == 200
        except TimeoutError:
            return False

    def stop(self) -> None:
        if self.libc.ptrace(self.SEIZE, self.thread, 0, 0) != 0:
            raise unittest.SkipTest("ptrace is not allowed here: " + os.strerror(ctypes.get_errno()))
        self.libc.ptrace(self.INTERRUPT, self.thread, 0, 0)
        os.waitpid(self.thread, self.WALL)

    def __exit__(self, *_):
        if self.libc.ptrace(self.DETACH, self.thread, 0, 0) != 0:
            os.waitpid(self.thread, self.WALL)  # it has ended, and waits for us to see it


class Watchdog(unittest.TestCase):
    def test_a_stuck_engine_turns_health_red(self):
        with Server("--drain-timeout", "0.2") as server:
            stream = server.start_stream(prompt="x", max_tokens=4000)
            server.wait_for("vllm:num_requests_running", lambda n: n == 1)
            with Stopped(server):
                began = time.monotonic()
                while server.get("/health")[0] == 200 and time.monotonic() - began < 10:
                    time.sleep(0.1)
                self.assertLess(time.monotonic() - began, 5.5)
                self.assertEqual(server.get("/ready")[0], 503)
                self.assertEqual(server.get("/v1/models")[0], 200, "the rest still answers")
            stream.recv(65536)
            end = time.monotonic() + 5
            while server.get("/health")[0] != 200 and time.monotonic() < end:
                time.sleep(0.05)
            self.assertTrue(server.alive(), "green again once it moves")
            stream.close()
            server.wait_idle()
            server.start_stream(prompt="x", max_tokens=4000)
            server.wait_for("vllm:num_requests_running", lambda n: n == 1)
            with Stopped(server):  # for good: a signal still ends the process
                server.process.send_signal(signal.SIGTERM)
                end = time.monotonic() + 10
                while not any("leaving without it" in line for line in server.log) and time.monotonic() < end:
                    time.sleep(0.1)
            self.assertIn("leaving without it", "".join(server.log))
            self.assertEqual(server.process.wait(10), 1)


class Configuration(unittest.TestCase):
    def test_file_environment_and_flags(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write('[serve]\nserved-model-name = "from-file"\nmax-queue = 3\nlog-format = "json"\n')
            file.flush()
            with Server("--config", file.name, "--max-num-seqs", "7", env={"SPEAR_MAX_MODEL_LEN": "300"}) as server:
                model_ = json.loads(server.get("/v1/models")[2])["data"][0]
                self.assertEqual((model_["id"], model_["max_model_len"]), ("from-file", 300))
                server.complete(prompt="x")
                self.assertEqual(server.terminate(), 0)
                lines = [json.loads(line) for line in server.log if not line.startswith("next:")]
                config = next(line for line in lines if line["message"] == "config")
                self.assertEqual([config[k] for k in ("max-queue", "max-num-seqs", "max-model-len")], ["3", "7", "300"])
                request = next(line for line in lines if line["message"] == "request")
                self.assertEqual((request["prompt_tokens"], request["reason"]), ("1", "length"))
            with Server("--config", file.name, "--served-model-name", "from-flag") as server:
                self.assertEqual(json.loads(server.get("/v1/models")[2])["data"][0]["id"], "from-flag")
            file.write("max-quueue = 3\n")
            file.flush()
            with self.assertRaisesRegex(RuntimeError, "max-quueue"):
                Server("--config", file.name)

    def test_generation_config(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "m"
            path.mkdir()
            for file in model().iterdir():
                (path / file.name).write_bytes(file.read_bytes())
            (path / "generation_config.json").write_text('{"temperature": 0.0, "top_p": 0.5, "eos_token_id": 256}')
            with Server(path=path) as server:
                texts = {server.complete(prompt="x", ignore_eos=True)["choices"][0]["text"] for _ in range(4)}
                self.assertEqual(len(texts), 1, "temperature 0 is the model's default")
            (path / "generation_config.json").write_text('{"temperature": -1}')
            with self.assertRaisesRegex(RuntimeError, "temperature"):
                Server(path=path)

    def test_addresses(self):
        with Server() as server:
            with self.assertRaisesRegex(RuntimeError, "--port"):
                Server("--port", str(server.address[1]))
        done = subprocess.run([BINARY, "serve", "--model", model(), "--host", "no.such.host.invalid"], capture_output=True,
                              text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--host", done.stderr)


if __name__ == "__main__":
    unittest.main()
