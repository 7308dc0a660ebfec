#!/usr/bin/env python3
"""What `spear export` writes, read with other tools than ours and compared with the checkpoint.

    tests/python/check_export.py build/release/bin/spear CHECKPOINT

GPTQ is unpacked here by the format's public description, GGUF by the package `gguf`; the checkpoint is read by
python/spear_reader.py. Needs numpy, gguf.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import spear_files  # noqa: E402
import spear_reader  # noqa: E402

GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
              "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gptq_weight(tensors, module, first_format):
    """[out, in]: s (q - z), nibble i of word row r being input 8r + i; zero points packed along outputs."""
    nibbles = np.arange(0, 32, 4, dtype=np.uint32)
    words = tensors[module + ".qweight"].values.view(np.uint32)
    q = ((words[:, None, :] >> nibbles[None, :, None]) & 15).reshape(-1, words.shape[1])
    words = tensors[module + ".qzeros"].values.view(np.uint32)
    z = ((words[:, :, None] >> nibbles) & 15).reshape(words.shape[0], -1).astype(np.int32) + first_format
    s = tensors[module + ".scales"].values.astype(np.float32)
    group = tensors[module + ".g_idx"].values
    return (s[group] * (q.astype(np.int32) - z[group])).T.astype(np.float32)


def permute(rows, heads):
    """As llama.cpp's converter does it."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_name(module):
    _, _, layer, kind = module.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[kind]}"


class Checker:
    def __init__(self, spear, checkpoint):
        self.spear, self.checkpoint = spear, Path(checkpoint)
        self.model = spear_reader.SpearModel(checkpoint)
        self.config = json.loads((self.checkpoint / "config.json").read_text())
        self.compared = 0

    def export(self, kind, out, *more):
        subprocess.run([self.spear, "export", str(self.checkpoint), "--format", kind, "--out", str(out), "--quiet", *more],
                       check=True, stdout=subprocess.DEVNULL)
        return out

    def same(self, found, expected, what):
        if not np.array_equal(found, expected):
            sys.exit(f"{what}: {np.count_nonzero(found != expected)} of {expected.size} values differ")
        self.compared += 1

    def in_gguf_order(self, module, rows):
        if self.config["model_type"] not in ("llama", "mistral") or module.split(".")[-1] not in ("q_proj", "k_proj"):
            return rows
        return permute(rows, self.model.heads if module.endswith("q_proj") else self.model.kv_heads)

    def gptq(self, folder):
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        tensors, _ = spear_files.read_safetensors(folder / "model.safetensors")
        for module, weight in self.model.weights.items():
            self.same(gptq_weight(tensors, module, config["checkpoint_format"] == "gptq"), weight, f"gptq: {module}")
        self.same(tensors["model.embed_tokens.weight"].floats(), self.model.embedding, "gptq: embedding")

    def gguf(self, file, exact):
        reader = gguf.GGUFReader(file)
        tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
        for module, weight in self.model.weights.items():
            self.same(tensors[gguf_name(module) + ".weight"], self.in_gguf_order(module, weight), f"gguf: {module}")
        self.same(tensors["output_norm.weight"], self.model.gains["model.norm"], "gguf: final norm")
        if exact:
            self.same(tensors["token_embd.weight"], self.model.embedding, "gguf: embedding")
            return
        requantized = gguf.quants.dequantize(gguf.quants.quantize(self.model.embedding, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0)
        error = np.abs(tensors["token_embd.weight"] - self.model.embedding).max()
        worst = np.abs(requantized - self.model.embedding).max()
        print(f"gguf: embedding in Q8_0 is off by {error:.3g} at most; the package gguf's own by {worst:.3g}")
        if error > 1.01 * worst:
            sys.exit("gguf: the embedding lost more than Q8_0 does")


    def adapters(self, peft, file):
        """B A of either adapter against B diag(gate of 1) A of the checkpoint, applied to random inputs."""
        config = json.loads((peft / "adapter_config.json").read_text())
        tensors, _ = spear_files.read_safetensors(peft / "adapter_model.safetensors")
        reader = gguf.GGUFReader(file)
        stored = {t.name: t.data for t in reader.tensors}
        alpha = reader.get_field("adapter.lora.alpha").contents()
        rng = np.random.default_rng(0)
        for module, weight in self.model.weights.items():
            x = rng.normal(size=(5, weight.shape[1])).astype(np.float32)
            compensator = self.model.compensators.get(module)
            expected = np.zeros((5, weight.shape[0]), np.float32) if compensator is None else compensator(x)
            a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].values for part in "AB")
            found = x @ a.T @ b.T * (config["lora_alpha"] / config["r"])
            self.near(found, expected, f"peft: {module}")
            name = gguf_name(module) + ".weight.lora_"
            if (name + "a" in stored) != (compensator is not None):
                sys.exit(f"gguf-lora: {module}: present in one of checkpoint and adapter")
            if compensator is not None:
                a, b = stored[name + "a"], stored[name + "b"]
                self.near(x @ a.T @ b.T * (alpha / b.shape[1]), self.in_gguf_order(module, expected.T).T, f"gguf-lora: {module}")

    def near(self, found, expected, what):
        error = np.linalg.norm(found - expected)
        if error > 1e-5 * np.linalg.norm(expected):
            sys.exit(f"{what}: off by {error:.3g} of {np.linalg.norm(expected):.3g}")
        self.compared += 1


def main():
    checker = Checker(sys.argv[1], sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        checker.gptq(checker.export("gptq", out / "gptq"))
        checker.gguf(checker.export("gguf", out / "a.gguf"), exact=False)
        checker.gguf(checker.export("gguf", out / "b.gguf", "--embeddings", "stored"), exact=True)
        gated = any(c.gate is not None for c in checker.model.compensators.values())
        if checker.model.compensators and not gated:
            checker.adapters(checker.export("peft", out / "peft"), checker.export("gguf-lora", out / "lora.gguf"))
    print(f"{checker.compared} tensors are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
