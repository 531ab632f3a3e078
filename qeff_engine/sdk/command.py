"""What the compiler is told: its command line and the side files that the command line names.

Pure, apart from :func:`write_side_files`. Source of options and formats: the compiler guide of the Cloud AI SDK
(https://quic.github.io/cloud-ai-sdk-pages).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from qeff_engine import exported, spec
from qeff_engine.compiler_flags.table import FLAGS
from qeff_engine.compiler_flags.values import InputFile, OutputFile
from qeff_engine.errors import Unsupported
from qeff_engine.sdk.location import Sdk
from qeff_engine.sdk.partitions import cut, partition_json

# From this version on the compiler reads specializations with a name; older ones end with a JSON error.
_NAMED_SPECIALIZATIONS = (1, 22)
_KV_PREFIXES = ("past_key.", "past_value.")
# The older tool is seen with the chip's own number only; both words mean the same chip.
_HW_VERSION_OF_EXEC = {"ai100": "2.0"}
_NODE_PRECISION = "node-precision-info"
_IO_PRECISION = {"fp16": "float16", "mxint8": "mxint8"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specialization:
    """One static shape of a graph.

    Attributes:
        name: what the program calls it.
        symbols: size by symbolic axis.
    """

    name: str
    symbols: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideFiles:
    """Files that the command line names; None where the component needs none.

    Attributes:
        options: files of compiler options, by name of the option.
    """

    specializations: Path | None = None
    custom_io: Path | None = None
    partition: Path | None = None
    node_precision: Path | None = None
    options: Mapping[str, Path] = dataclasses.field(default_factory=dict)


def specializations(
    model: exported.ExportedModel, *, component: str, compile_spec: spec.CompileSpec
) -> list[Specialization]:
    """The static shapes of a component: prefill and decode for a decoder, one for anything else.

    Only symbols that the component's inputs have are given a value. Symbols beyond those of
    :class:`~qeff_engine.spec.CompileSpec` take theirs from ``model.extra["symbols"]``.

    Raises:
        Unsupported: nothing says which size a symbol has.
    """
    known = {
        **model.extra.get("symbols", {}),
        "batch_size": compile_spec.batch_size,
        "ctx_len": compile_spec.ctx_len,
        "seq_len": compile_spec.seq_len,
    }
    symbols = model.components[component].symbols
    unknown = [symbol for symbol in symbols if symbol not in known]
    if unknown:
        raise Unsupported(
            f"The {component} of {model.class_name} has the symbolic axis '{unknown[0]}', expected one of "
            f"{', '.join(sorted(known))}.",
            advice="The export must say its size in extra['symbols'].",
        )
    sizes = {symbol: int(known[symbol]) for symbol in symbols}
    if not sizes:
        return []
    if component == exported.ENCODER:
        return [Specialization(name="Embedding", symbols=sizes)]
    if "seq_len" not in sizes:
        return [Specialization(name=component.capitalize(), symbols=sizes)]
    shapes = [Specialization(name="Prefill", symbols={**sizes, "seq_len": compile_spec.prefill_len})]
    if compile_spec.prefill_len > 1:
        shapes.append(Specialization(name="Decode", symbols={**sizes, "seq_len": 1}))
    return shapes


def specializations_json(shapes: list[Specialization], *, named: bool) -> str:
    """The text of ``specializations.json``; all sizes are strings, as the compiler wants them."""
    entries: list[object] = []
    for shape in shapes:
        symbols = {symbol: str(size) for symbol, size in shape.symbols.items()}
        entries.append({"name": shape.name, "symbols": symbols} if named else symbols)
    return json.dumps({"specializations": entries}, indent=1) + "\n"


def custom_io_yaml(component: exported.Component, *, kv_precision: str) -> str:
    """The text of ``custom_io.yaml``: the KV cache in its precision, other retained states in float16."""
    blocks = []
    for name in component.retained:
        precision = _IO_PRECISION[kv_precision] if name.startswith(_KV_PREFIXES) else "float16"
        for tensor in (name, name + exported.RETAINED):
            blocks.append(f" - IOName: {tensor}\n   Precision: {precision}\n")
    return "\n".join(blocks)


def write_side_files(
    directory: Path,
    *,
    sdk: Sdk,
    model: exported.ExportedModel,
    component: str,
    compile_spec: spec.CompileSpec,
    onnx: Path,
) -> SideFiles:
    """Write the files that a component's command line names into ``directory`` and say which they are.

    Args:
        directory: of the component.
        sdk: whose compiler reads them.
        model: what was exported.
        component: name of the graph.
        compile_spec: what is asked.
        onnx: the graph, which is read where it is cut into a pipeline.

    Raises:
        Unsupported: the graph cannot be cut, or nothing says which size a symbol has.
    """
    graph = model.components[component]
    texts: dict[str, tuple[str, str]] = {}
    shapes = specializations(model, component=component, compile_spec=compile_spec)
    if shapes:
        named = sdk.is_at_least(apps=_NAMED_SPECIALIZATIONS)
        texts["specializations"] = "specializations.json", specializations_json(shapes, named=named)
    if graph.retained:
        texts["custom_io"] = "custom_io.yaml", custom_io_yaml(graph, kv_precision=compile_spec.kv_precision)
    if graph.fp32_values and _NODE_PRECISION not in compile_spec.compiler_options:
        names = "".join(f"  - {name}\n" for name in graph.fp32_values)
        texts["node_precision"] = "node_precision.yaml", f"FP32NodeInstanceNames:\n{names}"
    if compile_spec.num_devices > 1:
        parts = compile_spec.num_partitions
        text = partition_json(
            num_devices=compile_spec.num_devices,
            num_cores=compile_spec.num_cores,
            link=compile_spec.device_link,
            nodes=cut(onnx, parts=parts) if parts > 1 else None,
        )
        way = "ts" if parts == 1 else f"pp_{parts}"
        texts["partition"] = f"mdp_{way}_{compile_spec.num_devices}.json", text
    for name, text in texts.values():
        (directory / name).write_text(text)
    options = {}
    for name, value in compile_spec.compiler_options.items():
        kind = FLAGS[name].kind
        if isinstance(kind, InputFile):
            options[name] = directory / f"{name}{kind.suffix}"
            options[name].write_text(str(value))
    return SideFiles(options=options, **{field: directory / name for field, (name, _) in texts.items()})


def command_line(
    compiler: tuple[str, ...],
    *,
    onnx: Path,
    component: exported.Component,
    compile_spec: spec.CompileSpec,
    side_files: SideFiles,
    program: Path,
) -> list[str]:
    """The compiler's arguments, the tool first.

    Args:
        compiler: beginning of the command, from :meth:`~qeff_engine.sdk.location.Sdk.compiler`.
        onnx: the graph; its external data is read relative to it.
        component: description of the graph.
        compile_spec: what is asked.
        side_files: files written by :func:`write_side_files`.
        program: directory that the compiler makes; it must not exist.
    """
    hw_version = compile_spec.hw_version
    if Path(compiler[0]).name == "qaic-exec":
        hw_version = _HW_VERSION_OF_EXEC.get(hw_version, hw_version)
    command = [*compiler, "-aic-hw", f"-aic-hw-version={hw_version}", f"-m={onnx}"]
    if component.retained:
        command.append("-retained-state")
    command.append("-convert-to-fp16")
    if compile_spec.precision == "mxfp6":
        command.append("-mxfp6-matmul")
    command.append(f"-aic-num-cores={compile_spec.num_cores}")
    command += _options(compile_spec, side_files=side_files, directory=program.parent)
    if component.num_layer_functions:
        command.append("-sub-functions")
    if side_files.partition:
        command.append(f"-mdp-load-partition-config={side_files.partition}")
    if side_files.specializations:
        command.append(f"-network-specialization-config={side_files.specializations}")
    if side_files.custom_io:
        command.append(f"-custom-IO-list-file={side_files.custom_io}")
    if side_files.node_precision:
        command.append(f"-{_NODE_PRECISION}={side_files.node_precision}")
    return [*command, f"-aic-binary-dir={program}"]


def _options(compile_spec: spec.CompileSpec, *, side_files: SideFiles, directory: Path) -> list[str]:
    """The flags that the user gave; files that the compiler writes come to lie in ``directory``."""
    arguments = []
    for name, value in compile_spec.compiler_options.items():
        kind = FLAGS[name].kind
        if isinstance(kind, InputFile):
            arguments.append(kind.spelt(name, str(side_files.options[name])))
        elif isinstance(kind, OutputFile):
            arguments.append(kind.spelt(name, str(directory / str(value))))
        else:
            arguments.append(kind.spelt(name, value))
    return [*arguments, *compile_spec.unlisted_flags]
