"""The fork server: a process that imports what stages need and then makes one process for each request.

Forking is safe only from a process with one thread that has computed nothing. The server looks at that itself, once its
modules are imported and again before each fork, and refuses when it is not so. It can also start fresh interpreters,
which import for themselves: the same requests, the same children, some seconds later.

The node speaks to the server through a socket, and each request brings descriptors: where the child reports to, where
it prints, and where the server says how the child ended. A child is told nothing else and inherits nothing else.
Nothing but the standard library is imported here, so that a fresh interpreter has loaded little of the farm.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import pickle
import pkgutil
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from workers import installed

HEADER = struct.Struct("!I")  # length of a request
NUM_DESCRIPTORS = 3  # of a request: channel, log, status
NOT_PRELOADED = ("__main__", "simulated_sdk")  # programs, and what only other processes import
_TASKS = Path("/proc/self/task")
_MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
_IGNORED = {signal.SIGPIPE, signal.SIGXFSZ}  # in every Python process: what they tell is an error of the call
_OWN_END_S = 2.0  # what children have to end themselves when the node is gone: they know all that they started
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What a server is told when it is started.

    Attributes:
        path: ``sys.path``.
        preload: modules to import, in order; ``package.*`` for all of a package but what stands in
            :data:`NOT_PRELOADED`.
        packages: whose files are looked at, see :mod:`workers.installed`.
        fresh: start interpreters instead of forking.
        control, tether: descriptors: the socket, and a pipe that ends when the node does.
        node: process id of the node.
    """

    path: tuple[str, ...]
    preload: tuple[str, ...]
    packages: tuple[str, ...]
    fresh: bool
    control: int
    tether: int
    node: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wires:
    """Descriptors of a child.

    Attributes:
        channel: where it reports to.
        log: where it prints.
        tether: ends when the node does.
        packages: whose code shall not change while the child imports from it.
        code: fingerprint of it when the first module was imported.
    """

    channel: int
    log: int
    tether: int
    packages: tuple[str, ...] = ()
    code: str = ""

    def descriptors(self) -> tuple[int, ...]:
        """All of them."""
        return (self.channel, self.log, self.tether)


def main(setup: Setup) -> NoReturn:
    """Be a server until the node wants no more of it, or is gone."""
    _die_with(setup.node)
    code = installed.fingerprint(setup.packages)
    failed = _import_all(setup.preload)
    control = socket.socket(fileno=setup.control)
    unsafe = "" if setup.fresh else danger()
    # What was imported is never garbage; looking at it would copy its pages in every child.
    gc.collect()
    gc.freeze()
    gc.disable()
    server = _Server(setup, control=control, code=code)
    control.sendall(json.dumps({"unsafe": unsafe, "failed": failed, "code": code}).encode() + b"\n")
    if not unsafe:
        server.serve()
    os._exit(0)


def danger() -> str:
    """Why a fork of this process would not be safe; empty when it would."""
    num_threads = _num_threads()
    if num_threads != 1:
        return f"it has {num_threads} threads, expected 1"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "torch has initialised CUDA in it"
    return ""


def become_subreaper() -> None:
    """Adopt all orphans among this process's descendants, where the kernel can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


class _Server:
    def __init__(self, setup: Setup, *, control: socket.socket, code: str) -> None:
        self._setup = setup
        self._code = code
        self._control = control
        self._status_of: dict[int, int] = {}  # pid: descriptor
        self._signals, signals = os.pipe()
        for end in (self._signals, signals):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # A terminal's Ctrl-C or a service manager's SIGTERM is for the node, which needs its server until it has ended.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(signals)
        become_subreaper()

    def serve(self) -> None:
        """Take requests and report ends; returns when there is nothing more to do."""
        taking = True
        with selectors.DefaultSelector() as selector:
            for end in (self._control.fileno(), self._setup.tether, self._signals):
                selector.register(end, selectors.EVENT_READ)
            while taking or self._status_of:
                ready = {key.fd for key, _ in selector.select()}
                if self._setup.tether in ready:
                    self._outlive_node()
                    return
                if self._signals in ready:
                    self._collect()
                if self._control.fileno() in ready and not self._take():
                    selector.unregister(self._control.fileno())
                    taking = False

    def _take(self) -> bool:
        """Carry out one request; False when there will be no more."""
        received = _receive(self._control)
        if received is None:
            return False
        body, (channel, log, status) = received
        setup = self._setup
        wires = Wires(channel=channel, log=log, tether=setup.tether, packages=setup.packages, code=self._code)
        try:
            refusal = "" if self._setup.fresh else danger()
            if refusal:
                _say(status, {"refused": refusal})
                os.close(status)
                return True
            pid = _spawn(body, wires) if self._setup.fresh else self._fork(body, wires, status=status)
            self._status_of[pid] = status
            _say(status, {"pid": pid})
        except OSError as error:
            _say(status, {"error": str(error)})
            os.close(status)
        finally:
            os.close(channel)
            os.close(log)
        return True

    def _fork(self, body: bytes, wires: Wires, *, status: int) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                _be_child(body, wires)
            except BaseException:  # noqa: BLE001  the outermost step of a process
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        return pid

    def _collect(self) -> None:
        """Report every child that has ended."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._signals, 1 << 16)
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            descriptor = self._status_of.pop(pid, None)
            if descriptor is None:
                continue  # an orphan of a stage that has ended
            _say(
                descriptor,
                {
                    "code": os.waitstatus_to_exitcode(status),
                    "cpu_s": used.ru_utime + used.ru_stime,
                    "peak_rss_bytes": used.ru_maxrss * _MAXRSS_UNIT_BYTES,
                },
            )
            os.close(descriptor)

    def _outlive_node(self) -> None:
        """Be sure that no child outlives the node."""
        deadline = time.monotonic() + _OWN_END_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            while self._status_of and (left_s := deadline - time.monotonic()) > 0:
                if selector.select(left_s):
                    self._collect()
        for pid in self._status_of:
            for end in (os.killpg, os.kill):  # it may not lead its group yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(pid, signal.SIGKILL)


def child_main() -> NoReturn:
    """Be the child of a server that starts fresh interpreters; the request is on standard input."""
    path, wires, body = pickle.load(sys.stdin.buffer)  # noqa: S301  from the server
    sys.path[:] = path
    _be_child(body, dataclasses.replace(wires, code=installed.fingerprint(wires.packages)))


def _be_child(body: bytes, wires: Wires) -> NoReturn:
    """Do what a request says, as a process that has nothing of its server's but its modules and its wires."""
    _forget(keep=wires)
    gc.enable()
    target, order = pickle.loads(body)  # noqa: S301  from the node
    target(order, wires)
    os._exit(0)


def _forget(*, keep: Wires) -> None:
    """Reset signals, and close every descriptor but the standard ones and the child's own."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _IGNORED:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    for descriptor in keep.descriptors():
        os.set_inheritable(descriptor, False)
    kept = {0, 1, 2, *keep.descriptors()}
    for descriptor in {int(entry.name) for entry in os.scandir("/dev/fd")} - kept:
        with contextlib.suppress(OSError):  # the one that the directory was read with
            os.close(descriptor)


def _spawn(body: bytes, wires: Wires) -> int:
    """The process id of a fresh interpreter that was given a request."""
    with tempfile.TemporaryFile() as request:
        pickle.dump((sys.path, wires, body), request)
        request.seek(0)
        code = f"import sys; sys.path[:] = {sys.path}; from workers.fork_server import child_main; child_main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=request, pass_fds=wires.descriptors(), close_fds=True
        )
    process.returncode = 0  # it is this module that waits for it
    return process.pid


def _receive(control: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next request: its body and its descriptors; None when there will be none."""
    header, descriptors, _, _ = socket.recv_fds(control, HEADER.size, NUM_DESCRIPTORS)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = bytearray()
    while len(body) < length:
        chunk = control.recv(length - len(body))
        if not chunk:
            return None
        body += chunk
    return bytes(body), descriptors


def _say(descriptor: int, words: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the node is gone
        os.write(descriptor, json.dumps(words).encode() + b"\n")


def _import_all(names: tuple[str, ...]) -> dict[str, str]:
    """Import modules; what went wrong, by name. A stage that needs such a module will hear of it again."""
    failed = {}
    for name in names:
        try:
            for one in modules(name.removesuffix(".*")) if name.endswith(".*") else [name]:
                importlib.import_module(one)
        except Exception as error:  # noqa: BLE001  other people's modules raise what they like
            failed[name] = repr(error)
    return failed


def modules(package: str) -> list[str]:
    """A package and all modules below it that are there to be imported."""
    found = [package]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, prefix=f"{package}."):
        if module.name.rpartition(".")[2] not in NOT_PRELOADED:
            found += modules(module.name) if module.ispkg else [module.name]
    return found


def _die_with(node: int) -> None:
    """Let the kernel end this process with the node while it imports; later it looks itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != node:  # the node died before the call
        os._exit(1)


def _num_threads() -> int:
    if _TASKS.exists():
        return sum(1 for _ in os.scandir(_TASKS))
    import psutil

    return psutil.Process().num_threads()
