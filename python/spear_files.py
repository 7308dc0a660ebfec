"""The files of a checkpoint: safetensors and JSON, checked before use (docs/checkpoint.md)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}


class CheckpointError(ValueError):
    """A file that is not what docs/checkpoint.md describes."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckpointError(message)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass
class StoredTensor:
    dtype: str
    values: np.ndarray  # BF16 as its bits

    def floats(self) -> np.ndarray:
        require(self.dtype in ("F32", "F16", "BF16", "F64"), f"{self.dtype} where floating point is needed")
        return bf16_to_f32(self.values) if self.dtype == "BF16" else self.values.astype(np.float32)


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and __metadata__ of one file; every offset is checked."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    require(data.size >= 8, f"{path}: too short for safetensors")
    length = int(data[:8].view("<u8")[0])
    require(length <= min(data.size - 8, 100 << 20), f"{path}: the header's length {length} exceeds the file")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        metadata = dict(header.pop("__metadata__", {}))
        body, tensors = data[8 + length :], {}
        for name, entry in header.items():
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            require(dtype in DTYPES, f"{path}: {name}: type {dtype!r} is not supported")
            require(
                all(isinstance(n, int) and n >= 0 for n in [*shape, begin, end]), f"{path}: {name}: bad shape or offset"
            )
            size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
            require(
                begin <= end <= body.size and end - begin == size, f"{path}: {name}: bytes {begin}..{end} do not fit"
            )
            tensors[name] = StoredTensor(dtype, body[begin:end].view(DTYPES[dtype]).reshape(shape))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: the header is malformed ({error})") from error
    return tensors, metadata


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    require(isinstance(value, dict), f"{path}: not a JSON object")
    return value


class TensorFile:
    """Tensors of a directory's files, taken by name with the shape that must be there."""

    def __init__(self, paths: list[Path]):
        self.where = str(paths[0].parent)
        self.tensors: dict[str, StoredTensor] = {}
        self.used: set[str] = set()
        for path in paths:
            tensors, self.metadata = read_safetensors(path)
            self.tensors.update(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, shape: tuple, dtype: str | None = None) -> StoredTensor:
        require(name in self.tensors, f"{self.where}: tensor {name} is missing")
        tensor = self.tensors[name]
        require(tensor.values.shape == shape, f"{self.where}: {name}: shape {tensor.values.shape} instead of {shape}")
        require(dtype in (None, tensor.dtype), f"{self.where}: {name}: type {tensor.dtype} instead of {dtype}")
        self.used.add(name)
        return tensor

    def floats(self, name: str, shape: tuple, dtype: str | None = None) -> np.ndarray:
        values = self.take(name, shape, dtype).floats()
        require(bool(np.isfinite(values).all()), f"{self.where}: {name}: holds NaN or infinity")
        return values
