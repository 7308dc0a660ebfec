"""A running `spear serve` on a tiny random model, and ways to treat it badly. Standard library only."""

import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("SPEAR_BINARY", ROOT / "build/release/bin/spear"))
EOS, BOS = 256, 257
HIDDEN, LAYERS, HEADS, WIDTH, POSITIONS = 256, 4, 2, 1024, 4096


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {byte: chr(byte) for byte in plain}, 256
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(extra)
            extra += 1
    return [table[byte] for byte in range(256)]


def make_model(directory: Path) -> Path:
    """Random weights behind a vocabulary of single bytes: whatever comes out cuts characters in every way."""
    directory.mkdir(parents=True)
    rng = random.Random(7)
    vocab, signs = 258, bytes([0x3D, 0xBD]) * 128  # upper bytes of 0.03 to 0.12 and their negatives, as bfloat16
    shapes = {"model.embed_tokens.weight": (vocab, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        shapes |= {at + "input_layernorm.weight": (HIDDEN,), at + "post_attention_layernorm.weight": (HIDDEN,),
                   at + "self_attn.q_proj.weight": (HIDDEN, HIDDEN), at + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                   at + "self_attn.k_proj.weight": (HIDDEN // HEADS, HIDDEN),
                   at + "self_attn.v_proj.weight": (HIDDEN // HEADS, HIDDEN),
                   at + "mlp.gate_proj.weight": (WIDTH, HIDDEN), at + "mlp.up_proj.weight": (WIDTH, HIDDEN),
                   at + "mlp.down_proj.weight": (HIDDEN, WIDTH)}
    header, data = {}, b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        high = bytes([0x3F]) * count if "norm" in name else rng.randbytes(count).translate(signs)
        packed = bytearray(2 * count)
        packed[1::2] = high
        packed[0::2] = bytes([0x80]) * count if "norm" in name else rng.randbytes(count)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
              "intermediate_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
              "num_key_value_heads": 1, "vocab_size": vocab, "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": BOS, "eos_token_id": EOS,
              "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config))
    special = [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, c in ((EOS, "<|end|>"), (BOS, "<|begin|>"))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
                 "pre_tokenizer": level, "post_processor": None, "decoder": level,
                 "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                           "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                           "vocab": {c: i for i, c in enumerate(byte_alphabet())}, "merges": []}}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = ("{% if tools %}tools in <tool_call>:{% for t in tools %} {{ t.function | tojson }}{% endfor %}{{ '\\n' }}{% endif %}"
                "{% for m in messages %}{{ m.role }}: {{ m.content if m.content else '' }}"
                "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>"
                "{% endfor %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}")
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|end|>"}))
    return directory


_model: list[Path] = []


def model() -> Path:
    """Made where it is first asked for."""
    if not _model:
        _model.append(make_model(Path(tempfile.mkdtemp(prefix="spear-server-")) / "tiny"))
    return _model[0]


def clean_up() -> None:
    while _model:
        shutil.rmtree(_model.pop().parent, ignore_errors=True)


class Server:
    def __init__(self, *options: str, path: Path | None = None, env: dict | None = None):
        command = [str(BINARY), "serve", "--model", str(path or model()), "--port", "0", "--json", "--threads", "1", *options]
        if "--kv-cache-memory" not in options:
            command += ["--kv-cache-memory", "16MB"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env=os.environ | (env or {}))
        self.log: list[str] = []
        self._peers: list[socket.socket] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        text = ""
        for line in self.process.stdout:
            text += line
            if line == "}\n":
                break
        if not text:
            self.process.wait()
            self.__exit__()
            raise RuntimeError("spear serve did not start:\n" + "".join(self.log))
        self.url = json.loads(text)["url"]
        scheme, address = self.url.split("://")
        self.tls = scheme == "https"
        self.address = (address.rsplit(":", 1)[0], int(address.rsplit(":", 1)[1]))

    def _read_log(self) -> None:
        for line in self.process.stderr:
            self.log.append(line)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
        for peer in self._peers:
            peer.close()
        self.process.stdout.close()
        self._reader.join()
        self.process.stderr.close()

    def terminate(self, timeout: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def connect(self, timeout: float = 20) -> socket.socket:
        plain = socket.create_connection(self.address, timeout)
        if self.tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            plain = context.wrap_socket(plain)
        self._peers.append(plain)
        return plain

    def raw(self, data: bytes, timeout: float = 20) -> bytes:
        """All that comes back until the server closes; what it cannot take any more is not sent."""
        with self.connect(timeout) as peer:
            try:
                peer.sendall(data)
            except OSError:
                pass
            return read_all(peer)

    def request(self, method: str, path: str, body=None, headers: dict | None = None, timeout: float = 30):
        """(status, headers in lower case, body)."""
        if self.tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            peer = http.client.HTTPSConnection(*self.address, timeout=timeout, context=context)
        else:
            peer = http.client.HTTPConnection(*self.address, timeout=timeout)
        try:
            sent = dict(headers or {})
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
                sent.setdefault("Content-Type", "application/json")
            peer.request(method, path, body, sent)
            answer = peer.getresponse()
            content = answer.read()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content
        finally:
            peer.close()

    def get(self, path: str, **more):
        return self.request("GET", path, **more)

    def post(self, path: str, body, **more):
        return self.request("POST", path, body, **more)

    def complete(self, **fields) -> dict:
        status, _, body = self.post("/v1/completions", {"max_tokens": 8, **fields})
        assert status == 200, (status, body)
        return json.loads(body)

    def start_stream(self, **fields) -> socket.socket:
        """A streamed completion whose answer is read by nobody yet."""
        peer = self.connect()
        peer.sendall(post_bytes("/v1/completions", {"stream": True, "ignore_eos": True, **fields}))
        return peer

    def metrics(self, headers: dict | None = None) -> dict[str, float]:
        """Sums over labels."""
        values: dict[str, float] = {}
        for line in self.get("/metrics", headers=headers)[2].decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                values[name] = values.get(name, 0) + float(value)
        return values

    def alive(self) -> bool:
        return self.process.poll() is None and self.get("/health")[0] == 200

    def wait_idle(self, seconds: float = 10) -> dict[str, float]:
        """Until nothing runs, waits, or holds a block."""
        end = time.monotonic() + seconds
        while True:
            now = self.metrics()
            busy = [name for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
                    if now[name] != 0]
            if not busy:
                return now
            if time.monotonic() > end:
                raise AssertionError(f"after {seconds} s: " + ", ".join(f"{name} {now[name]}" for name in busy))
            time.sleep(0.02)

    def wait_for(self, name: str, reached, seconds: float = 10) -> float:
        end = time.monotonic() + seconds
        while not reached(value := self.metrics().get(name, 0.0)):
            if time.monotonic() > end:
                raise AssertionError(f"{name} is {value} after {seconds} s")
            time.sleep(0.02)
        return value


def post_bytes(path: str, body, headers: str = "") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            f"{headers}\r\n").encode() + content


def read_all(peer: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            part = peer.recv(65536)
        except ConnectionResetError:
            return data
        if not part:
            return data
        data += part


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0


def read_answer(file) -> tuple[int, bytes]:
    """One answer with a length from a connection that stays open."""
    status, length = int(file.readline().split()[1]), 0
    while (line := file.readline().strip()):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, file.read(length)


def events(body: bytes) -> list:
    """The documents of a server-sent stream; the last must be [DONE]."""
    parts = body.decode("utf-8").split("\n\n")
    assert parts[-1] == "" and parts[-2] == "data: [DONE]", parts[-2:]
    assert all(part.startswith("data: ") for part in parts[:-1]), parts
    return [json.loads(part[6:]) for part in parts[:-2]]


class ServerCase(unittest.TestCase):
    """One server for all tests of the class: what one of them breaks, the others feel."""

    OPTIONS: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.OPTIONS)

    @classmethod
    def tearDownClass(cls):
        with cls.server:
            code = cls.server.terminate()
        assert code == 0, f"exit code {code}\n" + "".join(cls.server.log[-20:])

    def tearDown(self):
        self.assertTrue(self.server.alive(), "the server must survive every test")
