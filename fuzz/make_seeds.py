#!/usr/bin/env python3
"""Writes the inputs that the fuzzers begin with, and their dictionaries: fuzz/make_seeds.py FOLDER (scripts/fuzz does).

Small files of every format, sound ones and ones with a known kind of lie; and what tests/data has. Standard library only.
"""

import json
import struct
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}


def safetensors(tensors, metadata=None, fill=b"\x01"):
    """Bytes of a file: {name: (dtype, shape)}."""
    header, offset = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + fill * offset


def raw_safetensors(header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_seeds():
    entry = lambda dtype, shape, begin, end: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    yield safetensors({"a": ("F32", [2, 2]), "b": ("BF16", [3]), "c": ("I64", []), "d": ("F16", [0, 4])}, {"format": "pt"})
    yield safetensors({name: (name, [3]) for name in SIZES})
    yield raw_safetensors({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)})                    # overlap
    yield raw_safetensors({"a": entry("F32", [2**31, 2**31, 2**31], 0, 16)})                               # overflow
    yield raw_safetensors({"a": entry("F32", [4], 16, 32)})                                                # outside
    yield raw_safetensors({"a": entry("F32", [4], 16, 0)})                                                 # reversed
    yield raw_safetensors(b'{"a":{"dtype":"I8","shape":[16],"data_offsets":[0,16]},"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}')
    yield raw_safetensors(b"[" * 200)
    yield struct.pack("<Q", 2**63) + b"{}"


# The model of fuzz/tiny_model.h: hidden 16, MLP 24, two heads of 8, one of keys and values, 8 words.
LINEARS = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16), "self_attn.o_proj": (16, 16),
           "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24)}


def checkpoint(linear):
    tensors = {"model.embed_tokens.weight": ("F16", [8, 16]), "model.norm.weight": ("F16", [16]),
               "model.layers.0.input_layernorm.weight": ("F16", [16]), "model.layers.0.post_attention_layernorm.weight": ("F16", [16])}
    for name, (rows, cols) in LINEARS.items():
        for part, value in linear(rows, cols).items():
            tensors[f"model.layers.0.{name}.{part}"] = value
    return tensors


def checkpoint_seeds():
    dense = lambda rows, cols: {"weight": ("BF16", [rows, cols])}
    packed = lambda rows, cols: {"weight_packed": ("I32", [rows, (cols + 7) // 8]), "weight_scale": ("F16", [rows, 1]), "weight_shape": ("I64", [2])}
    asymmetric = lambda rows, cols: {**packed(rows, cols), "weight_zero_point": ("I32", [(rows + 7) // 8, 1])}
    gptq = lambda rows, cols: {"qweight": ("I32", [cols // 8, rows]), "qzeros": ("I32", [1, rows // 8]), "scales": ("F16", [1, rows]), "g_idx": ("I32", [cols])}
    awq = lambda rows, cols: {"qweight": ("I32", [cols, rows // 8]), "qzeros": ("I32", [1, rows // 8]), "scales": ("F16", [1, rows])}
    for kind, linear in enumerate((dense, packed, asymmetric, gptq, gptq, awq)):
        tensors = checkpoint(linear)
        data = bytearray(safetensors(tensors, fill=b"\0"))
        header = struct.unpack_from("<Q", data)[0]
        places = json.loads(data[8:8 + header])
        for name, (rows, cols) in LINEARS.items():
            if (entry := places.get(f"model.layers.0.{name}.weight_shape")):
                struct.pack_into("<qq", data, 8 + header + entry["data_offsets"][0], rows, cols)
        yield bytes([kind]) + bytes(data)


def compensators_seeds():
    names = [f"model.layers.0.{name}" for name in LINEARS]
    for gate, gate_rows in (("none", 0), ("mlp", 0), ("mlp", 2)):
        modules, tensors = {}, {}
        for name, (rows, cols) in zip(names, LINEARS.values()):
            rank, hidden = 2, 3
            part = lambda key: f"{name}.compensator.{key}"
            shared = name.endswith(("k_proj", "v_proj"))
            modules[name] = {"rank": rank, "gate_rows": gate_rows, "a": names[0] if shared else name}
            if not shared:
                tensors |= {part("A"): ("I8", [rank + gate_rows, cols]), part("A_scale"): ("F16", [rank + gate_rows])}
            tensors |= {part("B"): ("I8", [rows, rank]), part("B_scale"): ("F16", [rank])}
            if gate == "mlp":
                tensors |= {part("gate.W1"): ("BF16", [hidden, rank + gate_rows]), part("gate.b1"): ("BF16", [hidden]),
                            part("gate.W2"): ("BF16", [rank, hidden]), part("gate.b2"): ("BF16", [rank])}
        metadata = {"format_version": "1", "gate": gate, "modules": json.dumps(modules)}
        yield safetensors(tensors, metadata)
        yield safetensors(tensors, metadata, fill=b"\xff")  # NaN scales


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf(values, tensors, data=b"\0" * 256, version=3):
    """values: [(key, type, bytes)], tensors: [(name, dims, type, offset)]."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, kind, value in values:
        out += string(key) + struct.pack("<I", kind) + value
    for name, dims, kind, offset in tensors:
        out += string(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % 32) + data


def gguf_seeds():
    for name in ("tiny-llama.gguf", "dequantize.gguf", "text/spm-llama.gguf", "text/spm-gemma.gguf"):
        yield (DATA / name).read_bytes()
    u32 = lambda key, value: (key, 4, struct.pack("<I", value))
    f32 = lambda key, value: (key, 6, struct.pack("<f", value))
    text = lambda key, value: (key, 8, string(value))
    strings = lambda key, items: (key, 9, struct.pack("<IQ", 8, len(items)) + b"".join(map(string, items)))
    ints = lambda key, items: (key, 9, struct.pack("<IQ", 5, len(items)) + struct.pack(f"<{len(items)}i", *items))
    floats = lambda key, items: (key, 9, struct.pack("<IQ", 6, len(items)) + struct.pack(f"<{len(items)}f", *items))
    bpe = [chr(c) for c in range(33, 127)] + ["Ġ", "ab", "<s>", "</s>"]
    tokenizer = lambda pre: [text("tokenizer.ggml.model", "gpt2"), text("tokenizer.ggml.pre", pre), strings("tokenizer.ggml.tokens", bpe),
                             ints("tokenizer.ggml.token_type", [1] * (len(bpe) - 2) + [3, 3]), strings("tokenizer.ggml.merges", ["a b"]),
                             u32("tokenizer.ggml.bos_token_id", len(bpe) - 2), u32("tokenizer.ggml.eos_token_id", len(bpe) - 1),
                             text("tokenizer.chat_template", "{{ bos_token }}")]
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        yield gguf(tokenizer(pre), [])
    unigram = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁ab"]
    yield gguf([text("tokenizer.ggml.model", "t5"), strings("tokenizer.ggml.tokens", unigram), floats("tokenizer.ggml.scores", [0, 0, 0, -1, -2, -3, -1.5]),
                ints("tokenizer.ggml.token_type", [2, 3, 3, 1, 1, 1, 1]), u32("tokenizer.ggml.unknown_token_id", 0)], [])
    config = [text("general.architecture", "llama"), u32("llama.embedding_length", 16), u32("llama.feed_forward_length", 24), u32("llama.block_count", 1),
              u32("llama.attention.head_count", 2), u32("llama.context_length", 64), f32("llama.attention.layer_norm_rms_epsilon", 1e-5)]
    yield gguf(config, [("token_embd.weight", [16, 8], 0, 0)], b"\0" * 512)
    yield gguf([], [("a", [32], 2, 0), ("b", [32], 2, 0)])                       # overlap
    yield gguf([], [("a", [2**40, 2**40], 0, 0)])                               # overflow
    yield gguf([], [("a", [64], 0, 2**62)])                                     # outside
    yield gguf([u32("general.alignment", 0)], [("a", [4], 0, 0)])
    yield gguf([("a", 9, struct.pack("<IQ", 8, 2**60)), ], [])                  # count
    yield gguf([("a", 9, struct.pack("<IQ", 9, 1)), ], [])                      # arrays of arrays
    yield b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63)


def config_seeds():
    for path in sorted(DATA.glob("**/config.json")):
        yield path.read_bytes()
    base = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
    for quantization in ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True},
                         {"quant_method": "awq", "bits": 4, "group_size": -1, "zero_point": True, "version": "gemm"},
                         {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"], "config_groups": {"group_0": {
                             "targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}}}}):
        yield json.dumps({**base, "quantization_config": quantization}).encode()
    for field, value in (("rope_scaling", {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                                           "original_max_position_embeddings": 8192}),
                         ("num_hidden_layers", 2**62), ("vocab_size", -1), ("rms_norm_eps", 1e308), ("eos_token_id", [1, 2]), ("hidden_act", "gelu_new")):
        yield json.dumps({**base, field: value}).encode()


def manifest_seeds():
    interval = {"value": 3.5, "low": 3.0, "high": 4.0}
    result = {"perplexity": interval, "kl": interval, "top1_agreement": interval, "tokens": 100, "windows": 2, "context": 50}
    yield json.dumps({"schema": "spear.manifest/1"}).encode()
    yield json.dumps({"schema": "spear.manifest/1", "embedding_budget_bytes": 100, "files": {"model.safetensors": "0" * 64, "config.json": "x"},
                      "reference": {"name": "<script>", "sha256": "a"}, "recipe": {"scheme": "w4-channel-sym", "seed": 1},
                      "results": {"reference": result, "quantized": result, "recovered": result}, "bytes": {"base": 1, "compensators": 2, "fraction": 0.1},
                      "damage": {"model.layers.0.mlp.down_proj": {"cka": 0.1, "kl": 0.2}}, "ranks": {"model.layers.0.mlp.down_proj": 4},
                      "stages": [{"name": "sample", "seconds": 1.5}], "tasks": []}).encode()
    yield json.dumps({"schema": "spear.manifest/2"}).encode()
    yield b'{"schema":"spear.manifest/1","files":{"../../etc/passwd":"x"}}'


def task_file_seeds():
    yield b'{"context":"a b","continuation":"c"}\n{"context":"d","continuation":"e"}\n'
    yield b'{"query":"Question: x?\\n","choices":["a","b"],"gold":1}\n\n'
    yield b'{"context_options":["a","b"],"continuation":"c","gold":0}'
    yield b'{"query":"x","choices":["a","b"],"gold":2}'
    yield b'{"query":"x","choices":["a","b"],"gold":1e400}'


def chat_template_seeds():
    golden = json.loads((DATA / "text" / "template_golden.json").read_text())
    found = []

    def collect(value, key=""):
        if isinstance(value, dict):
            for name, item in value.items():
                collect(item, name)
        elif isinstance(value, list):
            for item in value:
                collect(item, key)
        elif isinstance(value, str) and ("{%" in value or "{{" in value):
            found.append(value)

    collect(golden)
    for text in sorted(set(found)):
        yield text.encode()
    yield b"{%- for m in messages -%}{{ m.role ~ m['content'] | trim }}{%- if loop.last %}{{ loop.index0 * 2 // 3 % 4 - -1 }}{% endif %}{% endfor %}"
    yield b"{% set ns = namespace(x=0) %}{% for i in range(9, -3, -2) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ tools | tojson(indent=4) }}"
    yield b"{{ messages[::-1][0:2] | length }}{{ 'a,b'.split(',') | join('-') }}{{ 'aXb'.replace('X', 'y') | upper }}{{ {'a': [1, 2.5]}.items() | list | tojson }}"
    yield b"{{ raise_exception('no') }}{# comment #}"
    yield b"{{ range(100000000) | list }}"
    yield b"{{ " + b"(" * 200 + b"1" + b")" * 200 + b" }}"


def tokenizer_json_seeds():
    for path in sorted((DATA / "text").glob("*.json")):
        if path.name == "small_tokenizer.json" or path.name.startswith(("bpe-fallback", "unigram")):
            yield path.read_bytes()
    bpe = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3, "Ġ": 4}, "merges": ["a b"], "unk_token": "<unk>"}
    base = {"version": "1.0", "added_tokens": [{"id": 5, "content": "<s>", "special": True, "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": False},
                                                                    {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}]},
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                               "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}},
            "decoder": {"type": "ByteLevel"}, "model": bpe, "config": {"bos_token": "<s>", "eos_token": {"content": "<s>"}, "chat_template": "{{ x }}", "eos_token_id": [5]}}
    yield json.dumps(base).encode()
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                                                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    vocabulary = {f"<0x{b:02X}>": 10 + b for b in range(256)} | {"▁": 0, "a": 1, "b": 2, "▁a": 3, "<unk>": 4}
    yield json.dumps({**base, "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": metaspace, "decoder": decoder, "post_processor": None,
                      "added_tokens": [], "model": {**bpe, "vocab": vocabulary, "merges": ["▁ a"], "byte_fallback": True, "fuse_unk": True}}).encode()
    unigram = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [["<unk>", 0.0], ["▁", -2.0], ["a", -3.0], ["▁a", -3.5], ["b", -4.0]]
               + [[f"<0x{b:02X}>", -10.0] for b in range(256)]}
    yield json.dumps({**base, "normalizer": None, "pre_tokenizer": metaspace, "post_processor": None, "added_tokens": [], "model": unigram,
                      "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}}).encode()


def safetensors_index_seeds():
    yield b'{"metadata":{"total_size":28},"weight_map":{"x":"a.safetensors","y":"b.safetensors","z":"b.safetensors"}}'
    yield b'{"weight_map":{"x":"../a.safetensors"}}'
    yield b'{"weight_map":{"x":"a.safetensors\\u0000"}}'
    yield b'{"weight_map":[]}'


def latency_table_seeds():
    grid = {"x": [1, 8, 64], "y": [0, 128], "ms": [1.0, 2.0, 1.5, 2.5, 3.0, 4.0]}
    shape = {"decodes": 1, "decode_context": 10, "prefill": 0, "prefill_context": 0, "density": 1}
    table = {"schema": "spear.latency/1", "created": "2026-01-01", "key": {"machine": "m", "isa": "avx2", "build": "b", "kv_cache_type": "bf16", "activations": "a16",
             "head_type": "int8", "model": "x", "threads": 2}, "base": grid, "decode_context": grid, "prefill_context": grid, "compensators": grid, "module_us": [1.0, 2.0],
             "held_out": [{**shape, "measured_ms": 1.0, "predicted_ms": 1.1}]}
    kernel = {"rows": 960, "cols": 576, "ranks": 3, "count": 30, "tokens": 1, "plain_us": 40.0, "late_us": 41.0, "early_us": 42.5, "separate_us": 43.0}
    yield json.dumps(table).encode()
    yield json.dumps({**table, "kernels": [kernel, {**kernel, "ranks": 5, "late_us": 41.5}]}).encode()
    yield json.dumps({**table, **table["key"]}).encode()
    yield json.dumps({**table, "base": {"x": [1], "y": [1], "ms": [1e308]}}).encode()
    yield json.dumps({**table, "base": {"x": [2, 1], "y": [1, 1], "ms": [1]}}).encode()


SEEDS = {"safetensors": safetensors_seeds, "safetensors_index": safetensors_index_seeds, "checkpoint": checkpoint_seeds, "compensators": compensators_seeds,
         "gguf": gguf_seeds, "config": config_seeds, "manifest": manifest_seeds, "task_file": task_file_seeds, "latency_table": latency_table_seeds, "chat_template": chat_template_seeds,
         "tokenizer_json": tokenizer_json_seeds}
NUMBERS = ["-1", "1e999", "9223372036854775808", "18446744073709551616", "4294967296", "0.5", "null", "[[[[", '{"a":']
WORDS = {"chat_template": ["{%- ", " -%}", "{{ ", " }}", "{# ", " #}", "for ", "endfor", " in ", "if ", "elif ", "else", "endif", "set ", "namespace(", "range(", "loop.",
                           "raise_exception(", "| tojson", "| trim", "| join('')", "| selectattr('role', 'equalto', 'user')", "| map(attribute='content')", ".split(",
                           ".strip(", ".replace(", ".items()", "is defined", "is string", "not ", " and ", " ~ ", "[::-1]", "[1:]", "messages", "tools", "9223372036854775807"]}


def words_of(seeds):
    """Quoted strings in small JSON seeds: keys and values that the parsers know."""
    import re
    found = set()
    for seed in seeds:
        for word in re.findall(rb'"[A-Za-z_0-9.<>/-]{2,40}"', seed[:8192]):
            found.add(word)
    return sorted(found)[:300]


def quoted(word):
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in word) + '"'


def main():
    folder = Path(sys.argv[1])
    for name, seeds in SEEDS.items():
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        contents = list(seeds())
        for index, seed in enumerate(contents):
            (target / f"{index:02}").write_bytes(seed)
        words = [word.encode() for word in WORDS.get(name, NUMBERS)]
        if name not in WORDS:
            words += words_of(contents)
        (folder / f"{name}.dict").write_text("".join(quoted(word) + "\n" for word in words))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
