"""What an artifact consists of: the files of a tree with their digests, and the digest of the whole."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from farm.errors import StorageFault
from qeff_engine import spec

FORMAT = 1
CACHE_FROM_BYTES = 1 << 20  # smaller files are hashed faster than looked up
# A file changed within one tick of the file system's clock after we read it would look unchanged afterwards.
CLOCK_TICK_NS = 100_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """How a file looked when its content was known: what is equal now was not written to since."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Look:
        """The look of a file by its status."""
        return cls(inode=status.st_ino, size=status.st_size, mtime_ns=status.st_mtime_ns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a tree.

    Attributes:
        path: relative, with forward slashes.
        sha256: of its content.
        num_bytes: its size.
    """

    path: str
    sha256: str
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of an artifact, by path. Modes, times and empty directories are no part of it."""

    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """What the artifact is addressed by."""
        return spec.digest({"format": FORMAT, "files": self._rows()})

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.num_bytes for entry in self.files)

    def to_json(self) -> str:
        """The manifest as text."""
        return json.dumps({"format": FORMAT, "files": self._rows()})

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest of a text made by :meth:`to_json`.

        Raises:
            ValueError: it is not the text of a manifest.
        """
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise ValueError(f"the manifest has format {found['format']}, expected {FORMAT}")
            rows = [(str(path), str(sha256), int(size)) for path, sha256, size in found["files"]]
            for path, _, _ in rows:
                if path.startswith("/") or ".." in path.split("/"):
                    raise ValueError(f"the manifest names '{path}', which is not inside of the artifact")
        except (KeyError, TypeError) as error:
            raise ValueError(f"the manifest lacks what it must say ({error!r})") from error
        return cls(files=tuple(FileEntry(path=path, sha256=sha256, num_bytes=size) for path, sha256, size in rows))

    def _rows(self) -> list[list[str | int]]:
        return [[entry.path, entry.sha256, entry.num_bytes] for entry in self.files]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blob:
    """Bytes that one or more files of artifacts name.

    Attributes:
        id: equal for names of the same bytes.
        num_bytes: their size.
        num_names: how many names they have, those outside of the store included.
    """

    id: str
    num_bytes: int
    num_names: int


class DigestCache:
    """Digests of big files by device and inode, kept in a directory.

    A checkpoint that several artifacts hard-link is read once. An entry holds for one size and modification time, and
    tells when the content was really read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def sha256_of(self, descriptor: int, *, status: os.stat_result, since: float = 0.0) -> str:
        """SHA-256 of an open file, from the cache when it was read after ``since`` and has not changed since then."""
        path = self._directory / f"{status.st_dev:x}-{status.st_ino:x}.json"
        look = dataclasses.asdict(Look.of(status))
        if status.st_size >= CACHE_FROM_BYTES:
            found = read_json(path)
            if found.get("look") == look and float(str(found.get("read_at", 0.0))) >= since:
                return str(found["sha256"])
        read_at_ns = time.time_ns()
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if status.st_size >= CACHE_FROM_BYTES and status.st_mtime_ns < read_at_ns - CLOCK_TICK_NS:
            with contextlib.suppress(OSError):  # a cache only: a full or read-only disk is told by what must be written
                self._directory.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps({"look": look, "sha256": digest, "read_at": read_at_ns / 1e9}))
        return digest


def survey(tree: Path, *, cache: DigestCache, durable: bool = False) -> tuple[Manifest, dict[str, Look]]:
    """The manifest of a tree and how its files looked.

    Args:
        tree: directory of regular files and directories.
        cache: digests that are known already.
        durable: also bring the files that only this tree has to the disk.

    Raises:
        StorageFault: the tree holds a symbolic link, a device, a socket or a name that is not UTF-8.
        OSError: it cannot be read.
    """
    entries, looks = [], {}
    for name in sorted(names(tree)):
        descriptor = os.open(tree / name, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            sha256 = cache.sha256_of(descriptor, status=status)
            if durable and status.st_nlink == 1:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        entries.append(FileEntry(path=name, sha256=sha256, num_bytes=status.st_size))
        looks[name] = Look.of(status)
    return Manifest(files=tuple(entries)), looks


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new one, also after a crash."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def names(tree: Path, prefix: str = "") -> Iterator[str]:
    """Relative paths of all regular files; anything that is neither file nor directory is refused."""
    with os.scandir(tree / prefix) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from names(tree, f"{name}/")
            elif stat.S_ISREG(mode):
                yield _checked(name)
            else:
                raise StorageFault(
                    f"'{name}' is {_KINDS.get(stat.S_IFMT(mode), 'a special file')}, expected regular files and "
                    "directories only. The stage must copy or hard-link what it wants to keep."
                )


_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def _checked(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise StorageFault(f"The file name {os.fsencode(name)!r} is not UTF-8; give the file another name.") from error
    return name


def read_json(path: Path) -> dict[str, object]:
    """A JSON object, or an empty one when the file is missing or was cut off by a crash of the machine."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
