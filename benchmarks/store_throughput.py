"""Publishing and fetching artifacts, beside a plain copy of the same bytes: in a directory, and in S3.

S3 is moto's server on this machine, whose own work is most of the time; the peer has to bear it, too.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure
from farm.store.artifacts import Store, remove_tree
from farm.store.remote import Remote
from farm.store.remote_store import RemoteStore
from tests.s3_server import S3Server, running

_NUM_FILES = 4
_FILE_BYTES = 32 << 20
_MIB = _NUM_FILES * _FILE_BYTES / 2**20


def _source(root: Path) -> Path:
    """A directory of files that are all different, as old as a checkpoint."""
    folder = root / "source"
    folder.mkdir()
    for number in range(_NUM_FILES):
        path = folder / f"weights-{number}"
        path.write_bytes(os.urandom(_FILE_BYTES))
        os.utime(path, (1e9, 1e9))
    return folder


def _copy(source: Path, target: Path) -> None:
    """A plain copy that is on the disk when it returns."""
    shutil.copytree(source, target)
    for path in target.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())


def _link(source: Path, tree: Path) -> None:
    for path in source.iterdir():
        os.link(path, tree / path.name)


def _times(runs: int, act: Callable[[int], Callable[[], Any]]) -> float:
    """Median seconds of what ``act`` prepares."""
    found = []
    for number in range(runs):
        prepared = act(number)
        began = time.perf_counter()
        prepared()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def _publish_copied(root: Path, source: Path) -> Callable[[int], Callable[[], Any]]:
    """Publishing files that a stage has written."""

    def prepare(number: int) -> Callable[[], Any]:
        store = Store(root / f"copied{number}")
        tree = store.new_tree()
        shutil.copytree(source, tree, dirs_exist_ok=True)
        return lambda: store.publish(tree, stage="quantize")

    return prepare


def _publish_linked(root: Path, source: Path) -> Callable[[int], Callable[[], Any]]:
    """Publishing links to files that another artifact has already."""
    store = Store(root / "linked")
    first = store.new_tree()
    _link(source, first)
    store.publish(first, stage="resolve")

    def prepare(number: int) -> Callable[[], Any]:
        tree = store.new_tree()
        _link(source, tree)
        (tree / "graph").write_text(str(number))
        return lambda: store.publish(tree, stage="export")

    return prepare


def _directory(root: Path, source: Path, runs: int) -> list[measure.Figure]:
    peer = _times(runs, lambda number: lambda: _copy(source, root / f"copy{number}"))
    names = {"publish 128 MiB a stage wrote": _publish_copied, "publish 128 MiB another artifact has": _publish_linked}
    figures = [
        measure.Figure(
            name=f"{name}, beside copy", ours=_MIB / _times(runs, make(root, source)), peer=_MIB / peer, unit="MiB/s"
        )
        for name, make in names.items()
    ]
    store = Store(root / "linked")
    (digest, *_) = store.digests()
    looks = _times(20 * runs, lambda _: lambda: store.path(digest))
    return [*figures, measure.Figure(name="path of a verified artifact", ours=1e3 * looks, unit="ms")]


def _remote(root: Path, source: Path, runs: int, server: S3Server) -> list[measure.Figure]:
    import fsspec

    fs = fsspec.filesystem("s3", **server.options(), skip_instance_cache=True)
    fs.mkdir("bench")
    remote = Remote("s3://bench/farm", options=server.options())
    made = []

    def publish(number: int) -> Callable[[], Any]:
        fs.rm("bench/farm", recursive=True) if fs.exists("bench/farm") else None
        store = RemoteStore(root / f"publisher{number}", remote=remote)
        tree = store.new_tree()
        _link(source, tree)
        return lambda: made.append(store.publish(tree, stage="resolve").digest)

    def fetch(number: int) -> Callable[[], Any]:
        store = RemoteStore(root / f"reader{number}", remote=remote)
        return lambda: store.path(made[0])

    def get(number: int) -> Callable[[], Any]:
        remove_tree(root / "plain")
        return lambda: fs.get("bench/plain", str(root / "plain"), recursive=True)

    put_s = _times(runs, lambda _: lambda: fs.put(str(source), "bench/plain", recursive=True))
    publish_s = _times(runs, publish)
    get_s, fetch_s = _times(runs, get), _times(runs, fetch)
    return [
        measure.Figure(name="S3: publish, beside s3fs put", ours=_MIB / publish_s, peer=_MIB / put_s, unit="MiB/s"),
        measure.Figure(name="S3: fetch, beside s3fs get", ours=_MIB / fetch_s, peer=_MIB / get_s, unit="MiB/s"),
    ]


def measure_all(runs: int) -> list[measure.Figure]:
    """MiB/s of wall time, medians."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            source = _source(root)
            figures = _directory(root, source, runs)
            with running(root / "s3.log") as server:
                return figures + _remote(root, source, runs, server)
        finally:
            for path in root.iterdir():
                remove_tree(path)
