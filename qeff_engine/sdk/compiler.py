"""Runs the SDK's compiler once and judges the outcome."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from qeff_engine import events
from qeff_engine.errors import Infrastructure
from qeff_engine.program import BINARY
from qeff_engine.sdk.compiler_failures import Outcome, failure


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileCost:
    """What one run of the compiler took.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system time of the compiler and its children.
        peak_rss_bytes: of the compiler or its largest child.
        program_bytes: size of the program's directory.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    program_bytes: int


def compile_program(
    command: list[str], *, program: Path, log: TextIO, log_path: Path, work: Path, emit: events.Emit
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

    Raises:
        CompilerError, CompilerCrash, HostOutOfMemory, Unsupported, Infrastructure: see
            :mod:`qeff_engine.sdk.compiler_failures`.
    """
    log.write(f"$ {shlex.join(command)}\n")
    start_s = time.monotonic()
    lines: list[str] = []
    with _started(command, work=work) as process:
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
    if error is not None:
        raise error
    return CompileCost(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=usage.ru_maxrss * 1024,
        program_bytes=sum(path.stat().st_size for path in program.rglob("*") if path.is_file()),
    )


@contextmanager
def _started(command: list[str], *, work: Path) -> Iterator[subprocess.Popen[str]]:
    """The running command, killed when the caller leaves before its end."""
    try:
        process = subprocess.Popen(
            command,
            cwd=work,
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
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
