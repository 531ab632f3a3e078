"""The flags of the compiler and the form of their values. Standard library only.

Source: the vendor's compiler guide and option tables (https://quic.github.io/cloud-ai-sdk-pages), and command lines
that it has published. Ranges that they leave open are open here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from qeff_engine.simulated_sdk.refusal import Refusal, input_refusal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What may stand behind a flag.

    Attributes:
        takes: ``nothing``, ``integer``, ``number``, ``word``, ``symbol``, ``text``, or with commas ``numbers`` or
            ``names``.
        least: of an integer or number.
        most: likewise, or how many names at most; None where it is open.
        words: the legal words.
        bare: it may stand without a value.
        simulated: the flag does here what it does, or changes neither numbers nor binary.
    """

    takes: str
    least: float = 0
    most: float | None = None
    words: tuple[str, ...] = ()
    bare: bool = False
    simulated: bool = True

    @property
    def expected(self) -> str:
        """In words, for refusals and help."""
        end = f"from {self.least:g} to {self.most:g}" if self.most is not None else f"of at least {self.least:g}"
        return {
            "nothing": "no value",
            "integer": f"an integer {end}",
            "number": f"a number {end}",
            "numbers": "integers of at least 1, with commas",
            "word": f"one of {', '.join(self.words)}",
            "symbol": "NAME,VALUE with a positive integer",
            "names": "names with commas" + (f", at most {self.most:g}" if self.most is not None else ""),
            "text": "a text",
        }[self.takes]

    def fits(self, value: str) -> bool:
        """Whether a value is legal."""
        if self.takes == "integer":
            return _is_integer(value) and self._inside(int(value))
        if self.takes == "number":
            return _is_number(value) and self._inside(float(value))
        if self.takes == "numbers":
            return all(_is_integer(part) and int(part) >= 1 for part in value.split(","))
        if self.takes == "word":
            return value in self.words
        if self.takes == "symbol":
            name, comma, size = value.partition(",")
            return bool(name and comma) and _is_integer(size) and int(size) >= 1
        if self.takes == "names":
            names = value.split(",")
            return all(names) and (self.most is None or len(names) <= self.most)
        return self.takes == "text" and bool(value)

    def _inside(self, value: float) -> bool:
        return self.least <= value and (self.most is None or value <= self.most)


def _is_integer(value: str) -> bool:
    return value.isascii() and value.isdigit()


def _is_number(value: str) -> bool:
    try:
        return float(value) == float(value)  # NaN is not itself
    except ValueError:
        return False


_BARE = Form(takes="nothing", bare=True)
_TEXT = Form(takes="text")
_COUNT = Form(takes="integer", least=1)
_NUMBERS = Form(takes="numbers")
_ON_OFF = Form(takes="word", words=("true", "false", "0", "1"), bare=True)
_SCHEMA = Form(takes="word", words=("asymmetric", "symmetric", "symmetric_with_uint8", "symmetric_with_power2_scale"))
_CALIBRATIONS = ("None", "KLMinimization", "KLMinimizationV2", "Percentile", "MSE", "SQNR")

_HERE: Mapping[str, Form] = {
    "m": _TEXT,
    "model": _TEXT,
    "model-input": _TEXT,
    "onnx-define-symbol": Form(takes="symbol"),
    "aic-hw": _BARE,
    "aic-hw-version": Form(takes="word", words=("ai100", "2.0", "ai200")),
    "aic-num-cores": _COUNT,
    "batchsize": _COUNT,
    "aic-binary-dir": _TEXT,
    "compile-only": _BARE,
    "network-specialization-config": _TEXT,
    "custom-IO-list-file": _TEXT,
    "retained-state": _BARE,
    "split-retained-state-io": _BARE,
    "split-model-io": _BARE,
    "sub-functions": _BARE,
    "user-tiled": _BARE,
    "convert-to-fp16": _BARE,
    "mxfp6-matmul": _BARE,
    "mdp-load-partition-config": _TEXT,
    "allow-mxint8-mdp-io": _BARE,
    "mxint8-mdp-io": _BARE,
    "mdts-mos": _NUMBERS,
    "ols": _COUNT,
    "mos": _NUMBERS,
    "multicast-weights": _BARE,
    "aic-enable-depth-first": _BARE,
    "aic-depth-first-mem": Form(takes="integer", least=8, most=32),
    "allocator-dealloc-delay": Form(takes="integer", least=0, most=10),
    "size-split-granularity": Form(takes="integer", least=512, most=2048),
    "vtcm-working-set-limit-ratio": Form(takes="number", least=0, most=1),
    "sdp-cluster-sizes": _NUMBERS,
    "use-producer-dma": _ON_OFF,
    "combine-inputs": _ON_OFF,
    "combine-outputs": _ON_OFF,
    "host-preproc": _BARE,
    "aic-preproc": _BARE,
    "compile-threads": _COUNT,
    "aic-perf-metrics": _BARE,
    "aic-perf-warnings": _BARE,
    "time-passes": _BARE,
    "ddr-stats": _BARE,
    "stats-level": Form(takes="integer"),
    "stats-batchsize": _COUNT,
    "aic-profiling-type": Form(takes="word", words=("stats", "trace", "latency")),
    "aic-op-stats": _BARE,
    "aic-pmu-recipe": Form(takes="word", words=("AxiRd", "AxiWr", "AxiRdWr", "KernelUtil", "HmxMacs")),
    "aic-pmu-events": Form(takes="names", most=8),
    "enable-debug": _BARE,
    "v": _BARE,
    "node-precision-info": _TEXT,
    "keep-original-precision-for-nodes": Form(takes="names"),
    # Of a quantized graph; here all others are fp16, too.
    "execute-nodes-in-fp16": Form(takes="names"),
}
# Their effect on the numbers or on the binary is not simulated.
_ELSEWHERE: Mapping[str, Form] = {
    "convert-to-quantize": _BARE,
    "dump-profile": _TEXT,
    "load-profile": _TEXT,
    "external-quantization": _TEXT,
    "quantization-schema-activations": _SCHEMA,
    "quantization-schema-constants": _SCHEMA,
    "quantization-calibration": Form(takes="word", words=_CALIBRATIONS),
    "percentile-calibration-value": Form(takes="number", least=90, most=100),
    "num-histogram-bins": _COUNT,
    "quantization-precision": Form(takes="word", words=("Int8", "Int16")),
    "quantization-precision-bias": Form(takes="word", words=("Int8", "Int32")),
    "enable-channelwise": _BARE,
    "enable-rowwise": _BARE,
    "profiling-threads": _COUNT,
    "io-crc": _BARE,
    "io-crc-stride": _COUNT,
    "io-encrypt": _TEXT,
    "mdp-dump-partition-config": _TEXT,
    "dump-custom-IO-config-template": _TEXT,
    "dump-embedding-tables": _TEXT,
    "load-embedding-tables": _TEXT,
    "dynamic-shape-input": _TEXT,
    "operators-supported": Form(takes="word", words=("onnx", "tensorflow", "pytorch", "caffe", "caffe2")),
    "register-custom-op": _TEXT,
}
FLAGS: Mapping[str, Form] = MappingProxyType(
    {**_HERE, **{name: dataclasses.replace(form, simulated=False) for name, form in _ELSEWHERE.items()}}
)


def read(argument: str) -> tuple[str, str]:
    """Flag and value of one argument.

    Raises:
        Refusal: there is no such flag, or its value is not legal.
    """
    flag, equals, value = argument.removeprefix("-").partition("=")
    form = FLAGS.get(flag)
    if not argument.startswith("-") or form is None:
        raise Refusal(f"Invalid option {argument}. Use -h, -help, or --help for list of options.")
    if not equals and not form.bare:
        raise refuse_value(flag, value="", expected=f"a value, as in -{flag}=VALUE")
    if equals and not form.fits(value):
        raise refuse_value(flag, value=value, expected=form.expected)
    return flag, value


def refuse_value(flag: str, *, value: str, expected: str) -> Refusal:
    """The refusal of a value."""
    return input_refusal(f"Invalid value '{value}' for option -{flag}: expected {expected}.")


def usage() -> str:
    """What ``-h`` prints."""
    lines = ["Usage: qaic-compile -aic-hw -m=model.onnx -aic-binary-dir=DIR [options]"]
    for name, form in FLAGS.items():
        spelt = f"-{name}" if form.takes == "nothing" else f"-{name}[=VALUE]" if form.bare else f"-{name}=VALUE"
        values = "" if form.takes == "nothing" else form.expected
        lines.append(f"  {spelt:<44}{values}{'' if form.simulated else ' (not simulated)'}".rstrip())
    return "\n".join(lines) + "\n"
