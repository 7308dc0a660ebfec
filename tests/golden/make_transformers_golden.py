#!/usr/bin/env python3
"""Writes tests/data/llama-golden/: tiny random Llama models as Hugging Face directories, and their logits.

Weights are rounded to each model's stored type before the forward pass, which runs in float32.
Needs: torch 1.13 (Debian's python3-torch), transformers 4.46.3, safetensors. With other versions it refuses to run.
Run: python3 tests/golden/make_transformers_golden.py
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

OUTPUT = Path(__file__).resolve().parent.parent / "data" / "llama-golden"
BATCH, LENGTH = 2, 23

# Grouped queries and a tied head; an untied head and another theta; heads * head_dim != hidden_size and odd sizes.
MODELS = {
    "tied": dict(hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=2, vocab_size=53, rope_theta=10000.0, tie_word_embeddings=True,
                 torch_dtype="float32"),
    "untied": dict(hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
                   num_key_value_heads=4, vocab_size=61, rope_theta=750000.0, tie_word_embeddings=False,
                   rms_norm_eps=1e-3, torch_dtype="bfloat16"),
    "wide": dict(hidden_size=22, intermediate_size=33, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=3, head_dim=10, vocab_size=47, rope_theta=100.0, tie_word_embeddings=False,
                 torch_dtype="float16"),
}


def random_state(model, dtype, generator):
    """Weights large enough that attention is far from uniform and no output is negligible."""
    state = {}
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1.0 + 0.3 * noise
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            value = gain * noise / (1.0 if "embed" in name else parameter.shape[1] ** 0.5)
        state[name] = value.to(dtype)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def write_model(name, fields, generator):
    config = LlamaConfig(max_position_embeddings=64, bos_token_id=0, eos_token_id=1, attn_implementation="eager", **fields)
    model = LlamaForCausalLM(config).float().eval()
    state = random_state(model, getattr(torch, fields["torch_dtype"]), generator)
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
    model.tie_weights()
    tokens = torch.randint(0, config.vocab_size, (BATCH, LENGTH), generator=generator)
    with torch.no_grad():
        logits = model(tokens).logits
    folder = OUTPUT / name
    folder.mkdir(parents=True)
    kept = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act",
            "tie_word_embeddings", "bos_token_id", "eos_token_id"]
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": fields["torch_dtype"]}
    text.update({key: getattr(config, key) for key in kept if getattr(config, key, None) is not None})
    (folder / "config.json").write_text(json.dumps(text, indent=1) + "\n")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    # Under a name that no reader takes for weights.
    save_file({"tokens": tokens.to(torch.int32), "logits": logits.contiguous()}, folder / "golden.tensors")


if __name__ == "__main__":
    if not torch.__version__.startswith("1.13") or transformers.__version__ != "4.46.3":
        raise SystemExit(f"golden files are made with torch 1.13 and transformers 4.46.3, not {torch.__version__} "
                         f"and {transformers.__version__}")
    shutil.rmtree(OUTPUT, ignore_errors=True)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(20)
    for name, fields in MODELS.items():
        write_model(name, fields, generator)
