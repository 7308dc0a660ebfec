#!/usr/bin/env python3
"""Writes tests/data/text: a small byte-level BPE tokenizer, and what the `tokenizers` package makes of generated lines.

  small_tokenizer.json   trained here; with added tokens of every kind
  lines.json             the texts: scripts of the world, code, white space, emoji, digits, control characters, ...
  small_golden.json      ids, decoded texts, with special tokens parsed and not
  pieces_golden.json     how each pre-tokenizer divides the lines
  smollm2_golden.json    ids of the real model's vocabulary, taken from its GGUF file

Needs: tokenizers 0.23, gguf. Run: python3 tests/golden/make_tokenizer_golden.py models/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import random
import sys
import unicodedata
from pathlib import Path

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA = Path(__file__).resolve().parent.parent / "data" / "text"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SCRIPTS = {  # ranges of letters
    "latin": [(0x61, 0x7A), (0xE0, 0xF6), (0x100, 0x17F)], "greek": [(0x3B1, 0x3C9)], "cyrillic": [(0x430, 0x44F)],
    "hebrew": [(0x5D0, 0x5EA)], "arabic": [(0x627, 0x63A), (0x641, 0x64A)], "devanagari": [(0x905, 0x939), (0x93E, 0x94D)],
    "thai": [(0xE01, 0xE30), (0xE32, 0xE3A), (0xE40, 0xE4E)], "hangul": [(0xAC00, 0xD7A3)], "jamo": [(0x1100, 0x1112)],
    "hiragana": [(0x3041, 0x3096)], "katakana": [(0x30A1, 0x30FA)], "han": [(0x4E00, 0x9FA5)], "tamil": [(0xB85, 0xB8A)],
    "georgian": [(0x10D0, 0x10F0)], "ethiopic": [(0x1200, 0x1246)], "gothic": [(0x10330, 0x1034A)],
}
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2009",
          "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "\x1c", "\x1f"]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🇨🇭", "❤️", "🏳️‍🌈", "1️⃣", "🧑🏿‍🚀", "☕", "✨"]
NUMERALS = ["0", "7", "42", "1234567890", "3.14", "1,000", "٣٤٥", "१२३", "²³", "½", "Ⅷ", "①", "৪", "𝟙", "x2y3", "0x1F", "一二"]
WORDS = ("the of and to in is was that for on with as it at by from model weight error rank gate token layer when they "
         "don't I'm we've you'll she'd it's THE DON'T I'M WE'LL rock'n'roll naïve façade Straße ﬁn").split()
CODE = ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) { a[i] += b[i]; }", "#include <vector>\n",
        "std::vector<std::pair<int, T>> v{{1, 2}};", "{\"key\": [1, 2.5e-3, null], \"π\": \"\\u03c0\"}", "x = y if z else 'w'",
        "SELECT * FROM t WHERE a != 'b' -- c", "<a href=\"https://x.org/?q=1&r=2#s\">z</a>", "\tif err != nil {\n\t\treturn\n\t}",
        "$ git commit -m 'fix' && make -j8 2>&1 | tee log", "λx. x x", "a<=b&&c>=d||!e", "/* c */ // d", "0b1010 ^ ~0xFF"]
ADDED = SPECIAL + ["<mask>", "<tool>", "<tool_call>", "<end_of_turn>", "<|im_", "im_start|>", "<|im_start", "<tool_", "café\u0301"]
CONTRACTIONS = ["'s", "'S", "'t", "'re", "'RE", "'ve", "'m", "'ll", "'LL", "'d", "’s", "'ſ", "' s", "''s", "'x"]


def make_lines(rng):
    def word(script):
        return "".join(chr(rng.randint(*rng.choice(SCRIPTS[script]))) for _ in range(rng.randint(1, 6)))

    def scalar():  # assigned since long ago, so that every library's Unicode tables know it
        while True:
            c = chr(rng.randrange(0x20000) if rng.random() < 0.7 else rng.randrange(0x3000))
            if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs"):
                return c

    def mixed():
        pool = [lambda: rng.choice(SPACES), lambda: rng.choice(EMOJI), lambda: rng.choice(NUMERALS), lambda: rng.choice(WORDS),
                lambda: rng.choice(CONTRACTIONS), lambda: rng.choice("!?.,:;-_/\\()[]{}<>|&%$#@*+=~^`\"'…—«»"), scalar,
                lambda: word(rng.choice(list(SCRIPTS))), lambda: rng.choice(ADDED)]
        return "".join(rng.choice(pool)() for _ in range(rng.randint(1, 8)))

    lines = [""] + SPACES + EMOJI + NUMERALS + WORDS + CODE + ADDED + CONTRACTIONS + [chr(c) for c in range(128)]
    lines += [chr(c) + "a" + chr(c) for c in list(range(33)) + list(range(127, 161))]
    for script in SCRIPTS:
        lines += [" ".join(word(script) for _ in range(rng.randint(1, 4))) for _ in range(22)]
    lines += [rng.choice(["", " "]) + " ".join(rng.choices(WORDS, k=rng.randint(1, 6))) + rng.choice(".!?\n ") for _ in range(250)]
    lines += ["".join(rng.choices(SPACES, k=rng.randint(1, 5))) + rng.choice(["", "a", "1", "!"]) for _ in range(200)]
    lines += ["a" + rng.choice(SPACES) * rng.randint(1, 4) + rng.choice(["b", "\n", "9"]) for _ in range(80)]
    lines += [rng.choice(NUMERALS) + rng.choice(["", " ", "."]) + rng.choice(NUMERALS) for _ in range(120)]
    lines += [rng.choice(WORDS) + rng.choice(CONTRACTIONS) + rng.choice(["", " ", "s"]) for _ in range(80)]
    lines += ["".join(scalar() for _ in range(rng.randint(1, 6))) for _ in range(300)]
    lines += ["".join(chr(rng.randrange(32)) for _ in range(rng.randint(2, 5))) for _ in range(60)]
    lines += [unicodedata.normalize("NFD", word("latin")) + rng.choice(["", "\u0323\u0307", "\u0301"]) for _ in range(60)]
    lines += [rng.choice(ADDED) + rng.choice(["", " ", "x", "\n"]) + rng.choice(ADDED) for _ in range(120)]
    lines += ["a" * 300, " " * 200 + "x", "\n" * 50, "ab" * 100, "1" * 60, "<" * 40, "é" * 70]
    lines += [mixed() for _ in range(450)]
    return lines


def byte_level_tokenizer(model, pre_tokenizer):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pre_tokenizer_of(name):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return {
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                           pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level]),
        "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), byte_level]),
        "prefix": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False),
                                           pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]),
    }[name]


def train_small(lines):
    tokenizer = byte_level_tokenizer(models.BPE(), pre_tokenizer_of("smollm"))
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", rstrip=True, normalized=False), AddedToken("<tool_call>", normalized=False),
                          AddedToken("<end_of_turn>", normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", pair="<|im_start|> $A $B:1 <|im_end|>:1",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)])
    return tokenizer


def load_gguf(path):
    """The file's vocabulary in the pipeline of the model's own tokenizer.json."""
    fields = gguf.GGUFReader(path).fields
    tokens, types, merges = (fields["tokenizer.ggml." + name].contents() for name in ("tokens", "token_type", "merges"))
    model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges])
    tokenizer = byte_level_tokenizer(model, pre_tokenizer_of("smollm"))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def encode_lines(tokenizer, lines, parse_special, add_special=False):
    tokenizer.encode_special_tokens = not parse_special
    return [tokenizer.encode(line, add_special_tokens=add_special).ids for line in lines]


def tiny_cases():
    """Models whose options matter: unknown bytes, fused or not, and ignore_merges."""
    vocab = {t: i for i, t in enumerate(["<unk>", "a", "b", "c", "Ġ", "ab", "abc", "Ġab", "ca"])}
    merges = [("a", "b"), ("c", "a"), ("Ġ", "ab")]
    texts = ["abc", "ab", "cab", "xabyz", "xx ab", "abcabc abc", "é", "", "aéb"]
    cases = []
    for options in ({}, {"unk_token": "<unk>"}, {"unk_token": "<unk>", "fuse_unk": True}, {"ignore_merges": True}):
        tokenizer = byte_level_tokenizer(models.BPE(vocab=vocab, merges=merges, **options), pre_tokenizer_of("gpt-2"))
        cases.append({"tokenizer": json.loads(tokenizer.to_str()), "texts": texts,
                      "ids": [tokenizer.encode(text).ids for text in texts]})
    return cases


def decode_cases(tokenizer, rng):
    cases = []
    for _ in range(150):
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randint(1, 8))]
        cases.append([ids, tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(ids, skip_special_tokens=True)])
    return cases


def write(name, value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (DATA / name).write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {len(text.encode())} bytes")


def main():
    rng = random.Random(20260611)
    DATA.mkdir(parents=True, exist_ok=True)
    lines = make_lines(rng)
    write("lines.json", lines)
    print(len(lines), "lines")

    small = train_small([line for line in lines if line.isprintable()] * 2 + WORDS * 20)
    small.save(str(DATA / "small_tokenizer.json"), pretty=False)
    print("small_tokenizer.json:", (DATA / "small_tokenizer.json").stat().st_size, "bytes")
    every_third = lines[::3]
    special = [line for line in lines if "<" in line]
    write("small_golden.json", {
        "ids": encode_lines(small, every_third, parse_special=True),
        "special_lines": special,
        "special_as_text": encode_lines(small, special, parse_special=False),
        "special_framed": encode_lines(small, special, parse_special=True, add_special=True),
        "decode": decode_cases(small, rng),
        "tiny": tiny_cases()})

    pieces = {}
    for name in ("smollm", "gpt-2", "llama-bpe", "qwen2", "prefix"):
        # Lengths in bytes: each character of a byte-level piece is one byte.
        pieces[name] = [[len(piece) for piece, _ in pre_tokenizer_of(name).pre_tokenize_str(line)] for line in lines[::2]]
    write("pieces_golden.json", pieces)

    real = load_gguf(sys.argv[1])
    write("smollm2_golden.json", {
        "ids": encode_lines(real, lines, parse_special=True),
        "special_as_text": encode_lines(real, special, parse_special=False),
        "decode": decode_cases(real, rng)})


if __name__ == "__main__":
    main()
