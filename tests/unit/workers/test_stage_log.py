"""What is kept of what a stage prints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.stage_log import StageLog

TOKEN = "hf_" + "aB3" * 10


def logged(tmp_path: Path, *chunks: str, limit_bytes: int = 1 << 20) -> str:
    path = tmp_path / "jobs" / "1.1.log"
    log = StageLog(path, limit_bytes=limit_bytes)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    for chunk in chunks:
        os.write(writer, chunk.encode())
        assert log.take(reader)
    os.close(writer)
    assert not log.take(reader)
    os.close(reader)
    log.close()
    return path.read_text()


def test_everything_is_kept_as_it_came(tmp_path: Path) -> None:
    assert logged(tmp_path, "one\n", "\x1b[31mtwo\x1b[0m h", "", "alf") == "one\n\x1b[31mtwo\x1b[0m half"


@pytest.mark.parametrize("cut", range(0, len(TOKEN) + 8, 3))
def test_a_token_is_not_kept_wherever_a_chunk_ends(tmp_path: Path, cut: int) -> None:
    text = f"with {TOKEN}, done"
    assert logged(tmp_path, text[:cut], text[cut:]) == "with ***, done"


@pytest.mark.parametrize("cut", range(0, 36, 3))
def test_a_password_in_a_url_is_not_kept(tmp_path: Path, cut: int) -> None:
    text = "by http://ada:s3cret@proxy:3128/ to https://hub:443/x@y"
    assert logged(tmp_path, text[:cut], text[cut:]) == "by http://***@proxy:3128/ to https://hub:443/x@y"


def test_of_too_long_a_log_the_beginning_and_the_end_are_kept_and_it_says_so(tmp_path: Path) -> None:
    middle = ["middle\n" * 9000] * 10
    text = logged(tmp_path, "the beginning\n", *middle, "the end\n", limit_bytes=1000)
    assert text.startswith("the beginning\nmiddle\n")
    assert text.endswith("middle\nthe end\n")
    assert "the log of an attempt is limited to 1000 bytes; of what follows only the end will be kept]" in text
    whole = len("the beginning\nthe end\n") + 10 * len(middle[0])
    assert f"[{whole - 1000 - (1 << 16)} bytes are left out here" in text
    assert len(text) < 1000 + (1 << 16) + 300


def test_a_log_that_cannot_be_written_costs_nothing_but_itself(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    log = StageLog(tmp_path / "jobs" / "1.1.log", limit_bytes=10)
    reader, writer = os.pipe()
    os.write(writer, b"lost")
    os.close(writer)
    assert not log.take(reader)
    os.close(reader)
    log.close()
    assert (tmp_path / "jobs").read_text() == "a file"
