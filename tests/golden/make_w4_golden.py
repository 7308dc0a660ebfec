#!/usr/bin/env python3
"""Writes tests/data/w4_golden.json: 4-bit matrices packed with numpy the way compressed-tensors packs them.

Its pack_to_int32 adds 8 to signed values, weights and zero points alike, and puts value i of eight into bits 4i..4i+3;
weights are packed along the columns, zero points along the rows, and padding nibbles are 0.
Needs: numpy. Run: python3 tests/golden/make_w4_golden.py
"""

import json
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).resolve().parent.parent / "data" / "w4_golden.json"


def pack_to_int32(signed, axis):
    unsigned = np.moveaxis((signed + 8).astype(np.uint32), axis, -1)
    padding = -unsigned.shape[-1] % 8
    padded = np.pad(unsigned, [(0, 0), (0, padding)]).reshape(unsigned.shape[0], -1, 8)
    words = (padded << (4 * np.arange(8, dtype=np.uint32))).sum(axis=-1, dtype=np.uint32)
    return np.moveaxis(words, -1, axis)


def case(rng, rows, cols, group_size, symmetric):
    groups = -(-cols // group_size) if group_size else 1
    signed = rng.integers(-8, 8, (rows, cols))
    zeros = np.zeros((rows, groups), dtype=np.int64) if symmetric else rng.integers(-8, 8, (rows, groups))
    scales = rng.uniform(-0.1, 0.1, (rows, groups)).astype(np.float16)
    group_of = np.arange(cols) // group_size if group_size else np.zeros(cols, dtype=np.int64)
    values = scales.astype(np.float32)[:, group_of] * (signed - zeros[:, group_of]).astype(np.float32)
    return {
        "rows": rows, "cols": cols, "group_size": group_size, "symmetric": symmetric,
        "codes": (signed + 8).ravel().tolist(),
        "zeros": [] if symmetric else (zeros + 8).ravel().tolist(),
        "scales": scales.view(np.uint16).ravel().tolist(),
        "weight_packed": pack_to_int32(signed, 1).ravel().tolist(),
        "weight_zero_point": [] if symmetric else pack_to_int32(zeros, 0).ravel().tolist(),
        "values": [float(v) for v in values.ravel()],
    }


if __name__ == "__main__":
    rng = np.random.default_rng(4)
    shapes = [(3, 16, 0, True), (5, 13, 0, True), (9, 8, 0, False), (2, 70, 32, True), (11, 64, 32, False),
              (1, 1, 0, False)]
    OUTPUT.write_text(json.dumps({"cases": [case(rng, *shape) for shape in shapes]}) + "\n")
