"""The node's side of its fork servers: asks for stage processes, and hears how they ended.

A stage process is forked from a server that has the heavy modules imported, see :mod:`workers.fork_server`. Where that
cannot be done or would not be safe, it is a fresh interpreter, which does the same some seconds later. All servers are
started by one thread of the node, which lives as long as the node: the kernel's death signal goes by threads.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from workers.fork_server import HEADER, Setup, Wires
from workers.groups import Group
from workers.installed import Code, Installed
from workers.stage_log import widen

_logger = logging.getLogger(__name__)

# Not onnxruntime: it starts a thread when it is imported. What a stage needs beyond these it imports itself. A module
# that does not exist is passed over, as the last two might be after an upgrade: they hold what torch imports to export.
STAGE_PROCESS = ("psutil", "filelock", "workers.stage_process")  # what the farm's own part of a stage needs
PRELOAD = (
    *STAGE_PROCESS,
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "qeff_engine.*",
    "torch.export._trace",
    "onnxscript.function_libs.torch_lib.ops",
)

_IMPORT_LIMIT_S = 600.0  # a server that has not imported its modules by then hangs
_FALL_BACK_S = 600.0  # before forking is tried again where it could not be done
_MAX_GROWTH_BYTES = 256 << 20  # a server that has grown by more has kept something of its requests
_Target = Callable[[Any, Wires], None]


class _Unusable(Exception):
    """A server that cannot give processes; says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Child:
    """A started stage process.

    Attributes:
        group: its processes, without the mark that they wear; without a leader when that ended very soon.
        sentinel: descriptor that becomes readable when the process has ended.
        channel: descriptor of what it reports.
        log: descriptor of what it prints.
        code: what it runs.
    """

    group: Group
    sentinel: int
    channel: int
    log: int
    code: Code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exit:
    """How a stage process ended.

    Attributes:
        code: negative for a signal.
        cpu_s, peak_rss_bytes: of it and of the children that it waited for, by the kernel's account; 0 when not known.
    """

    code: int
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0


class ForkServer:
    """Starts stage processes and collects how they ended.

    Args:
        preload: modules that are imported before the fork.
        environ: environment of the servers; stage processes have their own. None for this process's.
        code: knows the code that is installed: a server with other code is not forked from.
        max_growth_bytes: how much a server may grow before another takes its place.
    """

    def __init__(
        self,
        *,
        preload: tuple[str, ...] = PRELOAD,
        environ: Mapping[str, str] | None = None,
        code: Installed | None = None,
        max_growth_bytes: int = _MAX_GROWTH_BYTES,
    ) -> None:
        self._preload = preload
        self._environ = environ
        self._code = code or Installed()
        self._max_growth_bytes = max_growth_bytes
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="forks")
        self._later: threading.Timer | None = None
        self._tether, self._life = os.pipe()  # the second is open as long as this process lives
        self._forking: _Server | None = None
        self._successor: _Server | None = None
        self._fresh: _Server | None = None
        self._retired: list[_Server] = []
        self._fallen_back: Code | None = None  # the code that could not be forked
        self._forking_again_at = 0.0

    def warm_up(self, *, after_s: float = 0.0) -> None:
        """Begin to import what stages need, now or when ``after_s`` have passed, without waiting for it."""
        if after_s:
            self._later = threading.Timer(after_s, self.warm_up)
            self._later.daemon = True
            self._later.start()
        else:
            self._thread.submit(self._forking_server)

    def start(self, target: _Target, *, order: object) -> concurrent.futures.Future[Child]:
        """Start ``target(order, wires)`` in a process of its own; done as soon as it is started."""
        body = pickle.dumps((target, order))
        return self._thread.submit(self._start, body)

    def collect(self, child: Child) -> Exit:
        """How a child ended whose sentinel is readable; its descriptors are closed."""
        words = _read_line(functools.partial(os.read, child.sentinel))
        for descriptor in (child.sentinel, child.channel, child.log):
            os.close(descriptor)
        # A child whose server was killed may still run; nobody will hear of it, so it counts as killed.
        return Exit(**json.loads(words)) if words else Exit(code=-signal.SIGKILL)

    def close(self) -> None:
        """End the servers; children must be gone."""
        if self._later is not None:
            self._later.cancel()
        self._thread.submit(self._end_all)
        self._thread.shutdown()
        os.close(self._life)
        os.close(self._tether)

    def _end_all(self) -> None:
        for server in (self._forking, self._successor, self._fresh):
            if server is not None:
                self._retire(server)
        for server in self._retired:
            server.process.wait()

    def _retire(self, server: _Server) -> None:
        """Let a server go when its last child has ended."""
        server.control.close()
        self._retired.append(server)

    def _start(self, body: bytes) -> Child:
        self._retired = [server for server in self._retired if server.process.poll() is None]
        server = self._forking_server()
        if server is not None:
            try:
                return server.child(body, code=server.code)
            except _Unusable as error:
                self._fall_back(server, reason=str(error))
            except ChildProcessError:
                raise  # there is no process to be had
            except (OSError, EOFError) as error:
                _logger.warning("the fork server is gone, another is started: %r", error)
                self._retire(server)
                self._forking = None
                server = self._forking_server()
                if server is not None:
                    return server.child(body, code=server.code)
        return self._fresh_server().child(body, code=self._code.now())

    def _forking_server(self) -> _Server | None:
        """A server that forks, ready to do it; None where that cannot be done."""
        code = self._code.now()
        if self._fallen_back is not None:
            if self._fallen_back.fingerprint == code.fingerprint and time.monotonic() < self._forking_again_at:
                return None
            self._fallen_back = None
        self._replace_outdated(code)
        self._replace_grown()
        while self._forking is None:
            server = self._launch(fresh=False)
            try:
                server.await_ready()
            except (_Unusable, OSError, EOFError) as error:
                self._fall_back(server, reason=str(error))
                return None
            code = self._code.now()
            if server.code.fingerprint == code.fingerprint:
                server.code = code
                self._forking = server
            else:
                self._retire(server)  # it may have imported some modules before the change and some after
        return self._forking

    def _replace_outdated(self, code: Code) -> None:
        """Put servers out of use that have imported other code than is installed now."""
        for server in (self._forking, self._successor):
            if server is not None and server.code.fingerprint != code.fingerprint:
                _logger.info("the installed code has changed: stages are forked from a new server")
                self._retire(server)
        self._forking = _current(self._forking, code)
        self._successor = _current(self._successor, code)

    def _replace_grown(self) -> None:
        """Put a server that has grown out of use, once its successor has imported its modules."""
        server = self._forking
        if server is None:
            return
        if self._successor is None and server.growth_bytes() > self._max_growth_bytes:
            _logger.info("the fork server has grown by %d MB, another takes its place", server.growth_bytes() >> 20)
            self._successor = self._launch(fresh=False)
        if self._successor is not None and self._successor.has_spoken():
            successor, self._successor = self._successor, None
            self._retire(server)
            self._forking = None
            try:
                successor.await_ready()
            except (_Unusable, OSError, EOFError) as error:
                self._fall_back(successor, reason=str(error))
            else:
                self._forking = successor

    def _fall_back(self, server: _Server, *, reason: str) -> None:
        _logger.error(
            "stage processes are not forked but started as fresh interpreters for the next %d min, which takes each "
            "some seconds: the fork server cannot be used, %s",
            _FALL_BACK_S // 60,
            reason,
        )
        self._retire(server)
        self._forking = None
        self._fallen_back = server.code
        self._forking_again_at = time.monotonic() + _FALL_BACK_S

    def _fresh_server(self) -> _Server:
        if self._fresh is None or self._fresh.process.poll() is not None:
            self._fresh = self._launch(fresh=True)
        self._fresh.await_ready()
        return self._fresh

    def _launch(self, *, fresh: bool) -> _Server:
        return _Server(
            preload=() if fresh else self._preload,
            packages=self._code.packages,
            code=self._code.now(),
            fresh=fresh,
            tether=self._tether,
            environ=self._environ,
        )


def _current(server: _Server | None, code: Code) -> _Server | None:
    return server if server is not None and server.code.fingerprint == code.fingerprint else None


class _Server:
    """One server process, as its node sees it. For one thread."""

    def __init__(
        self,
        *,
        preload: tuple[str, ...],
        packages: tuple[str, ...],
        code: Code,
        fresh: bool,
        tether: int,
        environ: Mapping[str, str] | None,
    ) -> None:
        self.code = code
        self.control, theirs = socket.socketpair()
        with theirs:
            setup = Setup(
                path=tuple(sys.path),
                preload=preload,
                packages=packages,
                fresh=fresh,
                control=theirs.fileno(),
                tether=tether,
                node=os.getpid(),
            )
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=sys.path, fields=dataclasses.asdict(setup))],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), tether),
                # One thread in the server: numpy's BLAS would start more when it is loaded. Children inherit the limit.
                env={"OPENBLAS_NUM_THREADS": "1", **(os.environ if environ is None else environ)},
            )
        self.is_ready = False
        self._first_rss_bytes = 0

    def has_spoken(self) -> bool:
        """Whether it has imported its modules, or ended."""
        return bool(select.select([self.control], [], [], 0)[0])

    def await_ready(self) -> None:
        """Wait until it has imported its modules.

        Raises:
            _Unusable: it must not fork.
            OSError, EOFError: it ended, or does not get done.
        """
        if self.is_ready:
            return
        self.control.settimeout(_IMPORT_LIMIT_S)
        words = _read_line(self.control.recv)
        self.control.settimeout(None)
        if not words:
            raise EOFError(f"it ended with exit code {self.process.wait()} while it imported its modules")
        said = json.loads(words)
        for name, error in said["failed"].items():
            _logger.warning("the fork server could not import %s: %s", name, error)
        if said["unsafe"]:
            raise _Unusable(said["unsafe"])
        self.code = dataclasses.replace(self.code, fingerprint=said["code"])
        self.is_ready = True
        self._first_rss_bytes = self._rss_bytes()

    def growth_bytes(self) -> int:
        """By how much its resident memory has grown since it was ready."""
        return self._rss_bytes() - self._first_rss_bytes

    def child(self, body: bytes, *, code: Code) -> Child:
        """A process that does what the request says.

        Raises:
            _Unusable: it must not fork.
            ChildProcessError: the kernel gives it no process.
            OSError, EOFError: the server is gone.
        """
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            pipes = {}
            for name in ("channel", "log", "status"):
                reader, writer = os.pipe()
                ours.callback(os.close, reader)
                theirs.callback(os.close, writer)
                pipes[name] = (reader, writer)
            widen(pipes["log"][1])
            writers = [writer for _, writer in pipes.values()]
            socket.send_fds(self.control, [HEADER.pack(len(body))], writers)
            self.control.sendall(body)
            theirs.close()
            said = json.loads(_read_line(functools.partial(os.read, pipes["status"][0])) or "{}")
            if "refused" in said:
                raise _Unusable(said["refused"])
            if "error" in said:
                raise ChildProcessError(said["error"])
            if "pid" not in said:
                raise EOFError("it ended before it gave a process")
            ours.pop_all()
        for name in ("channel", "log"):
            os.set_blocking(pipes[name][0], False)
        status, channel, log = (pipes[name][0] for name in ("status", "channel", "log"))
        return Child(group=Group.of(said["pid"]), sentinel=status, channel=channel, log=log, code=code)

    def _rss_bytes(self) -> int:
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0


_PROGRAM = "import sys; sys.path[:] = {path}; from workers.fork_server import Setup, main; main(Setup(**{fields}))"


def _read_line(read: Callable[[int], bytes]) -> bytes:
    """A line without its end; empty when there will be none."""
    line = b""
    while not line.endswith(b"\n"):
        piece = read(1)
        if not piece:
            return b""
        line += piece
    return line[:-1]
