"""What may be deleted in a store's directory beside artifacts, and what the deletion of artifacts frees.

Files are hard links as often as not: a checkpoint belongs to the user, to its snapshot and to every export of it. Its
bytes are freed with the last of those names.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from farm.store.artifacts import REREAD_AFTER_S, Store, remove_tree
from farm.store.manifest import Blob

LEFTOVER_AFTER_S = 86_400.0  # what nobody has written to for so long is no draft of somebody who lives
DAMAGED_KEPT_S = 7 * 86_400.0  # for those who want to know what happened

_ATTEMPT = re.compile(r"(\d+)\.(\d+)[.-]")


Holdings = Mapping[str, Sequence[Blob]]  # by artifact, an entry per file


def holdings(store: Store) -> dict[str, list[Blob]]:
    """Every artifact of a store with the bytes that it names."""
    return {digest: list(store.blobs(digest)) for digest in store.digests()}


class Ledger:
    """The bytes that only the store holds, while artifacts are taken out of it one after another. Pure.

    What a user's own file names too is not counted: deleting artifacts does not free it.
    """

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self._names = collections.Counter(blob.id for blobs in held.values() for blob in blobs)
        sizes = {blob.id: blob.num_bytes for blobs in held.values() for blob in blobs}
        self._elsewhere = {
            blob.id for blobs in held.values() for blob in blobs if blob.num_names > self._names[blob.id]
        }
        self.num_bytes = sum(size for name, size in sizes.items() if name not in self._elsewhere)

    def take(self, digest: str) -> int:
        """Take an artifact out; the bytes that this frees."""
        freed = 0
        for blob in self._held.get(digest, ()):
            self._names[blob.id] -= 1
            if self._names[blob.id] == 0 and blob.id not in self._elsewhere:
                freed += blob.num_bytes
        self.num_bytes -= freed
        return freed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something that a crash left, or damage that was set aside long ago."""

    path: Path
    num_bytes: int


def leftovers(
    store: Store, *, scratch: Path | None, is_running: Callable[[int, int], bool], now: float | None = None
) -> list[Leftover]:
    """What nobody needs of drafts, scratch directories, damaged artifacts and notes.

    Args:
        store: where to look.
        scratch: directory of the scratch directories of attempts.
        is_running: whether an attempt (job, number) runs; what is its is left alone.
        now: seconds since the epoch, by the clock of the disk.
    """
    at = time.time() if now is None else now
    found = []
    places = [store.root / "tmp"] + ([scratch] if scratch is not None else [])
    for path in _entries(places):
        owner = _ATTEMPT.match(path.name)
        if owner is not None and is_running(int(owner[1]), int(owner[2])):
            continue
        if newest(path) < at - LEFTOVER_AFTER_S:
            found.append(path)
    for path in _entries([store.root / "damaged"]):
        if _set_aside_at(path) < at - DAMAGED_KEPT_S:
            found.append(path)
    parts = store.root / "blobs"
    found += [path for path in sorted(parts.glob("*/*.part")) if newest(path) < at - LEFTOVER_AFTER_S]
    for path in _entries([store.root / "digests", store.root / "manifests"]):
        # An entry as old as that is not believed any more; a hidden file is a draft of one.
        limit_s = LEFTOVER_AFTER_S if path.name.startswith(".") else REREAD_AFTER_S
        if newest(path) < at - limit_s:
            found.append(path)
    return [Leftover(path=path, num_bytes=size(path)) for path in found]


def old_logs(directory: Path, *, older_than_s: float, now: float | None = None) -> list[Leftover]:
    """Logs of attempts that nobody has written to for long."""
    at = time.time() if now is None else now
    jobs = directory / "jobs"
    logs = sorted(jobs.glob("*/*.log")) if jobs.is_dir() else []
    return [Leftover(path=path, num_bytes=size(path)) for path in logs if newest(path) < at - older_than_s]


def delete(found: Iterable[Leftover]) -> int:
    """Delete leftovers; how many bytes they had."""
    num_bytes = 0
    for leftover in found:
        remove_tree(leftover.path)
        num_bytes += leftover.num_bytes
    return num_bytes


def _entries(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(place.iterdir())


def _set_aside_at(path: Path) -> float:
    """When an artifact was set aside, which is the end of its name; 0 if it is not."""
    try:
        return int(path.suffix.removeprefix("."), 16) / 1e9
    except ValueError:
        return 0.0


def newest(path: Path) -> float:
    """When something was last written below a path, by the clock of the disk; 0 if it is gone."""
    times = [0.0]
    for each in _walk(path):
        with contextlib.suppress(FileNotFoundError):
            times.append(each.lstat().st_mtime)
    return max(times)


def size(path: Path) -> int:
    """Bytes of the files below a path that have no other name."""
    num_bytes = 0
    for each in _walk(path):
        with contextlib.suppress(FileNotFoundError):
            status = each.lstat()
            if not each.is_dir() and status.st_nlink == 1:
                num_bytes += status.st_size
    return num_bytes


def _walk(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                yield Path(folder, name)
