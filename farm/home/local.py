"""The embedded farm of a home: starting it, stopping it, saying whether it runs.

``python -m farm.home.local`` is its first process, the keeper (:mod:`farm.home.keeper`): it starts broker, scheduler
and nodes, and starts again whichever dies. Only the keeper is known here, by the file that it writes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil

from farm import errors
from farm import settings as farm_settings
from farm.births import birth
from farm.errors import FarmError, Refused, StorageFault
from farm.settings import Settings

DEFAULT_DEVICES = "ultra:1,standard:1"
NODE_MODULE = "workers"
STARTING, READY, FAILED = "starting", "ready", "failed"

_POLL_S = 0.05
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 40.0
_SWEEP_LIMIT_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process that is told apart from a later one with the same number.

    Attributes:
        pid: its number.
        birth: see :func:`farm.births.birth`.
    """

    pid: int
    birth: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The identity of a process that was just started; it need not live any more."""
        return cls(pid=pid, birth=birth(pid) or "")

    def lives(self) -> bool:
        """Whether it has not ended. A zombie has."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        if birth(self.pid) != self.birth:
            return False
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal unless it has ended."""
        if self.lives():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalFarm:
    """The farm of a home, as its keeper tells.

    Attributes:
        keeper: the first process.
        phase: ``starting``, ``ready`` or ``failed``.
        doing: what is done at the moment, for people.
        children: processes by name: ``valkey``, ``scheduler``, ``host``, ``device-0`` ...
        error: class and message of the error that ended the start.
    """

    keeper: ProcessId
    phase: str = STARTING
    doing: str = ""
    children: Mapping[str, ProcessId] = dataclasses.field(default_factory=dict)
    error: tuple[str, str] | None = None

    @property
    def pid(self) -> int:
        """Number of the first process."""
        return self.keeper.pid

    def write(self, settings: Settings) -> None:
        """Leave it in the home for others to read."""
        path = _state_path(settings)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        draft.replace(path)

    @classmethod
    def read(cls, settings: Settings) -> LocalFarm | None:
        """What the last keeper of this home left, dead or alive."""
        try:
            fields: dict[str, Any] = json.loads(_state_path(settings).read_text(encoding="utf-8"))
            fields["keeper"] = ProcessId(**fields["keeper"])
            fields["children"] = {name: ProcessId(**child) for name, child in fields["children"].items()}
            fields["error"] = tuple(fields["error"]) if fields["error"] else None
            return cls(**fields)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def running(settings: Settings) -> LocalFarm | None:
    """The farm of this home if its keeper lives."""
    found = LocalFarm.read(settings)
    return found if found is not None and found.keeper.lives() else None


def start(
    settings: Settings,
    *,
    devices: str = DEFAULT_DEVICES,
    node_module: str = NODE_MODULE,
    progress: Callable[[str], None] | None = None,
) -> LocalFarm:
    """Start the farm of a home and return when every node is registered and the broker answers.

    Args:
        settings: the home.
        devices: simulated devices as ``SKU:COUNT``; of no effect where a real SDK is.
        node_module: what ``python -m`` runs as a node.
        progress: told what is done at the moment.

    Raises:
        Refused: it runs already.
        StorageFault: the home cannot be written to.
        FarmError: a part of it does not start; the message names its log.
    """
    _refuse_second(settings)
    _make_directories(settings)
    keeper = _spawn(settings, devices=devices, node_module=node_module)
    try:
        return _await_ready(settings, keeper=keeper, progress=progress or _ignore)
    except BaseException:  # also an interrupt: half a farm is worse than none
        _end(settings, keeper)
        raise


def stop(settings: Settings) -> bool:
    """Stop the farm of a home with all of its processes; False when none ran."""
    found = LocalFarm.read(settings)
    if found is None:
        return False
    ran = found.keeper.lives()
    _end(settings, found.keeper)
    return ran


def sweep(settings: Settings) -> None:
    """End what stages have left running after their nodes were killed; costs nothing when there is nothing."""
    if any((settings.run_dir / "attempts").glob("*/*.json")):
        subprocess.run(
            [sys.executable, "-m", NODE_MODULE, "sweep"],
            env={**os.environ, **farm_settings.to_environ(settings)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=_SWEEP_LIMIT_S,
            process_group=0,  # another Ctrl-C is not meant for it
        )


def kill(settings: Settings) -> None:
    """SIGKILL every process of the farm of a home; what runs of its stages ends soon after, or with a sweep."""
    found = LocalFarm.read(settings)
    if found is not None:
        end_processes([found.keeper, *found.children.values()])
        _forget(settings, found.keeper)


def foreground(settings: Settings, *, devices: str = DEFAULT_DEVICES, node_module: str = NODE_MODULE) -> NoReturn:
    """Become the first process of the farm of a home: for a service manager or a container. Does not return.

    Raises:
        Refused: a farm runs there already.
        StorageFault: the home cannot be written to.
    """
    _refuse_second(settings)
    _make_directories(settings)
    environ = {**os.environ, **farm_settings.to_environ(settings)}
    os.execve(sys.executable, _command(devices=devices, node_module=node_module), environ)  # noqa: S606  no shell


def _command(*, devices: str, node_module: str) -> list[str]:
    return [sys.executable, "-m", "farm.home.local", "--devices", devices, "--node-module", node_module]


def _refuse_second(settings: Settings) -> None:
    found = running(settings)
    if found is not None:
        raise Refused(
            f"A farm runs in {settings.home} already (process {found.pid}). Use it, or stop it with `farm down`."
        )


def _make_directories(settings: Settings) -> None:
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        settings.run_dir.mkdir(mode=0o700, exist_ok=True)
        settings.log_dir.mkdir(exist_ok=True)
        probe = settings.run_dir / ".probe"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        cure = (
            "The disk is full: free some space, or choose another home with --home or FARM_HOME."
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Make it writable for this user, or choose another home with --home or FARM_HOME."
        )
        raise StorageFault(f"The farm cannot write to its home {settings.home}: {error}. {cure}") from error


def _spawn(settings: Settings, *, devices: str, node_module: str) -> ProcessId:
    """Start the keeper in a session of its own, its output in the log."""
    arguments = _command(devices=devices, node_module=node_module)
    log = str(settings.log_dir / "farm.log")
    pid = os.posix_spawn(
        sys.executable,
        arguments,
        {**os.environ, **farm_settings.to_environ(settings)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return ProcessId.of(pid)


def _await_ready(settings: Settings, *, keeper: ProcessId, progress: Callable[[str], None]) -> LocalFarm:
    deadline, told = time.monotonic() + _START_LIMIT_S, ""
    while True:
        alive = keeper.lives()  # looked at first, so that its last words are not missed
        found = LocalFarm.read(settings)
        if found is not None and found.keeper.pid == keeper.pid:
            if found.error is not None:
                raise _error(found.error)
            if found.phase == READY:
                return found
            if found.doing != told:
                told = found.doing
                progress(told)
        if not alive:
            _refuse_second(settings)  # somebody else was faster
            raise FarmError(f"The farm ended while it started. See {settings.log_dir / 'farm.log'}.")
        if time.monotonic() > deadline:
            raise FarmError(
                f"The farm was not ready after {_START_LIMIT_S:.0f} s, it was {told or 'beginning'}. "
                f"See the logs in {settings.log_dir}."
            )
        time.sleep(_POLL_S)


def _error(said: tuple[str, str]) -> FarmError:
    kind = getattr(errors, said[0], FarmError)
    return FarmError(said[1]) if not issubclass(kind, FarmError) else kind(said[1])


def _end(settings: Settings, keeper: ProcessId) -> None:
    """Ask the keeper to end, see that it does, and remove what is left of it."""
    keeper.send(signal.SIGTERM)
    deadline = time.monotonic() + _STOP_LIMIT_S
    while keeper.lives() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    found = LocalFarm.read(settings)
    left = [keeper, *(found.children.values() if found is not None and found.keeper.pid == keeper.pid else ())]
    end_processes(left)
    _forget(settings, keeper)


def _forget(settings: Settings, keeper: ProcessId) -> None:
    """Remove what a keeper that has ended has left in the home."""
    found = LocalFarm.read(settings)
    with contextlib.suppress(OSError):
        settings.broker_socket.unlink(missing_ok=True)
        if found is not None and found.keeper.pid == keeper.pid:
            _state_path(settings).unlink(missing_ok=True)


def end_processes(processes: list[ProcessId], *, limit_s: float = 5.0) -> None:
    """SIGKILL processes and return when they are gone, or after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while any(process.lives() for process in processes) and time.monotonic() < deadline:
        for process in processes:
            process.send(signal.SIGKILL)
        time.sleep(_POLL_S)


def _state_path(settings: Settings) -> Path:
    return settings.run_dir / "farm.json"


def _ignore(words: str) -> None:
    """Nobody wants to know."""


def main(arguments: list[str] | None = None) -> int:
    """Be the keeper of the farm that the environment names."""
    from farm.home.keeper import Keeper

    parser = argparse.ArgumentParser(
        prog="python -m farm.home.local", description="The first process of an embedded farm."
    )
    parser.add_argument("--devices", default=DEFAULT_DEVICES)
    parser.add_argument("--node-module", default=NODE_MODULE)
    options = parser.parse_args(arguments)
    return Keeper(farm_settings.load(), devices=options.devices, node_module=options.node_module).run()


if __name__ == "__main__":
    sys.exit(main())
