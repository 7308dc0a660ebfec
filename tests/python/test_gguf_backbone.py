"""`spear recover --backbone x.gguf` on a tiny model in the mixture of types that llama.cpp writes.

The file is made with the package `gguf` (K-quants by the packer below, checked against that package's decoder). What is
asked: the file is part of the result byte for byte; its values are those that `gguf` decodes; compensators are trained,
applied and counted; an interrupted run ends in the same bytes. Needs numpy, gguf, build/release/bin/spear (or $SPEAR) with
its offline plane.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import spear_reader  # noqa: E402
from tiny_model import ROOT, write_tiny_model  # noqa: E402

SPEAR = Path(os.environ.get("SPEAR", ROOT / "build/release/bin/spear")).resolve()
OFFLINE = SPEAR.parent.parent / "libexec" / "spear" / "spear-offline"
TEXT = ROOT / "docs" / "checkpoint.md"
K_TYPES = {Type.Q4_K: 4, Type.Q5_K: 5, Type.Q6_K: 6}
# By the end of a linear's name: every type of a real Q4_K_M file, and those of older ones.
MIXTURE = {"attn_q": Type.Q4_K, "attn_k": Type.Q5_K, "attn_v": Type.Q6_K, "attn_output": Type.Q5_0, "ffn_gate": Type.Q8_0, "ffn_up": Type.Q4_1, "ffn_down": Type.Q6_K}
SECOND_LAYER = {"attn_q": Type.Q5_0, "attn_k": Type.Q4_0, "attn_v": Type.Q8_0, "attn_output": Type.Q5_1, "ffn_gate": Type.Q4_0, "ffn_up": Type.Q5_K, "ffn_down": Type.Q4_K}


def half(values):
    return values.astype(np.float16)


def pack_scales(scales, mins):
    """Six-bit scales and minima of 8 sub-blocks in 12 bytes."""
    out = np.zeros((len(scales), 12), np.uint8)
    out[:, 0:4] = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    out[:, 4:8] = mins[:, :4] | (mins[:, 4:] >> 4) << 6
    out[:, 8:12] = (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4
    return out


def quantize_k(weights, bits):
    """[rows, cols] -> [rows, bytes] in Q4_K, Q5_K or Q6_K."""
    blocks = weights.reshape(-1, 256)
    if bits == 6:
        parts = blocks.reshape(-1, 16, 16)
        wanted = np.abs(parts).max(-1) / 31
        d = half(wanted.max(-1) / 127)
        scales = np.clip(np.rint(wanted / np.maximum(d[:, None].astype(np.float32), 1e-12)), 1, 127).astype(np.int8)
        steps = d[:, None].astype(np.float32) * scales
        q = np.clip(np.rint(parts / np.maximum(steps[..., None], 1e-12)) + 32, 0, 63).astype(np.uint8).reshape(-1, 2, 4, 32)
        low = (q[:, :, :2] & 15) | (q[:, :, 2:] & 15) << 4
        high = sum((q[:, :, i] >> 4) << (2 * i) for i in range(4))
        packed = [low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), d[:, None].view(np.uint8)]
    else:
        top = (1 << bits) - 1
        parts = blocks.reshape(-1, 8, 32)
        lows = np.minimum(parts.min(-1), 0)
        wanted = (parts.max(-1).clip(0) - lows) / top
        d, dmin = half(wanted.max(-1) / 63), half((-lows).max(-1) / 63)
        scales, mins = (np.clip(np.rint(v / np.maximum(s[:, None].astype(np.float32), 1e-12)), 0, 63).astype(np.uint8) for v, s in ((wanted, d), (-lows, dmin)))
        step, base = d[:, None].astype(np.float32) * scales, dmin[:, None].astype(np.float32) * mins
        q = np.clip(np.rint((parts + base[..., None]) / np.maximum(step[..., None], 1e-12)), 0, top).astype(np.uint8)
        pairs = q.reshape(-1, 4, 2, 32)
        nibbles = (pairs[:, :, 0] & 15) | (pairs[:, :, 1] & 15) << 4
        packed = [d[:, None].view(np.uint8), dmin[:, None].view(np.uint8), pack_scales(scales, mins)]
        if bits == 5:
            packed.append(sum((q[:, i] >> 4) << i for i in range(8)))
        packed.append(nibbles.reshape(-1, 128))
    return np.concatenate(packed, axis=1).reshape(len(weights), -1)


def requantize(source, target, type_of):
    """The GGUF file `source` (F32) with tensors in other types; returns name -> type of what was changed."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer, changed = gguf.GGUFWriter(target, architecture), {}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values, kind = np.array(tensor.data), type_of(tensor.name)
        if kind is None:
            writer.add_tensor(tensor.name, values)
            continue
        data = quantize_k(values, K_TYPES[kind]) if kind in K_TYPES else gguf.quants.quantize(values, kind)
        error = np.abs(gguf.quants.dequantize(data, kind) - values).max() / np.abs(values).max()
        assert error < 0.1, (tensor.name, kind, error)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        changed[tensor.name] = kind
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changed


def mixture(name):
    part = name.removesuffix(".weight").rsplit(".", 1)[-1]
    return (MIXTURE if name.startswith("blk.0.") else SECOND_LAYER).get(part) if name.endswith(".weight") else None


def spear(*arguments, check=True):
    done = subprocess.run([str(a) for a in (SPEAR, *arguments)], capture_output=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{arguments}: {done.returncode}\n{done.stderr.decode()}")
    return done


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@unittest.skipUnless(OFFLINE.exists(), f"no program {OFFLINE}: scripts/build")
class GgufBackboneTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        holder = tempfile.TemporaryDirectory(prefix="spear-gguf-backbone-")
        cls.addClassCleanup(holder.cleanup)
        cls.root = Path(holder.name)
        cls.model = write_tiny_model(cls.root / "model", hidden=256, intermediate=512)
        tokenizer = json.loads((cls.model / "tokenizer.json").read_text())
        tokenizer["normalizer"] = tokenizer["post_processor"] = None  # then llama.cpp has a name for it: smollm
        (cls.model / "tokenizer.json").write_text(json.dumps(tokenizer))
        spear("export", "--model", cls.model, "--format", "gguf", "--embeddings", "stored", "--out", cls.root / "f32.gguf")
        cls.backbone = cls.root / "mixed.gguf"
        cls.types = requantize(cls.root / "f32.gguf", cls.backbone, lambda name: Type.Q8_0 if name == "token_embd.weight" else mixture(name))
        assert len(set(cls.types.values())) == 8, cls.types
        cls.out = cls.root / "recovered"
        spear(*cls.recover(cls.out))
        cls.manifest = json.loads((cls.out / "spear.json").read_text())

    @classmethod
    def recover(cls, out, *more, backbone=None):
        return ("recover", "--model", cls.model, "--backbone", backbone or cls.backbone, "--out", out, "--sample-sequences", 8, "--quantizer-sequences", 8,
                "--quantizer-length", 64, "--steps", 12, "--threads", 1, "--context", 64, "--windows", 4, "--text", TEXT, "--budget", "8%", *more)

    def evaluate(self, model, *more, reference=None):
        return json.loads(spear("eval", "--model", model, "--reference", reference or self.model, "--text", TEXT, "--context", 64, "--windows", 4, "--json", *more).stdout)

    def row(self, name):
        return next(row for row in self.manifest["results"]["rows"] if row["name"] == name)

    def test_the_file_is_part_of_the_result_byte_for_byte(self):
        self.assertEqual({path.name for path in self.out.iterdir()}, {"model.gguf", "compensators.safetensors", "spear.json", "report.html"})
        self.assertEqual(sha256(self.out / "model.gguf"), sha256(self.backbone))
        self.assertEqual(self.manifest["files"]["model.gguf"], sha256(self.backbone))
        self.assertEqual(self.manifest["backbone"]["sha256"], sha256(self.backbone))
        inspected = json.loads(spear("inspect", "--model", self.out, "--verify", "--json").stdout)
        self.assertTrue(inspected["verified"])
        linears = next(part for part in inspected["parts"] if part["name"] == "linears")
        for kind in ("Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "Q8_0", "Q4_1"):
            self.assertIn(kind, linears["format"])

    def test_the_budget_is_of_the_bytes_that_the_file_has(self):
        stored = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(self.backbone).tensors}
        base = sum(size for name, size in stored.items() if name in self.types)
        self.assertEqual(self.manifest["bytes"]["base"], base)
        added = (self.out / "compensators.safetensors").stat().st_size
        self.assertEqual(self.manifest["bytes"]["compensators"], added)
        self.assertLessEqual(added, 0.08 * base)
        self.assertGreater(added, 0.04 * base)

    def test_both_planes_measure_the_same_and_compensators_help(self):
        with_them = self.evaluate(self.out, "--activations", "a32")
        without = self.evaluate(self.out, "--activations", "a32", "--compensators", "off")
        for found, name in ((with_them, "recovered"), (without, "quantized")):
            stated = self.row(name)
            self.assertAlmostEqual(found["kl"]["value"] / stated["kl"]["value"], 1, delta=2e-3, msg=name)
            self.assertAlmostEqual(found["perplexity"]["value"] / stated["perplexity"]["value"], 1, delta=1e-4, msg=name)
        self.assertLess(with_them["kl"]["value"], 0.99 * without["kl"]["value"])
        fast = self.evaluate(self.out, "--activations", "a16", "--head-dtype", "bf16")
        self.assertAlmostEqual(fast["kl"]["value"] / with_them["kl"]["value"], 1, delta=0.05)

    def test_the_file_alone_runs_with_the_codes_it_has(self):
        alone = self.evaluate(self.backbone, "--activations", "a16", "--head-dtype", "bf16")
        kept = self.evaluate(self.out, "--activations", "a16", "--head-dtype", "bf16", "--compensators", "off")
        self.assertEqual(alone["kl"], kept["kl"])
        self.assertEqual(alone["perplexity"], kept["perplexity"])
        dense = self.evaluate(self.backbone, "--activations", "a32")
        self.assertNotEqual(alone["kl"], dense["kl"])
        # How far the planes are from each other is the test (a head in bf16 and K-types' scales in F16: 9e-4 of the file's own KL). KL being half
        # a squared distance, the triangle inequality then bounds the difference of the two.
        planes = self.evaluate(self.backbone, "--activations", "a16", "--head-dtype", "bf16", reference=self.backbone)
        between = planes["kl"]["value"] / dense["kl"]["value"]
        self.assertLess(between, 2e-3)
        self.assertAlmostEqual(alone["kl"]["value"] / dense["kl"]["value"], 1, delta=2 * between**0.5 + between)

    def test_values_and_compensators_by_numpy(self):
        """`gguf` decodes the file, numpy applies the compensators: the perplexity is the engine's."""
        for flag, use in (("on", True), ("off", False)):
            model = spear_reader.SpearModel(self.out, use_compensators=use)
            ids = spear_reader.read_ids(self.model, str(TEXT), None, 64)
            found = self.evaluate(self.out, "--activations", "a32", "--compensators", flag)["perplexity"]["value"]
            expected = spear_reader.perplexity(model, ids, 64, 4)["perplexity"]
            self.assertAlmostEqual(found / expected, 1, delta=1e-5, msg=flag)

    def test_it_runs(self):
        text = spear("generate", "--model", self.out, "--prompt", "A checkpoint", "--max-tokens", 8, "--temperature", 0).stdout
        self.assertEqual(text, spear("generate", "--model", self.out, "--prompt", "A checkpoint", "--max-tokens", 8, "--temperature", 0).stdout)
        spear("bench", "--model", self.out, "--prompt-tokens", 16, "--gen-tokens", 4, "--json")
        spear("report", "--model", self.out, "--out", self.root / "again.html")
        refused = spear("export", "--model", self.out, "--format", "gguf", "--out", self.root / "x.gguf", check=False)
        self.assertEqual(refused.returncode, 2, refused.stderr)
        self.assertIn(b"model.gguf", refused.stderr)

    def test_rewriting_the_file_keeps_every_block(self):
        """Rows of q and k are put in order when read, and back when written."""
        spear("export", "--model", self.backbone, "--format", "gguf", "--embeddings", "stored", "--out", self.root / "rewritten.gguf", "--force")
        before = {tensor.name: tensor for tensor in gguf.GGUFReader(self.backbone).tensors}
        after = {tensor.name: tensor for tensor in gguf.GGUFReader(self.root / "rewritten.gguf").tensors}
        for name in self.types.keys() - {"token_embd.weight"}:
            self.assertEqual(before[name].tensor_type, after[name].tensor_type, name)
            np.testing.assert_array_equal(before[name].data, after[name].data, name)

    def test_a_stopped_run_ends_in_the_same_bytes(self):
        out = self.root / "resumed"
        process = subprocess.Popen([str(a) for a in (SPEAR, *self.recover(out))], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.send_signal(2)
        process.communicate()
        if not out.exists():
            spear(*self.recover(out, "--resume"))
        for name in ("model.gguf", "compensators.safetensors"):
            self.assertEqual(sha256(out / name), sha256(self.out / name), name)

    def test_what_cannot_be_a_backbone_is_refused_by_name(self):
        for arguments, code, words in (
            (self.recover(self.root / "no-reference", backbone=self.root / "f32.gguf"), 3, b"this is a reference, not a backbone"),
            (self.recover(self.root / "no-scales", "--tune", "scales"), 2, b"byte for byte"),
            (self.recover(self.root / "no-codes", "--tune", "codes"), 2, b"codes stay"),
        ):
            done = spear(*arguments, check=False)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(words, done.stderr)
            self.assertFalse(arguments[arguments.index("--out") + 1].exists())

    def test_a_damaged_copy_is_seen(self):
        copy = self.root / "damaged"
        copy.mkdir()
        for path in self.out.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        data = bytearray((copy / "model.gguf").read_bytes())
        data[-40] ^= 1
        (copy / "model.gguf").write_bytes(data)
        done = spear("inspect", "--model", copy, "--verify", check=False)
        self.assertEqual(done.returncode, 3)
        self.assertIn(b"model.gguf", done.stderr)
        (copy / "model.gguf").write_bytes(data[: len(data) // 2])
        self.assertEqual(spear("inspect", "--model", copy, check=False).returncode, 3)
        (copy / "model.gguf").unlink()
        self.assertEqual(spear("inspect", "--model", copy, check=False).returncode, 3)


if __name__ == "__main__":
    unittest.main()
