"""``python -m qeff_engine``: single stages without a farm, and what is on this host."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from qeff_engine import command_line, events, pipeline, program, spec, stage
from qeff_engine.compiler_flags import asking
from qeff_engine.errors import EngineError, HostOutOfMemory, InvalidInput

DONE, FAILED, WRONG_USAGE = 0, 1, 2
_BY_SIGNAL = 128


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = command_line.parser()
    arguments = parser.parse_args(asking.joined(sys.argv[1:] if argv is None else argv))
    if arguments.command == "doctor":
        return _doctor(arguments)
    try:
        stage_spec, inputs = command_line.stage_spec(arguments), command_line.inputs(arguments)
        command_line.code_consent(arguments)
        _require_new(arguments.out)
    except InvalidInput as error:
        sys.stderr.write(f"{parser.prog} {arguments.command}: {error}\n")
        return WRONG_USAGE
    with _events_on_stdout() as stream:
        return _run(stage_spec, inputs=inputs, arguments=arguments, stream=stream)


def _doctor(arguments: argparse.Namespace) -> int:
    from qeff_engine import doctor

    report = doctor.examine(arguments.sdk_root)
    print(json.dumps(report, indent=1) if arguments.json else doctor.text(report))
    return FAILED if report["problems"] else DONE


def _run(stage_spec: spec.StageSpec, *, inputs: dict[str, Path], arguments: argparse.Namespace, stream: TextIO) -> int:
    """Run a stage in a directory beside ``--out`` and rename that when it is done."""

    def emit(event: events.Event) -> None:
        stream.write(event.to_json() + "\n")
        stream.flush()

    out = arguments.out.absolute()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with _stopped_by_signals():
            try:
                context = stage.StageContext(
                    out=partial / "out",
                    work=partial / "work",
                    inputs=inputs,
                    emit=emit,
                    sdk_root=getattr(arguments, "sdk_root", None),
                    compiler_limit_s=getattr(arguments, "compiler_timeout", None),
                    devices=_grants(arguments, inputs=inputs),
                    trust_remote_code=command_line.code_consent(arguments),
                )
                for directory in (context.out, context.work):
                    directory.mkdir(parents=True)
                pipeline.run_stage(stage_spec, context=context)
                context.out.rename(out)
            finally:
                _end_children()
                shutil.rmtree(partial, ignore_errors=True)
    except Stopped as stopped:
        sys.stderr.write(f"{stage_spec.STAGE} {stopped}\n")
        return _BY_SIGNAL + stopped.number
    except Exception as error:  # noqa: BLE001  the outermost place: a message, an event and an exit code
        return _report(error, stage_spec=stage_spec, emit=emit, verbose=arguments.verbose)
    return DONE


def _report(error: Exception, *, stage_spec: spec.StageSpec, emit: events.Emit, verbose: bool) -> int:
    """Say why the stage failed, on both streams."""
    if isinstance(error, MemoryError):
        error = HostOutOfMemory("The host has no memory left for this stage.")
    known = isinstance(error, EngineError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    failure_class = error.failure_class if isinstance(error, EngineError) else EngineError.failure_class
    with contextlib.suppress(BrokenPipeError):
        emit(events.Event(kind="failed", message=message, data={"failure_class": str(failure_class)}))
    if verbose:
        traceback.print_exception(error)
    hint = "" if known or verbose else " This is a mistake of the engine; run again with -v for the traceback."
    sys.stderr.write(f"{stage_spec.STAGE} failed ({failure_class}): {message}{hint}\n")
    return FAILED


def _require_new(out: Path) -> None:
    """Refuse to write over anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"--out is {out}, which exists already, expected a new or an empty directory.")
    if not out.absolute().parent.is_dir():
        raise InvalidInput(f"--out is {out}, expected a directory that can be made in an existing one.")


def _grants(arguments: argparse.Namespace, *, inputs: dict[str, Path]) -> tuple[stage.DeviceGrant, ...]:
    """The devices named by ``--device``, with as many cores as the program was compiled for."""
    qids = getattr(arguments, "device", None) or []
    if not qids:
        return ()
    num_cores = program.load(inputs[stage.PROGRAM]).compile_spec.num_cores
    return tuple(stage.DeviceGrant(qid=qid, num_cores=num_cores) for qid in qids)


@contextlib.contextmanager
def _events_on_stdout() -> Iterator[TextIO]:
    """A stream to stdout for events alone: what libraries print on descriptor 1 goes to stderr meanwhile."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(saved), "w", encoding="utf-8") as stream:
            yield stream
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise :class:`Stopped` at the first SIGINT or SIGTERM; a second one ends the process at once."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        # Now, while the whole tree is known: once a parent has died, its children are no descendants of ours.
        _end_children()
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_children() -> None:
    """Kill what a stage started and did not end itself."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking torch apart again, module by module, is a fifth of a small export's CPU
