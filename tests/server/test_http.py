"""HTTP as attackers and sloppy clients speak it."""

import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import Server, ServerCase, clean_up, events, post_bytes, read_all, read_answer, status_of  # noqa: E402


def tearDownModule():
    clean_up()


BODY = json.dumps({"prompt": "hi", "max_tokens": 1}).encode()


class Malformed(ServerCase):
    OPTIONS = ("--header-timeout", "1", "--body-timeout", "1", "--idle-timeout", "2", "--max-body", "64KB")

    def expect(self, data: bytes, *statuses: int):
        answer = self.server.raw(data)
        self.assertIn(status_of(answer), statuses, (data[:80], answer[:200]))
        if status_of(answer) >= 400:
            self.assertIn("error", json.loads(answer.split(b"\r\n\r\n", 1)[1]))

    def test_garbage(self):
        for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                     b"G\x00T / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"\xff" * 100 + b"\r\n\r\n",
                     b"GET / HTTP/1.1\r\nA: b\r\n folded\x01: c\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5x\r\n\r\nhello",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"):
            with self.subTest(data=data[:60]):
                self.expect(data, 400)

    def test_too_much(self):
        self.expect(b"GET / HTTP/1.1\r\nA: " + b"a" * 40000 + b"\r\n\r\n", 431)
        self.expect(b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\n\r\n", 431)
        self.expect(b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(5000)) + b"\r\n", 431)
        self.expect(post_bytes("/v1/completions", b"a" * 200_000), 413)
        self.expect(b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" +
                    (b"4000\r\n" + b"a" * 0x4000 + b"\r\n") * 8 + b"0\r\n\r\n", 413)
        self.expect(b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + b"a" * 100,
                    400, 413)

    def test_slow_loris(self):
        """A header, a body, a handshake that dribbles: over within the limits, whatever arrives."""
        for start in (b"GET / HTTP/1.1\r\n", post_bytes("/v1/completions", BODY)[:-5]):
            began = time.monotonic()
            with self.server.connect() as peer:
                peer.sendall(start)
                peer.settimeout(0.3)
                answer = b""
                while time.monotonic() - began < 8:
                    try:
                        part = peer.recv(4096)
                        if not part:
                            break
                        answer += part
                    except TimeoutError:
                        try:
                            peer.sendall(b"a")
                        except OSError:
                            break
                    except OSError:
                        break
            self.assertLess(time.monotonic() - began, 7)
            self.assertIn(status_of(answer), (408, 0))

    def test_silent_connections_end(self):
        with self.server.connect(timeout=8) as peer:
            self.assertEqual(peer.recv(1), b"")

    def test_a_byte_at_a_time(self):
        with self.server.connect() as peer:
            for i in range(len(data := post_bytes("/v1/completions", BODY, "Connection: close\r\n"))):
                peer.sendall(data[i:i + 1])
            self.assertEqual(status_of(read_all(peer)), 200)

    def test_pipelining_keeps_order(self):
        """Answers that the engine makes and answers that are ready at once, sent in one go."""
        with self.server.connect() as peer:
            prompts = [f"prompt {i}" for i in range(20)]
            data = b""
            for prompt in prompts:
                data += post_bytes("/v1/completions", {"prompt": prompt, "max_tokens": 1, "echo": True})
                data += b"GET /version HTTP/1.1\r\n\r\n\r\n"
            peer.sendall(data)
            file = peer.makefile("rb")
            for prompt in prompts:
                status, body = read_answer(file)
                self.assertEqual(status, 200, body)
                self.assertTrue(json.loads(body)["choices"][0]["text"].startswith(prompt))
                status, body = read_answer(file)
                self.assertIn("version", json.loads(body))

    def test_chunked_request_and_expect(self):
        half = len(BODY) // 2
        chunks = b"%x\r\n%s\r\n%x;ext=1\r\n%s\r\n0\r\n\r\n" % (half, BODY[:half], len(BODY) - half, BODY[half:])
        head = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.expect(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, 200)
        answer = self.server.raw(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        self.assertTrue(answer.startswith(b"HTTP/1.1 100 "))
        self.assertIn(b"\r\n\r\nHTTP/1.1 200 OK", answer)
        self.expect(head + b"Expect: 200-maybe\r\nContent-Length: 3\r\n\r\nabc", 417)

    def test_http_1_0_streams_to_the_end_of_the_connection(self):
        body = json.dumps({"prompt": "hi", "max_tokens": 3, "stream": True}).encode()
        answer = self.server.raw(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head, content = answer.split(b"\r\n\r\n", 1)
        self.assertNotIn(b"chunked", head)
        self.assertTrue(events(content))

    def test_methods_and_paths(self):
        self.assertEqual(self.server.get("/v1/nothing")[0], 404)
        self.assertEqual(self.server.get("/../../etc/passwd")[0], 404)
        status, headers, _ = self.server.get("/v1/completions")
        self.assertEqual((status, headers["allow"]), (405, "POST"))
        self.assertEqual(self.server.request("DELETE", "/v1/models")[0], 405)
        status, headers, body = self.server.request("HEAD", "/health")
        self.assertEqual((status, body), (200, b""))
        self.assertEqual(self.server.get("/health?probe=1")[0], 200)
        self.assertEqual(self.server.post("/v1/completions", b"{}", headers={"Content-Type": "text/plain"})[0], 415)

    def test_request_ids(self):
        self.assertEqual(self.server.get("/version", headers={"X-Request-Id": "abc-1"})[1]["x-request-id"], "abc-1")
        for bad in ("a" * 65, "a b", "\u00e9"):
            given = self.server.get("/version", headers={"X-Request-Id": bad.encode("latin-1")})[1]["x-request-id"]
            self.assertRegex(given, "^[0-9a-f]{32}$")

    def test_no_cors_by_default(self):
        headers = self.server.get("/v1/models", headers={"Origin": "http://evil"})[1]
        self.assertFalse([name for name in headers if name.startswith("access-control")])
        self.assertEqual(self.server.request("OPTIONS", "/v1/completions")[0], 405)


class Connections(unittest.TestCase):
    def test_a_thousand_idle_ones_and_the_limit(self):
        with Server("--max-connections", "1000") as server:
            peers = []
            try:
                for _ in range(999):
                    peers.append(socket.create_connection(server.address))
                self.assertEqual(server.get("/health")[0], 200)
                peers.append(socket.create_connection(server.address))
                time.sleep(0.2)
                answer = server.raw(b"GET /health HTTP/1.1\r\n\r\n")
                self.assertEqual(status_of(answer), 503)
                self.assertIn(b"retry-after", answer.lower())
                for peer in peers[:10]:  # the idle ones still work
                    peer.sendall(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
                    self.assertEqual(status_of(read_all(peer)), 200)
            finally:
                for peer in peers:
                    peer.close()

    def test_a_reader_that_stops_is_left(self):
        with Server("--write-timeout", "1", "--max-num-seqs", "4") as server:
            peers = []
            for _ in range(3):
                peer = socket.socket()
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                peer.connect(server.address)
                peer.sendall(post_bytes("/v1/completions", {"prompt": ["x"] * 16, "max_tokens": 4000, "stream": True,
                                                            "ignore_eos": True, "logprobs": 5}))
                peers.append(peer)
            server.wait_for("vllm:num_requests_running", lambda n: n > 0)
            server.wait_idle(60)
            self.assertEqual(server.complete(prompt="hi")["usage"]["completion_tokens"] > 0, True)
            for peer in peers:
                peer.close()


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.cert, cls.key = (str(Path(cls.directory.name) / name) for name in ("cert.pem", "key.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                        "-keyout", cls.key, "-out", cls.cert], check=True, capture_output=True)

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def test_requests_streams_and_leavers(self):
        with Server("--tls-cert", self.cert, "--tls-key", self.key, "--header-timeout", "1") as server:
            self.assertTrue(server.url.startswith("https://"))
            self.assertGreater(server.complete(prompt="hi")["usage"]["completion_tokens"], 0)
            status, _, body = server.post("/v1/completions", {"prompt": "hi", "stream": True, "max_tokens": 3})
            self.assertEqual(status, 200)
            self.assertTrue(events(body))
            # One that leaves properly, with a close_notify, and one that does not; neither has read a byte.
            polite, rude = (server.connect() for _ in range(2))
            for peer in (polite, rude):
                peer.sendall(post_bytes("/v1/completions", {"prompt": "hi", "max_tokens": 4000, "ignore_eos": True}))
            server.wait_for("vllm:num_requests_running", lambda n: n == 2)
            try:
                polite.settimeout(0.2)
                polite.unwrap()
            except (OSError, ssl.SSLError):
                pass
            polite.close()
            rude.close()
            server.wait_idle(5)
            # Plain HTTP, and a handshake that never comes.
            with socket.create_connection(server.address) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
                peer.settimeout(5)
                self.assertNotIn(b"200 OK", read_all(peer))
            with socket.create_connection(server.address, 8) as peer:
                self.assertEqual(peer.recv(1), b"")
            with self.assertRaises(ssl.SSLError):
                old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
                old.wrap_socket(socket.create_connection(server.address, 8))
            self.assertTrue(server.alive())

    def test_bad_files_are_named(self):
        for options, word in ((("--tls-cert", self.cert), "--tls-key"), (("--tls-cert", "/nothing", "--tls-key", self.key),
                                                                         "/nothing")):
            with self.assertRaisesRegex(RuntimeError, word):
                Server(*options)


class KeysAndOrigins(unittest.TestCase):
    def test_keys(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("# mine\nfirst\nsecond \n")
            file.flush()
            with Server("--api-key", "third", "--api-key-file", file.name, "--cors-origin", "https://page") as server:
                for path in ("/v1/models", "/metrics", "/version", "/openapi.json"):
                    self.assertEqual(server.get(path)[0], 401)
                for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
                    self.assertEqual(server.post(path, {})[0], 401)
                for path in ("/health", "/ready"):
                    self.assertEqual(server.get(path)[0], 200)
                for key in ("first", "second", "third"):
                    self.assertEqual(server.get("/v1/models", headers={"Authorization": f"Bearer {key}"})[0], 200)
                for header in ("", "Bearer ", "Bearer firs", "Bearer first x", "bearer", "Basic first", "Bearer # mine"):
                    self.assertEqual(server.get("/v1/models", headers={"Authorization": header})[0], 401, header)
                status, headers, _ = server.request("OPTIONS", "/v1/completions")
                self.assertEqual((status, headers["access-control-allow-origin"]), (204, "https://page"))
                self.assertNotIn("third", "".join(server.log), "keys are not logged")
        with tempfile.NamedTemporaryFile("w") as file, self.assertRaisesRegex(RuntimeError, "no key"):
            Server("--api-key-file", file.name)


if __name__ == "__main__":
    unittest.main()
