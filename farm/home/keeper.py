"""The first process of an embedded farm: brings up the rest in order and starts again whichever of it dies.

No torch, no Celery, one thread. Its children die with it: on Linux the kernel sees to that, and the next keeper ends
what an earlier one left.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import filelock
import sqlalchemy as sa

from farm import db
from farm import settings as farm_settings
from farm.errors import FarmError, Refused
from farm.home import log_files, valkey
from farm.home.local import FAILED, READY, LocalFarm, ProcessId, end_processes, sweep
from farm.settings import Settings
from farm.views import inventory

_logger = logging.getLogger(__name__)
_REAL_SDK = Path("/opt/qti-aic")  # where Qualcomm's installer puts it
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_POLL_S = 0.02
_START_LOOK_S = 0.1  # while what is started is waited for
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 10.0
_SOUND_AFTER_S = 30.0  # a child that lived so long is started again without delay
_BROKER_LIMIT_S = 10.0
_END_S = 10.0  # beyond the grace of a stage
_LOGS_EVERY_S = 10.0


class _Stopped(Exception):
    """Somebody asked the farm to stop."""


@dataclasses.dataclass(kw_only=True)
class _Child:
    """A process that is kept alive.

    Attributes:
        command: its command line.
        environ: its environment.
        process: the current one.
        started: monotonic time of its start.
        failures: deaths in a row soon after a start.
        not_before: monotonic time before which it is not started again.
    """

    command: list[str]
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    identity: ProcessId | None = None
    started: float = 0.0
    failures: int = 0
    not_before: float = 0.0


class Keeper:
    """The embedded farm from within.

    Args:
        settings: its home.
        devices: simulated devices as ``SKU:COUNT``.
        node_module: what ``python -m`` runs as a node.
    """

    def __init__(self, settings: Settings, *, devices: str, node_module: str) -> None:
        self._settings = settings
        self._devices = devices
        self._node_module = node_module
        self._children: dict[str, _Child] = {}
        self._state = LocalFarm(keeper=ProcessId.of(os.getpid()))
        self._stopping = False
        self._in_a_hurry = False  # asked to stop twice
        self._logs_looked_at = 0.0
        self._libc = ctypes.CDLL(None)

    def run(self) -> int:
        """Be the farm until a signal ends it; the exit code."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            with filelock.FileLock(self._settings.run_dir / "farm.lock", timeout=0), self._signals() as wakeup:
                self._end_leftovers()
                return self._live(wakeup)
        except filelock.Timeout:
            _logger.error("another farm runs in %s", self._settings.home)
            return Refused.exit_code

    def _live(self, wakeup: int) -> int:
        try:
            self._bring_up(wakeup)
            self._say(phase=READY, doing="")
            while True:
                self._look(wakeup, limit_s=_LOGS_EVERY_S)
        except _Stopped:
            return 0
        except (FarmError, sa.exc.DBAPIError, OSError) as error:
            _logger.exception("the farm does not start")
            kind = type(error).__name__ if isinstance(error, FarmError) else FarmError.__name__
            self._say(phase=FAILED, error=(kind, str(error)))
            return 1
        finally:
            self._end_children()
            sweep(self._settings)

    def _bring_up(self, wakeup: int) -> None:
        """Start everything, each part when what it needs is there."""
        self._say(doing="upgrading the database")
        self._upgrade()
        settings = self._settings
        if valkey.is_embedded(settings):
            self._say(doing="starting the broker")
            self._start("valkey", command=valkey.command(settings))
            self._await(lambda: valkey.answers(settings), wakeup=wakeup, what="The broker", limit_s=_BROKER_LIMIT_S)
        self._say(doing="starting the scheduler")
        self._start("scheduler", command=[sys.executable, "-m", "farm.scheduler"])
        self._say(doing="looking for devices")
        environ = farm_settings.to_environ(dataclasses.replace(settings, sdk_root=self._sdk()))
        identities = self._identities(environ)
        self._say(doing="starting the nodes")
        node = [sys.executable, "-m", self._node_module]
        self._start("host", command=[*node, "host"], environ=environ)
        for qid, identity in identities.items():
            self._start(f"device-{qid}", command=[*node, "device", "--device", identity], environ=environ)
        database = db.open_database(settings.database_url)
        try:
            self._await(lambda: self._nodes_registered(database), wakeup=wakeup, what="A node", limit_s=None)
        finally:
            database.dispose()

    def _upgrade(self) -> None:
        from farm import schema

        schema.upgrade(self._settings.database_url)

    def _sdk(self) -> Path:
        """The SDK that nodes use: the one that was named, the installed one, or a simulated one in the home."""
        if self._settings.sdk_root is not None:
            return self._settings.sdk_root
        if (_REAL_SDK / "exec").is_dir() or (_REAL_SDK / "tools").is_dir():
            return _REAL_SDK
        target = self._settings.home / "sdk"
        arguments = ["qeff_engine.simulated_sdk", "install", str(target), "--devices", self._devices]
        self._call(arguments, environ={}, what="install simulated devices")
        return target

    def _identities(self, environ: Mapping[str, str]) -> dict[int, str]:
        """Board serial and PCI address of the host's devices by their numbers, which may change."""
        said = self._call([self._node_module, "devices"], environ=environ, what="list devices")
        return {int(device["qid"]): f"{device['board_serial']}/{device['pci_address']}" for device in json.loads(said)}

    def _call(self, arguments: list[str], *, environ: Mapping[str, str], what: str) -> str:
        """The output of a short-lived Python program of ours."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=self._tie,
        )
        if self._stopping:
            raise _Stopped
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise FarmError(f"The farm could not {what}: {words[-1] if words else 'no word was said.'}")
        return done.stdout

    def _start(self, name: str, *, command: list[str], environ: Mapping[str, str] | None = None) -> None:
        child = _Child(command=command, environ={**os.environ, **(environ or farm_settings.to_environ(self._settings))})
        self._children[name] = child
        self._run_child(name, child)

    def _run_child(self, name: str, child: _Child) -> None:
        with (self._settings.log_dir / f"{name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                child.command,
                env=dict(child.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # a Ctrl-C at the terminal is this process's alone
                preexec_fn=self._tie,  # noqa: PLW1509  this process has one thread
            )
        child.identity = ProcessId.of(child.process.pid)
        child.started = time.monotonic()
        self._say()

    def _tie(self) -> None:
        """In a child, before its program starts: die with this process."""
        if sys.platform == "linux":
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def _await(self, condition: Callable[[], bool], *, wakeup: int, what: str, limit_s: float | None) -> None:
        began = time.monotonic()
        while not condition():
            self._look(wakeup, limit_s=_START_LOOK_S)
            failing = [name for name, child in self._children.items() if child.failures > 1]
            if failing:
                log = self._settings.log_dir / f"{failing[0]}.log"
                raise FarmError(f"The {failing[0]} process of the farm ends again and again: {_last_line(log)}")
            if limit_s is not None and time.monotonic() - began > limit_s:
                raise FarmError(f"{what} did not answer within {limit_s:.0f} s. See {self._settings.log_dir}.")

    def _look(self, wakeup: int, *, limit_s: float) -> None:
        """Wait until something happens or is due; start again what has died, and keep logs short."""
        if time.monotonic() >= self._logs_looked_at + _LOGS_EVERY_S:
            self._logs_looked_at = time.monotonic()
            log_files.cap(self._settings.log_dir, limit_bytes=self._settings.own_log_limit_bytes)
        starts = [child.not_before for child in self._children.values() if child.process is None]
        wait_s = min([limit_s, *(start - time.monotonic() for start in starts)])
        if select.select([wakeup], [], [], max(0.0, wait_s))[0]:
            os.read(wakeup, 1 << 10)
        if self._stopping:
            raise _Stopped
        for name, child in self._children.items():
            if child.process is not None and child.process.poll() is not None:
                self._note_death(name, child, code=child.process.returncode)
            if child.process is None and time.monotonic() >= child.not_before:
                self._run_child(name, child)

    def _nodes_registered(self, database: db.Database) -> bool:
        """Whether each node's current process is in the database."""
        with database.read() as connection:
            heard = {node.pid for node in inventory.node_list(connection)}
        nodes = [child for name, child in self._children.items() if name.startswith(("host", "device"))]
        return all(child.process is not None and child.process.pid in heard for child in nodes)

    def _note_death(self, name: str, child: _Child, *, code: int) -> None:
        now = time.monotonic()
        child.process = None
        child.failures = 0 if now - child.started > _SOUND_AFTER_S else child.failures + 1
        delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**child.failures)
        child.not_before = now + delay_s
        _logger.warning("%s ended with exit code %d, is started again in %.1f s", name, code, delay_s)

    def _say(self, *, phase: str | None = None, doing: str | None = None, error: tuple[str, str] | None = None) -> None:
        """Tell whoever asks how far the farm is; what is not given stays as it was."""
        identities = {name: child.identity for name, child in self._children.items() if child.identity is not None}
        self._state = dataclasses.replace(
            self._state,
            children=identities,
            phase=self._state.phase if phase is None else phase,
            doing=self._state.doing if doing is None else doing,
            error=self._state.error if error is None else error,
        )
        self._state.write(self._settings)

    def _end_leftovers(self) -> None:
        """End what a keeper left that was killed."""
        left = LocalFarm.read(self._settings)
        if left is not None and left.keeper != self._state.keeper:
            end_processes(list(left.children.values()), limit_s=_END_S)

    def _end_children(self) -> None:
        """End nodes and scheduler, then the broker that they use; by force what does not end."""
        broker = [self._children[name] for name in self._children if name == "valkey"]
        others = [self._children[name] for name in self._children if name != "valkey"]
        for group in (others, broker):
            alive = [child.process for child in group if child.process is not None and child.process.poll() is None]
            for process in alive:
                process.terminate()
            deadline = time.monotonic() + self._settings.cancel_grace_s + _END_S
            while any(process.poll() is None for process in alive):
                if self._in_a_hurry or time.monotonic() > deadline:
                    left = [process for process in alive if process.poll() is None]
                    _logger.error("killing processes %s", [process.pid for process in left])
                    for process in left:
                        process.kill()
                    for process in left:
                        process.wait()
                time.sleep(_POLL_S)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """A descriptor that is readable when a child has died or somebody asked to stop."""
        reader, writer = os.pipe()
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        yield reader
        signal.set_wakeup_fd(-1)

    def _on_stop(self, *_: object) -> None:
        if self._stopping:
            self._in_a_hurry = True
        self._stopping = True


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return f"{lines[-1]} (see {log})"
    return f"see {log}"
