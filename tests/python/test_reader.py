"""python/spear_reader.py against loops in float64 over bytes packed by hand from docs/checkpoint.md."""

import cmath
import json
import math
import random
import struct
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import spear_files  # noqa: E402
import spear_reader  # noqa: E402

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB, LAYERS = 48, 4, 2, 12, 44, 31, 2
SHAPES = {
    "self_attn.q_proj": (48, HIDDEN),
    "self_attn.k_proj": (24, HIDDEN),
    "self_attn.v_proj": (24, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 48),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def f16(value):
    return struct.unpack("<e", struct.pack("<e", value))[0]


def bf16(value):
    return struct.unpack("<f", b"\0\0" + struct.pack("<f", value)[2:])[0]


def write_safetensors(path, tensors, metadata=None):
    """tensors: name -> (dtype, shape, bytes)."""
    header, body = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


def pack_words(rows):
    """Rows of codes, eight to a word, the first in the lowest bits; padded with 8."""
    words = []
    for row in rows:
        row = row + [8] * (-len(row) % 8)
        for begin in range(0, len(row), 8):
            words.append(sum(code << (4 * i) for i, code in enumerate(row[begin : begin + 8])))
    return struct.pack(f"<{len(words)}I", *words)


class Checkpoint:
    """A tiny random checkpoint on disk, and its values as plain lists."""

    def __init__(self, folder, group_size=0, symmetric=True, gate_rows=1, seed=0):
        self.folder, self.rng = Path(folder), random.Random(seed)
        self.weights, self.compensators, self.tensors, self.sidecar, self.modules = {}, {}, {}, {}, {}
        self.group_size, self.symmetric, self.gate_rows = group_size, symmetric, gate_rows
        self.embedding = self.dense("model.embed_tokens.weight", VOCAB, HIDDEN, "BF16")
        self.gains = {"model.norm": self.gain("model.norm")}
        for n in range(LAYERS):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                name = f"model.layers.{n}.{norm}"
                self.gains[name] = self.gain(name)
            for kind, (out, inp) in SHAPES.items():
                self.linear(f"model.layers.{n}.{kind}", out, inp)
            for group in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",)):
                self.shared_compensators(n, [k for k in SHAPES if k.split(".")[1].split("_")[0] in group])
        self.save()

    def dense(self, name, rows, cols, dtype):
        values = [[bf16(self.rng.gauss(0, 0.5)) for _ in range(cols)] for _ in range(rows)]
        data = b"".join(struct.pack("<f", v)[2:] for row in values for v in row)
        self.tensors[name] = (dtype, [rows, cols], data)
        return values

    def gain(self, name):
        values = [f16(1 + self.rng.gauss(0, 0.2)) for _ in range(HIDDEN)]
        self.tensors[name + ".weight"] = ("F16", [HIDDEN], struct.pack(f"<{HIDDEN}e", *values))
        return values

    def linear(self, module, out, inp):
        group = self.group_size or inp
        groups = -(-inp // group)
        codes = [[self.rng.randrange(16) for _ in range(inp)] for _ in range(out)]
        scales = [[f16(self.rng.uniform(0.005, 0.03)) for _ in range(groups)] for _ in range(out)]
        zeros = [[8 if self.symmetric else self.rng.randrange(16) for _ in range(groups)] for _ in range(out)]
        self.weights[module] = [
            [scales[r][c // group] * (codes[r][c] - zeros[r][c // group]) for c in range(inp)] for r in range(out)
        ]
        self.tensors[module + ".weight_packed"] = ("I32", [out, -(-inp // 8)], pack_words(codes))
        flat = [s for row in scales for s in row]
        self.tensors[module + ".weight_scale"] = ("F16", [out, groups], struct.pack(f"<{len(flat)}e", *flat))
        self.tensors[module + ".weight_shape"] = ("I64", [2], struct.pack("<2q", out, inp))
        if not self.symmetric:
            words = []
            for begin in range(0, out, 8):
                for g in range(groups):
                    words.append(sum(zeros[begin + i][g] << (4 * i) for i in range(min(8, out - begin))))
            self.tensors[module + ".weight_zero_point"] = (
                "I32",
                [-(-out // 8), groups],
                struct.pack(f"<{len(words)}I", *words),
            )

    def int8(self, name, rows, cols, scales_of_rows):
        values = [[self.rng.randrange(-127, 128) for _ in range(cols)] for _ in range(rows)]
        scales = [f16(self.rng.uniform(0.001, 0.003)) for _ in range(rows if scales_of_rows else cols)]
        self.sidecar[name] = ("I8", [rows, cols], struct.pack(f"<{rows * cols}b", *(v for row in values for v in row)))
        self.sidecar[name + "_scale"] = ("F16", [len(scales)], struct.pack(f"<{len(scales)}e", *scales))
        return [[v * scales[r if scales_of_rows else c] for c, v in enumerate(row)] for r, row in enumerate(values)]

    def bf16s(self, name, *shape):
        count = math.prod(shape)
        values = [bf16(self.rng.gauss(0, 0.8)) for _ in range(count)]
        self.sidecar[name] = ("BF16", list(shape), b"".join(struct.pack("<f", v)[2:] for v in values))
        return values if len(shape) == 1 else [values[r * shape[1] : (r + 1) * shape[1]] for r in range(shape[0])]

    def shared_compensators(self, layer, kinds):
        rank, hidden = self.rng.randrange(1, 4), 3
        rows = rank + self.gate_rows
        owner = f"model.layers.{layer}.{kinds[0]}"
        a = self.int8(owner + ".compensator.A", rows, SHAPES[kinds[0]][1], True)
        for kind in kinds:
            module = f"model.layers.{layer}.{kind}"
            b = self.int8(module + ".compensator.B", SHAPES[kind][0], rank, False)
            gate = None
            if kind != "mlp.up_proj":  # one static compensator among gated ones
                part = module + ".compensator.gate."
                gate = (
                    self.bf16s(part + "W1", hidden, rows),
                    self.bf16s(part + "b1", hidden),
                    self.bf16s(part + "W2", rank, hidden),
                    self.bf16s(part + "b2", rank),
                )
            self.compensators[module] = (rank, a, b, gate)
            self.modules[module] = {"rank": rank, "gate_rows": self.gate_rows, "a": owner}

    def metadata(self):
        return {"format_version": "1", "gate": "mlp", "modules": json.dumps(self.modules)}

    def save(self):
        scheme = {
            "num_bits": 4,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "group" if self.group_size else "channel",
            "group_size": self.group_size or None,
        }
        self.config = {
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCAB,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
            },
        }
        (self.folder / "config.json").write_text(json.dumps(self.config))
        write_safetensors(self.folder / "model.safetensors", self.tensors, {"format": "pt"})
        write_safetensors(self.folder / "compensators.safetensors", self.sidecar, self.metadata())

    # The oracle: one token at a time, one number at a time, Python's floats.

    def apply(self, module, x, compensated):
        y = [sum(w * v for w, v in zip(row, x)) for row in self.weights[module]]
        if not compensated:
            return y
        rank, a, b, gate = self.compensators[module]
        u = [sum(w * v for w, v in zip(row, x)) for row in a]
        g = [1.0] * rank
        if gate:
            w1, b1, w2, b2 = gate
            h = [sum(w * v for w, v in zip(row, u)) + bias for row, bias in zip(w1, b1)]
            h = [t / (1 + math.exp(-t)) for t in h]
            g = [1 + math.tanh(sum(w * v for w, v in zip(row, h)) + bias) for row, bias in zip(w2, b2)]
        return [value + sum(row[r] * g[r] * u[r] for r in range(rank)) for value, row in zip(y, b)]

    def norm(self, name, x):
        scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + 1e-5)
        return [v * scale * gain for v, gain in zip(x, self.gains[name])]

    def rotate(self, head, position):
        half = HEAD_DIM // 2
        pairs = [
            complex(head[i], head[i + half]) * cmath.exp(1j * position * 10000.0 ** (-i / half)) for i in range(half)
        ]
        return [p.real for p in pairs] + [p.imag for p in pairs]

    def logits(self, ids, compensated=True):
        keys, values, rows = [[] for _ in range(LAYERS)], [[] for _ in range(LAYERS)], []
        split = lambda x: [x[i : i + HEAD_DIM] for i in range(0, len(x), HEAD_DIM)]
        for position, token in enumerate(ids):
            x = self.embedding[token]
            for n in range(LAYERS):
                layer = f"model.layers.{n}."
                normed = self.norm(layer + "input_layernorm", x)
                q, k, v = (split(self.apply(f"{layer}self_attn.{p}_proj", normed, compensated)) for p in "qkv")
                keys[n].append([self.rotate(head, position) for head in k])
                values[n].append(v)
                attended = []
                for head in range(HEADS):
                    kv = head // (HEADS // KV_HEADS)
                    query = self.rotate(q[head], position)
                    scores = [
                        math.exp(sum(a * b for a, b in zip(query, past[kv])) / math.sqrt(HEAD_DIM)) for past in keys[n]
                    ]
                    attended += [
                        sum(s * past[kv][i] for s, past in zip(scores, values[n])) / sum(scores)
                        for i in range(HEAD_DIM)
                    ]
                x = [a + b for a, b in zip(x, self.apply(layer + "self_attn.o_proj", attended, compensated))]
                normed = self.norm(layer + "post_attention_layernorm", x)
                gate, up = (self.apply(f"{layer}mlp.{p}_proj", normed, compensated) for p in ("gate", "up"))
                act = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)]
                x = [a + b for a, b in zip(x, self.apply(layer + "mlp.down_proj", act, compensated))]
            final = self.norm("model.norm", x)
            rows.append([sum(w * v for w, v in zip(row, final)) for row in self.embedding])
        return np.array(rows)


class ReaderTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.ids = [3, 17, 30, 0, 8, 8, 25, 11, 2]

    def tearDown(self):
        self.folder.cleanup()

    def check_logits(self, **options):
        checkpoint = Checkpoint(self.path, **options)
        for compensated in (True, False):
            expected = checkpoint.logits(self.ids, compensated)
            found = spear_reader.SpearModel(self.path, compensated).logits(np.array(self.ids))
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        self.assertGreater(np.abs(expected - checkpoint.logits(self.ids, True)).max(), 1e-2, "compensators must matter")

    def test_families_against_transformers(self):
        data = Path(__file__).resolve().parent.parent / "data" / "family-golden"
        # gemma3-new has rope_parameters by layer type, which only SPEAR's C++ reads.
        folders = sorted(p for p in data.iterdir() if p.name != "gemma3-new")
        self.assertGreaterEqual(len(folders), 10)
        for folder in folders:
            with self.subTest(folder.name):
                golden, _ = spear_files.read_safetensors(folder / "golden.tensors")
                model = spear_reader.SpearModel(folder)
                for tokens, expected in zip(golden["tokens"].values, golden["logits"].values):
                    found = model.logits(tokens)
                    self.assertLess(np.linalg.norm(found - expected) / np.linalg.norm(expected), 2e-5)

    def test_a_rotated_stream_against_transformers(self):
        rotated = 0
        for folder in sorted((Path(__file__).resolve().parent.parent / "data" / "family-golden").iterdir()):
            config = json.loads((folder / "config.json").read_text())
            if config["model_type"] == "gemma3_text":
                continue
            golden, _ = spear_files.read_safetensors(folder / "golden.tensors")
            model = spear_reader.SpearModel(folder)
            n = model.hidden
            q = self.rotation(n)
            family = spear_reader.Family({**config, "model_type": "spear_" + config["model_type"], "spear_stream_rotation": "dct-hadamard/1"}, n, model.layers, model.head_dim)
            np.testing.assert_allclose(family.rotation, q, atol=1e-6)
            model.family = family
            for module, weight in model.weights.items():
                if module.endswith(("o_proj", "down_proj")):
                    model.weights[module] = q.T @ weight
                    if module in model.biases:
                        model.biases[module] = q.T @ model.biases[module]
                else:
                    norm = "input_layernorm" if "self_attn" in module else "post_attention_layernorm"
                    model.weights[module] = (weight * model.gains[".".join(module.split(".")[:3] + [norm])]) @ q
            model.gains = {name: np.ones_like(gain) if name.endswith("layernorm") else gain for name, gain in model.gains.items()}
            for tokens, expected in zip(golden["tokens"].values, golden["logits"].values):
                found = model.logits(tokens)
                self.assertLess(np.linalg.norm(found - expected) / np.linalg.norm(expected), 1e-4, folder.name)
            rotated += 1
        self.assertGreater(rotated, 5)
        with self.assertRaises(ValueError):
            spear_reader.Family({**config, "spear_stream_rotation": "another"}, n, model.layers, model.head_dim)

    @staticmethod
    def rotation(n):
        """Entry by entry, as docs/checkpoint.md has it."""
        p = n & -n
        m, mask = n // p, 2**64 - 1
        q = np.empty((n, n), np.float32)
        for i in range(n):
            z = (i + 0x9E3779B97F4A7C15) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            sign = -1 if (z ^ (z >> 31)) >> 63 else 1
            for j in range(n):
                k = j // p
                cosine = math.sqrt((2 if k else 1) / m) * math.cos(math.pi * (i // p + 0.5) * k / m)
                q[i, j] = sign * cosine * (-1) ** ((i % p) & (j % p)).bit_count() / math.sqrt(p)
        return q

    def test_symmetric_per_channel(self):
        self.check_logits()

    def test_asymmetric_groups_with_a_partial_last_group(self):
        self.check_logits(group_size=32, symmetric=False, gate_rows=0, seed=1)

    def test_symmetric_groups(self):
        self.check_logits(group_size=32, gate_rows=3, seed=2)

    def test_asymmetric_per_channel(self):
        self.check_logits(symmetric=False, seed=3)

    def test_groups_that_do_not_follow_the_columns(self):
        for name in ("ct-act-order-sym-g32", "ct-act-order-asym-g128"):
            folder = Path(__file__).resolve().parents[1] / "data" / "quantized" / name
            expected, _ = spear_files.read_safetensors(folder / "expected.tensors")
            model = spear_reader.SpearModel(folder)
            for module, values in expected.items():
                np.testing.assert_array_equal(model.weights[module], values.values, module)

    def test_groups_that_make_no_sense_are_refused(self):
        folder = Path(__file__).resolve().parents[1] / "data" / "quantized" / "ct-act-order-sym-g32"
        tensors, _ = spear_files.read_safetensors(folder / "model.safetensors")
        (self.path / "config.json").write_bytes((folder / "config.json").read_bytes())
        name = "model.layers.0.mlp.up_proj.weight_g_idx"
        for groups, pattern in (([2] + [1] * 63, "does not exist"), ([-2] + [1] * 63, "does not exist"), ([0] * 33 + [1] * 31, "other sizes"), ([0] * 63, "shape")):
            changed = {n: (t.dtype, list(t.values.shape), t.values.tobytes()) for n, t in tensors.items()}
            changed[name] = ("I32", [len(groups)], struct.pack(f"<{len(groups)}i", *groups))
            write_safetensors(self.path / "model.safetensors", changed)
            self.expect_refused(pattern)

    def test_nibbles(self):
        rng = random.Random(4)
        for count in (1, 7, 8, 9, 30):
            rows = [[rng.randrange(16) for _ in range(count)] for _ in range(3)]
            words = np.frombuffer(pack_words(rows), "<i4").reshape(3, -1)
            self.assertEqual(spear_reader.unpack_nibbles(words, count).tolist(), rows)

    def test_bf16(self):
        bits = np.array([0x3F80, 0xBF80, 0x4049, 0x0000, 0x7F80, 0x0001], np.uint16)
        self.assertEqual(spear_files.bf16_to_f32(bits).tolist(), [1.0, -1.0, 3.140625, 0.0, math.inf, 2.0**-133])

    def test_perplexity(self):
        checkpoint = Checkpoint(self.path)
        ids = [random.Random(5).randrange(VOCAB) for _ in range(20)]
        nll = 0.0
        for begin in (0, 9):
            window = ids[begin : begin + 9]
            for row, target in zip(checkpoint.logits(window), window[1:]):
                nll += math.log(sum(math.exp(v) for v in row)) - row[target]
        model = spear_reader.SpearModel(self.path)
        result = spear_reader.perplexity(model, ids, context=9, windows=2)
        self.assertAlmostEqual(result["perplexity"], math.exp(nll / 16), delta=1e-4 * math.exp(nll / 16))
        self.assertEqual(result["tokens"], 16)
        self.assertAlmostEqual(model.window_nll(np.array(ids), rows=3), model.window_nll(np.array(ids)), places=4)
        for context, windows in ((9, 3), (1, 1), (5, 0)):
            with self.assertRaises(spear_reader.CheckpointError):
                spear_reader.perplexity(model, ids, context, windows)

    def test_command_line(self):
        Checkpoint(self.path)
        ids = self.path / "ids.txt"
        ids.write_text(" ".join(str(i % VOCAB) for i in range(40)))
        self.assertEqual(
            spear_reader.main([str(self.path), "--ids", str(ids), "--context", "10", "--windows", "2", "--json"]), 0
        )
        self.assertEqual(
            spear_reader.main([str(self.path), "--ids", str(ids), "--context", "100", "--windows", "2"]), 3
        )
        self.assertEqual(spear_reader.main([str(self.path / "absent"), "--ids", str(ids)]), 3)

    def test_planted_faults_change_the_logits(self):
        """What a wrong reader would do must be visible: swapped scales, gate sign, zero points, heads."""
        checkpoint = Checkpoint(self.path, symmetric=False)
        good = spear_reader.SpearModel(self.path).logits(np.array(self.ids))
        module = "model.layers.0.self_attn.q_proj"
        for name, flip in (
            (
                module + ".compensator.gate.b2",
                lambda data: bytes(b ^ (0x80 if i % 2 else 0) for i, b in enumerate(data)),
            ),
            (module + ".compensator.A", lambda data: data[::-1]),
        ):
            dtype, shape, data = checkpoint.sidecar[name]
            changed = dict(checkpoint.sidecar, **{name: (dtype, shape, flip(data))})
            write_safetensors(self.path / "compensators.safetensors", changed, checkpoint.metadata())
            bad = spear_reader.SpearModel(self.path).logits(np.array(self.ids))
            self.assertGreater(np.abs(bad - good).max(), 1e-3, name)

    def expect_refused(self, pattern):
        with self.assertRaisesRegex(spear_reader.CheckpointError, pattern):
            spear_reader.SpearModel(self.path)

    def test_unknown_versions_and_kinds_are_refused(self):
        checkpoint = Checkpoint(self.path)
        sidecar = self.path / "compensators.safetensors"
        for key, value, pattern in (
            ("format_version", "2", "version"),
            ("gate", "router", "gate kind"),
            ("modules", "[", "modules"),
            ("modules", '{"x": 1}', "modules"),
            ("gate", "none", "without gates"),
        ):
            write_safetensors(sidecar, checkpoint.sidecar, dict(checkpoint.metadata(), **{key: value}))
            self.expect_refused(pattern)
        write_safetensors(sidecar, checkpoint.sidecar)
        self.expect_refused("version")
        write_safetensors(sidecar, dict(checkpoint.sidecar, stray=("I8", [1], b"x")), checkpoint.metadata())
        self.expect_refused("stray belongs to no compensator")

    def test_damaged_files_are_refused(self):
        checkpoint = Checkpoint(self.path)
        model = self.path / "model.safetensors"
        whole = model.read_bytes()
        for size in (4, 8, 100, len(whole) - 1):
            model.write_bytes(whole[:size])
            self.expect_refused("model.safetensors")
        model.write_bytes(struct.pack("<Q", 2**63) + whole[8:])
        self.expect_refused("length")
        name = "model.layers.1.mlp.up_proj.weight_scale"
        for entry, pattern in (
            (("F16", [44], checkpoint.tensors[name][2]), "shape"),
            (("F16", [44, 1], b"\x00\x7c" * 44), "infinity"),
            (("I8", [88, 1], checkpoint.tensors[name][2]), "shape"),
        ):
            write_safetensors(model, dict(checkpoint.tensors, **{name: entry}))
            self.expect_refused(pattern)
        write_safetensors(model, {k: v for k, v in checkpoint.tensors.items() if k != name})
        self.expect_refused("missing")

    def test_unsupported_configs_are_refused(self):
        checkpoint = Checkpoint(self.path)
        for change, pattern in (
            ({"model_type": "mamba"}, "mamba"),
            ({"rope_scaling": {"type": "yarn"}}, "yarn"),
            ({"rope_scaling": {"type": "linear"}}, "factor"),
            ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
            ({"hidden_size": "x"}, "malformed"),
            ({"num_attention_heads": 0, "head_dim": None}, "malformed"),
            ({"quantization_config": {"quant_method": "gptq"}}, "quant_method"),
        ):
            (self.path / "config.json").write_text(json.dumps(dict(checkpoint.config, **change)))
            self.expect_refused(pattern)


if __name__ == "__main__":
    unittest.main()
