"""A store of artifacts that are made at once."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from farm.records import ArtifactRecord, Claim
from farm.store.artifacts import Store, remove_tree


class Shelf:
    """A store of artifacts, each of which says what it was made of: the same work gives the same artifact."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self._published: dict[str, ArtifactRecord] = {}

    def publish(self, claim: Claim) -> ArtifactRecord:
        """What the stage of a claim makes."""
        content = f"{claim.stage} {sorted(claim.spec.items())} {sorted(claim.inputs.items())}"
        if content not in self._published:
            tree = self.store.new_tree()
            (tree / "content").write_text(content, encoding="utf-8")
            self._published[content] = self.store.publish(tree, stage=claim.stage)
        return self._published[content]


@contextlib.contextmanager
def shelf() -> Iterator[Shelf]:
    """A shelf that is there for a while."""
    with tempfile.TemporaryDirectory(prefix="farm-proof-") as directory:
        root = Path(directory) / "store"
        try:
            yield Shelf(root)
        finally:
            remove_tree(root)
