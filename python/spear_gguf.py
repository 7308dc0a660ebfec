"""The GGUF file of a SPEAR checkpoint whose backbone is one, under Hugging Face names; values by the package `gguf`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spear_files import require

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
LINEARS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
           "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
           "mlp.down_proj": "ffn_down"}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm"}
GEMMA_NORMS = NORMS | {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                       "post_feedforward_layernorm": "post_ffw_norm"}
OUTSIDE = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}


def read_gguf(path: Path) -> GgufTensors:
    """Whatever is wrong with the file is a ValueError."""
    try:
        return GgufTensors(path)
    except (KeyError, IndexError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error


class GgufTensors:
    """As spear_reader.TensorFile, for what holds no packed tensors: names, and float32 values of a shape."""

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError as error:
            raise ValueError(f"{path}: reading it needs the package gguf") from error
        self.where, reader = str(path), gguf.GGUFReader(path)
        self.dequantize = gguf.quants.dequantize
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.fields = {name: field for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        self.architecture = self._field("general.architecture")
        require(self.architecture in FAMILIES, f"{path}: architecture {self.architecture!r} is not supported")
        require("rope_freqs.weight" not in self.tensors, f"{path}: factors of rotations are not supported here")
        self.config = self._config()

    def _field(self, name: str, default=None):
        return self.fields[name].contents() if name in self.fields else default

    def _config(self) -> dict:
        """What SpearModel asks of config.json."""
        keys = {"num_hidden_layers": "block_count", "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
                "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
                "head_dim": "attention.key_length", "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base"}
        prefix = self.architecture + "."
        config = {name: self._field(prefix + key) for name, key in keys.items()}
        config = {name: value for name, value in config.items() if value is not None}
        config |= {"model_type": FAMILIES[self.architecture], "vocab_size": int(self.tensors["token_embd.weight"].shape[1]),
                   "tie_word_embeddings": "output.weight" not in self.tensors, "attention_bias": "blk.0.attn_output.bias" in self.tensors}
        require(self._field(prefix + "rope.scaling.type", "none") == "none", f"{self.where}: RoPE scaling is not supported here")
        if self.architecture == "gemma3":
            # What llama.cpp's graph of the family fixes.
            pattern, heads = int(self._field(prefix + "attention.sliding_window_pattern", 6)), int(config["head_dim"])
            config["layer_types"] = ["full_attention" if (n + 1) % pattern == 0 else "sliding_attention" for n in range(config["num_hidden_layers"])]
            config |= {"sliding_window": self._field(prefix + "attention.sliding_window"), "query_pre_attn_scalar": heads,
                       "rope_local_base_freq": float(self._field(prefix + "rope.freq_base_swa", 10000.0))}
        return config

    def _stored_name(self, name: str) -> str:
        base, part = name.rsplit(".", 1)
        if base in OUTSIDE:
            return f"{OUTSIDE[base]}.{part}"
        layer, module = base.removeprefix("model.layers.").split(".", 1)
        norms = GEMMA_NORMS if self.architecture == "gemma3" else NORMS
        return f"blk.{layer}.{(LINEARS | norms)[module]}.{part}"

    def __contains__(self, name: str) -> bool:
        return self._stored_name(name) in self.tensors

    def floats(self, name: str, shape: tuple) -> np.ndarray:
        stored = self._stored_name(name)
        require(stored in self.tensors, f"{self.where}: tensor {stored} is missing")
        tensor = self.tensors[stored]
        values = self.dequantize(np.asarray(tensor.data), tensor.tensor_type).astype(np.float32)
        require(values.shape == shape, f"{self.where}: {stored}: shape {values.shape} instead of {shape}")
        require(bool(np.isfinite(values).all()), f"{self.where}: {stored}: holds NaN or infinity")
        if self.architecture == "llama" and stored.split(".")[-2] in ("attn_q", "attn_k"):  # back to halves
            head_dim = int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])
            pairs = values.reshape(-1, head_dim // 2, 2, values.size // len(values))
            values = pairs.swapaxes(1, 2).reshape(shape)
        if self.architecture == "gemma3" and stored.endswith("_norm.weight"):  # the file holds the sum
            values = values - np.float32(1)
        return values
