"""Hearing of writes to a file."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.scheduling.file_watch import FileWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
_LONG_S = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


@pytest.fixture
def watch(path: Path) -> Iterator[FileWatch]:
    watch = FileWatch(path)
    yield watch
    watch.close()


def test_writes_are_told_of_once(path: Path, watch: FileWatch) -> None:
    assert not watch.written()
    for _ in range(3):
        path.write_text("something", encoding="utf-8")
    assert watch.written()
    assert not watch.written()


def test_who_reads_or_writes_elsewhere_is_not_told_of(path: Path, watch: FileWatch) -> None:
    path.read_bytes()
    path.with_name("other").write_text("something", encoding="utf-8")
    assert not watch.written()


def test_a_write_ends_the_wait_and_is_still_told_of(path: Path, watch: FileWatch) -> None:
    waiter = threading.Thread(target=watch.wait, args=(_LONG_S,))
    waiter.start()
    path.write_text("something", encoding="utf-8")
    waiter.join(_LONG_S / 2)  # a wait to its end would be longer
    assert not waiter.is_alive()
    assert watch.written()


def test_a_file_that_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileWatch(path.with_name("other"))
