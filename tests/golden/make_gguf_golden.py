#!/usr/bin/env python3
"""Writes the GGUF goldens of tests/data: what the `gguf` package dequantizes, and one tiny model in two formats.

Needs: numpy, gguf, safetensors. Run: python3 tests/golden/make_gguf_golden.py
"""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

DATA = Path(__file__).resolve().parent.parent / "data"
QUANTIZED = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K]
# Byte offsets of the f16 scales in a block; everything else in it may be any bit pattern.
HALVES = {Type.Q4_1: (0, 2), Type.Q5_1: (0, 2), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}


def random_blocks(rng, qtype, rows, cols):
    """Random codes and random finite f16 scales of either sign, subnormals included."""
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    blocks = rng.integers(0, 256, (rows * cols // block, size), dtype=np.uint8)
    for offset in HALVES.get(qtype, (0,)):
        scale = (rng.normal(0, 1, len(blocks)) * 2.0 ** rng.integers(-24, 3, len(blocks))).astype(np.float16)
        blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def write_dequantization(rng):
    """Each tensor TYPE beside TYPE.expected, which is the gguf package's float32."""
    writer = gguf.GGUFWriter(DATA / "dequantize.gguf", "golden")
    floats = rng.normal(0, 1, (3, 256)).astype(np.float32)
    sources = {Type.F32: floats, Type.F16: floats.astype(np.float16).view(np.uint8),
               Type.BF16: gguf.quants.quantize(floats, Type.BF16)}
    for qtype in QUANTIZED:
        sources[qtype] = random_blocks(rng, qtype, 3, 256)
    for qtype, source in sources.items():
        writer.add_tensor(qtype.name, source, raw_dtype=qtype)
        writer.add_tensor(qtype.name + ".expected", gguf.quants.dequantize(source, qtype).reshape(3, 256))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCAB = 32, 64, 2, 2, 1, 40
LINEARS = {"self_attn.q_proj": ("attn_q", HIDDEN, HIDDEN), "self_attn.k_proj": ("attn_k", HIDDEN // 2, HIDDEN),
           "self_attn.v_proj": ("attn_v", HIDDEN // 2, HIDDEN), "self_attn.o_proj": ("attn_output", HIDDEN, HIDDEN),
           "mlp.gate_proj": ("ffn_gate", INTERMEDIATE, HIDDEN), "mlp.up_proj": ("ffn_up", INTERMEDIATE, HIDDEN),
           "mlp.down_proj": ("ffn_down", HIDDEN, INTERMEDIATE)}
LINEAR_TYPES = [Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.F16, Type.Q5_0, Type.BF16, Type.Q5_1]


def permute(weight, heads):
    """Row order of llama's q and k in GGUF files, as llama.cpp's converter defines it."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def store(writer, name, weight, qtype):
    """Adds a quantized tensor and returns what a reader must make of it."""
    data = weight.astype(np.float16) if qtype == Type.F16 else gguf.quants.quantize(weight, qtype)
    writer.add_tensor(name, data, raw_dtype=qtype)
    return data.astype(np.float32) if qtype == Type.F16 else gguf.quants.dequantize(data, qtype)


def unpermute(weight, heads):
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_model(rng):
    """tiny-llama.gguf and tiny-llama/: the same dequantized weights, permuted and as Hugging Face has them."""
    writer = gguf.GGUFWriter(DATA / "tiny-llama.gguf", "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_token_types([3, 3] + [1] * (VOCAB - 2))
    writer.add_token_merges(["t 1", "t 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages }}")

    def gain(name):
        value = (1 + 0.1 * rng.normal(size=HIDDEN)).astype(np.float32)
        writer.add_tensor(name, value)
        return value

    def linear(name, rows, cols, qtype, heads=0):
        weight = rng.normal(0, 0.2, (rows, cols)).astype(np.float32)
        stored = store(writer, name, permute(weight, heads) if heads else weight, qtype)
        return np.ascontiguousarray(unpermute(stored, heads) if heads else stored)

    tensors = {"model.embed_tokens.weight": linear("token_embd.weight", VOCAB, HIDDEN, Type.Q8_0),
               "model.norm.weight": gain("output_norm.weight")}
    for layer in range(LAYERS):
        hf, blk = f"model.layers.{layer}.", f"blk.{layer}."
        tensors[hf + "input_layernorm.weight"] = gain(blk + "attn_norm.weight")
        tensors[hf + "post_attention_layernorm.weight"] = gain(blk + "ffn_norm.weight")
        for i, (name, (short, rows, cols)) in enumerate(LINEARS.items()):
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(short, 0)
            qtype = LINEAR_TYPES[(i + layer) % len(LINEAR_TYPES)]
            tensors[hf + name + ".weight"] = linear(f"{blk}{short}.weight", rows, cols, qtype, heads)
    finish(writer)

    directory = DATA / "tiny-llama"
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    generator = np.random.default_rng(20260611)
    write_dequantization(generator)
    write_model(generator)
