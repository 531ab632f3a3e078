"""Fork servers with small modules: when they refuse, what a child inherits, what becomes of a server that fails."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import fork_probe
from tests.integration.attempt_node import LIMIT_S, wait_until
from workers.forks import Child, ForkServer
from workers.installed import Installed


@contextlib.contextmanager
def fork_server(*preload: str, **options: Any) -> Iterator[ForkServer]:
    forks = ForkServer(preload=preload, environ={"PATH": os.environ["PATH"]}, **options)
    try:
        yield forks
    finally:
        forks.close()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a module where servers find it."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def ask(forks: ForkServer, expression: str) -> str:
    """What an expression is in a stage process."""
    child = forks.start(fork_probe.evaluate, order=expression).result(LIMIT_S)
    said = read_all(child)
    assert forks.collect(child).code == 0, said
    return said


def read_all(child: Child) -> str:
    """What a child reports, until it has ended."""
    assert select.select([child.sentinel], [], [], LIMIT_S)[0]
    return os.read(child.channel, 1 << 16).decode()


PARENT = "__import__('os').getppid()"
MODULE_IS_THERE = "'quiet' in __import__('sys').modules"


def test_a_stage_is_forked_from_the_server_and_finds_its_modules(module: Callable[[str, str], str]) -> None:
    with fork_server(module("quiet", "VALUE = 7")) as forks:
        assert ask(forks, MODULE_IS_THERE) == "True"
        assert ask(forks, PARENT) == ask(forks, PARENT)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()", "it has 2 threads"),
        ("import os\nos._exit(3)", "it ended with exit code 3 while it imported its modules"),
    ],
)
def test_a_server_that_starts_a_thread_or_dies_is_refused_and_stages_start_fresh(
    module: Callable[[str, str], str], caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    with fork_server(module("quiet", "VALUE = 7"), module("bad", text)) as forks:
        assert ask(forks, MODULE_IS_THERE) == "False"
        assert ask(forks, MODULE_IS_THERE) == "False"
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert reason in record.getMessage()


def test_a_thread_that_comes_later_is_noticed_before_the_next_fork(
    module: Callable[[str, str], str], caplog: pytest.LogCaptureFixture
) -> None:
    text = "import os, threading\nwait = threading.Event().wait\n"
    text += "def start(): threading.Thread(target=wait, daemon=True).start()\n"
    text += "os.register_at_fork(after_in_parent=start)"
    with fork_server(module("quiet", "VALUE = 7"), module("late", text)) as forks:
        assert ask(forks, MODULE_IS_THERE) == "True"
        assert ask(forks, MODULE_IS_THERE) == "False"
    assert "it has 2 threads" in caplog.text


def test_a_module_that_cannot_be_imported_does_not_keep_others_from_it(
    module: Callable[[str, str], str], caplog: pytest.LogCaptureFixture
) -> None:
    with fork_server(module("broken", "raise ValueError('seven')"), module("quiet", "VALUE = 7")) as forks:
        assert ask(forks, MODULE_IS_THERE) == "True"
    assert "could not import broken: ValueError('seven')" in caplog.text


@pytest.mark.parametrize("way", ["forked", "fresh"])
def test_a_child_inherits_no_descriptor_no_handler_no_mask_and_no_secret(
    module: Callable[[str, str], str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_SECRET", "s3cret")
    leak = "import os, signal\nKEPT = os.open('/', os.O_RDONLY)\nos.set_inheritable(KEPT, True)\n"
    leak += (
        "signal.signal(signal.SIGUSR1, lambda *_: None)\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])\n"
    )
    thread = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    preload = [module("leak", leak)] + ([module("thread", thread)] if way == "fresh" else [])
    with fork_server(*preload) as forks:
        ask(forks, "0")
        # 0, 1 and 2, its three wires, and the one that the directory is read with.
        assert ask(forks, "len(__import__('os').listdir('/proc/self/fd'))") == "7"
        inherited = (
            "[n for n in __import__('os').listdir('/proc/self/fd') if int(n) > 2 and __import__('os').path.exists"
        )
        inherited += "('/proc/self/fd/' + n) and __import__('os').get_inheritable(int(n))]"
        assert ask(forks, inherited) == "[]"
        for name, expected in (("SIGUSR1", 0), ("SIGTERM", 0), ("SIGINT", 0), ("SIGCHLD", 0)):
            assert ask(forks, f"int(__import__('signal').getsignal(__import__('signal').{name}))") == str(expected)
        assert ask(forks, "__import__('signal').pthread_sigmask(0, [])") == "set()"
        assert "s3cret" not in ask(forks, "open('/proc/self/environ').read()")


@pytest.mark.parametrize("way", ["forked", "fresh"])
def test_an_end_comes_with_its_code_and_what_the_kernel_counted(module: Callable[[str, str], str], way: str) -> None:
    thread = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    with fork_server(*[module("thread", thread)] if way == "fresh" else []) as forks:
        burn = "sum(range(20_000_000)), b'x' * (64 << 20), __import__('os').kill(__import__('os').getpid(), 11)"
        child = forks.start(fork_probe.evaluate, order=burn).result(LIMIT_S)
        read_all(child)
        ended = forks.collect(child)
    assert ended.code == -signal.SIGSEGV
    assert ended.cpu_s > 0.05
    assert ended.peak_rss_bytes > 64 << 20


def test_a_killed_server_is_replaced_at_the_next_start() -> None:
    with fork_server() as forks:
        first = int(ask(forks, PARENT))
        os.kill(first, signal.SIGKILL)
        assert int(ask(forks, PARENT)) != first


def test_a_server_that_grew_is_replaced_without_hurting_its_children(module: Callable[[str, str], str]) -> None:
    text = "import os\nkept = []\nos.register_at_fork(after_in_parent=lambda: kept.append(bytearray(8 << 20)))"
    with fork_server(module("grows", text), max_growth_bytes=4 << 20) as forks:
        child = forks.start(fork_probe.evaluate, order="__import__('time').sleep(600)").result(LIMIT_S)
        first = psutil.Process(child.group.pid).ppid()
        wait_until(lambda: int(ask(forks, PARENT)) != first, what="another server")
        assert psutil.Process(child.group.pid).ppid() == first
        os.kill(child.group.pid, signal.SIGTERM)
        read_all(child)
        assert forks.collect(child).code == -signal.SIGTERM
        wait_until(
            lambda: int(ask(forks, PARENT)) != first and not psutil.pid_exists(first), what="the first one's end"
        )


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a package of which the server imports one module, and a stage, late, another."""
    package = tmp_path / "toy"
    package.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name in ("__init__", "early", "late"):
        (package / f"{name}.py").write_text("VALUE = 'old'\n")
    return package


BOTH = "(__import__('toy.early').early.VALUE, __import__('toy.late').late.VALUE)"


def test_a_change_on_disk_is_noticed_and_no_stage_has_old_modules_and_new_ones(toy: Path) -> None:
    versions = {"toy": "1"}
    code = Installed(("toy",), toolchain=lambda: versions)
    with fork_server("toy.early", code=code) as forks:
        assert ask(forks, BOTH) == "('old', 'old')"
        before = code.now()
        versions = {"toy": "2"}
        for name in ("early", "late"):
            (toy / f"{name}.py").write_text("VALUE = 'newer'\n")
        wait_until(lambda: code.now().fingerprint != before.fingerprint, what="the change")
        assert ask(forks, BOTH) == "('newer', 'newer')"
        child = forks.start(fork_probe.evaluate, order="0").result(LIMIT_S)
        read_all(child)
        forks.collect(child)
        assert (before.toolchain, child.code.toolchain) == ({"toy": "1"}, {"toy": "2"})


def test_a_package_of_which_all_is_imported_before_the_fork_does_not_change_in_a_stage(toy: Path) -> None:
    with fork_server("toy.*", code=Installed(("toy",))) as forks:
        ask(forks, "0")
        held = f"__import__('os').path.exists({str(toy / 'hold')!r})"
        hold = f"[__import__('time').sleep(0.01) for _ in iter(lambda: {held}, False)]"
        (toy / "hold").touch()
        child = forks.start(fork_probe.evaluate, order=f"{hold} and None or {BOTH}").result(LIMIT_S)
        for name in ("early", "late"):
            (toy / f"{name}.py").write_text("VALUE = 'newer'\n")
        (toy / "hold").unlink()
        assert read_all(child) == "('old', 'old')"
        forks.collect(child)


def test_a_fork_server_that_could_not_be_used_is_tried_again_with_other_code(toy: Path) -> None:
    (toy / "early.py").write_text("import os\nos._exit(3)\n")
    code = Installed(("toy",))
    with fork_server("toy.early", code=code) as forks:
        assert ask(forks, "'toy.early' in __import__('sys').modules") == "False"
        before = code.now().fingerprint
        (toy / "early.py").write_text("VALUE = 'better'\n")
        wait_until(lambda: code.now().fingerprint != before, what="the change")
        assert ask(forks, "'toy.early' in __import__('sys').modules") == "True"
