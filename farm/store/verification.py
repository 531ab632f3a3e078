"""Whether an artifact in a directory is what was published: its manifest, names, looks and contents of files."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from farm.errors import DamagedArtifact, StorageFault
from farm.store.manifest import DigestCache, FileEntry, Look, Manifest, names, read_json, write_atomically

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)


def verify(wrapper: Path, *, digest: str, digests: DigestCache, since: float) -> Manifest:
    """The manifest of an artifact that is as published.

    Args:
        wrapper: directory with ``tree``, ``manifest.json`` and ``looks.json``.
        digest: what the artifact is addressed by.
        digests: of big files.
        since: contents that were last read before this time are read again, whatever they look like.

    Raises:
        DamagedArtifact: it is not as published.
        OSError: it cannot be read.
    """
    manifest = _manifest(wrapper, digest=digest)
    looks, read_at = _read_looks(wrapper)
    if not looks or not since <= read_at <= time.time():
        looks, read_at = {}, time.time()
    _compare_names(wrapper / "tree", manifest=manifest, digest=digest)
    found = {}
    for entry in manifest.files:
        known = looks.get(entry.path)
        found[entry.path] = _look(wrapper / "tree", entry, known=known, digest=digest, digests=digests, since=since)
    if found != looks:
        with contextlib.suppress(OSError):  # a store that is read-only by now can still be read
            write_looks(wrapper, found, read_at=read_at)
    return manifest


def write_looks(wrapper: Path, looks: dict[str, Look], *, read_at: float) -> None:
    """Note how the files of an artifact look whose contents were read, and when."""
    rows = {name: dataclasses.asdict(look) for name, look in looks.items()}
    write_atomically(wrapper / "looks.json", json.dumps({"read_at": read_at, "looks": rows}))


def damaged(digest: str, why: str) -> DamagedArtifact:
    """The error of an artifact that is not as published."""
    return DamagedArtifact(
        f"The artifact {digest[:12]} {why}. If it is a hard link to a model of yours that you wrote to, submit the "
        "model again; else `farm retry` makes the artifact again.",
        digest=digest,
    )


def _read_looks(wrapper: Path) -> tuple[dict[str, Look], float]:
    """How files looked and when their contents were last read; nothing, if that is not known: they are read then."""
    found = read_json(wrapper / "looks.json")
    try:
        noted: Any = found["looks"]
        return {name: Look(**fields) for name, fields in noted.items()}, float(str(found["read_at"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}, 0.0


def _manifest(wrapper: Path, *, digest: str) -> Manifest:
    try:
        manifest = Manifest.from_json((wrapper / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise damaged(digest, f"has no readable manifest ({error})") from error
    if manifest.digest != digest:
        raise damaged(digest, "has another artifact's manifest")
    return manifest


def _compare_names(tree: Path, *, manifest: Manifest, digest: str) -> None:
    try:
        found = set(names(tree))
    except FileNotFoundError as error:
        raise damaged(digest, f"lost a directory ({error.filename})") from error
    except StorageFault as error:
        raise damaged(digest, f"has got something strange: {error}") from error
    expected = {entry.path for entry in manifest.files}
    for what, some in (("lost", expected - found), ("has got", found - expected)):
        if some:
            raise damaged(digest, f"{what} the file '{min(some)}'")


def _look(tree: Path, entry: FileEntry, *, known: Look | None, digest: str, digests: DigestCache, since: float) -> Look:
    """How a file looks whose content is as published."""
    try:
        descriptor = os.open(tree / entry.path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _GONE:
            raise damaged(digest, f"lost the file '{entry.path}' ({error.strerror})") from error
        raise
    try:
        status = os.fstat(descriptor)
        look = Look.of(status)
        if look == known:
            return look
        same_size = status.st_size == entry.num_bytes
        if not same_size or digests.sha256_of(descriptor, status=status, since=since) != entry.sha256:
            raise damaged(digest, f"has the file '{entry.path}', which was changed after it was published")
    except OSError as error:
        if error.errno == errno.EIO:
            raise damaged(digest, f"has the file '{entry.path}', which the disk cannot read") from error
        raise
    finally:
        os.close(descriptor)
    return look
