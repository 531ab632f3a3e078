"""Every documented flag of ``qaic-compile`` and ``qaic-exec``, as data.

Sources: the compiler guide and the option tables of the Cloud AI SDK (https://quic.github.io/cloud-ai-sdk-pages, pages
*Compile the model*, *qaic package* and *QAIC execution provider*), the AIC back end of the QAIRT API
(https://docs.qualcomm.com, 80-87189-2), and command lines that the vendor has published. What none of them says stands
nowhere here: a range without an upper end has none that is documented, and a default that is missing is the compiler's.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from qeff_engine.compiler_flags.values import (
    Bare,
    Choice,
    Decimal,
    InputFile,
    Integer,
    Kind,
    Names,
    Numbers,
    OutputFile,
    Switch,
    Text,
)

MOST_CORES = MappingProxyType({"ai100": 16})  # NSPs of one device; of other targets none is documented
_FRONT_ENDS = Choice(("onnx", "tensorflow", "pytorch", "caffe", "caffe2"))
_SCHEMAS = Choice(("asymmetric", "symmetric", "symmetric_with_uint8", "symmetric_with_power2_scale"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of the compiler.

    Attributes:
        name: as the compiler spells it, without the dash.
        kind: what values it takes.
        about: what it does.
        default: what the compiler takes without it; empty where that is not documented.
        tool: the only tool that has it; empty when both do.
        aliases: other spellings that documents have.
        instead: why a user does not give it himself, and what to do; empty for those that he does.
    """

    name: str
    kind: Kind
    about: str
    default: str = ""
    tool: str = ""
    aliases: tuple[str, ...] = ()
    instead: str = ""


def _flag(name: str, kind: Kind, about: str, *, default: str = "", aliases: tuple[str, ...] = ()) -> Flag:
    return Flag(name=name, kind=kind, about=about, default=default, aliases=aliases)


def _ours(name: str, kind: Kind, about: str, *, instead: str, default: str = "", tool: str = "") -> Flag:
    return Flag(name=name, kind=kind, about=about, default=default, tool=tool, instead=instead)


_BY_EXPORT = "The export decides it."
_BY_HAND = "Nothing of it would reach the program: run the compiler by hand."

# What a user may give, most used first.
_TUNING = (
    _flag("mos", Numbers(), "how hard to save on-chip memory, by splitting weights over cores; from 1 to the cores"),
    _flag("ols", Integer(1), "factor by which operations are split more finely, for parallelism"),
    _flag("aic-enable-depth-first", Bare(), "schedule depth first"),
    _flag("aic-depth-first-mem", Integer(8, 32), "memory of depth-first scheduling"),
    _flag("mdts-mos", Numbers(), "splitting of weights over the devices that share a program"),
    _flag("multicast-weights", Bare(), "read weights that several cores use once and send them to all"),
    _flag("allocator-dealloc-delay", Integer(0, 10), "how much longer buffers live, against false dependencies"),
    _flag("size-split-granularity", Integer(512, 2048), "largest tile of what does not fit fast memory, in KiB"),
    _flag("vtcm-working-set-limit-ratio", Decimal(0, 1), "share of a core's fast memory that one instruction may use"),
    _flag("sdp-cluster-sizes", Numbers(), "split one device into clusters of so many cores"),
    _flag("use-producer-dma", Switch("0", "1"), "start transfers from the thread that produces the data"),
    _flag("combine-inputs", Switch(), "send inputs in fewer buffers"),
    _flag("combine-outputs", Switch(), "fetch outputs in one buffer"),
    _flag("allow-mxint8-mdp-io", Bare(), "compress traffic between devices to MXINT8", aliases=("mxint8-mdp-io",)),
    _flag("split-retained-state-io", Bare(), "keep retained states apart from other inputs and outputs"),
    _flag("split-model-io", Bare(), "not documented"),
    _flag("user-tiled", Bare(), "not documented; seen with blocked attention and experts"),
    _flag("host-preproc", Bare(), "prepare inputs and outputs on the host"),
    _flag("aic-preproc", Bare(), "prepare inputs and outputs on the device"),
    _flag("compile-threads", Integer(1), "threads of the compiler on the host"),
)
_NUMBERS = (
    _flag("node-precision-info", InputFile(), "nodes that stay in FP32 or FP16, by the name of their first output"),
    _flag("execute-nodes-in-fp16", Names(), "kinds of operators that stay in FP16 when others are INT8"),
    _flag("keep-original-precision-for-nodes", Names(), "kinds of operators that are not quantized"),
    _flag("external-quantization", InputFile(), "quantization profile that another tool made"),
    _flag("load-profile", InputFile(), "quantization profile of an earlier run with -dump-profile"),
    _flag("dump-profile", OutputFile(), "write a quantization profile"),
    _flag("convert-to-quantize", Bare(), "quantize by a profile of random inputs"),
    _flag("quantization-schema-activations", _SCHEMAS, "form of quantized activations", default="symmetric_with_uint8"),
    _flag("quantization-schema-constants", _SCHEMAS, "form of quantized constants", default="symmetric_with_uint8"),
    _flag(
        "quantization-calibration",
        Choice(("None", "KLMinimization", "KLMinimizationV2", "Percentile", "MSE", "SQNR")),
        "how ranges are found",
        default="None",
    ),
    _flag("percentile-calibration-value", Decimal(90, 100), "percentile of that calibration", default="100"),
    _flag("num-histogram-bins", Integer(1), "bins of the histogram of each node", default="512"),
    _flag("quantization-precision", Choice(("Int8", "Int16")), "quantized type", default="Int8"),
    _flag("quantization-precision-bias", Choice(("Int8", "Int32")), "quantized type of biases", default="Int32"),
    _flag("enable-channelwise", Bare(), "quantize convolutions by channel"),
    _flag("enable-rowwise", Bare(), "quantize fully connected layers by row"),
    _flag("profiling-threads", Integer(1), "threads of the profiling for quantization"),
)
_LOOKING = (
    _flag("aic-perf-metrics", Bare(), "print sizes and estimates; they become figures of the compile"),
    _flag("aic-perf-warnings", Bare(), "print what may be slow"),
    _flag("time-passes", Bare(), "print how long the compiler's passes take"),
    _flag("ddr-stats", Bare(), "collect traffic to memory by core"),
    _flag("stats-level", Integer(0), "detail of statistics compiled in"),
    _flag("stats-batchsize", Integer(1), "batch by which statistics are divided"),
    _flag("aic-profiling-type", Choice(("stats", "trace", "latency")), "profiling compiled in"),
    _flag("aic-op-stats", Bare(), "statistics of operators compiled in"),
    _flag(
        "aic-pmu-recipe",
        Choice(("AxiRd", "AxiWr", "AxiRdWr", "KernelUtil", "HmxMacs")),
        "set of hardware counters compiled in",
    ),
    _flag("aic-pmu-events", Names(most=8), "hardware counters compiled in"),
    _flag("io-crc", Bare(), "check inputs and outputs by CRC"),
    _flag("io-crc-stride", Integer(1), "stride of that check", default="256"),
    _flag("io-encrypt", Text(), "encrypt inputs and outputs; chacha20 was seen"),
    _flag("enable-debug", Bare(), "debug mode of the compiler"),
    _flag("v", Bare(), "print more"),
    _flag("mdp-dump-partition-config", OutputFile(), "write how the graph can be partitioned over devices"),
    _flag("dump-custom-IO-config-template", OutputFile(), "write a template of the list of I/O formats"),
)
# What the driver sets, or what makes no sense through it.
_OURS = (
    _ours("m", Text(), "the model", instead=_BY_EXPORT),
    _ours("model", Text(), "the model", instead=_BY_EXPORT),
    _ours("model-input", Text(), "names of inputs", instead=_BY_EXPORT),
    _ours("retained-state", Bare(), "keep outputs named *_RetainedState on the device", instead=_BY_EXPORT),
    _ours("sub-functions", Bare(), "compile functions of the graph once", instead=_BY_EXPORT),
    _ours("onnx-define-symbol", Text(), "size of a symbolic axis", instead="Use batch, context and prefill length."),
    _ours("batchsize", Integer(1), "batch per instance", instead="Use the batch size.", default="1"),
    _ours("network-specialization-config", Text(), "static shapes", instead="Use batch, context and prefill length."),
    _ours("aic-hw", Bare(), "compile for a card", instead="The driver always gives it."),
    _ours("aic-hw-version", Choice(("ai100", "2.0", "ai200")), "kind of card", instead="Use the hardware version."),
    _ours("aic-num-cores", Integer(1), "cores of an instance", instead="Use the number of cores.", default="1"),
    _ours("convert-to-fp16", Bare(), "compute in FP16", instead="The driver always gives it."),
    _ours("mxfp6-matmul", Bare(), "weights of products in MXFP6", instead="Use the precision mxfp6."),
    _ours("custom-IO-list-file", Text(), "formats of inputs and outputs", instead="Use the precision of the KV cache."),
    _ours("mdp-load-partition-config", Text(), "partition over devices", instead="Use the number of devices."),
    _ours("aic-binary-dir", Text(), "where the program goes", instead="The driver gives each compile one of its own."),
    _ours("compile-only", Bare(), "stop after compiling", instead="The driver gives it.", tool="qaic-exec"),
    _ours("register-custom-op", Text(), "operators of one's own", instead="Exports have none."),
    _ours("dynamic-shape-input", Text(), "inputs of dynamic shape", instead="Programs of exports have static shapes."),
    _ours("load-embedding-tables", Text(), "embedding tables in a zip file", instead=_BY_HAND),
    _ours("dump-embedding-tables", Text(), "write embedding tables to a zip file", instead=_BY_HAND),
    _ours("operators-supported", _FRONT_ENDS, "list what a front end supports", instead=_BY_HAND),
)  # fmt: skip

GROUPS = MappingProxyType(
    {
        "Tuning": _TUNING,
        "Precision and quantization": _NUMBERS,
        "Looking inside": _LOOKING,
        "Set by the driver, or not offered": _OURS,
    }
)
FLAGS = MappingProxyType({flag.name: flag for flags in GROUPS.values() for flag in flags})
ALIASES = MappingProxyType({alias: flag.name for flag in FLAGS.values() for alias in flag.aliases})
OFFERED = tuple(name for name, flag in FLAGS.items() if not flag.instead)
