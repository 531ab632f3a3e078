"""The QPC container ``programqpc.bin``: a header, a table of segments, their names and their data.

::

    u32 magic, u8 major, u8 minor, u16 compression, u64 size, u64 base
    u64 number of segments, u64 address of the table
    table of {u64 size, u64 offset, u64 address of the name, u64 address of the data}
    names (NUL-terminated), data; everything at multiples of 8

Addresses are counted from ``base``, here 0, so that they are offsets in the file. ``offset`` has a meaning for
``constants.bin`` only: the size of its static part. Source: the open runtime's QAicQpc.h
(quic/software-kit-for-qualcomm-cloud-ai-100). Constants start at a multiple of 4096 here, so that they can be mapped.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path
from typing import IO

FILE_NAME = "programqpc.bin"
MAGIC = 0x00A1CD7C
MAJOR, MINOR = 0, 1
UNCOMPRESSED, COMPRESSED = 0, 1

CONSTANTS_DESCRIPTION = "constantsdesc.bin"
NETWORK_DESCRIPTION = "networkdesc.bin"
NETWORK = "network.elf"
CONSTANTS = "constants.bin"

_HEADER = struct.Struct("<IBBHQQQQ")
_SEGMENT = struct.Struct("<QQQQ")
_ALIGNMENT = 8
_CONSTANTS_ALIGNMENT = 4096
_MOST_SEGMENTS = 64


class BadContainer(ValueError):
    """A file that is no QPC container, or a damaged one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Where a segment's data is.

    Attributes:
        start: offset in the file.
        size: bytes.
        offset: of ``constants.bin``: size of the static constants.
    """

    start: int
    size: int
    offset: int


class Writer:
    """Writes a container front to back; constants come last and may be streamed."""

    def __init__(self, file: IO[bytes], *, head: dict[str, bytes]) -> None:
        """Lay out the head segments; :meth:`finish` writes them.

        Args:
            file: empty, seekable.
            head: data by name of all segments but ``constants.bin``, whose final size must be these sizes.
        """
        self._file = file
        self._head = head
        names = [*head, CONSTANTS]
        position = _HEADER.size + _SEGMENT.size * len(names)
        self._name_at: dict[str, int] = {}
        for name in names:
            self._name_at[name], position = position, _aligned(position + len(name) + 1, _ALIGNMENT)
        self._data_at: dict[str, int] = {}
        for name, data in head.items():
            self._data_at[name], position = position, _aligned(position + len(data), _ALIGNMENT)
        self.constants_start = _aligned(position, _CONSTANTS_ALIGNMENT)
        file.seek(self.constants_start)

    def finish(self) -> None:
        """Write everything that stands before the constants, which the caller has written from the current position."""
        self._file.seek(0, os.SEEK_END)
        constants_size = max(self._file.tell() - self.constants_start, 0)
        end = self.constants_start + constants_size
        self._file.truncate(end)
        sizes = {name: len(data) for name, data in self._head.items()} | {CONSTANTS: constants_size}
        starts = self._data_at | {CONSTANTS: self.constants_start}
        self._file.seek(0)
        self._file.write(_HEADER.pack(MAGIC, MAJOR, MINOR, UNCOMPRESSED, end, 0, len(sizes), _HEADER.size))
        for name, size in sizes.items():
            static = size if name == CONSTANTS else 0
            self._file.write(_SEGMENT.pack(size, static, self._name_at[name], starts[name]))
        for name in sizes:
            self._file.seek(self._name_at[name])
            self._file.write(name.encode() + b"\0")
        for name, data in self._head.items():
            self._file.seek(self._data_at[name])
            self._file.write(data)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def read_segments(path: Path) -> dict[str, Segment]:
    """The segments of a container by name.

    Raises:
        BadContainer: the file is none, is truncated or of another version.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        fields = _unpack(file, _HEADER, at=0, length=length)
        magic, major, _, compression, size, _, count, table = fields
        if magic != MAGIC:
            raise BadContainer(f"{path} is not a QPC: it begins with {magic:#010x}, expected {MAGIC:#010x}.")
        if major != MAJOR or compression != UNCOMPRESSED:
            raise BadContainer(f"{path} has version {major} and compression {compression}, expected {MAJOR} and 0.")
        if size != length:
            raise BadContainer(f"{path} has {length} bytes, its header says {size}: it is damaged.")
        if not 1 <= count <= _MOST_SEGMENTS:
            raise BadContainer(f"{path} says it has {count} segments: it is damaged.")
        segments: dict[str, Segment] = {}
        for number in range(count):
            fields = _unpack(file, _SEGMENT, at=table + number * _SEGMENT.size, length=length)
            size, offset, name_at, start = fields
            if name_at >= length or start + size > length:
                raise BadContainer(f"{path}: a segment lies outside the file: it is damaged.")
            file.seek(name_at)
            name = file.read(64).partition(b"\0")[0].decode(errors="replace")
            segments[name] = Segment(start=start, size=size, offset=offset)
    return segments


def _unpack(file: IO[bytes], layout: struct.Struct, *, at: int, length: int) -> tuple[int, ...]:
    if at + layout.size > length:
        raise BadContainer(f"The container has {length} bytes, too few: it is damaged.")
    file.seek(at)
    return layout.unpack(file.read(layout.size))


def read_segment(path: Path, *, segment: Segment) -> bytes:
    """The bytes of a segment."""
    with path.open("rb") as file:
        file.seek(segment.start)
        return file.read(segment.size)
