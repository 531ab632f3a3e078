"""The compiler's place is taken by real processes that end as the real one has been seen to end."""

import io
import os
import re
import signal
import sys
import textwrap

import psutil
import pytest

from qeff_engine import errors
from qeff_engine.sdk import compiler
from qeff_engine.sdk.compiler_failures import Outcome, failure, telling_line

GOOD = """
    import os
    print("Reading ONNX Model from x.onnx")
    os.makedirs(program)
    open(program + "/programqpc.bin", "wb").write(b"q" * 100)
    print("Generated binary is present at", program)
"""
BAD_SHAPE = """
    print("Reading ONNX Model from x.onnx")
    print("[WARNING] slice dims clamped: not supported", file=sys.stderr)
    print("QAIC_ERROR: ", file=sys.stderr)
    print("Error message:  [Operator-'/layers.1/Reshape'] : Reshape: input shape (4, 4) and output shape (4, 1) have"
          " different number of elements", file=sys.stderr)
    print("Unable to AddNodesToGraphFromModel", file=sys.stderr)
    sys.exit(1)
"""


def compile_with(script, *, tmp_path, emit=lambda event: None, limit_s=None):
    """Run the driver with a Python script as compiler; the text of the log comes back with the cost."""
    tool = tmp_path / "qaic-compile"
    program = tmp_path / "qpc"
    tool.write_text(f"#!{sys.executable}\nimport sys\nprogram = {str(program)!r}\n{textwrap.dedent(script)}")
    tool.chmod(0o755)
    log = io.StringIO()
    cost = compiler.compile_program(
        [str(tool), "-m=x.onnx"],
        program=program,
        log=log,
        log_path=tmp_path / "compile.log",
        work=tmp_path,
        emit=emit,
        limit_s=limit_s,
    )
    return cost, log.getvalue()


def test_output_is_logged_and_told_line_by_line(tmp_path):
    told = []
    cost, log = compile_with(GOOD, tmp_path=tmp_path, emit=told.append)
    assert [event.message for event in told] == [
        "Reading ONNX Model from x.onnx",
        f"Generated binary is present at {tmp_path / 'qpc'}",
    ]
    assert log.splitlines() == [f"$ {tmp_path / 'qaic-compile'} -m=x.onnx", *(event.message for event in told)]
    assert cost.program_bytes == 100


def test_a_line_is_told_before_the_compiler_ends(tmp_path):
    fifo = tmp_path / "go"
    os.mkfifo(fifo)

    def emit(event):
        if event.message == "Compile started":
            fifo.write_text("on")  # the compiler ends only after it has read this

    script = f'print("Compile started", flush=True)\nopen({str(fifo)!r}).read()\n' + textwrap.dedent(GOOD)
    cost, _ = compile_with(script, tmp_path=tmp_path, emit=emit)
    assert cost.program_bytes == 100


def test_cost_is_that_of_the_compiler_and_its_children(tmp_path):
    script = """
    import subprocess
    subprocess.run([sys.executable, "-c", "x = b'1' * 150_000_000; sum(range(9_000_000))"], check=True)
    """
    ballast = b"1" * 300_000_000  # what this process has is none of the compiler's
    cost, _ = compile_with(script + GOOD, tmp_path=tmp_path)
    del ballast
    assert 150_000_000 < cost.peak_rss_bytes < 300_000_000
    assert cost.cpu_s > 0.02
    assert cost.wall_s > 0


def test_compiler_stays_in_the_process_group_of_the_stage(tmp_path):
    _, log = compile_with("import os\nprint('group', os.getpgid(0))\n" + textwrap.dedent(GOOD), tmp_path=tmp_path)
    assert f"group {os.getpgid(0)}" in log


def test_compiler_is_killed_when_the_listener_gives_up(tmp_path):
    pids = []

    def emit(event):
        pids.append(int(event.message))
        raise errors.Cancelled("stop")

    script = "import os, signal\nprint(os.getpid(), flush=True)\nsignal.pause()\n"
    with pytest.raises(errors.Cancelled):
        compile_with(script, tmp_path=tmp_path, emit=emit)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


# A compiler with a child and a grandchild that has left for a session of its own and lost its parent. None of them
# ends by a signal that it can ignore; each says its number on the way.
STUBBORN = """
    import os, signal, time
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            if os.fork() > 0:
                os._exit(0)
        os.write(1, f"member {os.getpid()}\\n".encode())  # one write: lines of several processes must not mix
        time.sleep(100)
    os.write(1, f"member {os.getpid()}\\n".encode())
    time.sleep(100)
"""


def members_of(told):
    return [int(event.message.split()[1]) for event in told if event.message.startswith("member")]


def living(pids):
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_a_compiler_over_its_time_is_killed_with_everything_that_it_started(tmp_path):
    told = []
    with pytest.raises(errors.StageTimeout, match="longer than the limit of 2 s") as caught:
        compile_with(STUBBORN, tmp_path=tmp_path, emit=told.append, limit_s=2)
    assert members_of(told), "the time was over before anything was there"
    assert living(members_of(told)) == []
    assert str(tmp_path / "compile.log") in caught.value.advice


def test_everything_that_a_compiler_started_is_killed_when_the_listener_gives_up(tmp_path):
    told = []

    def emit(event):
        told.append(event)
        if len(members_of(told)) == 3:
            raise errors.Cancelled("stop")

    with pytest.raises(errors.Cancelled):
        compile_with(STUBBORN, tmp_path=tmp_path, emit=emit)
    assert living(members_of(told)) == []


def test_a_limit_that_is_not_reached_changes_nothing(tmp_path):
    cost, _ = compile_with(GOOD, tmp_path=tmp_path, limit_s=300)
    assert cost.program_bytes == 100


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (BAD_SHAPE, errors.CompilerError, r"exit code 1: \[Operator-'/layers.1/Reshape'\] : Reshape: input shape"),
        (
            "print('QAIC_ERROR: Slice: Non-constant ends tensor not supported.')\nsys.exit(1)",
            errors.Unsupported,
            "Slice: Non-constant ends tensor not supported",
        ),
        (
            "print('Invalid option -retained-state. Use -h, -help, or --help for list of options.')\nsys.exit(1)",
            errors.Unsupported,
            "Invalid option -retained-state",
        ),
        (
            "print('[json.exception.type_error.302] type must be string, but is object')\nsys.exit(255)",
            errors.CompilerError,
            "exit code 255: .*type must be string",
        ),
        (
            "print('QAIC_ERROR: Unable to create /x/qpc/ directory. Err=No space left on device')\nsys.exit(1)",
            errors.Infrastructure,
            "Unable to create /x/qpc/ directory",
        ),
        ("print('std::bad_alloc')\nsys.exit(1)", errors.HostOutOfMemory, "std::bad_alloc"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", errors.HostOutOfMemory, "killed"),
        ("sys.exit(137)", errors.HostOutOfMemory, "killed"),
        (
            "import os, signal\nprint('packing', flush=True)\nos.kill(os.getpid(), signal.SIGABRT)",
            errors.CompilerCrash,
            r"signal 6 \(SIGABRT\). Its last words: packing",
        ),
        ("sys.exit(139)", errors.CompilerCrash, r"signal 11 \(SIGSEGV\)"),
        ("print('all fine')", errors.CompilerCrash, "left no programqpc.bin"),
        ("sys.exit(3)", errors.CompilerError, "exit code 3: it said nothing"),
    ],
)
def test_failures_are_classified_and_name_the_line_that_matters(tmp_path, script, kind, message):
    with pytest.raises(errors.EngineError, match=message) as caught:
        compile_with(script, tmp_path=tmp_path)
    assert type(caught.value) is kind
    assert str(tmp_path / "compile.log") in caught.value.advice
    assert f"{tmp_path / 'qaic-compile'} -m=x.onnx" in caught.value.advice


SHAPES, CONSTANT = "Shapes of the exported graph do not agree", "takes as a constant only"
# What the compiler has been seen to print, and words of what then helps.
TEXTS = [
    ("[Operator-'/a/Reshape'] : Reshape: input shape (4, 4) and output shape (4, 1) have different number of elements",
     errors.CompilerError, SHAPES),
    ("[Operator-'/a/ScatterND', opset_version-13, ir_version-7] : Indices and updates must have same lengths!",
     errors.CompilerError, SHAPES),
    ("[Operator-'Range_343', opset_version-13] : Range: 'limit' input must be a constant tensor",
     errors.Unsupported, CONSTANT),
    ("Slice: Non-constant ends tensor not supported.", errors.Unsupported, CONSTANT),
    ("Non-constant split tensor not supported", errors.Unsupported, CONSTANT),
    ("[Operator-'/a/ReduceSum'] : ReduceSum: axes of another kind", errors.CompilerError, "refuses this operator"),
    ("Invalid option -retained-state. Use -h, -help, or --help for list of options.",
     errors.Unsupported, "leave it out, or use an SDK that has it"),
    ("[json.exception.type_error.302] type must be string, but is object",
     errors.CompilerError, "named specializations need SDK 1.22"),
    ("[json.exception.parse_error.101] parse error at line 1", errors.CompilerError, "cannot be read as JSON"),
    ("Unable to create /x/qpc/ directory. Err=No space left on device", errors.Infrastructure, "Free space"),
    ("Unable to create /x/qpc/ directory. Err=Permission denied", errors.Infrastructure, "the user that compiles"),
    ("Unable to create /x/qpc/ directory. Err=File exists", errors.Infrastructure, "a file in its place"),
    ("error while loading shared libraries: libx.so.1", errors.Infrastructure, "not complete on this host"),
    ("write: Input/output error", errors.Infrastructure, "A disk of this host fails"),
    ("terminate called: std::bad_alloc", errors.HostOutOfMemory, "a host with more memory"),
    ("MXINT8 with layout conversion is not supported", errors.Unsupported, "cannot do what the line names"),
    ("something else went wrong: error", errors.CompilerError, "refuses this graph with these options"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "words"), TEXTS)
def test_every_known_text_has_an_advice_of_its_own_before_where_the_output_is(text, kind, words):
    outcome = Outcome(command=["c"], exit_code=1, lines=[text], has_program=False, log_path="/the/log")
    error = failure(outcome)
    assert type(error) is kind
    assert words in error.advice.partition("Its output is in /the/log")[0]


@pytest.mark.parametrize(
    ("exit_code", "words"), [(-9, "more memory"), (-11, "fault of the compiler"), (0, "its vendor")]
)
def test_an_end_without_a_text_has_an_advice_too(exit_code, words):
    outcome = Outcome(command=["c"], exit_code=exit_code, lines=[], has_program=False, log_path="/the/log")
    assert words in failure(outcome).advice.partition("Its output is in /the/log")[0]


def test_a_program_left_by_a_failed_compiler_is_not_taken(tmp_path):
    with pytest.raises(errors.CompilerError):
        compile_with(textwrap.dedent(GOOD) + "sys.exit(1)", tmp_path=tmp_path)


def test_compiler_that_cannot_be_started_is_the_hosts_fault(tmp_path):
    (tmp_path / "qaic-compile").write_text("not a program")
    with pytest.raises(errors.Infrastructure, match="could not be started"):
        compiler.compile_program(
            [str(tmp_path / "qaic-compile")],
            program=tmp_path / "qpc",
            log=io.StringIO(),
            log_path=tmp_path / "compile.log",
            work=tmp_path,
            emit=lambda event: None,
        )


def test_warnings_do_not_decide_about_the_class():
    outcome = Outcome(
        command=["c"],
        exit_code=1,
        lines=["[WARNING] Permission denied: cache", "QAIC_ERROR: bad graph"],
        has_program=False,
        log_path=os.devnull,
    )
    error = failure(outcome)
    assert type(error) is errors.CompilerError
    assert re.search("exit code 1: bad graph", str(error))


def test_success_needs_exit_code_and_program():
    outcome = Outcome(command=["c"], exit_code=0, lines=[], has_program=True, log_path=os.devnull)
    assert failure(outcome) is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        (["", "  "], ""),
        (["Reading", "stopped here"], "stopped here"),
        (["Unable to X", "QAIC_ERROR: y"], "y"),
        (["QAIC_ERROR:", "Error message:  z", "Unable to X"], "z"),
    ],
)
def test_telling_line_is_the_most_specific_one(lines, expected):
    assert telling_line(lines) == expected


def test_every_signal_is_a_crash_but_the_one_of_the_out_of_memory_killer():
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTERM):
        outcome = Outcome(command=["c"], exit_code=-number, lines=[], has_program=False, log_path=os.devnull)
        assert isinstance(failure(outcome), errors.CompilerCrash)
