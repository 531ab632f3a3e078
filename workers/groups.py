"""Process groups of stages: who is in one, ending it, being sure that it is gone.

A stage leads a session of its own, so everything it starts shares its session id unless it makes a session itself. The
kernel gives no new process the number of a session that still has members, so a leader that has ended with members
left is still told apart from a stranger with the same number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import psutil

_SAME_START_S = 2.0  # the boot time that starts are counted from moves when the clock is corrected
_POLL_S = 0.02
_KILL_LIMIT_S = 30.0  # a process that is in the kernel for longer is not gone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A stage's session, by its leader.

    Attributes:
        pid: of the leader, which is also the number of the session and the process group.
        created: when the leader started, seconds since the epoch.
    """

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Group | None:
        """The group that a running process leads or is about to lead; None when it has ended."""
        try:
            return cls(pid=pid, created=psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def members(self) -> list[psutil.Process]:
        """Its processes that have not ended. A zombie has ended: it holds nothing but its number."""
        leader = _process(self.pid)
        if leader is not None and abs(leader.create_time() - self.created) > _SAME_START_S:
            return []  # the number was given away again, so nobody of the session was left
        found = [process for pid in psutil.pids() if _session(pid) == self.pid and (process := _process(pid))]
        if leader is not None and all(process.pid != self.pid for process in found):
            found.append(leader)  # forked already, but not yet the leader of its own session
        return [process for process in found if _alive(process)]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every member."""
        for process in self.members():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def kill(self) -> bool:
        """SIGKILL until nobody is left; whether that succeeded."""
        deadline = time.monotonic() + _KILL_LIMIT_S
        while self.members():
            if time.monotonic() > deadline:
                return False
            self.send(signal.SIGKILL)
            time.sleep(_POLL_S)
        return True

    def usage(self) -> tuple[float, int]:
        """CPU seconds of the members and the children they have waited for, and their resident bytes."""
        cpu_s, rss_bytes = 0.0, 0
        for process in self.members():
            try:
                times = process.cpu_times()
                rss_bytes += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            cpu_s += times.user + times.system + times.children_user + times.children_system
        return cpu_s, rss_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """What a node's successor must know about an attempt: kept in a file of the host until the group is gone.

    Attributes:
        job_id, attempt: whose it is.
        group: None until the stage process has said who it is.
        tree: directory of the artifact in the making.
        scratch: directory of its scratch files.
    """

    job_id: int
    attempt: int
    group: Group | None
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
                group = Group(**fields["group"]) if fields["group"] else None
                paths = {name: Path(fields[name]) for name in ("tree", "scratch")}
                records.append(cls(job_id=fields["job_id"], attempt=fields["attempt"], group=group, **paths))
            except (ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)
        return records

    def _path(self, directory: Path) -> Path:
        return directory / f"{self.job_id}.{self.attempt}.json"


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


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
