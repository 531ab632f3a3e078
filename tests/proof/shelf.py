"""A store of artifacts that are made at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from farm.records import ArtifactRecord, Claim
from farm.store.artifacts import Store, remove_tree


class CountedStore(Store):
    """A store that tells how many of its locks are held."""

    num_locks = 0

    @contextlib.contextmanager
    def lock(self, digest: str, *, kind: str = "objects") -> Iterator[None]:
        """As :meth:`farm.store.artifacts.Store.lock`."""
        with super().lock(digest, kind=kind):
            self.num_locks += 1
            try:
                yield
            finally:
                self.num_locks -= 1


class Shelf:
    """A store of artifacts, each of which says what it was made of: the same work gives the same artifact.

    What was published once is kept elsewhere, too, and put into its place from there the next time: that takes no sync.

    Args:
        root: directory of the store.
        clock: of the disk, too.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float]) -> None:
        self.store = CountedStore(root)
        self._clock = clock
        self._kept = root.parent / "kept"
        self._published: dict[str, ArtifactRecord] = {}

    def publish(self, claim: Claim) -> ArtifactRecord:
        """What the stage of a claim makes."""
        content = f"{claim.stage} {sorted(claim.spec.items())} {sorted(claim.inputs.items())}"
        if content not in self._published:
            tree = self.store.new_tree()
            (tree / "content").write_text(content, encoding="utf-8")
            record = self._published[content] = self.store.publish(tree, stage=claim.stage)
            shutil.copytree(self.store.wrapper(record.digest), self._kept / record.digest)
        digest = self._published[content].digest
        self.put([digest])
        os.utime(self.store.wrapper(digest), (self._clock(), self._clock()))
        return self._published[content]

    def put(self, digests: Iterable[str]) -> None:
        """Let artifacts that were published once be there."""
        for digest in digests:
            wrapper = self.store.wrapper(digest)
            if not wrapper.exists():
                shutil.copytree(self._kept / digest, wrapper)

    def clear(self) -> None:
        """Let nothing be there."""
        for digest in self.store.digests():
            remove_tree(self.store.wrapper(digest))


@contextlib.contextmanager
def shelf(clock: Callable[[], float]) -> Iterator[Shelf]:
    """A shelf that is there for a while."""
    with tempfile.TemporaryDirectory(prefix="farm-proof-") as directory:
        root = Path(directory) / "store"
        try:
            yield Shelf(root, clock=clock)
        finally:
            for path in root.parent.iterdir():
                remove_tree(path)
