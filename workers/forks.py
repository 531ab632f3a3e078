"""The node's fork server: a process with the heavy modules imported, from which every stage process is forked.

Safe because the server has one thread and computes nothing: it only imports. All dealings with it are done by one
thread of the node, since multiprocessing lets any thread collect any child's exit code, and a child belongs to the
thread that started it as far as the kernel's death signal goes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from workers.groups import Group

# Not onnxruntime: it starts a thread when it is imported. What a stage needs beyond these it imports itself. A module
# that does not exist is passed over, as the last two might be after an upgrade: they hold what torch imports to export.
PRELOAD = (
    "psutil",
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "workers.stage_process",
    "qeff_engine.pipeline",
    "qeff_engine.stages.resolve",
    "qeff_engine.stages.quantize",
    "qeff_engine.stages.export",
    "qeff_engine.stages.compile",
    "qeff_engine.stages.run",
    "qeff_engine.transforms.decoder",
    "torch.export._trace",
    "onnxscript.function_libs.torch_lib.ops",
)

_SERVER_LOST = 255  # multiprocessing's exit code of a child whose fork server was killed; the child may still run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Child:
    """A started stage process.

    Attributes:
        group: its processes, without the mark that they wear; without a leader when that ended very soon.
        sentinel: file descriptor that becomes readable when the process has ended.
        channel: the reading end of its pipe.
    """

    process: Any
    group: Group
    sentinel: int
    channel: Connection


class ForkServer:
    """Starts stage processes and collects their exit codes."""

    def __init__(self, *, preload: tuple[str, ...] = PRELOAD) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["workers.tether", *preload])
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="forks")
        self._later: threading.Timer | None = None

    def warm_up(self, *, after_s: float = 0.0) -> None:
        """Begin to import what stages need, now or when ``after_s`` have passed, without waiting for it."""
        # One thread in the server: numpy's BLAS would start more when it is loaded. Children inherit the limit.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        if after_s:
            self._later = threading.Timer(after_s, self.warm_up)
            self._later.daemon = True
            self._later.start()
        else:
            self._thread.submit(self._probe)

    def start(self, target: Callable[..., None], *, order: object) -> concurrent.futures.Future[Child]:
        """Start ``target(order, channel)`` in a fresh process; done as soon as it is forked."""
        return self._thread.submit(self._start, target, order)

    def collect(self, child: Child) -> int:
        """The exit code of a child whose sentinel is readable, negative for a signal; its pipe is closed."""
        return self._thread.submit(self._collect, child).result()

    def close(self) -> None:
        """End the server; children must be gone."""
        if self._later is not None:
            self._later.cancel()
        self._thread.shutdown(cancel_futures=True)

    def _probe(self) -> None:
        process = self._context.Process(target=_nothing)
        process.start()
        process.join()

    def _start(self, target: Callable[..., None], order: object) -> Child:
        reader, writer = self._context.Pipe(duplex=False)
        with writer:
            process = self._context.Process(target=target, args=(order, writer))
            process.start()
        os.set_blocking(reader.fileno(), False)
        pid = process.pid or 0
        return Child(process=process, group=Group.of(pid), sentinel=process.sentinel, channel=reader)

    def _collect(self, child: Child) -> int:
        child.process.join()
        code = child.process.exitcode
        child.process.close()
        child.channel.close()
        return -signal.SIGKILL if code == _SERVER_LOST else int(code)


def _nothing() -> None:
    """What the first process does: by the time it is forked everything is imported."""
