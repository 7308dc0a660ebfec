#!/usr/bin/env python3
"""Writes tests/data/family-golden/: tiny random models of every family as Hugging Face directories, some as GGUF too,
and their logits.

Weights are rounded to each model's stored type before the forward pass, which runs in float32 (Gemma's embedding scale
as its stored type rounds it). GGUF files hold the same weights in float32 under llama.cpp's names.
Needs: transformers 5.24.0 (with any torch it takes), safetensors, gguf 0.19.0. With other versions it refuses to run.
Run: python3 tests/golden/make_family_golden.py
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

OUTPUT = Path(__file__).resolve().parent.parent / "data" / "family-golden"
BATCH, LENGTH = 2, 29
SIZES = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 41, "max_position_embeddings": 64,
         "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 1}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}

# name: (model_type, fields of config.json). Each file is what transformers reads, in the words of old or new versions.
MODELS = {
    "llama3": ("llama", {"rope_theta": 50000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear-biases": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 900.0},
                                      "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh",
                                      "tie_word_embeddings": False, "torch_dtype": "bfloat16"}),
    "mistral-window": ("mistral", {"sliding_window": 6, "rope_theta": 1000.0, "torch_dtype": "bfloat16"}),
    "mistral-plain": ("mistral", {"sliding_window": None, "tie_word_embeddings": True, "num_key_value_heads": 4,
                                  "torch_dtype": "float16"}),
    "qwen2": ("qwen2", {"rope_theta": 1000000.0, "tie_word_embeddings": True, "sliding_window": 5,
                        "use_sliding_window": False, "max_window_layers": 1, "head_dim": None}),
    "qwen2-window": ("qwen2", {"rope_theta": 10000.0, "tie_word_embeddings": False, "use_sliding_window": True,
                               "sliding_window": 5, "max_window_layers": 1, "num_hidden_layers": 3,
                               "torch_dtype": "bfloat16"}),
    "qwen3": ("qwen3", {"rope_theta": 1000000.0, "tie_word_embeddings": True, "head_dim": 10}),
    "qwen3-biases": ("qwen3", {"rope_theta": 5000.0, "tie_word_embeddings": False, "attention_bias": True,
                               "layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True,
                               "sliding_window": 4, "torch_dtype": "float16"}),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 4, "sliding_window": 5, "sliding_window_pattern": 3,
                               "query_pre_attn_scalar": 11, "rope_theta": 20000.0, "rope_local_base_freq": 300.0,
                               "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "gemma3-new": ("gemma3_text", {"num_hidden_layers": 3, "sliding_window": 7, "num_key_value_heads": 1,
                                   "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                                   "query_pre_attn_scalar": 8, "attention_bias": True, "torch_dtype": "bfloat16",
                                   "hidden_activation": "gelu_pytorch_tanh",
                                   "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 7000.0},
                                                       "sliding_attention": {"rope_type": "default",
                                                                             "rope_theta": 100.0}}}),
    # The options that GGUF files leave to llama.cpp's graph.
    "gemma3-gguf": ("gemma3_text", {"num_hidden_layers": 7, "hidden_size": 16, "intermediate_size": 20, "head_dim": 4,
                                    "sliding_window": 6, "query_pre_attn_scalar": 4, "rope_theta": 1000000.0}),
    "llama-gguf": ("llama", {"rope_theta": 500000.0, "tie_word_embeddings": False, "attention_bias": True,
                             "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
                             "max_position_embeddings": 131072}),
}
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
           "qwen3": "Qwen3ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
GGUF = {"gemma3-gguf": "gemma3", "llama-gguf": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "mistral-plain": "llama"}
GGUF_PARTS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "self_attn.q_norm": "attn_q_norm",
              "self_attn.k_norm": "attn_k_norm"}
GGUF_NORMS = {True: {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                     "post_feedforward_layernorm": "post_ffw_norm"},
              False: {"post_attention_layernorm": "ffn_norm"}}


def random_state(model, dtype, gemma, generator):
    """Weights large enough that attention is far from uniform and no output is negligible."""
    state = {}
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = (0.0 if gemma else 1.0) + 0.3 * noise
        elif name.endswith(".bias"):
            value = 0.5 * noise
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            size = 1.0 if "embed" in name or "lm_head" in name and model.config.tie_word_embeddings else None
            value = gain * noise / (size or parameter.shape[1] ** 0.5)
        state[name] = value.to(dtype)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def interleave(rows, heads):
    """llama.cpp's order of rotary pairs (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, arch, config, text, state):
    gemma = arch == "gemma3"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(text.get("rope_theta", 10000.0))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if gemma:
        writer.add_sliding_window(config.sliding_window)
    scaling = text.get("rope_scaling")
    if scaling:
        frequencies = text["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / ((1 - kept) / scaling["factor"] + kept)).astype(np.float32))
    for name, value in state.items():
        value = value.float().numpy()
        if gemma and "norm" in name:
            value = value + 1
        if name.startswith("model.layers."):
            layer, part, kind = name.split(".", 2)[2].split(".", 1)[0], *name.split(".", 3)[3].rsplit(".", 1)
            if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                value = interleave(value, config.num_attention_heads if "q_proj" in part else config.num_key_value_heads)
            target = f"blk.{layer}.{ {**GGUF_PARTS, **GGUF_NORMS[gemma]}[part]}.{kind}"
        else:
            target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                      "lm_head.weight": "output.weight"}[name]
        writer.add_tensor(target, np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(name, model_type, fields, generator):
    text = {"architectures": [CLASSES[model_type]], "model_type": model_type, "torch_dtype": "float32", **SIZES, **fields}
    if text["head_dim"] is None:
        del text["head_dim"]
    folder = OUTPUT / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(text, indent=1) + "\n")
    config = transformers.AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    dtype = getattr(torch, text["torch_dtype"])
    config.dtype = torch.float32
    model = getattr(transformers, CLASSES[model_type])(config).float().eval()
    gemma = model_type == "gemma3_text"
    state = random_state(model, dtype, gemma, generator)
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
    model.tie_weights()
    if gemma:
        embedding = model.model.embed_tokens
        embedding.embed_scale = embedding.embed_scale.to(dtype).float()
    tokens = torch.randint(0, config.vocab_size, (BATCH, LENGTH), generator=generator)
    with torch.no_grad():
        logits = model(tokens).logits
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    # Under a name that no reader takes for weights.
    save_file({"tokens": tokens.to(torch.int32), "logits": logits.float().contiguous()}, folder / "golden.tensors")
    if name in GGUF:
        write_gguf(folder / "model.gguf", GGUF[name], config, text, state)


if __name__ == "__main__":
    if transformers.__version__ != "5.24.0":
        raise SystemExit(f"golden files are made with transformers 5.24.0, not {transformers.__version__}")
    shutil.rmtree(OUTPUT, ignore_errors=True)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(21)
    for name, (model_type, fields) in MODELS.items():
        write_model(name, model_type, fields, generator)
