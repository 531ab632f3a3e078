"""One use of a store at a URL in a process of its own, for tests that kill it or run several.

``python -m tests.store_client publish|path ROOT URL OPTIONS ARGUMENT``: publishes a copy of a directory and prints its
digest, or prints the path of an artifact.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from farm.remote import Remote
from farm.remote_store import RemoteStore
from tests.s3_server import CHUNK_BYTES


def main(verb: str, root: str, url: str, options: str, argument: str) -> None:
    """Do it."""
    store = RemoteStore(Path(root), remote=Remote(url, options=json.loads(options), chunk_bytes=CHUNK_BYTES))
    if verb == "publish":
        tree = store.new_tree()
        shutil.copytree(argument, tree, dirs_exist_ok=True)
        said = store.publish(tree, stage="export").digest
    else:
        said = str(store.path(argument))
    sys.stdout.write(f"{said}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
