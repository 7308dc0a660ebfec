"""A small random Llama in the Hugging Face layout, with a real (small) tokenizer."""

import json
import struct
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests" / "data" / "text" / "small_tokenizer.json"


def write_safetensors(path, tensors):
    """tensors: name -> float32 array."""
    header, offset = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, np.float32).tobytes())


def write_tiny_model(folder, hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, positions=2048, seed=7):
    folder = Path(folder)
    folder.mkdir(parents=True)
    tokenizer = json.loads(TOKENIZER.read_text())
    ids = list(tokenizer["model"]["vocab"].values()) + [token["id"] for token in tokenizer["added_tokens"]]
    vocabulary = (max(ids) + 8) // 8 * 8
    rng = np.random.default_rng(seed)

    def matrix(rows, cols):
        return (rng.standard_normal((rows, cols)) * 1.5 / np.sqrt(cols)).astype(np.float32)

    kv = hidden // heads * kv_heads
    tensors = {"model.embed_tokens.weight": rng.standard_normal((vocabulary, hidden)).astype(np.float32), "model.norm.weight": np.ones(hidden, np.float32)}
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}{norm}.weight"] = (1 + 0.1 * rng.standard_normal(hidden)).astype(np.float32)
        shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden),
                  "mlp.gate_proj": (intermediate, hidden), "mlp.up_proj": (intermediate, hidden), "mlp.down_proj": (hidden, intermediate)}
        for linear, (rows, cols) in shapes.items():
            tensors[f"{name}{linear}.weight"] = matrix(rows, cols)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": positions, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": None}))
    (folder / "tokenizer.json").write_text(TOKENIZER.read_text())
    return folder
