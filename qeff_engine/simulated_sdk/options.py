"""The compiler's command line: one-dash flags, read through one table. Standard library only.

Source of the flags: the vendor's compiler guide and option tables (https://quic.github.io/cloud-ai-sdk-pages).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from qeff_engine.simulated_sdk.refusal import Refusal, input_refusal

MAX_CORES = 16
AI100 = "ai100"
AI100_NAMES = (AI100, "2.0")

USAGE = """Usage: qaic-compile -aic-hw -m=model.onnx -aic-binary-dir=DIR [options]
  -aic-hw-version=ai100|2.0               -aic-num-cores=1..16            -batchsize=1
  -network-specialization-config=FILE     -custom-IO-list-file=FILE       -onnx-define-symbol=NAME,VALUE
  -retained-state -convert-to-fp16 -mxfp6-matmul -mos=N -ols=N -multicast-weights -sub-functions
  -mdp-load-partition-config=FILE -allow-mxint8-mdp-io -aic-enable-depth-first -compile-threads=N
  -aic-perf-metrics -time-passes -v
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A validated command line; the meaning of a field is that of the flag with its name.

    Attributes:
        model: ``-m``.
        binary_dir: ``-aic-binary-dir``.
        symbols: all ``-onnx-define-symbol`` together.
        defined: every flag that was given, with its text, without the dash.
    """

    model: Path
    binary_dir: Path
    num_cores: int = 1
    batch_size: int = 1
    ols: int = 1
    mos: str = ""
    retained_state: bool = False
    convert_to_fp16: bool = False
    mxfp6_matmul: bool = False
    allow_mxint8_mdp_io: bool = False
    aic_perf_metrics: bool = False
    specializations: Path | None = None
    custom_io: Path | None = None
    partition: Path | None = None
    symbols: Mapping[str, int] = dataclasses.field(default_factory=dict)
    defined: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _refuse_value(flag: str, *, value: str, expected: str) -> Refusal:
    return input_refusal(f"Invalid value '{value}' for option -{flag}: expected {expected}.")


def _integer(lowest: int, highest: int) -> Callable[[str, str], None]:
    def check(flag: str, value: str) -> None:
        if not value.isascii() or not value.isdigit() or not lowest <= int(value) <= highest:
            raise _refuse_value(flag, value=value, expected=f"an integer from {lowest} to {highest}")

    return check


def _ratio(flag: str, value: str) -> None:
    try:
        inside = 0.0 <= float(value) <= 1.0
    except ValueError:
        inside = False
    if not inside:
        raise _refuse_value(flag, value=value, expected="a number from 0 to 1")


def _one_of(*values: str) -> Callable[[str, str], None]:
    def check(flag: str, value: str) -> None:
        if value not in values:
            raise _refuse_value(flag, value=value, expected=f"one of {', '.join(values)}")

    return check


def _splits(flag: str, value: str) -> None:
    """A number or one for each cluster, such as ``1,2``."""
    for part in value.split(","):
        _integer(1, MAX_CORES)(flag, part)


def _symbol(flag: str, value: str) -> None:
    name, comma, size = value.partition(",")
    if not name or not comma or not size.isdigit() or int(size) < 1:
        raise _refuse_value(flag, value=value, expected="NAME,VALUE with a positive integer")


def _text(flag: str, value: str) -> None:
    if not value:
        raise _refuse_value(flag, value=value, expected="a text")


def _hardware(flag: str, value: str) -> None:
    if value == "ai200":
        raise input_refusal("Option -aic-hw-version=ai200 is not supported by the simulated compiler.")
    _one_of(*AI100_NAMES)(flag, value)


_BARE = frozenset(
    {
        "aic-enable-depth-first",
        "aic-hw",
        "aic-op-stats",
        "aic-perf-metrics",
        "aic-perf-warnings",
        "aic-preproc",
        "allow-mxint8-mdp-io",
        "combine-inputs",
        "combine-outputs",
        "compile-only",
        "convert-to-fp16",
        "ddr-stats",
        "enable-debug",
        "host-preproc",
        "multicast-weights",
        "mxfp6-matmul",
        "mxint8-mdp-io",
        "retained-state",
        "split-model-io",
        "split-retained-state-io",
        "sub-functions",
        "time-passes",
        "use-producer-dma",
        "user-tiled",
        "v",
    }
)
_VALUED: Mapping[str, Callable[[str, str], None]] = {
    "m": _text,
    "model": _text,
    "model-input": _text,
    "onnx-define-symbol": _symbol,
    "aic-hw-version": _hardware,
    "aic-num-cores": _integer(1, MAX_CORES),
    "batchsize": _integer(1, 4096),
    "ols": _integer(1, 64),
    "mos": _splits,
    "mdts-mos": _splits,
    "aic-binary-dir": _text,
    "network-specialization-config": _text,
    "custom-IO-list-file": _text,
    "mdp-load-partition-config": _text,
    "aic-depth-first-mem": _integer(8, 32),
    "allocator-dealloc-delay": _integer(0, 10),
    "size-split-granularity": _integer(512, 2048),
    "vtcm-working-set-limit-ratio": _ratio,
    "sdp-cluster-sizes": _splits,
    "use-producer-dma": _integer(0, 1),
    "combine-inputs": _one_of("true", "false", "0", "1"),
    "combine-outputs": _one_of("true", "false", "0", "1"),
    "compile-threads": _integer(1, 1024),
    "stats-level": _integer(0, 100),
    "stats-batchsize": _integer(1, 4096),
    "aic-profiling-type": _one_of("stats", "trace", "latency"),
    "aic-pmu-recipe": _one_of("AxiRd", "AxiWr", "AxiRdWr", "KernelUtil", "HmxMacs"),
    "aic-pmu-events": _text,
    # Arithmetic is fp32 here, so nodes that shall stay fp32 need nothing.
    "node-precision-info": _text,
    "execute-nodes-in-fp16": _text,
}
# Flags of the real compiler whose effect on the numbers or on the binary is not simulated.
_NOT_SIMULATED = frozenset(
    {
        "convert-to-quantize",
        "dump-custom-IO-config-template",
        "dump-embedding-tables",
        "dump-profile",
        "dynamic-shape-input",
        "enable-channelwise",
        "enable-rowwise",
        "external-quantization",
        "io-crc",
        "io-crc-stride",
        "io-encrypt",
        "keep-original-precision-for-nodes",
        "load-embedding-tables",
        "load-profile",
        "mdp-dump-partition-config",
        "num-histogram-bins",
        "operators-supported",
        "percentile-calibration-value",
        "profiling-threads",
        "quantization-calibration",
        "quantization-precision",
        "quantization-precision-bias",
        "quantization-schema-activations",
        "quantization-schema-constants",
        "register-custom-op",
    }
)


def parse(arguments: list[str]) -> Options:
    """Read and check a command line.

    Raises:
        Refusal: an unknown flag, a bad value, a missing flag or a combination that the compiler has no support for.
    """
    given: dict[str, str] = {}
    symbols: dict[str, int] = {}
    for argument in arguments:
        flag, value = _split(argument)
        if flag == "onnx-define-symbol":
            name, _, size = value.partition(",")
            symbols[name] = int(size)
        given[flag] = value
    _check_combinations(given)
    return Options(
        model=Path(given.get("m") or given["model"]),
        binary_dir=Path(given["aic-binary-dir"]),
        num_cores=int(given.get("aic-num-cores", 1)),
        batch_size=int(given.get("batchsize", 1)),
        ols=int(given.get("ols", 1)),
        mos=given.get("mos", ""),
        retained_state="retained-state" in given,
        convert_to_fp16="convert-to-fp16" in given,
        mxfp6_matmul="mxfp6-matmul" in given,
        allow_mxint8_mdp_io="allow-mxint8-mdp-io" in given or "mxint8-mdp-io" in given,
        aic_perf_metrics="aic-perf-metrics" in given,
        specializations=_path(given, flag="network-specialization-config"),
        custom_io=_path(given, flag="custom-IO-list-file"),
        partition=_path(given, flag="mdp-load-partition-config"),
        symbols=symbols,
        defined=given,
    )


def _split(argument: str) -> tuple[str, str]:
    """Flag and value of one argument, both checked."""
    flag, equals, value = argument.removeprefix("-").partition("=")
    if not argument.startswith("-") or flag not in _BARE | _VALUED.keys() | _NOT_SIMULATED:
        raise Refusal(f"Invalid option {argument}. Use -h, -help, or --help for list of options.")
    if flag in _NOT_SIMULATED:
        raise input_refusal(f"Option -{flag} is not supported by the simulated compiler.")
    if equals and flag not in _VALUED:
        raise _refuse_value(flag, value=value, expected="no value")
    if not equals and flag not in _BARE:
        raise _refuse_value(flag, value="", expected=f"a value, as in -{flag}=VALUE")
    if equals:
        _VALUED[flag](flag, value)
    return flag, value


def _path(given: Mapping[str, str], *, flag: str) -> Path | None:
    return Path(given[flag]) if flag in given else None


def _check_combinations(given: Mapping[str, str]) -> None:
    if "m" not in given and "model" not in given:
        raise input_refusal("No model was given: option -m=MODEL is required.")
    if "aic-hw" not in given:
        raise input_refusal("Option -aic-hw is required: the toolchain's host target is not part of this SDK.")
    if "aic-binary-dir" not in given:
        raise input_refusal("No output directory was given: option -aic-binary-dir=DIR is required.")
    clusters = "sdp-cluster-sizes" in given
    if clusters and "aic-enable-depth-first" in given:
        raise input_refusal("Single device partitioning does not support -aic-enable-depth-first.")
    if clusters and "mdp-load-partition-config" in given:
        raise input_refusal("Single device partitioning does not support -mdp-load-partition-config.")
    if clusters and 40 <= int(given.get("stats-level", 0)) <= 60:
        raise input_refusal("Single device partitioning does not support stats levels 40 to 60.")
    cores = int(given.get("aic-num-cores", 1))
    if clusters and sum(map(int, given["sdp-cluster-sizes"].split(","))) != cores:
        raise input_refusal(f"The sizes in -sdp-cluster-sizes must add up to -aic-num-cores, which is {cores}.")
    if any(int(part) > cores for part in given.get("mos", "1").split(",")):
        raise _refuse_value("mos", value=given["mos"], expected=f"at most the number of cores, which is {cores}")
