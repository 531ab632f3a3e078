"""What faults that were asked for do to a run of the compiler. Standard library only."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

from qeff_engine.simulated_sdk import faults
from qeff_engine.simulated_sdk.fault_kinds import BAD_JSON_ERROR, COMPILER_ERRORS, COMPILERS, KINDS
from qeff_engine.simulated_sdk.faults import Fault
from qeff_engine.simulated_sdk.qpc_container import FILE_NAME
from qeff_engine.simulated_sdk.refusal import BAD_JSON, FAILED, Refusal, input_refusal

_KINDS = tuple(name for name, kind in KINDS.items() if kind.tools == COMPILERS)


def planned(root: Path, *, model: Path) -> list[Fault]:
    """The faults of this run, counted down.

    Args:
        root: the SDK.
        model: that is compiled; faults are chosen by its name without its ending.

    Raises:
        Refusal: what was asked for cannot be understood.
    """
    started_as = Path(sys.argv[0]).name
    tool = started_as if started_as in COMPILERS else COMPILERS[0]
    try:
        return faults.occurring(root, tool=tool, kinds=_KINDS, model=model.stem)
    except (faults.BadFaults, OSError) as error:
        raise input_refusal(str(error)) from error


def before(found: list[Fault], *, model: Path, program: Path) -> None:
    """What happens before there is a program; does not return from what ends the process.

    Args:
        found: the faults of this run.
        model: that is compiled.
        program: directory of the program.

    Raises:
        Refusal: the compiler says no.
    """
    for fault in found:
        if fault.kind == "compiler-slow":
            time.sleep(fault.parameters["seconds"])
    for fault in found:
        effect = _ENDS.get(fault.kind)
        if effect is not None:
            if fault.parameters.get("ignore_sigterm"):  # before the first word: who has read that may send one
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(f"Reading ONNX Model from {model}\nCompile started ...............", flush=True)
            effect(fault, program)


def after(found: list[Fault], *, program: Path) -> None:
    """What happens to a program that is complete."""
    binary = program / FILE_NAME
    for fault in found:
        if fault.kind == "compiler-empty":
            binary.unlink(missing_ok=True)
        elif fault.kind == "compiler-truncated" and binary.is_file():
            os.truncate(binary, int(binary.stat().st_size * fault.parameters["keep"]))


def _refuse(fault: Fault, program: Path) -> None:
    if fault.parameters["text"]:
        raise Refusal(fault.parameters["text"], exit_code=int(fault.parameters["exit_code"]))
    name = fault.parameters["error"]
    raise Refusal(COMPILER_ERRORS[name], exit_code=BAD_JSON if name == BAD_JSON_ERROR else FAILED)


def _crash(fault: Fault, program: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)


def _be_killed(fault: Fault, program: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(fault: Fault, program: Path) -> None:
    while True:
        time.sleep(60)


def _leave_half(fault: Fault, program: Path) -> None:
    program.mkdir(exist_ok=True)
    (program / f"{FILE_NAME}.{os.getpid()}.tmp").write_bytes(bytes(1 << 12))
    raise input_refusal(f"Unable to write {program}/{FILE_NAME}. Err=Input/output error")


_ENDS = {
    "compiler-error": _refuse,
    "compiler-crash": _crash,
    "compiler-oom": _be_killed,
    "compiler-hang": _hang,
    "compiler-half": _leave_half,
}
