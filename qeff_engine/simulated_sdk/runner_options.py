"""The command line of ``qaic-runner``, old and new spellings together. Standard library only.

Source of the options: the vendor's pages on model execution (https://quic.github.io/cloud-ai-sdk-pages, and
https://docs.qualcomm.com, 80-99100-3 qaic_runner); of texts and exit codes: the open runtime's runner
(quic/software-kit-for-qualcomm-cloud-ai-100, utils/qaic-runner).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from qeff_engine.simulated_sdk import command_options
from qeff_engine.simulated_sdk.command_options import BadUsage, Option

TOOL = "qaic-runner"
DEFAULT_ITERATIONS = 40

USAGE = f"""Usage: {TOOL} [options]
  -d, --dev, --aic-device-id <id>           Device ID, default Auto-pick
  -D, --dev-list, --aic-device-map <list>   Devices of a multi-device network: 3:1:2 in this order, 3,4,5 pick from
                                            these, default pick from all
  -t, --test-data <path>                    Location of program binaries
  -i, --input-file <path>                   Input filename from which to load input data. Specify multiple times for
                                            each input file. If no -i is given, random input will be generated
  -o, --output-file <path>                  Output filename from which to compare output for validation
  -n, --num-iter <num>                      Number of iterations, default {DEFAULT_ITERATIONS}
  --time <s>                                Duration (in seconds) for which to submit inferences
  -a, --aic-num-of-activations <num>        Number of activations, default 1
  -S, --set-size <num>                      Set Size for inference loop execution, min:1, default 10
  -T, --aic-threads-per-queue <num>         Number of threads per queue, default 4
  -l, --live-reporting                      Enable Live reporting periodic at 1 sec interval, default off
  -r, --live-reporting-period <ms>          Set Live Reporting Period in Ms, default 1000
  --aic-batch-json-input <file>             Batch mode: inputs, and outputs to compare with, of each inference
  --aic-batch-input-directory <path>        Batch mode: process all files from input directory, for networks with a
                                            single input
  --aic-batch-input-file-list <file>        Batch mode: each line is one inference, with comma-separated input files
  --write-output-start-iter <num>           Write outputs start iteration, default 0
  --write-output-num-samples <num>          Number of outputs to write, default 1
  --write-output-dir <path>                 Location to save output files, dir should exist and be writable, default '.'
  --bound-random, --unbound-random          Random inputs in the range of their format (default), or of any bytes
  --submit-timeout <ms>, --submit-retry-count <num>, -p, --pre-post-processing on|off, --aic-batch-max-memory <mb>,
  --aic-lib-path <path>                     Accepted, without effect on a simulated device
  -v, --verbose                             Verbose log from program
  -h, --help                                help
"""

# Short letter, names that mean the same, whether it takes a value.
_SIMULATED = (
    ("d", ("dev", "aic-device-id"), True),
    ("D", ("dev-list", "aic-device-map"), True),
    ("t", ("test-data",), True),
    ("i", ("input-file",), True),
    ("o", ("output-file",), True),
    ("n", ("num-iter",), True),
    ("", ("time",), True),
    ("a", ("aic-num-of-activations",), True),
    ("S", ("set-size",), True),
    ("T", ("aic-threads-per-queue",), True),
    ("l", ("live-reporting",), False),
    ("r", ("live-reporting-period",), True),
    ("", ("aic-batch-json-input", "aic-batch-input-directory", "aic-batch-input-file-list"), True),
    ("", ("write-output-start-iter", "write-output-num-samples", "write-output-dir"), True),
    ("", ("bound-random", "unbound-random"), False),
    ("", ("submit-timeout", "submit-retry-count", "aic-batch-max-memory", "aic-lib-path"), True),
    ("p", ("pre-post-processing",), True),
    ("v", ("verbose",), False),
    ("h", ("help",), False),
)
# What a card would measure and this simulation does not: refused, so that nobody waits for files that never come.
_NOT_SIMULATED = (
    ("s", ("stats",), False),
    ("", ("auto-batch-input", "dump-input-buffers"), False),
    ("", ("aic-profiling-start-iter", "aic-profiling-start-delay", "aic-profiling-num-samples"), True),
    ("", ("aic-profiling-format", "aic-profiling-type", "aic-profiling-duration"), True),
    ("", ("aic-profiling-sampling-rate", "aic-profiling-reporting-rate", "aic-profiling-out-dir"), True),
)
_ALL = tuple(
    Option(short=short if number == 0 else "", long=name, valued=valued)
    for short, names, valued in (*_SIMULATED, *_NOT_SIMULATED)
    for number, name in enumerate(names)
)
_REFUSED = frozenset(name for _, names, _ in _NOT_SIMULATED for name in names)
_COUNTS = {  # option: least value, what the runner says
    "num-iter": (1, "Set a positive value for num-iter"),
    "aic-num-of-activations": (1, "Set a positive value for aic-num-of-activations"),
    "set-size": (1, "Set a positive value for set-size"),
    "aic-threads-per-queue": (1, "Set a positive value for aic-threads-per-queue"),
    "live-reporting-period": (1, "Set a positive value for live-reporting-period"),
    "write-output-start-iter": (0, "Set non-negative value for write-output-start-iter"),
    "write-output-num-samples": (1, "Set positive value for write-output-num-samples"),
    "aic-batch-max-memory": (1, "Set a positive value for aic-batch-max-memory"),
    "submit-timeout": (0, "Set non-negative value for submit-timeout"),
    "submit-retry-count": (0, "Set non-negative value for submit-retry-count"),
    "aic-device-id": (0, "Set a valid aic-device-id"),
    "dev": (0, "Set a valid aic-device-id"),
}


@dataclasses.dataclass(kw_only=True)
class RunnerOptions:
    """A checked command line.

    Attributes:
        program: directory of the QPC.
        qid: device; None to pick one.
        mapping: devices of a sliced program in order, or a choice of them; see ``ordered``.
        ordered: whether ``mapping`` is an order.
        iterations: inferences; None where neither ``-n`` nor a batch of inputs says.
        seconds: simulated time to submit for, instead of a number.
        activations, set_size: of the inference set.
        input_files, expected_files: of one inference.
        batch_json, batch_directory, batch_list: inputs of many.
        write: whether outputs are written: from ``write_start`` on ``write_samples`` into ``write_directory``.
        live_ms: period of live reports, 0 for none.
        bounded: random values fit their format.
        verbosity: how often ``-v`` was given.
    """

    program: Path
    qid: int | None = None
    mapping: tuple[int, ...] = ()
    ordered: bool = False
    iterations: int | None = None
    seconds: float | None = None
    activations: int = 1
    set_size: int = 10
    input_files: tuple[Path, ...] = ()
    expected_files: tuple[Path, ...] = ()
    batch_json: Path | None = None
    batch_directory: Path | None = None
    batch_list: Path | None = None
    write: bool = False
    write_start: int = 0
    write_samples: int = 1
    write_directory: Path = Path()
    live_ms: int = 0
    bounded: bool = True
    verbosity: int = 0


def parse(arguments: Sequence[str]) -> RunnerOptions | None:
    """Read a command line; None when it asks for help.

    Raises:
        BadUsage: it cannot be used; ``args[0]`` is what the runner says.
    """
    given: dict[str, list[str]] = {}
    for name, value in command_options.parse(arguments, tool=TOOL, options=_ALL, one_dash=True):
        if name in _REFUSED:
            raise BadUsage(f"{TOOL}: --{name} is not supported by the simulated runner")
        if name in _COUNTS and not (value.isascii() and value.isdigit() and int(value) >= _COUNTS[name][0]):
            raise BadUsage(_COUNTS[name][1])
        given.setdefault({"aic-device-id": "dev", "aic-device-map": "dev-list"}.get(name, name), []).append(value)
    if "help" in given:
        return None
    if "test-data" not in given:
        raise BadUsage("Error: Missing test data path")
    options = _filled(given)
    total = options.iterations or DEFAULT_ITERATIONS
    if options.write and options.seconds is None and options.write_start + options.write_samples > total:
        raise BadUsage(
            f"The sum of write-output-start-iter({options.write_start}) and write-output-num-samples("
            f"{options.write_samples}) should be <= numInf({total})."
        )
    return options


def _filled(given: dict[str, list[str]]) -> RunnerOptions:
    last = {name: values[-1] for name, values in given.items()}
    mapping = last.get("dev-list", "")
    directory = Path(last.get("write-output-dir", "."))
    if "write-output-dir" in last and not directory.is_dir():
        try:
            directory.mkdir()
        except OSError as error:
            raise BadUsage(f"Invalid output dir: {directory}") from error
    live = "live-reporting" in given or "live-reporting-period" in given
    return RunnerOptions(
        program=Path(last["test-data"]),
        qid=int(last["dev"]) if "dev" in last else None,
        mapping=_mapping(mapping),
        ordered=":" in mapping,
        iterations=int(last["num-iter"]) if "num-iter" in last else None,
        seconds=_seconds(last["time"]) if "time" in last else None,
        activations=int(last.get("aic-num-of-activations", 1)),
        set_size=int(last.get("set-size", 10)),
        input_files=tuple(map(Path, given.get("input-file", ()))),
        expected_files=tuple(map(Path, given.get("output-file", ()))),
        batch_json=_path(last, name="aic-batch-json-input"),
        batch_directory=_path(last, name="aic-batch-input-directory"),
        batch_list=_path(last, name="aic-batch-input-file-list"),
        write=any(name.startswith("write-output-") for name in given),
        write_start=int(last.get("write-output-start-iter", 0)),
        write_samples=int(last.get("write-output-num-samples", 1)),
        write_directory=directory,
        live_ms=int(last.get("live-reporting-period", 1000)) if live else 0,
        bounded="unbound-random" not in given,
        verbosity=len(given.get("verbose", ())),
    )


def _path(last: dict[str, str], *, name: str) -> Path | None:
    return Path(last[name]) if name in last else None


def _mapping(text: str) -> tuple[int, ...]:
    parts = text.replace(":", ",").split(",") if text else []
    if not all(part.isdigit() for part in parts) or (":" in text and "," in text):
        raise BadUsage(f"Set a valid dev-list, such as 0:1:2:3 or 0,1,2,3; got '{text}'")
    return tuple(map(int, parts))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e6:
        raise BadUsage("Set a positive value for time")
    return seconds
