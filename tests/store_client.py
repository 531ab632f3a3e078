"""One use of a store at a URL in a process of its own, for tests that kill it or run several.

``python -m tests.store_client publish|path|die ROOT URL OPTIONS ARGUMENT``: publishes a copy of a directory and prints
its digest; prints the path of an artifact; or is killed while it fetches one, when the first part of a file is written.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from farm.store.manifest import FileEntry
from farm.store.remote import Remote
from farm.store.remote_store import RemoteStore
from tests.s3_server import CHUNK_BYTES


def main(verb: str, root: str, url: str, options: str, argument: str) -> None:
    """Do it."""
    store = RemoteStore(Path(root), remote=Remote(url, options=json.loads(options), chunk_bytes=CHUNK_BYTES))
    if verb == "publish":
        tree = store.new_tree()
        shutil.copytree(argument, tree, dirs_exist_ok=True)
        said = store.publish(tree, stage="export").digest
    else:
        if verb == "die":
            Remote.read_blob = _die_after_the_first_part  # type: ignore[method-assign]
        said = str(store.path(argument))
    sys.stdout.write(f"{said}\n")


def _die_after_the_first_part(self: Remote, entry: FileEntry, *, start: int) -> Iterator[bytes]:
    yield from itertools.islice(_read_blob(self, entry, start=start), 1)
    os.kill(os.getpid(), signal.SIGKILL)


_read_blob = Remote.read_blob


if __name__ == "__main__":
    main(*sys.argv[1:])
