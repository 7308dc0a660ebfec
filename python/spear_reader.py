"""Reads a SPEAR checkpoint and runs it in numpy float32: no torch, no C++.

An independent reading of docs/checkpoint.md, meant as a way in for researchers and as an oracle for `spear eval`:

    python -m spear_reader CHECKPOINT --text FILE --context 1024 --windows 20

Needs numpy; `tokenizers` only to tokenize text (--ids takes token ids instead), and `gguf` only for checkpoints whose
backbone is a GGUF file. Also reads plain Hugging Face
directories of the families llama, mistral, qwen2, qwen3 and gemma3_text (F32, F16, BF16) whose config.json names what
has a default.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spear_families import Family, rotate, silu, softmax
from spear_files import CheckpointError, TensorFile, read_json, require
from spear_gguf import read_gguf


# ---------------------------------------------------------------- 4-bit weights


def unpack_nibbles(words: np.ndarray, count: int) -> np.ndarray:
    """[..., n] 32-bit words -> [..., count] codes 0..15; nibble i of a word is element i."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    codes = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(15)
    return codes.reshape(*words.shape[:-1], -1)[..., :count].astype(np.uint8)


@dataclass
class Scheme:
    group_size: int = 0  # 0: one scale per row
    symmetric: bool = True


def parse_scheme(config: dict) -> Scheme:
    quantization = config["quantization_config"]
    for field, expected in (("quant_method", "compressed-tensors"), ("format", "pack-quantized")):
        require(quantization.get(field) == expected, f"config.json: {field} must be {expected}")
    (group,) = quantization["config_groups"].values()  # any other number of groups is an error
    weights = group["weights"]
    require(
        weights["num_bits"] == 4 and weights.get("type", "int") == "int", "config.json: only 4-bit integers are read"
    )
    strategy, size = weights.get("strategy"), weights.get("group_size")
    known = strategy == "channel" or (strategy == "group" and size in (32, 64, 128))
    require(known, f"config.json: strategy {strategy!r} with group_size {size!r} is not supported")
    return Scheme(size if strategy == "group" else 0, weights.get("symmetric", True))


def read_groups(file: TensorFile, name: str, inp: int, group: int, groups: int) -> np.ndarray:
    """[inp]: the group of each column, where groups do not follow the columns."""
    stored = file.take(name, (inp,)).values
    require(stored.dtype.kind == "i", f"{file.where}: {name}: not integers")
    if (stored == -1).all():  # said of groups that do follow them
        return np.arange(inp) // group
    require(bool(((stored >= 0) & (stored < groups)).all()), f"{file.where}: {name}: a group that does not exist")
    sizes = np.minimum(group, inp - group * np.arange(groups))
    require(bool((np.bincount(stored, minlength=groups) == sizes).all()), f"{file.where}: {name}: groups of other sizes")
    return stored.astype(np.int64)


def read_weight(file: TensorFile, module: str, out: int, inp: int, scheme: Scheme | None) -> np.ndarray:
    """[out, in] float32, dequantized if packed."""
    if f"{module}.weight" in file:
        return file.floats(f"{module}.weight", (out, inp))
    require(scheme is not None, f"{file.where}: {module} has no weight")
    shape = file.take(f"{module}.weight_shape", (2,)).values
    require(shape.tolist() == [out, inp], f"{file.where}: {module}.weight_shape is {shape.tolist()}, not {[out, inp]}")
    group = scheme.group_size or inp
    groups = -(-inp // group)
    codes = unpack_nibbles(file.take(f"{module}.weight_packed", (out, -(-inp // 8)), "I32").values, inp)
    scale = file.floats(f"{module}.weight_scale", (out, groups))
    zero = np.full((out, groups), 8, np.uint8)
    if not scheme.symmetric:
        packed = file.take(f"{module}.weight_zero_point", (-(-out // 8), groups), "I32").values
        zero = unpack_nibbles(np.ascontiguousarray(packed.T), out).T  # packed along the rows
    spread = np.arange(inp) // group
    if f"{module}.weight_g_idx" in file:
        spread = read_groups(file, f"{module}.weight_g_idx", inp, group, groups)
    return (codes.astype(np.float32) - zero.astype(np.float32)[:, spread]) * scale[:, spread]


# ---------------------------------------------------------------- compensators


@dataclass
class Compensator:
    """y += B (g * z): a [rank + gate_rows, in], b [out, rank]; gate (W1, b1, W2, b2) or None for g = 1."""

    rank: int
    a: np.ndarray
    b: np.ndarray
    gate: tuple[np.ndarray, ...] | None

    def gate_values(self, u: np.ndarray) -> np.ndarray:
        """u [n, rank + gate_rows] -> g [n, rank]."""
        if self.gate is None:
            return np.ones((len(u), self.rank), np.float32)
        w1, b1, w2, b2 = self.gate
        return 1 + np.tanh(silu(u @ w1.T + b1) @ w2.T + b2)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        u = x @ self.a.T
        return (self.gate_values(u) * u[:, : self.rank]) @ self.b.T


def read_compensators(path: Path, shapes: dict[str, tuple[int, int]]) -> dict[str, Compensator]:
    """shapes: (out, in) of every linear module by name."""
    file = TensorFile([path])
    version, kind = file.metadata.get("format_version"), file.metadata.get("gate")
    require(version == "1", f"{path}: format version {version!r} is unknown")
    require(kind in ("none", "mlp"), f"{path}: gate kind {kind!r} is unknown")
    try:
        modules = json.loads(file.metadata["modules"])
        entries = {m: (int(e["rank"]), int(e["gate_rows"]), str(e.get("a", m))) for m, e in modules.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata 'modules' is malformed ({error})") from error
    result = {}
    for module, (rank, gate_rows, holder) in entries.items():
        require(module in shapes and holder in shapes, f"{path}: {module}: the model has no such module")
        require(rank >= 1 and gate_rows >= 0, f"{path}: {module}: rank {rank}, gate rows {gate_rows}")
        (out, inp), rows = shapes[module], rank + gate_rows
        require(shapes[holder][1] == inp, f"{path}: {module}: shares A with {holder}, which reads another input")
        part = f"{module}.compensator."
        a = file.take(f"{holder}.compensator.A", (rows, inp), "I8").values.astype(np.float32)
        a *= file.floats(f"{holder}.compensator.A_scale", (rows,), "F16")[:, None]
        b = file.take(part + "B", (out, rank), "I8").values.astype(np.float32)
        b *= file.floats(part + "B_scale", (rank,), "F16")
        gate = None
        if part + "gate.b1" in file:
            require(kind == "mlp", f"{path}: {module} has a gate in a file without gates")
            hidden = file.tensors[part + "gate.b1"].values.size
            sizes = {"W1": (hidden, rows), "b1": (hidden,), "W2": (rank, hidden), "b2": (rank,)}
            gate = tuple(file.floats(f"{part}gate.{name}", size, "BF16") for name, size in sizes.items())
        result[module] = Compensator(rank, a, b, gate)
    for name in file.tensors.keys() - file.used:
        raise CheckpointError(f"{path}: {name} belongs to no compensator")
    return result


# ---------------------------------------------------------------- the model


class SpearModel:
    """weights: module name -> [out, in] float32; compensators: module name -> Compensator."""

    def __init__(self, path: str | Path, use_compensators: bool = True):
        path = Path(path)
        described, inside = path / "config.json", path / "model.gguf"
        gguf = read_gguf(inside) if inside.exists() and not described.exists() else None
        described = inside if gguf else described
        self.config = gguf.config if gguf else read_json(described)
        try:
            scheme = self._read_config(self.config)
        except (KeyError, TypeError, AttributeError, ZeroDivisionError, ValueError) as error:
            raise CheckpointError(f"{described}: missing or malformed field: {error}") from error
        file = gguf or TensorFile(self._weight_files(path))
        q, kv, d, inner = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden, self.intermediate
        kinds = {f"self_attn.{p}_proj": shape for p, shape in zip("qkvo", ((q, d), (kv, d), (kv, d), (d, q)))}
        kinds |= {"mlp.gate_proj": (inner, d), "mlp.up_proj": (inner, d), "mlp.down_proj": (d, inner)}
        shapes = {f"model.layers.{n}.{kind}": shape for n in range(self.layers) for kind, shape in kinds.items()}
        self.weights = {module: read_weight(file, module, *shape, scheme) for module, shape in shapes.items()}
        self.embedding = file.floats("model.embed_tokens.weight", (self.vocab, d))
        tied = self.config.get("tie_word_embeddings", self.family.output_norms) and "lm_head.weight" not in file
        self.head = self.embedding if tied else file.floats("lm_head.weight", (self.vocab, d))
        c = self.family
        norms = {f"model.layers.{n}.{norm}": size for n in range(self.layers) for norm, size in c.norms.items()}
        norms["model.norm"] = d
        self.gains = {name: file.floats(name + ".weight", (size,)) + c.gain_offset for name, size in norms.items()}
        biased = [module for module in shapes if module.split(".", 3)[3] in c.biased]
        self.biases = {module: file.floats(module + ".bias", (shapes[module][0],)) for module in biased}
        sidecar = path / "compensators.safetensors"
        self.compensators = read_compensators(sidecar, shapes) if use_compensators and sidecar.exists() else {}

    def _read_config(self, config: dict) -> Scheme | None:
        self.layers, self.hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
        self.intermediate, self.vocab = int(config["intermediate_size"]), int(config["vocab_size"])
        self.heads = int(config["num_attention_heads"])
        self.kv_heads = int(config.get("num_key_value_heads") or self.heads)
        self.head_dim = int(config.get("head_dim") or self.hidden // self.heads)
        self.eps = float(config.get("rms_norm_eps", 1e-6))
        require(1 <= self.layers <= 10000 and self.heads % self.kv_heads == 0, "layers or heads make no sense")
        self.family = Family(config, self.hidden, self.layers, self.head_dim)
        return parse_scheme(config) if "quantization_config" in config else None

    @staticmethod
    def _weight_files(path: Path) -> list[Path]:
        index = path / "model.safetensors.index.json"
        if not index.exists():
            require((path / "model.safetensors").exists(), f"{path}: no model.safetensors")
            return [path / "model.safetensors"]
        names = sorted({str(name) for name in dict(read_json(index).get("weight_map") or {}).values()})
        require(bool(names) and all(Path(n).name == n for n in names), f"{index}: malformed weight_map")
        return [path / name for name in names]

    def linear(self, module: str, x: np.ndarray) -> np.ndarray:
        y = x @ self.weights[module].T
        if module in self.biases:
            y = y + self.biases[module]
        compensator = self.compensators.get(module)
        return y if compensator is None else y + compensator(x)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """x unchanged if the family has no such norm."""
        if name not in self.gains:
            return x
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.eps)) * self.gains[name]

    def attention(self, n: int, x: np.ndarray) -> np.ndarray:
        tokens, module, local = len(x), f"model.layers.{n}.self_attn.", self.family.local[n]
        q, k, v = (self.linear(f"{module}{p}_proj", x).reshape(tokens, -1, self.head_dim) for p in "qkv")
        frequencies = self.family.frequencies[local]
        q, k = (rotate(self.norm(f"{module}{p}_norm", h), frequencies) for p, h in (("q", q), ("k", k)))
        hidden = np.triu(np.ones((tokens, tokens), bool), 1)
        if local:
            hidden |= np.tril(np.ones((tokens, tokens), bool), -self.family.window)
        out = np.empty_like(q)
        for head in range(self.heads):
            kv = head * self.kv_heads // self.heads
            scores = q[:, head] @ k[:, kv].T * np.float32(self.family.score_scale)
            out[:, head] = softmax(np.where(hidden, np.float32(-np.inf), scores)) @ v[:, kv]
        return self.linear(f"{module}o_proj", out.reshape(tokens, -1))

    def hidden_states(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [n] -> final normalized hidden states [n, hidden_size]."""
        c, x = self.family, self.embedding[ids] * np.float32(self.family.embedding_scale)
        if c.rotation is not None:
            x = x @ c.rotation
        for n in range(self.layers):
            layer = f"model.layers.{n}."
            attended = self.attention(n, self.norm(layer + "input_layernorm", x))
            x = x + (self.norm(layer + "post_attention_layernorm", attended) if c.output_norms else attended)
            y = self.norm(layer + ("pre_feedforward_layernorm" if c.output_norms else "post_attention_layernorm"), x)
            y = c.activation(self.linear(layer + "mlp.gate_proj", y)) * self.linear(layer + "mlp.up_proj", y)
            x = x + self.norm(layer + "post_feedforward_layernorm", self.linear(layer + "mlp.down_proj", y))
        return self.norm("model.norm", x if c.rotation is None else x @ c.rotation.T)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [n] -> [n, vocab_size]."""
        return self.hidden_states(ids) @ self.head.T

    def window_nll(self, ids: np.ndarray, rows: int = 512) -> float:
        """Sum over ids[1:] of -log p(id | those before), in nats."""
        hidden, total = self.hidden_states(ids), 0.0
        for begin in range(0, len(ids) - 1, rows):
            targets = ids[1 + begin : 1 + begin + rows]
            logits = hidden[begin : begin + len(targets)] @ self.head.T
            largest = logits.max(axis=-1)
            sums = np.exp(logits - largest[:, None]).sum(axis=-1, dtype=np.float64)
            total += float((np.log(sums) + largest - logits[np.arange(len(targets)), targets]).sum())
        return total


def perplexity(model: SpearModel, ids: np.ndarray, context: int, windows: int, progress=None) -> dict:
    """Over the first `windows` windows of `context` tokens that do not overlap; nothing is added in front."""
    ids = np.asarray(ids, dtype=np.int64)
    require(context >= 2 and windows >= 1, "context must be 2 or more, windows 1 or more")
    require(len(ids) >= context * windows, f"the text has {len(ids)} tokens, {context * windows} are needed")
    ids = ids[: context * windows].reshape(windows, context)
    require(bool(((ids >= 0) & (ids < model.vocab)).all()), f"a token id is outside the vocabulary of {model.vocab}")
    sums = []
    for window in ids:
        sums.append(model.window_nll(window))
        if progress:
            progress(len(sums), math.exp(sum(sums) / (len(sums) * (context - 1))))
    tokens = windows * (context - 1)
    result = {"perplexity": math.exp(sum(sums) / tokens), "tokens": tokens, "windows": windows, "context": context}
    return {**result, "window_nll": sums}


def read_ids(checkpoint: Path, text: str | None, ids: str | None, context: int) -> np.ndarray:
    if ids is not None and ids.endswith(".npy"):
        return np.load(ids, allow_pickle=False).ravel()
    if ids is not None:
        return np.array(Path(ids).read_text().split(), dtype=np.int64)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise CheckpointError("--text needs the package tokenizers; --ids needs nothing") from error
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    content = Path(text).read_bytes().decode("utf-8")
    ids = np.array(tokenizer.encode(content, add_special_tokens=False).ids, dtype=np.int64)
    # What the model's sequences begin with (BOS) takes the place of each window's first token.
    if opening := tokenizer.encode("").ids:
        ids[::context] = opening[0]
    return ids


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="spear_reader", description="Perplexity of a SPEAR checkpoint, in numpy.")
    parser.add_argument("checkpoint", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="UTF-8 text")
    source.add_argument("--ids", help="token ids: .npy, or text separated by white space")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--no-compensators", action="store_true", help="the 4-bit model alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        ids = read_ids(options.checkpoint, options.text, options.ids, options.context)
        model = SpearModel(options.checkpoint, not options.no_compensators)

        def show(done: int, so_far: float) -> None:
            print(f"window {done}/{options.windows}: {so_far:.4f}", file=sys.stderr)

        result = perplexity(model, ids, options.context, options.windows, show)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    line = f"perplexity {result['perplexity']:.4f} over {result['tokens']} tokens"
    print(json.dumps(result) if options.json else line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
