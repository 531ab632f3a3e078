"""Safetensors in and out: tensors read from the files as they are needed, and shards written as tensors come.

The library's own reader maps whole files, and every page that was ever touched then counts as memory of the process;
here a tensor is read into memory of its own, which goes away with the tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch

from qeff_engine import checkpoint
from qeff_engine.errors import Bug, Unsupported
from qeff_engine.quantizers.packing import Array

MAX_SHARD_BYTES = 4 << 30
_CHUNK_BYTES = 16 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What a safetensors header says of a tensor.

    Attributes:
        dtype: safetensors name, a key of :data:`DTYPES`.
        shape: sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape) * self.item_bytes


class CheckpointReader:
    """The tensors in the safetensors files of a checkpoint directory."""

    def __init__(self, directory: Path) -> None:
        """Read the headers; see :func:`qeff_engine.checkpoint.safetensors_index` for what is refused."""
        self._directory = directory
        self._places = checkpoint.safetensors_index(directory)
        unknown = {place.dtype for place in self._places.values()} - set(DTYPES)
        if unknown:
            raise Unsupported(
                f"{directory} has tensors of type {', '.join(sorted(unknown))}, expected {', '.join(DTYPES)}."
            )

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""
        place = self._places[name]
        return TensorInfo(dtype=place.dtype, shape=place.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor, in pieces."""
        place = self._places[name]
        left = place.nbytes
        with (self._directory / place.file).open("rb") as stream:
            stream.seek(place.offset)
            while left:
                piece = stream.read(min(left, _CHUNK_BYTES))
                left -= len(piece)
                yield piece

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in memory of its own."""
        place = self._places[name]
        raw = np.fromfile(self._directory / place.file, dtype=np.uint8, count=place.nbytes, offset=place.offset)
        return torch.from_numpy(raw).view(DTYPES[place.dtype]).view(place.shape)

    def mapped(self, name: str) -> torch.Tensor:
        """A tensor over a private memory map of its file: pages are read when they are touched."""
        place = self._places[name]
        # Copy on write, since torch wants memory that could be written to.
        raw = np.memmap(
            self._directory / place.file, dtype=np.uint8, mode="c", offset=place.offset, shape=(place.nbytes,)
        )
        return torch.from_numpy(raw).view(DTYPES[place.dtype]).view(place.shape)

    def array(self, name: str) -> Array:
        """A tensor of a type that numpy knows."""
        return self.tensor(name).numpy()


class CheckpointWriter:
    """Writes a checkpoint whose names, types and shapes are known, tensor by tensor in any order.

    Headers are written first, so that nothing is collected in memory. To be used in a ``with`` block.
    """

    def __init__(self, directory: Path, plan: Mapping[str, TensorInfo], *, max_shard_bytes: int = MAX_SHARD_BYTES):
        self._directory = directory
        self._missing = set(plan)
        self._places: dict[str, tuple[IO[bytes], int, int]] = {}
        self._shard_of: dict[str, str] = {}
        self._streams: list[IO[bytes]] = []
        self.num_bytes = 0
        shards = _split(plan, max_shard_bytes=max_shard_bytes)
        for number, names in enumerate(shards, start=1):
            suffix = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
            self._open_shard(f"model{suffix}.safetensors", {name: plan[name] for name in names})

    def _open_shard(self, file_name: str, plan: Mapping[str, TensorInfo]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        # Wide types first: then every tensor is aligned to its own type.
        for name in sorted(plan, key=lambda name: -plan[name].item_bytes):
            info = plan[name]
            end = offset + info.num_bytes
            header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        stream = (self._directory / file_name).open("wb")
        self._streams.append(stream)
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
        for name, fields in header.items():
            if name != "__metadata__":
                start, end = fields["data_offsets"]
                self._places[name] = (stream, 8 + len(text) + start, end - start)
                self._shard_of[name] = file_name
        self.num_bytes += 8 + len(text) + offset

    def write(self, name: str, values: torch.Tensor | Array) -> None:
        """Write one tensor of the plan, once."""
        tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
        self.write_chunks(name, [tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()])

    def write_chunks(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write one tensor of the plan from pieces of its bytes, once."""
        stream, offset, num_bytes = self._places[name]
        stream.seek(offset)
        written = sum(stream.write(piece) for piece in chunks)
        if written != num_bytes:
            raise Bug(f"{name} has {written} bytes, expected {num_bytes}.")
        self._missing.remove(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.close()
        if kind is not None:
            return
        if self._missing:
            raise Bug(f"{len(self._missing)} planned tensors were never written, such as {min(self._missing)}.")
        if len(self._streams) > 1:
            index = {"metadata": {"total_size": self.num_bytes}, "weight_map": self._shard_of}
            (self._directory / checkpoint.INDEX_NAME).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def _split(plan: Mapping[str, TensorInfo], *, max_shard_bytes: int) -> list[list[str]]:
    """Names in shards of at most ``max_shard_bytes``, in order; a larger tensor has a shard of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, info in plan.items():
        if shards[-1] and filled + info.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += info.num_bytes
    return shards
