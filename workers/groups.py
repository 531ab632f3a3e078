"""All processes of a stage: who they are, ending them, being sure that they are gone.

A stage leads a session of its own, so everything it starts shares its session id unless it makes a session itself. The
kernel gives no new process the number of a session that still has members, so a leader that has ended with members
left is still told apart from a stranger with the same number.

On Linux a stage also wears a mark, which catches what left the session: daemons, `setsid`, double forks, an emptied
environment. The mark is a resource limit that limits nothing, RLIMIT_RTTIME at hundreds of thousands of years, whose
exact value belongs to one attempt. Every process inherits its parent's limits through fork and exec, the kernel tells
them to every process of the same user, and it takes no privilege to set one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from farm.births import birth

_POLL_S = 0.02
_KILL_LIMIT_S = 30.0  # a process that is in the kernel for longer is not gone
_LEAST_MARK, _MARK_BITS = 1 << 61, 60  # microseconds: more than 73,000 years


def new_mark() -> int:
    """A mark that no other attempt has; in microseconds of computing under a real-time policy, so it limits nothing."""
    return _LEAST_MARK + secrets.randbits(_MARK_BITS)


def wear(mark: int) -> None:
    """Mark this process and all that it will start. Without effect where there is no such limit, or a lower one."""
    if sys.platform == "linux":
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_RTTIME, (mark, mark))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The processes of a stage.

    Attributes:
        pid: of the leader, which is also the number of the session and the process group; 0 when not known.
        birth: of the leader, see :func:`farm.births.birth`.
        mark: what all of them wear, see :func:`wear`; 0 for none.
    """

    pid: int = 0
    birth: str = ""
    mark: int = 0

    @classmethod
    def of(cls, pid: int, *, mark: int = 0) -> Group:
        """The group that a running process leads or is about to lead; without a leader when that has ended."""
        born = birth(pid)
        return cls(mark=mark) if born is None else cls(pid=pid, birth=born, mark=mark)

    def members(self) -> list[psutil.Process]:
        """Its processes that have not ended. A zombie has ended: it holds nothing but its number."""
        (found,) = census([self])
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every member, to whole process groups at once: nobody in one can fork away from it."""
        done: set[int] = set()
        for process in self.members():
            with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
                group = os.getpgid(process.pid)
                if process.pid == self.pid and os.getsid(process.pid) != self.pid:  # not yet a session of its own
                    process.send_signal(number)
                elif group not in done:
                    done.add(group)
                    os.killpg(group, number)

    def kill(self) -> bool:
        """SIGKILL until nobody is left; whether that succeeded."""
        deadline = time.monotonic() + _KILL_LIMIT_S
        while self.members():
            if time.monotonic() > deadline:
                return False
            self.send(signal.SIGKILL)
            time.sleep(_POLL_S)
        return True

    def kill_others(self) -> None:
        """SIGKILL every member outside the caller's process group, as long as there is one."""
        while others := [process for process in self.members() if _process_group(process.pid) != os.getpgrp()]:
            for process in others:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(_POLL_S)

    def end(self, *, grace_s: float) -> None:
        """Ask every member to end, and return when all have or when the grace is over."""
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while self.members() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _leader(self) -> psutil.Process | None:
        """The leader, unless it has ended; when its number was given away again nobody of the session was left."""
        return _process(self.pid) if self.pid and birth(self.pid) == self.birth else None

    def _session(self) -> int:
        """The number of its session; 0 when that is not known or somebody else's."""
        return self.pid if self._leader() is not None or not psutil.pid_exists(self.pid) else 0


def census(groups: Sequence[Group]) -> list[list[psutil.Process]]:
    """The members of each of some groups, with one look at all processes of the host."""
    sessions = {number: index for index, group in enumerate(groups) if (number := group._session())}
    marks = {group.mark: index for index, group in enumerate(groups) if group.mark and sys.platform == "linux"}
    found: list[dict[int, psutil.Process]] = [{} for _ in groups]
    for pid in psutil.pids():
        index = sessions.get(_session(pid))
        if index is None and marks:
            index = marks.get(_mark(pid))
        if index is not None and (process := _process(pid)) is not None:
            found[index][pid] = process
    for group, members in zip(groups, found, strict=True):
        if group.pid not in members and (leader := group._leader()) is not None:
            members[group.pid] = leader  # forked already, but not yet the leader of its own session
    return [[process for process in members.values() if _alive(process)] for members in found]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """What a node's successor must know about an attempt: kept in a file of the host until the group is gone.

    Attributes:
        job_id, attempt: whose it is.
        group: its processes; without a leader until the stage process has said who it is.
        tree: directory of the artifact in the making.
        scratch: directory of its scratch files.
    """

    job_id: int
    attempt: int
    group: Group
    tree: Path
    scratch: Path

    def write(self, directory: Path) -> None:
        """Write the record, replacing an earlier one of this attempt."""
        directory.mkdir(parents=True, exist_ok=True)
        fields = dataclasses.asdict(self) | {"tree": str(self.tree), "scratch": str(self.scratch)}
        draft = self._path(directory).with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(fields), encoding="utf-8")
        draft.replace(self._path(directory))

    def remove(self, directory: Path) -> None:
        """Forget the attempt."""
        self._path(directory).unlink(missing_ok=True)

    @classmethod
    def read_all(cls, directory: Path) -> list[AttemptRecord]:
        """The records of a directory; a file cut off by a crash of the machine is deleted."""
        records = []
        for path in sorted(directory.glob("*.json")):
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
                group = Group(**fields["group"])
                paths = {name: Path(fields[name]) for name in ("tree", "scratch")}
                records.append(cls(job_id=fields["job_id"], attempt=fields["attempt"], group=group, **paths))
            except (ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)
        return records

    def _path(self, directory: Path) -> Path:
        return directory / f"{self.job_id}.{self.attempt}.json"


def _mark(pid: int) -> int:
    """What a process wears where a mark would be; 0 when it has ended or is another user's."""
    try:
        return resource.prlimit(pid, resource.RLIMIT_RTTIME)[0]
    except OSError:
        return 0


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return -1


def _process_group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
