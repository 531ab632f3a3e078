"""The header of a GGUF file: what its metadata says and whether every tensor lies inside the file.

Standard library only. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qeff_engine.errors import InvalidInput, Unsupported

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 8  # ggml has four; more means that we read garbage

# Number of the type: elements of a block, bytes of a block.
BLOCKS: Mapping[int, tuple[int, int]] = MappingProxyType(
    {
        0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
        10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
        16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
        23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
        34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36),
        41: (128, 18),
    }
)  # fmt: skip

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
        name: in the words of llama.cpp, such as ``blk.0.attn_q.weight``.
        shape: sizes, the fastest axis last.
        kind: number of its type, a key of :data:`BLOCKS`.
        offset: first byte in the file.
        nbytes: number of bytes; 0 when the type is not known.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    nbytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        metadata: scalar values by key; arrays, such as the vocabulary, are left out.
        tensors: in the order of the file.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """Name of the architecture in the words of llama.cpp."""
        return str(self.metadata.get("general.architecture", "unknown"))


def read(path: Path) -> Header:
    """The header of a GGUF file, after every tensor was found to lie inside the file.

    Raises:
        InvalidInput: the file is no GGUF file, or is truncated.
        Unsupported: it is one part of a split file.
    """
    size = path.stat().st_size
    if size < 24:
        raise InvalidInput(f"{path} has {size} bytes, expected a GGUF file.", advice="Fetch the file again.")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(content)
        _check_version(reader, path=path)
        try:
            num_tensors, num_pairs = reader.scalar("<Q"), reader.scalar("<Q")
            metadata = {key: value for key, value in (reader.pair() for _ in range(num_pairs)) if value is not None}
            found = [reader.tensor() for _ in range(num_tensors)]
        except (struct.error, UnicodeDecodeError, _Damaged) as error:
            raise InvalidInput(
                f"{path} is truncated or damaged in its header ({size} bytes).", advice="Fetch the file again."
            ) from error
        position = reader.position
    if metadata.get("split.count", 0) > 1:
        raise Unsupported(
            f"{path} is part of a GGUF file that is split in {metadata['split.count']}.",
            advice="Join the parts with llama-gguf-split --merge.",
        )
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    start = -(-position // alignment) * alignment
    tensors = tuple(dataclasses.replace(tensor, offset=start + tensor.offset) for tensor in found)
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > size:
            raise InvalidInput(
                f"{path} is truncated: it has {size} bytes, and tensor {tensor.name} ends at "
                f"{tensor.offset + tensor.nbytes}.",
                advice="Fetch the file again.",
            )
    return Header(metadata=metadata, tensors=tensors)


class _Damaged(Exception):
    """A value that no GGUF file has."""


def _check_version(reader: _Reader, *, path: Path) -> None:
    magic = reader.take(4)
    if magic != MAGIC:
        raise InvalidInput(
            f"{path} begins with {magic!r}, expected {MAGIC!r}: it is not a GGUF file.",
            advice="Name a .gguf file, a checkpoint directory or a hub id.",
        )
    version = reader.scalar("<I")
    if version not in _VERSIONS:
        raise InvalidInput(
            f"{path} has GGUF version {version}, expected 2 or 3.", advice="Convert it with a current llama.cpp."
        )


class _Reader:
    """Reads values one after another."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self.position + count
        if end > len(self._content):
            raise _Damaged
        piece = self._content[self.position : end]
        self.position = end
        return piece

    def scalar(self, code: str) -> Any:
        """The next number."""
        (value,) = struct.unpack_from(code, self._content, self.position)
        self.position += struct.calcsize(code)
        return value

    def string(self) -> str:
        """The next text."""
        return self.take(self.scalar("<Q")).decode()

    def pair(self) -> tuple[str, Any]:
        """The next key and its value; None for an array, which is skipped."""
        key = self.string()
        return key, self._value(self.scalar("<I"))

    def tensor(self) -> Tensor:
        """The next tensor; its offset counts from the first byte of data."""
        name = self.string()
        num_dimensions = self.scalar("<I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise _Damaged
        shape = tuple(self.scalar("<Q") for _ in range(num_dimensions))[::-1]
        kind, offset = self.scalar("<I"), self.scalar("<Q")
        block_elements, block_bytes = BLOCKS.get(kind, (1, 0))
        nbytes = math.prod(shape) // block_elements * block_bytes
        return Tensor(name=name, shape=shape, kind=kind, offset=offset, nbytes=nbytes)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            self._skip_array()
            return None
        if kind not in _SCALARS:
            raise _Damaged
        return self.scalar(_SCALARS[kind])

    def _skip_array(self) -> None:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if count > len(self._content):
            raise _Damaged
        if kind in _SCALARS:
            self.take(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            self._skip_strings(count)
        else:
            for _ in range(count):
                self._value(kind)

    def _skip_strings(self, count: int) -> None:
        # A vocabulary has hundreds of thousands: this loop is most of the time of reading a header.
        content, position, unpack = self._content, self.position, struct.Struct("<Q").unpack_from
        for _ in range(count):
            position += 8 + unpack(content, position)[0]
        if position > len(content):
            raise _Damaged
        self.position = position
