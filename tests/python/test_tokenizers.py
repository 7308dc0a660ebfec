"""`spear tokenize` against the `tokenizers` package: equal ids on more than 10,000 generated lines.

The real tokenizer of SmolLM2 and small ones of each kind, trained here. Also: texts come back from their ids, and
what is streamed id by id is valid UTF-8 that adds up to the whole. Needs build/release/bin/spear (or $SPEAR).
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
from make_tokenizer_golden import ADDED, SPACES, load_gguf, make_lines, pre_tokenizer_of  # noqa: E402

SPEAR = os.environ.get("SPEAR", str(ROOT / "build" / "release" / "bin" / "spear"))
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 20260611


def adversarial(rng, count):
    """Lines that break tokenizers: runs, stacks of marks, spellings of tokens and bytes, broken words of both."""
    spellings = ADDED + ["<s>", "</s>", "<unk>", "<0x0A>", "<0x41>", "<0xFF>", "▁", "▁▁", "Ġ", "Ċ", "##", "</w>", "\\u0041", "&#65;", "%41"]
    marks = [chr(c) for c in range(0x300, 0x340)] + ["\u200d", "\ufe0f", "\u20e3", "\u0610", "\u093f"]
    kinds = [
        lambda: rng.choice("aé日🙂 \n1!") * rng.randint(1, 300),
        lambda: "".join(rng.choice("ab ") for _ in range(rng.randint(1, 200))),
        lambda: "e" + "".join(rng.choices(marks, k=rng.randint(1, 12))),
        lambda: "".join(rng.choice(spellings)[: rng.randint(1, 12)] for _ in range(rng.randint(1, 6))),
        lambda: rng.choice(SPACES) * rng.randint(1, 6) + rng.choice(spellings) + rng.choice(SPACES) * rng.randint(0, 3),
        lambda: "\u202e" + "".join(rng.choice("אבגabc123 ") for _ in range(rng.randint(1, 20))) + "\u202c",
        lambda: "".join(chr(rng.choice((rng.randrange(0x20, 0x7F), rng.randrange(0xA0, 0x250), rng.randrange(0x4E00, 0x9FA5), rng.randrange(0x1F600, 0x1F64F))))
                        for _ in range(rng.randint(1, 30))),
        lambda: "\r\n".join("".join(rng.choices("xy\t ", k=rng.randint(0, 6))) for _ in range(rng.randint(1, 6))),
        lambda: str(rng.randrange(10 ** rng.randint(1, 30))) + rng.choice(["", ".", ",", "e", "%", "th"]) + str(rng.randrange(1000)),
        lambda: "".join(chr(rng.choice((0, 1, 7, 8, 27, 127, 0x80, 0x9F, 0xAD, 0xFEFF, 0xFFFC, 0xFFFD))) for _ in range(rng.randint(1, 5))) + "x",
    ]
    return [rng.choice(kinds)() for _ in range(count)]


def all_lines():
    rng = random.Random(SEED)
    lines = [line for _ in range(4) for line in make_lines(rng)] + adversarial(rng, 3000)
    return list(dict.fromkeys(lines))


def trained_byte_level(pre, lines, normalizer=None, ignore_merges=False):
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<|endoftext|>", "<|im_start|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer_of(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", pair="<|im_start|> $A $B:1", special_tokens=[("<|im_start|>", 1)])
    return tokenizer


def sentencepiece_parts(tokenizer, scheme, split):
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + strip)
    return tokenizer


BYTES = [f"<0x{b:02X}>" for b in range(256)]


def trained_sentencepiece_bpe(lines):
    tokenizer = sentencepiece_parts(Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)), "first", True)
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=1500, limit_alphabet=400, special_tokens=["<unk>", "<s>", "</s>"] + BYTES, show_progress=False))
    # The trainer makes the tokens of bytes special; in models they are not.
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(spec))


def trained_unigram(lines, byte_fallback):
    trainer = Tokenizer(models.Unigram())
    trainer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    # Other characters stay unknown. With spellings of special tokens in the text the trainer makes twins of them.
    lines = [line for line in lines if max(map(ord, line), default=0) < 0x250 and "<" not in line]
    trainer.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=1200, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False))
    pieces = [tuple(piece) for piece in json.loads(trainer.to_str())["model"]["vocab"]]
    if byte_fallback:
        pieces += [(piece, -20.0) for piece in BYTES]
    tokenizer = sentencepiece_parts(Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback)), "always", byte_fallback)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    return tokenizer


@unittest.skipUnless(Path(SPEAR).exists(), f"no program {SPEAR}: scripts/build")
class TokenizersTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lines = all_lines()
        cls.plain = [line for line in cls.lines if line.isprintable() and len(line) < 100]
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)

    def spear(self, model, documents, *options):
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        found = subprocess.run([SPEAR, "tokenize", "--model", str(model), "--text", "-", "--format", "jsonl", "--json", *options], input=lines.encode(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(found.returncode, 0, found.stderr.decode(errors="replace"))
        return json.loads(found.stdout)["documents"]  # decodes strictly: valid UTF-8

    def compare(self, tokenizer, model, round_trip, add_special=False, parse_special=True, most_return=True):
        tokenizer.encode_special_tokens = not parse_special
        options = ["--add-special"] * add_special + ["--parse-special"] * parse_special
        results = self.spear(model, self.lines, *options)
        self.assertEqual(len(results), len(self.lines))
        returned = 0
        for line, result, expected in zip(self.lines, results, tokenizer.encode_batch(self.lines, add_special_tokens=add_special)):
            self.assertEqual(result["ids"], expected.ids, f"{line!r}: {expected.tokens}")
            self.assertIn("".join(result["pieces"]), (result["text"], " " + result["text"]), repr(line))
            returned += result["text"] == line
        decoded = tokenizer.decode_batch([result["ids"] for result in results], skip_special_tokens=False)
        for line, result, text in zip(self.lines, results, decoded):
            # Bytes spelled out in the text make runs that are no UTF-8: `tokenizers` then gives up the whole run, which
            # a stream can't, for what it sent is sent.
            if "<0x" not in line:
                self.assertEqual(result["text"], text, repr(line))
        if round_trip:
            lost = [line for line, result in zip(self.lines, results) if result["text"] != line]
            self.assertEqual(lost, [])
        if most_return and not add_special:
            self.assertGreater(returned, 0.5 * len(self.lines))
        return results

    def check(self, name, tokenizer, round_trip=True, **options):
        folder = Path(self.folder.name) / name
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        return self.compare(tokenizer, folder, round_trip, **options)

    def test_there_are_ten_thousand_lines(self):
        self.assertGreater(len(self.lines), 10_000)
        self.assertEqual(self.lines, all_lines())

    @unittest.skipUnless(MODEL.exists(), "no model: scripts/fetch-model smollm2-135m")
    def test_smollm2(self):
        # 21 bytes have no token in this vocabulary and vanish, in both.
        self.compare(load_gguf(str(MODEL)), MODEL, round_trip=False)
        self.compare(load_gguf(str(MODEL)), MODEL, round_trip=False, parse_special=False)

    def test_gpt2(self):
        self.check("gpt-2", trained_byte_level("gpt-2", self.plain), add_special=False)

    def test_llama3(self):
        tokenizer = trained_byte_level("llama-bpe", self.plain, ignore_merges=True)
        self.check("llama-bpe", tokenizer, round_trip=False, add_special=True)
        self.compare(tokenizer, Path(self.folder.name) / "llama-bpe", round_trip=True)

    def test_qwen2(self):
        self.check("qwen2", trained_byte_level("qwen2", self.plain, normalizers.NFC()), round_trip=False)

    def test_sentencepiece_bpe(self):
        self.check("spm", trained_sentencepiece_bpe(self.plain), round_trip=False)

    def test_unigram(self):
        self.check("unigram", trained_unigram(self.plain, True), round_trip=False)
        self.check("unigram-unk", trained_unigram(self.plain, False), round_trip=False, most_return=False)

    def test_random_ids_stream_as_they_decode(self):
        tokenizer = trained_byte_level("gpt-2", self.plain[:3000])
        folder = Path(self.folder.name) / "random"
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        rng = random.Random(SEED)
        lists = [[rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randint(1, 12))] for _ in range(3000)]
        for ids, result, text in zip(lists, self.spear(folder, lists), tokenizer.decode_batch(lists, skip_special_tokens=False)):
            self.assertEqual(result["text"], text, ids)
            self.assertEqual("".join(result["pieces"]), text, ids)


if __name__ == "__main__":
    unittest.main()
