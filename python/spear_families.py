"""What the model families add to the plain decoder: norms, biases, activations, windows, rotations (docs/formats.md)."""

from __future__ import annotations

import math

import numpy as np

from spear_files import require


def silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def rope_frequencies(theta: float, head_dim: int, scaling: dict | None) -> np.ndarray:
    """Radians per position of each pair: plain, or stretched by `linear` or `llama3`."""
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
    require(kind in ("default", "linear", "llama3"), f"rope_type {kind!r} is not supported")
    if kind == "default":
        return frequencies
    factor = float(scaling["factor"])
    if kind == "linear":
        return frequencies / factor
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - kept) / factor + kept) * frequencies


def softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def rotate(x: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Rotary embedding of [n, heads, head_dim] at positions 0..n-1; the halves of a head form the pairs."""
    half = x.shape[-1] // 2
    angles = np.outer(np.arange(len(x)), frequencies)
    cos, sin = (f(angles).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def stream_rotation(n: int) -> np.ndarray:
    """Q [n, n] of docs/checkpoint.md: signs, then a cosine transform of n's odd part times a Hadamard matrix."""
    odd = n // (n & -n)
    z = np.arange(n, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    signs = np.where((z ^ (z >> np.uint64(31))) >> np.uint64(63), -1.0, 1.0)
    k = np.arange(odd)
    cosine = np.cos(np.pi / odd * np.outer(k, k + 0.5)) * np.sqrt(2 / odd)
    cosine[0] /= np.sqrt(2)
    hadamard = np.ones((1, 1))
    while len(hadamard) < n // odd:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]]) / np.sqrt(2)
    return (signs[:, None] * np.kron(cosine.T, hadamard)).astype(np.float32)


class Family:
    """What a model family adds to the plain decoder, from the config.json that SPEAR writes (docs/formats.md)."""

    def __init__(self, config: dict, hidden: int, layers: int, head_dim: int):
        kind, self.rotation = config["model_type"], None
        if "spear_stream_rotation" in config:
            require(config["spear_stream_rotation"] == "dct-hadamard/1", "the rotation of the stream is unknown")
            kind, self.rotation = kind.removeprefix("spear_"), stream_rotation(hidden)
        known = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
        require(kind in known, f"architecture {kind!r} is not supported")
        gemma = self.output_norms = kind == "gemma3_text"
        for option in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
            require(not config.get(option), f"{option} is not supported")
        self.norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        if gemma:
            self.norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
        if gemma or kind == "qwen3":
            self.norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}
        self.gain_offset = np.float32(1 if gemma else 0)
        attention_bias = bool(config.get("attention_bias"))
        self.biased = {f"self_attn.{p}_proj" for p in "qkv" if attention_bias or kind == "qwen2"}
        self.biased |= {"self_attn.o_proj"} if attention_bias else set()
        self.biased |= {f"mlp.{p}_proj" for p in ("gate", "up", "down") if config.get("mlp_bias")}
        act = config.get("hidden_activation" if gemma else "hidden_act", "gelu_pytorch_tanh" if gemma else "silu")
        require(act in ("silu", "gelu_pytorch_tanh"), f"activation {act!r} is not supported")
        self.activation = silu if act == "silu" else gelu_tanh
        self.score_scale = float(config.get("query_pre_attn_scalar", 256) if gemma else head_dim) ** -0.5
        self.embedding_scale = float(config.get("embedding_scale", math.sqrt(hidden)) if gemma else 1)
        self.window, types = int(config.get("sliding_window") or 0), config.get("layer_types")
        if kind == "mistral":
            types = ["sliding_attention" if self.window else "full_attention"] * layers
        elif types is None and kind.startswith("qwen") and config.get("use_sliding_window"):
            first = int(config.get("max_window_layers", 28))
            types = ["full_attention" if n < first else "sliding_attention" for n in range(layers)]
        elif types is None and gemma:
            pattern = int(config.get("sliding_window_pattern", 6))
            types = ["sliding_attention" if (n + 1) % pattern else "full_attention" for n in range(layers)]
        self.local = [t == "sliding_attention" for t in types or ["full_attention"] * layers]
        require(len(self.local) == layers and (self.window > 0 or not any(self.local)), "layer_types or sliding_window")
        rope, scaling = config.get("rope_parameters") or {}, config.get("rope_scaling")
        require(not (gemma and rope), "rope_parameters by layer type are not read")
        theta = float(rope.get("rope_theta") or config.get("rope_theta", 1e6 if gemma else 1e4))
        plain = rope_frequencies(theta, head_dim, scaling or rope)
        local_theta = float(config.get("rope_local_base_freq", 1e4))
        # By locality.
        self.frequencies = (plain, rope_frequencies(local_theta, head_dim, None) if gemma else plain)
