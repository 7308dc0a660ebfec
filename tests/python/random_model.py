#!/usr/bin/env python3
"""A Llama of random weights in bf16, in shards: for runs at a scale that no test needs.

    tests/python/random_model.py llama-1b /tmp/1b --tokenizer runs/smollm2-quick/tokenizer.json
    spear recover --model /tmp/1b --out /tmp/1b-out --dry-run

Written layer by layer, so memory stays at one matrix.
"""

import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

# layers, hidden_size, intermediate_size, heads, key-value heads
SHAPES = {"llama-1b": (16, 2048, 8192, 32, 8), "llama-3b": (28, 3072, 8192, 24, 8), "llama-7b": (32, 4096, 11008, 32, 32)}


def bf16(array):
    """Rounded to nearest even, as uint16."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_shard(path, shapes, make):
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            file.write(bf16(make(name, shape)).tobytes())
    return offset


def write_random_model(folder, shape, tokenizer, layers=None, seed=7):
    depth, hidden, intermediate, heads, kv_heads = SHAPES[shape]
    depth = layers or depth
    folder.mkdir(parents=True)
    vocabulary = json.loads(tokenizer.read_text())
    ids = list(vocabulary["model"]["vocab"].values()) + [token["id"] for token in vocabulary["added_tokens"]]
    vocab_size = (max(ids) + 64) // 64 * 64
    kv = hidden // heads * kv_heads
    rng = np.random.default_rng(seed)

    def make(name, shape):
        if len(shape) == 1:
            return 1 + 0.1 * rng.standard_normal(shape, dtype=np.float32)
        scale = shape[1] ** -0.5
        if "embed" in name:
            scale *= 4  # logits of a tied head spread by 4: neither one token for ever nor all alike
        return scale * rng.standard_normal(shape, dtype=np.float32)

    linears = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden),
               "mlp.gate_proj": (intermediate, hidden), "mlp.up_proj": (intermediate, hidden), "mlp.down_proj": (hidden, intermediate)}
    shards = [{"model.embed_tokens.weight": (vocab_size, hidden), "model.norm.weight": (hidden,)}]
    for layer in range(depth):
        prefix = f"model.layers.{layer}."
        shards.append({prefix + "input_layernorm.weight": (hidden,), prefix + "post_attention_layernorm.weight": (hidden,),
                       **{f"{prefix}{name}.weight": shape for name, shape in linears.items()}})
    total, where = 0, {}
    for i, shapes in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        total += write_shard(folder / name, shapes, make)
        where.update(dict.fromkeys(shapes, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": depth,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab_size, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16"}))
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json; its vocabulary is the model's")
    parser.add_argument("--layers", type=int, help="instead of the shape's own number")
    args = parser.parse_args()
    total = write_random_model(args.out, args.shape, args.tokenizer, args.layers)
    print(f"{args.out}: {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
