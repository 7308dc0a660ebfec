#!/usr/bin/env python3
"""Writes tests/data/text/unigram-*.json and unigram.json: small unigram tokenizers and what the `tokenizers` and
`sentencepiece` packages make of texts with them.

Needs: sentencepiece, tokenizers. Run: python3 tests/golden/make_unigram_golden.py
"""

import io
import json
import random

import sentencepiece as spm
from make_sentencepiece_golden import DATA, corpus, texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def trained(lines, byte_fallback):
    model = io.BytesIO()
    # Without byte fallback some characters stay unknown.
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, vocab_size=430 if byte_fallback else 150, model_type="unigram",
                                   byte_fallback=byte_fallback, add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
                                   character_coverage=1.0 if byte_fallback else 0.98, num_threads=1, minloglevel=2)
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


def tokenizer_of(processor, byte_fallback, scheme, split):
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    tail = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + tail)
    return tokenizer


def main():
    rng = random.Random(6)
    lines, samples, golden = corpus(rng, 1500), texts(rng), {"expected": {}}
    golden["texts"] = samples
    for name, byte_fallback, scheme, split in (("unigram-bytes", True, "first", False), ("unigram-split", True, "always", True), ("unigram-unk", False, "never", True)):
        processor = trained(lines, byte_fallback)
        tokenizer = tokenizer_of(processor, byte_fallback, scheme, split)
        tokenizer.save(str(DATA / f"{name}.json"), pretty=False)
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in samples]
        golden["expected"][name] = ids
        golden["expected"][f"{name}.decoded"] = [tokenizer.decode(found, skip_special_tokens=False) for found in ids]
        if name == "unigram-bytes":  # sentencepiece cuts nowhere, has the scores in float32 and never takes "<s>" for a token
            theirs = [processor.encode(text) for text in samples]
            same = [i for i, (a, b) in enumerate(zip(ids, theirs)) if a == b]
            golden["same_in_sentencepiece"] = same
            print(f"{len(same)} of {len(samples)} texts have the same ids in sentencepiece; others:",
                  [samples[i] for i in range(len(samples)) if i not in set(same)][:20])
    (DATA / "unigram.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
