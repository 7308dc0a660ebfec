#!/usr/bin/env python3
"""Writes tests/data/text/spm-*.gguf, bpe-fallback-*.json and sentencepiece.json: small tokenizers and what the
`sentencepiece` and `tokenizers` packages make of texts with them.

Needs: gguf, numpy, sentencepiece, tokenizers. Run: python3 tests/golden/make_sentencepiece_golden.py
"""

import io
import json
import random
import tempfile
from pathlib import Path

import gguf
import sentencepiece as spm
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

DATA = Path(__file__).resolve().parents[1] / "data" / "text"
WORDS = ("the of and to in a is that for it as was with be by on not he his but at are this have from or had an they "
         "which one you were all her she there would their we him been has when who will no more if out so up said what "
         "its about than into them can only other time new some could these two may first then do any like my now over "
         "such our man me even most made after also did many off before must well back through years where much your way "
         "naïve café über straße Ελλάδα привет мир данные 日本語 中文 テスト مرحبا नमस्ते").split()


def corpus(rng, lines):
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 14))) + rng.choice([".", "!", "?", " 42.", ""]) for _ in range(lines)]


def texts(rng):
    out = ["", " ", "  ", "a", " a", "a ", "the  of   and", "\t", "\n\n", "x\ny", "naïve café", "日本語テスト", "🙂👩‍👩‍👧", "\u0000\u0001", "▁", "a▁b",
           "<s>", "</s> text", "<unk>", "<0x41>", "<tool>call</tool>", "  <tool>  x", "e\u0301 é", "\u200d\ufeff", "1234567890", "if (a == b) { return 0; }"]
    alphabet = list("abcdefghijklmnop   \n\t.,0123éüß日語🙂क्▁<>s/")
    for _ in range(150):
        out.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))))
    return out + corpus(rng, 60)


def write_gguf(path, processor, user_defined):
    writer = gguf.GGUFWriter(path, "llama")
    tokens, scores, types = [], [], []
    for i in range(processor.vocab_size()):
        tokens.append(processor.id_to_piece(i).encode())
        scores.append(processor.get_score(i))
        kind = (gguf.TokenType.UNKNOWN if processor.is_unknown(i) else gguf.TokenType.CONTROL if processor.is_control(i)
                else gguf.TokenType.BYTE if processor.is_byte(i) else gguf.TokenType.USER_DEFINED if processor.id_to_piece(i) in user_defined
                else gguf.TokenType.NORMAL)
        types.append(kind)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    writer.add_add_bos_token(True)
    return writer


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    rng = random.Random(5)
    lines, samples, golden = corpus(rng, 1500), texts(rng), {"texts": [], "expected": {}}
    golden["texts"] = samples
    for name, dummy, symbols in (("spm-llama", True, []), ("spm-gemma", False, ["<tool>", "</tool>"])):
        with tempfile.TemporaryDirectory() as folder:
            model = io.BytesIO()
            spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, vocab_size=560, model_type="bpe", byte_fallback=True,
                                           add_dummy_prefix=dummy, remove_extra_whitespaces=False, normalization_rule_name="identity",
                                           user_defined_symbols=symbols, character_coverage=1.0, num_threads=1, minloglevel=2)
            processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
            writer = write_gguf(DATA / f"{name}.gguf", processor, symbols)
            writer.add_add_space_prefix(dummy)
            finish(writer)
            # No user-defined symbols beside a prefix: behind one, `tokenizers` and llama.cpp put another prefix, sentencepiece does not.
            golden["expected"][name] = [processor.encode(text) for text in samples]
            golden["expected"][name + ".decoded"] = [processor.decode(processor.encode(text)) for text in samples]
    variants = {
        "bpe-fallback-prepend": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
                                 decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])),
        "bpe-fallback-gemma": (normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                               decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])),
        "bpe-fallback-metaspace": (None, pre_tokenizers.Metaspace("▁", "first", True), decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])),
        "bpe-fallback-nfkc": (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(" ", "▁")]), None,
                              decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])),
    }
    for name, (normalizer, pre, decoder) in variants.items():
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if pre is not None:
            tokenizer.pre_tokenizer = pre
        tokenizer.decoder = decoder
        special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
        # Words for the trainer: a whole line is one word otherwise.
        tokenizer.train_from_iterator((word for line in lines for word in (" " + line).replace(" ", "\x00 ").split("\x00") if word),
                                      trainers.BpeTrainer(vocab_size=620, special_tokens=special, show_progress=False))
        document = json.loads(tokenizer.to_str())
        document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] in ("<unk>", "<s>", "</s>")]
        tokenizer = Tokenizer.from_str(json.dumps(document))
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=False)])
        (DATA / f"{name}.json").write_text(tokenizer.to_str())
        golden["expected"][name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in samples]
        golden["expected"][name + ".decoded"] = [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) for text in samples]
    (DATA / "sentencepiece.json").write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")))


main()
