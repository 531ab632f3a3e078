"""Architectures compared side by side, each in a process of its own with a time limit."""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import transformers

from qeff_engine import tasks
from qeff_engine.errors import EngineError, Unsupported
from qeff_engine.exporters import self_test
from qeff_engine.stages import export
from tests.parity import checks, configs
from tests.parity.results import ERROR, IMPOSSIBLE, PASS, UNSUPPORTED, WRONG, Result

_REASON_LENGTH = 400


def run(
    names: Iterable[str], *, keys: dict[str, str], shards: int, limit_s: float, report: Callable[[Result], None]
) -> None:
    """Compare architectures, ``shards`` at a time, and report each when it is done."""
    waiting = list(reversed(list(names)))
    running: dict[Any, _Child] = {}
    importlib.import_module(export.TASKS[tasks.TEXT_GENERATION])
    gc.freeze()  # what is imported is shared with the children and not walked through by them
    while waiting or running:
        while waiting and len(running) < shards:
            name = waiting.pop()
            if configs.TABLE[name].impossible:
                report(_result(name, keys[name], status=IMPOSSIBLE, reason=configs.TABLE[name].impossible))
                continue
            child = _Child(name, key=keys[name], limit_s=limit_s)
            running[child.process.sentinel] = child
        if not running:
            continue
        left_s = min(child.ends_s for child in running.values()) - time.monotonic()
        for sentinel in wait(list(running), timeout=max(left_s, 0)):
            report(running.pop(sentinel).result())
        for sentinel, child in list(running.items()):
            if time.monotonic() > child.ends_s:
                del running[sentinel]
                report(child.stopped())


class _Child:
    """One comparison in a process of its own."""

    def __init__(self, name: str, *, key: str, limit_s: float) -> None:
        self.name, self.key = name, key
        self.ends_s, self._limit_s = time.monotonic() + limit_s, limit_s
        forking = multiprocessing.get_context("fork")
        self._receiver, sender = forking.Pipe(duplex=False)
        self.process = forking.Process(target=_work, args=(name, key, sender))
        self.process.start()
        sender.close()

    def result(self) -> Result:
        """What the process, which has ended, said."""
        try:
            found: Result = self._receiver.recv()
        except EOFError:
            self.process.join()
            found = _result(self.name, self.key, status=ERROR, reason=f"its process ended with {self.process.exitcode}")
        self.process.join()
        return found

    def stopped(self) -> Result:
        """End the process, whose time is up."""
        self.process.kill()
        self.process.join()
        return _result(self.name, self.key, status=ERROR, reason=f"it took longer than {self._limit_s:g} s")


def _work(name: str, key: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        os.dup2(nowhere.fileno(), sys.__stderr__.fileno())
        found = attempt(name, key=key)
    sender.send(found)


def attempt(name: str, *, key: str = "") -> Result:
    """Compare one architecture in this process."""
    with tempfile.TemporaryDirectory() as root:
        try:
            found = checks.compare(name, Path(root))
        except Unsupported as error:
            return _result(name, key, status=UNSUPPORTED, reason=str(error.args[0]))
        except checks.Different as error:
            return _refused(name, key) or _result(name, key, status=WRONG, reason=str(error))
        except EngineError as error:
            return _result(name, key, status=ERROR, reason=f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  # whatever a model's code raises is the result
            return _result(name, key, status=ERROR, reason=f"{type(error).__name__}: {error}")
    return Result(
        name=name,
        key=key,
        status=PASS,
        class_name=configs.class_name(name),
        max_difference=found.max_difference,
        export_cpu_s=found.export_cpu_s,
        num_layer_functions=found.num_layer_functions,
    )


def _refused(name: str, key: str) -> Result | None:
    """That the export refuses an architecture by its own try of a small model, if it does."""
    try:
        self_test.require_agreement(configs.config(name))
    except Unsupported as error:
        return _result(name, key, status=UNSUPPORTED, reason=str(error.args[0]))
    return None


def _result(name: str, key: str, *, status: str, reason: str) -> Result:
    text = " ".join(reason.split())[:_REASON_LENGTH]
    return Result(name=name, key=key, status=status, reason=text, class_name=configs.class_name(name))
