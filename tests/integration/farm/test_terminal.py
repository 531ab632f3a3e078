"""What a terminal is shown, and what is written where there is none."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from farm import cli
from farm.cli import _wait
from tests import farm_driver

COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


@pytest.fixture
def with_results(farm_home: Path, model: Path, driver: farm_driver.Driver, capsys: pytest.CaptureFixture[str]) -> Path:
    """A home with one finished submission."""
    cli.main(["--home", str(farm_home), "submit", "--model", str(model), "--cores", "8,14"])
    driver.work()
    capsys.readouterr()
    return farm_home


def on_a_terminal(home: Path, *words: str, **environ: str) -> bytes:
    """What a command writes to a terminal of 200 columns."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "farm", "--home", str(home), *words]
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        command, stdout=follower, stderr=follower, env={**clean, "TERM": "xterm", "COLUMNS": "200", **environ}
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 1 << 16)
            except OSError:  # EIO: the last writer has closed it
                break
            if not part:
                break
            shown += part
    os.close(leader)
    assert process.returncode == 0
    return shown


def test_a_terminal_gets_colours(with_results: Path) -> None:
    shown = on_a_terminal(with_results, "list", "s1")
    assert COLOUR.search(shown)
    assert b"succeeded" in shown


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_turned_off(with_results: Path, environ: dict[str, str]) -> None:
    shown = on_a_terminal(with_results, "list", "s1", **environ)
    colours = [code for code in COLOUR.findall(shown) if re.search(rb"3[0-7]", code)]
    assert colours == []
    assert b"succeeded" in shown


def test_a_pipe_gets_plain_columns(with_results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--home", str(with_results), "report", "s1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.splitlines()[0].startswith("2 points: model tiny-llama, quantize none, precision fp16, KV fp16")
    assert out.splitlines()[1].split()[:4] == ["cores", "simulated", "device", "TTFT"]


def test_waiting_on_a_terminal_leaves_what_has_ended(
    farm_home: Path,
    model: Path,
    driver: farm_driver.Driver,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    claims: list[farm_driver.records.Claim] = []

    def work() -> None:
        """First only begin the run, so that a running job is drawn; then end it."""
        if claims:
            driver.succeed(claims.pop())
        else:
            driver.work(lambda claim: claims.append(claim) if claim.stage == "run" else driver.succeed(claim))

    monkeypatch.setattr(_wait, "on_terminal", lambda stream: True)
    monkeypatch.setattr(_wait, "_pause", work)
    arguments = ["--home", str(farm_home), "submit", "--model", str(model), "--cores", "8", "--wait"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    ended = re.findall(r"succeeded\s+(j\d+ \w+)", captured.err)
    assert ended == ["j1 resolve", "j2 export", "j3 compile", "j4 run"]
    assert "tiny-llama" in captured.out
