#!/usr/bin/env python3
"""Writes tests/data/quantized/*: tiny Llamas in GPTQ (both formats), AWQ gemm and compressed-tensors with act-order, packed
by the formats' public descriptions, each with expected.safetensors: what w = s * (q - z) gives. Independent of our code.

Needs: numpy, safetensors. Run: python3 tests/golden/make_gptq_golden.py
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DATA = Path(__file__).resolve().parents[1] / "data"
HIDDEN, INTERMEDIATE, KV, VOCAB = 64, 128, 32, 40


def linears(intermediate):
    return {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (intermediate, HIDDEN), "mlp.up_proj": (intermediate, HIDDEN),
            "mlp.down_proj": (HIDDEN, intermediate)}


def pack(nibbles, order=range(8)):
    """[..., 8n] codes to [..., n] words: logical nibble j goes to physical nibble order[j]."""
    grouped = nibbles.astype(np.uint32).reshape(*nibbles.shape[:-1], -1, 8)
    words = np.zeros(grouped.shape[:-1], np.uint32)
    for j, place in enumerate(order):
        words |= grouped[..., j] << np.uint32(4 * place)
    return words.view(np.int32)


def gptq(q, z, s, group_of, v1):
    stored = z - 1 if v1 else z
    return {"qweight": pack(q).T.copy(),
            "qzeros": pack((stored & 15).T), "scales": s.T.astype(np.float16).copy(), "g_idx": group_of.astype(np.int32)}


def awq(q, z, s, group_of, v1):
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    return {"qweight": pack(q.T, order), "qzeros": pack(z.T, order), "scales": s.T.astype(np.float16).copy()}


def compressed_tensors(q, z, s, group_of, v1):
    """Codes stay in the order of the columns; zero points are packed along the outputs."""
    rows, cols = q.shape
    return {"weight_packed": pack(q), "weight_scale": s.astype(np.float16), "weight_zero_point": pack(z.T).T,
            "weight_shape": np.array([rows, cols], np.int64), "weight_g_idx": group_of.astype(np.int32)}


def write(name, packer, config, group, symmetric, v1=False, biases=False, order=None, intermediate=INTERMEDIATE):
    """order: True, groups are a random partition, another in every linear; "shared", one for linears of one input."""
    orders = {}
    rng = np.random.default_rng(len(name))
    tensors, expected = {}, {}
    tensors["model.embed_tokens.weight"] = rng.normal(0, 1, (VOCAB, HIDDEN)).astype(np.float16)
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float16)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.0.{norm}.weight"] = np.ones(HIDDEN, np.float16)
    for linear, (rows, cols) in linears(intermediate).items():
        module = f"model.layers.0.{linear}"
        groups = 1 if group == -1 else -(-cols // group)
        group_of = np.arange(cols) // (cols if group == -1 else group)
        if order == "shared":
            group_of = orders.setdefault(linear[:6] + str(cols) if linear != "self_attn.o_proj" else linear, rng.permutation(group_of))
        elif order is not None:
            group_of = rng.permutation(group_of)
        q = rng.integers(0, 16, (rows, cols))
        z = np.full((rows, groups), 8) if symmetric else rng.integers(1, 16, (rows, groups))
        s = rng.uniform(0.01, 0.1, (rows, groups)).astype(np.float16)
        for key, value in packer(q, z, s, group_of, v1).items():
            if not (symmetric and key == "weight_zero_point"):
                tensors[f"{module}.{key}"] = np.ascontiguousarray(value)
        if biases:
            tensors[f"{module}.bias"] = np.zeros(rows, np.float16)
        expected[module] = (s.astype(np.float32)[:, group_of] * (q - z[:, group_of])).astype(np.float32)
    folder = DATA / "quantized" / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    save_file({"model.layers.0.mlp.down_proj": expected["model.layers.0.mlp.down_proj"], "model.layers.0.self_attn.k_proj": expected["model.layers.0.self_attn.k_proj"]},
              folder / "expected.tensors")
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": intermediate,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float16",
        "quantization_config": config}, indent=1) + "\n")


GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False}
write("gptq-v1-sym-g32", gptq, {**GPTQ, "group_size": 32, "sym": True}, 32, True, v1=True, biases=True)
write("gptq-v1-asym-g64", gptq, {**GPTQ, "group_size": 64, "sym": False, "checkpoint_format": "gptq"}, 64, False, v1=True)
write("gptq-v2-asym-channel", gptq, {**GPTQ, "group_size": -1, "sym": False, "checkpoint_format": "gptq_v2", "desc_act": True}, -1, False)
write("gptq-act-order", gptq, {**GPTQ, "group_size": 32, "sym": True, "desc_act": True}, 32, True, v1=True, order=True)
ACT_ORDER = {**GPTQ, "desc_act": True}
write("gptq-v1-act-order-asym-g128", gptq, {**ACT_ORDER, "group_size": 128, "sym": False, "checkpoint_format": "gptq"}, 128, False, v1=True, order="shared", intermediate=256)
write("gptq-v2-act-order-asym-g32", gptq, {**ACT_ORDER, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"}, 32, False, order="shared")
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm"}
write("awq-asym-g64", awq, {**AWQ, "group_size": 64, "zero_point": True}, 64, False)


def ct_config(group, symmetric):
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group, "dynamic": False, "actorder": "group"}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


write("ct-act-order-sym-g32", compressed_tensors, ct_config(32, True), 32, True, order="shared")
# The last group is shorter: 192 = 128 + 64.
write("ct-act-order-asym-g128", compressed_tensors, ct_config(128, False), 128, False, order=True, intermediate=192)
