"""Logs of the farm's own processes are kept short while the processes write."""

from __future__ import annotations

from pathlib import Path

from farm.home import log_files


def test_a_log_above_its_limit_is_put_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "host.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 10)
        log_files.cap(tmp_path, limit_bytes=20)
        writer.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "host.log.1").read_bytes() == b"old\n" * 10


def test_what_was_put_aside_before_goes(tmp_path: Path) -> None:
    log = tmp_path / "host.log"
    for text in (b"first" * 10, b"second" * 10):
        log.write_bytes(text)
        log_files.cap(tmp_path, limit_bytes=20)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "host.log": b"",
        "host.log.1": b"second" * 10,
    }


def test_a_log_below_its_limit_and_attempts_logs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "000").mkdir(parents=True)
    attempt = tmp_path / "jobs" / "000" / "1.1.log"
    attempt.write_bytes(b"x" * 100)
    log = tmp_path / "host.log"
    log.write_bytes(b"x" * 20)
    log_files.cap(tmp_path, limit_bytes=20)
    assert (log.stat().st_size, attempt.stat().st_size) == (20, 100)
    assert not list(tmp_path.rglob("*.1"))


def test_without_room_for_a_copy_the_log_is_emptied_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "host.log"
    log.write_bytes(b"x" * 100)
    (tmp_path / "host.log.1").mkdir()  # nothing can be copied there
    log_files.cap(tmp_path, limit_bytes=20)
    assert log.stat().st_size == 0
