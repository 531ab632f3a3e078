"""Whether a device computes: asked before it gets work again after a fault, in a process of its own.

``python -m qeff_engine.sdk.smoke_test --sdk DIR --qid N --programs DIR`` ends with 0 when it does, with 1 and one line
when it does not, and with 3 when nobody can say, for its cores are in use.

An SDK's own test program is run with ``qaic-runner`` where there is one, as the vendor's checklist says: any positive
rate passes. Else a small product of whole numbers, which float16 holds exactly, is compiled once for one core and must
come out right.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qeff_engine.errors import DeviceLost, EngineError, Infrastructure, Numerics
from qeff_engine.program import BINARY
from qeff_engine.sdk import asking, devices, location
from qeff_engine.sdk.location import Sdk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PASSED, FAILED, UNDECIDED = 0, 1, 3
LIMIT_S = 120  # for all of it; the compiler takes most

# Of the Platform SDK: a convolution on one core (https://quic.github.io/cloud-ai-sdk-pages, checklist).
_OWN_PROGRAM = Path("test-data/aic100/v2/1nsp/1nsp-conv-hmx")
_OWN_CALLS = 500
_RATE = re.compile(r"Inf/Sec ([\d.]+)")
_SIZE = 64


def check(sdk: Sdk, *, qid: int, programs: Path) -> bool:
    """Let a device compute something.

    Args:
        sdk: whose tools are used.
        qid: the device.
        programs: directory in which what was compiled is kept.

    Returns:
        Whether it could be tried; not while all of its cores are in use.

    Raises:
        DeviceLost: the device is not ready, or fails.
        Numerics: it computes wrong.
        Infrastructure: the tools do not answer.
    """
    found = {device.qid: device for device in devices.discover(sdk)}.get(qid)
    if found is None or not found.ready:
        raise DeviceLost(f"qaic-util says {found.status if found else 'nothing of it'}.")
    if found.nsp_free < 1:
        return False
    runner, own = sdk.root / "exec" / "qaic-runner", sdk.root / _OWN_PROGRAM
    if runner.is_file() and own.is_dir():
        _run_own(runner, program=own, qid=qid)
        return True
    program = _compiled(sdk, programs=programs)
    if program is not None:
        _run(sdk, program=program, qid=qid)
    return True


def _run_own(runner: Path, *, program: Path, qid: int) -> None:
    command = [str(runner), "-t", str(program), "-a", "1", "-n", str(_OWN_CALLS), "-d", str(qid)]
    answer = asking.ask(command, limit_s=LIMIT_S)
    rate = _RATE.search(answer.text)
    if answer.exit_code != 0 or rate is None or float(rate[1]) <= 0:
        raise DeviceLost(f"{runner.name} ended with exit code {answer.exit_code}: {answer.last_line or 'no word'}")


def _compiled(sdk: Sdk, *, programs: Path) -> Path | None:
    """The program, compiled at the first call; None where that cannot be done, and being ready has to do."""
    versions = "-".join(sdk.toolchain().values())
    program = programs / re.sub(r"[^\w.-]", "_", versions)
    if (program / BINARY).is_file():
        return program
    programs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=programs) as scratch:
        model = Path(scratch) / "smoke_test.onnx"
        try:
            compiler = sdk.compiler()
            model.write_bytes(_model())
        except (Infrastructure, ImportError) as error:
            sys.stderr.write(f"No program to test with: {error}\n")
            return None
        fresh = Path(scratch) / "qpc"
        flags = ("-aic-hw", "-aic-hw-version=ai100", f"-m={model}", "-convert-to-fp16", "-aic-num-cores=1")
        answer = asking.ask([*compiler, *flags, f"-aic-binary-dir={fresh}"], limit_s=LIMIT_S)
        if answer.exit_code != 0 or not (fresh / BINARY).is_file():
            sys.stderr.write(f"No program to test with: the compiler failed.\n{answer.text}")
            return None
        with contextlib.suppress(OSError):  # another test was first
            fresh.rename(program)
    return program


def _model() -> bytes:
    """A product with a matrix of -1, 0 and 1."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(_weight().astype(np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "smoke_test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, _SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, _SIZE])],
        initializer=[weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _weight() -> NDArray[np.int64]:
    import numpy as np

    return np.random.default_rng(1).integers(-1, 2, (_SIZE, _SIZE))


def _run(sdk: Sdk, *, program: Path, qid: int) -> None:
    import numpy as np

    from qeff_engine.sdk.session import Session  # imports numpy, which who asks for this test does without

    with Session(sdk, program=program, qids=[qid]) as session:
        for seed in range(4):
            x_NK = np.random.default_rng(seed).integers(-4, 5, (1, _SIZE))
            right_NO = x_NK @ _weight()
            y_NO = session.run({"x": x_NK.astype(np.float32)}, outputs=["y"])["y"]
            num_wrong = int((y_NO != right_NO).sum())
            if num_wrong:
                raise Numerics(f"It computes wrong: {num_wrong} of {_SIZE} sums of whole numbers.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m qeff_engine.sdk.smoke_test", description=__doc__)
    parser.add_argument("--sdk", type=Path, required=True, help="directory of the SDK")
    parser.add_argument("--qid", type=int, required=True, help="number of the device")
    parser.add_argument("--programs", type=Path, required=True, help="directory for what is compiled")
    options = parser.parse_args(arguments)
    try:
        decided = check(location.find(options.sdk), qid=options.qid, programs=options.programs)
    except EngineError as error:
        sys.stdout.write(f"{str(error.args[0]).splitlines()[0]}\n")
        return FAILED
    return PASSED if decided else UNDECIDED


if __name__ == "__main__":
    signal.alarm(LIMIT_S)  # the kernel ends this process when a device hangs, whatever native code it waits in
    sys.exit(main())
