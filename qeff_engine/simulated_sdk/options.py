"""The compiler's command line, checked. Standard library only.

Source of the flags: the vendor's compiler guide and option tables (https://quic.github.io/cloud-ai-sdk-pages).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from qeff_engine.simulated_sdk.flags import FLAGS, read, refuse_value
from qeff_engine.simulated_sdk.refusal import input_refusal

MAX_CORES = 16
AI100 = "ai100"
_LEGACY_STATS_LEVELS = range(40, 61)
_PARTITIONING = "Single device partitioning does not support"
_REQUIRED = {
    ("m", "model"): "No model was given: option -m=MODEL is required.",
    ("aic-hw",): "Option -aic-hw is required: the toolchain's host target is not part of this SDK.",
    ("aic-binary-dir",): "No output directory was given: option -aic-binary-dir=DIR is required.",
}
_EXCLUDING = (
    ("sdp-cluster-sizes", "aic-enable-depth-first", _PARTITIONING),
    ("sdp-cluster-sizes", "mdp-load-partition-config", _PARTITIONING),
    ("host-preproc", "aic-preproc", "Option -host-preproc does not go with"),
    ("convert-to-quantize", "dump-profile", "Option -convert-to-quantize does not go with"),
    ("convert-to-quantize", "load-profile", "Option -convert-to-quantize does not go with"),
)
_NEEDING = {"aic-depth-first-mem": "aic-enable-depth-first", "mdts-mos": "mdp-load-partition-config"}


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
    node_precision: Path | None = None
    original_precision: tuple[str, ...] = ()
    symbols: Mapping[str, int] = dataclasses.field(default_factory=dict)
    defined: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse(arguments: list[str]) -> Options:
    """Read and check a command line.

    Raises:
        Refusal: an unknown flag, a bad value, a missing flag or a combination that the compiler has no support for.
    """
    given: dict[str, str] = {}
    symbols: dict[str, int] = {}
    for argument in arguments:
        flag, value = read(argument)
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
        node_precision=_path(given, flag="node-precision-info"),
        original_precision=tuple(filter(None, given.get("keep-original-precision-for-nodes", "").split(","))),
        symbols=symbols,
        defined=given,
    )


def _path(given: Mapping[str, str], *, flag: str) -> Path | None:
    return Path(given[flag]) if flag in given else None


def _check_combinations(given: Mapping[str, str]) -> None:
    """Refuse what is missing, what the compiler has no support for together and what this SDK does not simulate."""
    for flags, why in _REQUIRED.items():
        if not given.keys() & set(flags):
            raise input_refusal(why)
    for first, second, why in _EXCLUDING:
        if first in given and second in given:
            raise input_refusal(f"{why} -{second}.")
    for flag, needed in _NEEDING.items():
        if flag in given and needed not in given:
            raise input_refusal(f"Option -{flag} needs option -{needed}.")
    if given.get("percentile-calibration-value") and given.get("quantization-calibration") != "Percentile":
        raise input_refusal("Option -percentile-calibration-value needs option -quantization-calibration=Percentile.")
    _check_cores(given)
    for flag in given:
        if not FLAGS[flag].simulated:
            raise input_refusal(f"Option -{flag} is not supported by the simulated compiler.")
    if given.get("aic-hw-version") == "ai200":
        raise input_refusal("Option -aic-hw-version=ai200 is not supported by the simulated compiler.")


def _check_cores(given: Mapping[str, str]) -> None:
    """Refuse more cores than a device has, and what asks for more than the program's."""
    cores = int(given.get("aic-num-cores", 1))
    if cores > MAX_CORES:
        raise refuse_value("aic-num-cores", value=str(cores), expected=f"an integer from 1 to {MAX_CORES}")
    splits = [int(part) for part in given.get("mos", "1").split(",")]
    if max(splits) > cores:
        raise refuse_value("mos", value=given["mos"], expected=f"at most the number of cores, which is {cores}")
    if "sdp-cluster-sizes" not in given:
        return
    clusters = [int(part) for part in given["sdp-cluster-sizes"].split(",")]
    if int(given.get("stats-level", 0)) in _LEGACY_STATS_LEVELS:
        raise input_refusal("Single device partitioning does not support stats levels 40 to 60.")
    if sum(clusters) > cores:
        raise input_refusal(f"The sizes in -sdp-cluster-sizes must fit -aic-num-cores, which is {cores}.")
    if len(splits) not in (1, len(clusters)):
        raise refuse_value(
            "mos", value=given["mos"], expected=f"one number, or one for each of {len(clusters)} clusters"
        )
