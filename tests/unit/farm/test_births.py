"""Processes are told apart by when they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from farm.births import birth
from farm.home.local import ProcessId
from workers.groups import Group


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"]) as process:
        yield process
        process.kill()


def test_a_process_keeps_its_birth_until_somebody_has_waited_for_it(child: subprocess.Popen[bytes]) -> None:
    before = birth(child.pid)
    assert before is not None
    assert before != birth(os.getpid())
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert birth(child.pid) == before
    child.wait()
    assert birth(child.pid) is None


def test_it_is_the_same_process_after_the_clock_was_set(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, group = ProcessId.of(child.pid), Group.of(child.pid)
    boot = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + 3600)  # as Linux says after that
    assert process.lives()
    assert [member.pid for member in group.members()] == [child.pid]


def test_another_one_with_its_number_is_not_it(child: subprocess.Popen[bytes]) -> None:
    assert not ProcessId(pid=child.pid, birth=birth(os.getpid()) or "").lives()
