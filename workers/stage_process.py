"""What happens in a stage process, from the fork to its end: prepare, run the stage, publish, say how it went.

The process tells its node through a pipe, one JSON object a line: events of the stage, and an outcome at the end. What
it prints goes to the attempt's log.
"""

from __future__ import annotations

import dataclasses
import errno
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from farm.errors import DamagedArtifact, StorageFault
from farm.store.stores import StorePlace, open_store
from qeff_engine import events, spec
from qeff_engine.errors import EngineError, FailureClass, Infrastructure
from qeff_engine.stage import AS_RESOLVED, DeviceGrant, StageContext
from workers import installed
from workers.fork_server import Wires, become_subreaper
from workers.groups import AttemptRecord, Group, wear

OUTCOME = "outcome"  # kind of the last line; the others are kinds of events
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_MOST_FILES = 1 << 16  # many programs close all that they might have
_OOM_SCORE = 500  # the kernel shall end the stage, not the node or the database


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What a stage process is told.

    Attributes:
        entry: ``module:function`` that is called as :func:`qeff_engine.pipeline.run_stage` is.
        stage: kind of work.
        spec: JSON form of its spec.
        store: where artifacts are.
        inputs: artifact digest by input name.
        record: what a later node must know; the process adds its group.
        records: directory of such records.
        sdk_root: Cloud AI SDK; None where the host has none.
        devices: granted cores.
        environ: all environment variables that it shall have.
        num_threads: threads for tensor mathematics.
        niceness: how far it lets the farm's own processes go first.
        cpu_limit_s: CPU seconds after which the kernel ends a process of it, should nobody else do that; None for no
            limit.
    """

    entry: str
    stage: str
    spec: dict[str, Any]
    store: StorePlace
    inputs: dict[str, str]
    record: AttemptRecord
    records: Path
    sdk_root: Path | None
    devices: tuple[DeviceGrant, ...]
    environ: dict[str, str]
    num_threads: int
    niceness: int = 0
    cpu_limit_s: int | None = None


def main(order: Order, wires: Wires) -> None:
    """Carry out an order; never returns."""
    _become_leader(order.record.group.mark)
    _redirect(wires.log)
    _watch_node(order.record.group.mark, tether=wires.tether)
    reporter = _Reporter(wires.channel)
    modules = frozenset(sys.modules)
    code = 1
    try:
        _settle_in(order)
        outcome = _carry_out(order, reporter=reporter, unmixed=lambda: _refuse_mixed_code(modules, wires=wires))
        code = 0
    except BaseException as error:  # noqa: BLE001  the outermost step: whatever it is becomes an outcome
        outcome = _failure(error)
    reporter.close({**outcome, "alone": _wait_for_children()})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's own way out would wait for threads that a library left


def _wait_for_children() -> bool:
    """Wait for those that have ended already, so that what they used counts as used by this process.

    Returns whether there are no others. As orphans of this process's tools become its children, it is then alone.
    """
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return sys.platform == "linux"
    return False


class _Reporter:
    """An event receiver: prints what is said, and passes on all but the lines of tools."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def __call__(self, event: events.Event) -> None:
        print(event.message, flush=True)  # noqa: T201  standard output is the attempt's log
        if event.kind != "log":
            self._send(event.to_json())

    def close(self, outcome: Mapping[str, Any]) -> None:
        """Say how it ended."""
        self._send(json.dumps({"kind": OUTCOME, **outcome}))

    def _send(self, text: str) -> None:
        line = text.encode() + b"\n"
        with self._lock:
            while line:
                try:
                    line = line[os.write(self._descriptor, line) :]
                except BrokenPipeError:  # the node is gone, and this process is about to be killed
                    return


def _become_leader(mark: int) -> None:
    os.setsid()
    wear(mark)
    become_subreaper()  # so that this process waits for the orphans that its tools leave, and their use is counted


def _redirect(log: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    faulthandler.enable(file=2)


def _watch_node(mark: int, *, tether: int) -> None:
    """Kill all processes of the stage when the node dies."""

    def watch() -> None:
        os.read(tether, 1)  # nothing is ever written to it
        Group(mark=mark).kill_others()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="watch-node", daemon=True).start()


def _settle_in(order: Order) -> None:
    """Leave a trace for a later node, then take on limits, environment and working directory."""
    group = Group.of(os.getpid(), mark=order.record.group.mark)
    dataclasses.replace(order.record, group=group).write(order.records)
    _take_limits(order)
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text(str(_OOM_SCORE))
    os.environ.clear()
    os.environ.update(order.environ)
    tempfile.tempdir = None
    work = order.record.scratch / "work"
    work.mkdir(parents=True, exist_ok=True)
    Path(order.environ["TMPDIR"]).mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(order.num_threads)


def _take_limits(order: Order) -> None:
    """Take on what the kernel shall enforce.

    No limit of address space (RLIMIT_AS) nor of data (RLIMIT_DATA): both count mapped weights, the second those that
    are mapped for private writing. Memory is watched instead, see :mod:`workers.meter`.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if most_files == resource.RLIM_INFINITY else min(most_files, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most_files))
    if order.cpu_limit_s is not None:
        _lower(resource.RLIMIT_CPU, order.cpu_limit_s)
    os.umask(0o022)
    os.nice(order.niceness)


def _lower(limit: int, value: int) -> None:
    _, most = resource.getrlimit(limit)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(limit, (value, most))


def _carry_out(order: Order, *, reporter: _Reporter, unmixed: Callable[[], None]) -> dict[str, Any]:
    store = open_store(order.store)
    module, _, function = order.entry.partition(":")
    run_stage = getattr(importlib.import_module(module), function)
    context = StageContext(
        out=order.record.tree,
        work=order.record.scratch / "work",
        inputs={name: store.path(digest) for name, digest in order.inputs.items()},
        emit=reporter,
        sdk_root=order.sdk_root,
        devices=order.devices,
        trust_remote_code=AS_RESOLVED,
    )
    result = run_stage(spec.from_json(order.stage, order.spec), context=context)
    unmixed()
    figures = json.loads(json.dumps(result.figures, allow_nan=False))
    artifact = store.publish(order.record.tree, stage=order.stage)
    return {"figures": figures, "artifact": dataclasses.asdict(artifact)}


def _refuse_mixed_code(modules: frozenset[str], *, wires: Wires) -> None:
    """Publish nothing that old modules and new ones made together.

    Args:
        modules: names of those that were there at the start.
        wires: say what the code was when they were imported.

    Raises:
        Infrastructure: the installed code has changed, and some of it was imported since.
    """
    late = installed.late(modules, packages=wires.packages)
    if late and installed.fingerprint(wires.packages) != wires.code:
        raise Infrastructure(
            f"The installed code was changed while the stage ran, and {', '.join(late[:3])} may come from the new one.",
            advice="The stage is run again.",
        )


def _failure(error: BaseException) -> dict[str, Any]:
    """The outcome of an exception; what nobody foresaw leaves its traceback in the log."""
    if isinstance(error, EngineError):
        failure_class = error.failure_class
    elif isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        failure_class = FailureClass.OUT_OF_MEMORY_HOST
    elif isinstance(error, StorageFault) or (isinstance(error, OSError) and error.errno in _DISK):
        failure_class = FailureClass.INFRASTRUCTURE
    else:
        failure_class = FailureClass.BUG
    advice = error.advice if isinstance(error, EngineError) else ""
    message = (str(error.args[0]) if advice else str(error)) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _DISK:
        message = (
            f"The artifact store or the scratch directory cannot be written: {error}. "
            "Free space there, or put the store elsewhere with FARM_STORE; then `farm retry`."
        )
    if failure_class is FailureClass.BUG:
        traceback.print_exception(error)
        message = f"{type(error).__name__}: {message}"
    print(f"{message} {advice}".rstrip(), flush=True)  # noqa: T201  standard output is the attempt's log
    damaged = error.digest if isinstance(error, DamagedArtifact) else ""
    return {"failure_class": str(failure_class), "message": message, "advice": advice, "damaged": damaged}
