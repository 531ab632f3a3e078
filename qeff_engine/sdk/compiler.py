"""Runs the SDK's compiler once and judges the outcome."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import psutil

from qeff_engine import events
from qeff_engine.errors import Infrastructure, StageTimeout
from qeff_engine.program import BINARY
from qeff_engine.sdk import perf_metrics
from qeff_engine.sdk.compiler_failures import Outcome, failure
from qeff_engine.sdk.process_tree import ProcessTree

_SAMPLE_S = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileCost:
    """What one run of the compiler took.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system time of the compiler and its children.
        peak_rss_bytes: of the compiler or its largest child, looked at every :data:`_SAMPLE_S`.
        program_bytes: size of the program's directory.
        metrics: what it printed with ``-aic-perf-metrics``, see :func:`qeff_engine.sdk.perf_metrics.parse`.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    program_bytes: int
    metrics: dict[str, Any]


def compile_program(
    command: list[str],
    *,
    program: Path,
    log: TextIO,
    log_path: Path,
    work: Path,
    emit: events.Emit,
    limit_s: float | None = None,
) -> CompileCost:
    """Run a compiler command to its end; every line it prints goes to ``log`` and to ``emit``.

    The compiler stays in the caller's process group, so whoever kills the stage's group kills the compiler too.

    Args:
        command: from :func:`qeff_engine.sdk.command.command_line`.
        program: the directory that the command makes.
        log: receiver of the command line and of all output.
        log_path: where ``log`` is written to, named in failures.
        work: current directory of the compiler, for files it may drop.
        emit: receiver of ``log`` events.
        limit_s: after so many seconds all processes of the compiler are killed; None lets it run for ever.

    Raises:
        StageTimeout: it ran for longer than ``limit_s``.
        CompilerError, CompilerCrash, HostOutOfMemory, Unsupported, Infrastructure: see
            :mod:`qeff_engine.sdk.compiler_failures`.
    """
    log.write(f"$ {shlex.join(command)}\n")
    start_s = time.monotonic()
    lines: list[str] = []
    with _started(command, work=work, limit_s=limit_s) as (process, clock), _PeakMemory(process.pid) as peak:
        assert process.stdout is not None
        for raw_line in process.stdout:
            line = raw_line.rstrip()
            lines.append(line)
            log.write(line + "\n")
            log.flush()
            emit(events.log(line))
        # wait4 and not Popen.wait: it returns the usage of this very child.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - start_s
    outcome = Outcome(
        command=command,
        exit_code=process.returncode,
        lines=lines,
        has_program=(program / BINARY).is_file(),
        log_path=log_path,
    )
    error = failure(outcome)
    if error is not None and clock.struck:
        raise StageTimeout(
            f"The compiler ran for longer than the limit of {limit_s:g} s, and was killed with all of its processes.",
            advice=f"Allow it more time. Its output is in {log_path}. Command: {shlex.join(command)}",
        ) from error
    if error is not None:
        raise error
    return CompileCost(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=peak.rss_bytes,
        program_bytes=sum(path.stat().st_size for path in program.rglob("*") if path.is_file()),
        metrics=perf_metrics.parse(lines),
    )


class _PeakMemory:
    """The largest resident size that a process or one of its children has been seen with, while this is entered.

    Not the kernel's own peak (``ru_maxrss``): Linux counts the parent's memory into it, which a child shares between
    its fork and its exec, and a stage process with torch imported is larger than many a compiler.
    """

    def __init__(self, pid: int) -> None:
        self.rss_bytes = 0
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            with suppress(psutil.Error):
                for process in (self._process, *self._process.children(recursive=True)):
                    self._look(process)
            if self._over.wait(_SAMPLE_S):
                return

    def _look(self, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            self.rss_bytes = max(self.rss_bytes, process.memory_info().rss)


class _Clock:
    """Kills a tool's processes when its time is over, unless this is left before."""

    def __init__(self, tree: ProcessTree, *, limit_s: float | None) -> None:
        self.struck = False
        self._tree = tree
        self._timer = None if limit_s is None else threading.Timer(limit_s, self._strike)

    def __enter__(self) -> _Clock:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()

    def _strike(self) -> None:
        self.struck = True
        with suppress(Infrastructure):  # the output stays open then, and so does the wait for its end
            self._tree.kill()


@contextmanager
def _started(
    command: list[str], *, work: Path, limit_s: float | None
) -> Iterator[tuple[subprocess.Popen[str], _Clock]]:
    """The running command and its clock; all of its processes are killed when the caller leaves before its end."""
    tree = ProcessTree()
    try:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=tree.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
        )
    except OSError as error:
        raise Infrastructure(
            f"The compiler could not be started: {error}.", advice=f"Check that {command[0]} is executable."
        ) from error
    with process, _Clock(tree, limit_s=limit_s) as clock:
        try:
            yield process, clock
        except BaseException:
            tree.kill()
            raise
