"""What can go wrong in the engine, and what a caller may do about it.

::

    EngineError
    ├── InvalidInput            the request or its files are wrong          never retried, may be cached
    ├── Unsupported             the engine cannot do this model or option   never retried, may be cached
    ├── HostOutOfMemory         the host ran out of memory                  retried with more memory
    ├── DeviceOutOfMemory       the program does not fit the device         never retried
    ├── CompilerError           the SDK's compiler refused the graph        never retried, may be cached
    ├── CompilerCrash           the SDK's compiler died                     retried once
    ├── Numerics                results are not finite or not close enough  never retried
    ├── StageTimeout            a limit on running time was reached         retried once
    ├── DeviceLost              the device failed or vanished               retried elsewhere
    ├── WorkerLost              the process died without a word             retried
    ├── Infrastructure          disk, network, broker, permissions          retried
    ├── Cancelled               the caller asked to stop                    never retried, never cached
    └── Bug                     we made a mistake                           never retried, never cached

This module and :mod:`qeff_engine.spec` are the words that the farm shares with the engine; they import only the
standard library.
"""

from __future__ import annotations

import difflib
import enum


def near_miss(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint such as ``Did you mean 'mxfp6'?``, or the list of known words when none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."


class FailureClass(enum.StrEnum):
    """Why an attempt failed. The class decides about retry and about caching of the failure."""

    INVALID_INPUT = "invalid_input"
    UNSUPPORTED = "unsupported"
    OUT_OF_MEMORY_HOST = "out_of_memory_host"
    OUT_OF_MEMORY_DEVICE = "out_of_memory_device"
    COMPILER_ERROR = "compiler_error"
    COMPILER_CRASH = "compiler_crash"
    NUMERICS = "numerics"
    TIMEOUT = "timeout"
    DEVICE_LOST = "device_lost"
    WORKER_LOST = "worker_lost"
    INFRASTRUCTURE = "infrastructure"
    CANCELLED = "cancelled"
    BUG = "bug"


class EngineError(Exception):
    """Base of all errors that the engine raises on purpose.

    The message says what, which value and what was expected; ``advice`` says what to do.
    """

    failure_class = FailureClass.BUG

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.advice}".rstrip()


class InvalidInput(EngineError):
    """The request or its files are wrong."""

    failure_class = FailureClass.INVALID_INPUT


class Unsupported(EngineError):
    """The engine cannot do this model, format or option."""

    failure_class = FailureClass.UNSUPPORTED


class HostOutOfMemory(EngineError):
    """The host ran out of memory."""

    failure_class = FailureClass.OUT_OF_MEMORY_HOST


class DeviceOutOfMemory(EngineError):
    """The program does not fit the device's memory."""

    failure_class = FailureClass.OUT_OF_MEMORY_DEVICE


class CompilerError(EngineError):
    """The SDK's compiler refused the graph or the options."""

    failure_class = FailureClass.COMPILER_ERROR


class CompilerCrash(EngineError):
    """The SDK's compiler died of a signal or left no program behind."""

    failure_class = FailureClass.COMPILER_CRASH


class Numerics(EngineError):
    """Results are not finite, or not as close to the reference as promised."""

    failure_class = FailureClass.NUMERICS


class StageTimeout(EngineError):
    """A limit on running time was reached."""

    failure_class = FailureClass.TIMEOUT


class DeviceLost(EngineError):
    """The device failed, vanished or refused to activate for a reason that may pass."""

    failure_class = FailureClass.DEVICE_LOST


class WorkerLost(EngineError):
    """The process that did the work died without a word."""

    failure_class = FailureClass.WORKER_LOST


class Infrastructure(EngineError):
    """Disk, network, permissions or an SDK that is not installed."""

    failure_class = FailureClass.INFRASTRUCTURE


class Cancelled(EngineError):
    """The caller asked to stop."""

    failure_class = FailureClass.CANCELLED


class Bug(EngineError):
    """A mistake of ours: please report it with the log."""

    failure_class = FailureClass.BUG
