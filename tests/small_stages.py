"""Small stages with the contract of the engine's, for tests of the farm: what they do stands in a run's prompt.

A node of tests runs :func:`run_stage` in place of :func:`qeff_engine.pipeline.run_stage`. Each start of a stage leaves
a file in the directory ``QEFF_TEST_STARTS``, so that a test can count how often work was done.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from qeff_engine import events, spec
from qeff_engine.errors import InvalidInput
from qeff_engine.stage import StageContext, StageResult


def run_stage(stage_spec: spec.StageSpec, *, context: StageContext) -> StageResult:
    """Do what the spec's text says, and leave one file that depends on spec and inputs only."""
    text = _text(stage_spec)
    context.emit(events.progress(f"begins {text}", fraction=0.5))
    _note_start(context)
    for word in text.split(";"):
        name, _, argument = word.partition("=")
        if name in ACTIONS:
            ACTIONS[name](argument, context)
    inputs = {name: (path / "content.json").read_text() for name, path in sorted(context.inputs.items())}
    content = {"stage": stage_spec.STAGE, "spec": stage_spec.to_json(), "inputs": inputs}
    (context.out / "content.json").write_text(json.dumps(content, sort_keys=True))
    return StageResult(figures={"answer": 42, "qids": [grant.qid for grant in context.devices]})


def _text(stage_spec: spec.StageSpec) -> str:
    if isinstance(stage_spec, spec.RunSpec):
        return stage_spec.prompts[0]
    if isinstance(stage_spec, spec.ResolveSpec):
        return stage_spec.source
    return ""


def _note_start(context: StageContext) -> None:
    """Leave an empty file that is named as the tree in the making is: ``JOB.ATTEMPT-...``."""
    folder = os.environ.get("QEFF_TEST_STARTS")
    if folder:
        (Path(folder) / context.out.parent.name).touch()


_LIMITS = ("RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_DATA")


def _say_environment(argument: str, context: StageContext) -> None:
    facts = {
        "environ": dict(os.environ),
        "cwd": str(Path.cwd()),
        "leader": os.getsid(0) == os.getpid() == os.getpgid(0),
        "tmp": tempfile.mkdtemp(),
        "stdin": sys.stdin.read() if not sys.stdin.closed else "",
        "threads": threading.active_count(),
        "descriptors": sorted(int(entry.name) for entry in os.scandir("/proc/self/fd"))[:-1],
        "oom_score": int(Path("/proc/self/oom_score_adj").read_text()),
        "nice": os.nice(0),
        "umask": os.umask(0o022),
        "limits": {name: resource.getrlimit(getattr(resource, name))[0] for name in _LIMITS},
        "initial_environ": Path("/proc/self/environ").read_text(),
    }
    Path(argument).write_text(json.dumps(facts))


def _sleep(argument: str, context: StageContext) -> None:
    time.sleep(float(argument))


def _wait(argument: str, context: StageContext) -> None:
    """Say so by a file, and wait until the file is gone."""
    flag = Path(argument)
    flag.write_text(str(os.getpid()))
    while flag.exists():
        time.sleep(0.02)


def _tool(argument: str, context: StageContext) -> None:
    """Start a tool that runs for ever, write both pids to a file, and wait for it."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as tool:
        draft = Path(argument).with_suffix(".draft")
        draft.write_text(f"{os.getpid()} {tool.pid}")
        draft.replace(argument)
        tool.wait()


# Ways to leave a stage's process group and session. Each writes the pid of what then runs for ever, deaf to SIGTERM.
_RUN_FOR_EVER = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
{leave}
draft = pathlib.Path(sys.argv[1] + ".draft")
draft.write_text(str(os.getpid()))
draft.replace(sys.argv[1])
while True: time.sleep(60)
"""
_LEAVES = {
    "group": "os.setpgid(0, 0)",
    "session": "os.setsid()",
    "daemon": "if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)",
}


def _flee(argument: str, context: StageContext) -> None:
    """Start a program that leaves in a way, ``WAY:FILE``; with ``clean:`` before it, from an empty environment."""
    way, _, path = argument.removeprefix("clean:").partition(":")
    environ = {} if argument.startswith("clean:") else None
    subprocess.Popen([sys.executable, "-S", "-c", _RUN_FOR_EVER.format(leave=_LEAVES[way]), path], env=environ)
    while not Path(path).exists():
        time.sleep(0.01)


def _fork(argument: str, context: StageContext) -> None:
    """Become a daemon without starting another program, and leave the stage's own process to go on."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            draft = Path(argument).with_suffix(".draft")
            draft.write_text(str(os.getpid()))
            draft.replace(argument)
            while True:
                time.sleep(60)
        os._exit(0)
    while not Path(argument).exists():
        time.sleep(0.01)


def _relay(argument: str, context: StageContext) -> None:
    """Start a program of which each process soon ends, when another in a session of its own has taken over."""
    code = "import os, time\nwhile True:\n  if os.fork(): os._exit(0)\n  os.setsid(); time.sleep(0.005)"
    subprocess.Popen([sys.executable, "-S", "-c", code])


_USE = """
import pathlib, sys, time
sys.argv.pop(0)
held = b"x" * (int(sys.argv[0]) << 20)
while time.process_time() < float(sys.argv[1]): pass
pathlib.Path(sys.argv[2]).touch()
if len(sys.argv) > 3: time.sleep(600)
"""


def _use(argument: str, context: StageContext) -> None:
    """Let grandchildren whose parents have ended use ``NUMBER:MIB:CPU_S:FILE``; with ``:on`` nobody ever ends."""
    number, mib, cpu_s, path, *on = argument.split(":")
    files = [Path(f"{path}.{index}") for index in range(int(number))]
    for file in files:
        command = [sys.executable, "-S", "-c", _USE, mib, cpu_s, str(file), *on]
        code = f"import subprocess; subprocess.Popen({command})"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
    while not all(file.exists() for file in files):
        time.sleep(0.01)
    if on:
        Path(path).write_text("all")
        time.sleep(600)
    while not all(child.status() == psutil.STATUS_ZOMBIE for child in psutil.Process().children()):
        time.sleep(0.01)


def _litter(argument: str, context: StageContext) -> None:
    """Leave files in the temporary and in the working directory, one in a directory that may not be written to."""
    place = Path(tempfile.mkdtemp())
    (place / "file").touch()
    place.chmod(0o500)
    (context.work / "file").touch()


def _import(argument: str, context: StageContext) -> None:
    """Import ``MODULE:FLAG`` when a file that is written first is gone."""
    module, _, flag = argument.partition(":")
    _wait(flag, context)
    importlib.import_module(module)


def _flood(argument: str, context: StageContext) -> None:
    """Print lines for ever from a tool, and say so in a file once the node has taken many times what it keeps."""
    code = "import pathlib, sys\nfor n in range(10**12):\n  print('flood', n)\n"
    code += "  if n == 50_000: pathlib.Path(sys.argv[1]).touch()"
    subprocess.run([sys.executable, "-S", "-c", code, argument], check=True)


def _deaf(argument: str, context: StageContext) -> None:
    """Do not listen to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _raise(argument: str, context: StageContext) -> None:
    faults = {
        "invalid": InvalidInput("the value is 3, expected 4", advice="Say 4."),
        "memory": MemoryError("no more"),
        "disk": OSError(28, "No space left on device"),
        "bug": ZeroDivisionError("division by zero"),
    }
    raise faults[argument]


def _signal(argument: str, context: StageContext) -> None:
    os.kill(os.getpid(), int(argument))
    time.sleep(60)  # until it arrives


def _allocate(argument: str, context: StageContext) -> None:
    """Want more memory than a limit of the process allows."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
    bytearray(int(argument))


def _exit(argument: str, context: StageContext) -> None:
    os._exit(int(argument))


def _print(argument: str, context: StageContext) -> None:
    sys.stdout.write(f"{argument}\n")
    os.write(2, b"to stderr\n")


def _link(argument: str, context: StageContext) -> None:
    (context.out / "bad").symlink_to(argument)


ACTIONS = {
    "environment": _say_environment,
    "sleep": _sleep,
    "wait": _wait,
    "tool": _tool,
    "flee": _flee,
    "fork": _fork,
    "relay": _relay,
    "use": _use,
    "litter": _litter,
    "import": _import,
    "flood": _flood,
    "deaf": _deaf,
    "raise": _raise,
    "signal": _signal,
    "allocate": _allocate,
    "exit": _exit,
    "print": _print,
    "link": _link,
}
