"""Compiles an ONNX model to ``programqpc.bin``; memory stays far below the size of the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from qeff_engine.simulated_sdk import (
    bindings,
    constants,
    graph_checks,
    graph_walk,
    half_precision,
    lowering,
    metrics,
    network_description,
    node_precision,
    onnx_reading,
    op_records,
    output_shapes,
    partitions,
    program_work,
    qpc_container,
    quantized_products,
    sentinels,
    shapes,
    side_files,
)
from qeff_engine.simulated_sdk.network_description import Network
from qeff_engine.simulated_sdk.options import AI100, Options
from qeff_engine.simulated_sdk.refusal import input_refusal
from qeff_engine.simulated_sdk.shapes import StaticShape
from qeff_engine.simulated_sdk.static_values import StaticValues


def compile_program(options: Options, *, version: str) -> None:
    """Compile as the options say; prints what the real compiler prints on stdout.

    Raises:
        Refusal: the model, a side file or the output directory cannot be used.
    """
    print(f"Reading ONNX Model from {options.model}", flush=True)
    _make_directory(options.binary_dir)
    try:
        lowered, network = _translate(options, version=version)
        _write(options.binary_dir, lowered=lowered, network=network)
    except BaseException:
        options.binary_dir.rmdir()
        raise
    if options.aic_perf_metrics:
        metrics.print_metrics(network, lowered=lowered)
    if "time-passes" in options.defined:
        metrics.print_compile_time(network, lowered=lowered)
    print(f"Generated binary is present at {options.binary_dir}", flush=True)


def _translate(options: Options, *, version: str) -> tuple[lowering.Lowered, Network]:
    """The program's graph, constants and description; weights are not read yet."""
    model = onnx_reading.load_model(options.model)
    weights = onnx_reading.weights_of(model, directory=options.model.parent)
    specializations = _specializations(options, version=version)
    parts = side_files.read_partitions(options.partition, num_cores=options.num_cores) if options.partition else ()
    cut = partitions.Cut(model, partitions=parts, path=options.partition)
    custom_io = side_files.read_custom_io(options.custom_io) if options.custom_io else {}
    print("Compile started ...............", flush=True)
    print(f"Compiling model with {'FP16' if options.convert_to_fp16 else 'FP32'} precision.", flush=True)
    quantized_products.expand(model, weights=weights)
    static = StaticValues(model)
    graph_checks.check(model, static=static)
    static_shapes = [_shape(model, symbols=symbols, options=options, cut=cut) for symbols in specializations]
    inputs, outputs = bindings.make(model, shapes=static_shapes, custom_io=custom_io, retained=options.retained_state)
    states = {binding.graph_name for binding in inputs + outputs if binding.state_of}
    exact = half_precision.convert(
        model,
        to_fp16=options.convert_to_fp16,
        weights=weights,
        static=static,
        states=states,
        kept=_kept_fp32(model, options=options),
    )
    sentinels.apply(model, static=static)
    lowered = lowering.Lowering(
        model, weights=weights, to_fp16=options.convert_to_fp16, mxfp6=options.mxfp6_matmul, exact=exact
    ).lower()
    boundary = program_work.Boundary(inputs=inputs, outputs=outputs, mxint8_exchange=options.allow_mxint8_mdp_io)
    network = _describe(options, version=version, lowered=lowered, boundary=boundary, shapes=static_shapes, cut=cut)
    return lowered, network


def _describe(
    options: Options,
    *,
    version: str,
    lowered: lowering.Lowered,
    boundary: program_work.Boundary,
    shapes: Sequence[StaticShape],
    cut: partitions.Cut,
) -> Network:
    """The program's description."""
    constants_bytes = cut.constant_bytes(lowered)
    stages = program_work.stages(cut, shapes=shapes, boundary=boundary, constants_bytes=constants_bytes)
    whole_bytes = program_work.dram_bytes(boundary, constants_bytes=lowered.card_bytes)
    return Network(
        name=options.model.stem,
        sdk_version=version,
        hw_version=AI100,
        inputs=boundary.inputs,
        outputs=boundary.outputs,
        specialized=options.specializations is not None,
        batch_size=int(options.defined.get("stats-batchsize", options.batch_size)),
        num_cores=options.num_cores,
        num_devices=sum(len(item.devices) for item in cut.partitions) or 1,
        works=tuple(
            program_work.of_call(shape.operations, number=number, boundary=boundary)
            for number, shape in enumerate(shapes)
        ),
        ols=options.ols,
        mos=max(int(part) for part in (options.mos or "1").split(",")),
        depth_first="aic-enable-depth-first" in options.defined,
        dram_bytes=sum(stage.dram_bytes for stage in stages) or whole_bytes,
        constants_bytes=lowered.card_bytes,
        round_states_to_fp16=options.convert_to_fp16,
        stages=stages,
    )


def _kept_fp32(model: onnx.ModelProto, *, options: Options) -> half_precision.Kept:
    """The nodes that the options keep in fp32; names that no node has are reported, since exports differ in names."""
    listed = node_precision.read_fp32_names(options.node_precision) if options.node_precision else frozenset()
    names = listed | set(options.original_precision)
    nodes = [node for part in (model.graph, *model.functions) for node in graph_walk.all_nodes(part.node)]
    for name in sorted(listed - {name for node in nodes for name in (node.name, *node.output)}):
        print(f"[WARNING] Node precision info: the model has no node '{name}'.", flush=True)
    return half_precision.Kept(names=names, operators=frozenset(options.original_precision))


def _make_directory(path: Path) -> None:
    try:
        path.mkdir()
    except OSError as error:
        raise input_refusal(f"Unable to create {path}/ directory. Err={error.strerror}") from error


def _specializations(options: Options, *, version: str) -> list[Mapping[str, int]]:
    if options.specializations is None:
        return [options.symbols]
    found = side_files.read_specializations(options.specializations, version=version)
    return [{**options.symbols, **item.symbols} for item in found]


def _shape(model: onnx.ModelProto, *, symbols: Mapping[str, int], options: Options, cut: partitions.Cut) -> StaticShape:
    if options.batch_size > 1:
        raise input_refusal("Option -batchsize is supported by the simulated compiler for the value 1 only.")
    forms = op_records.Forms(to_fp16=options.convert_to_fp16, mxfp6=options.mxfp6_matmul)
    shape = shapes.specialize(model, symbols=symbols, forms=forms, cut=cut)
    if any(dims is None for dims in shape.outputs.values()):
        return output_shapes.complete(shape, model_path=options.model, symbols=symbols)
    return shape


def _write(directory: Path, *, lowered: lowering.Lowered, network: Network) -> None:
    """Write the container under a temporary name and rename it when it is whole."""
    head = {
        qpc_container.CONSTANTS_DESCRIPTION: metrics.constants_table(lowered),
        qpc_container.NETWORK_DESCRIPTION: network_description.serialize(network),
        qpc_container.NETWORK: lowered.model.SerializeToString(deterministic=True),
    }
    temporary = directory / f"{qpc_container.FILE_NAME}.{os.getpid()}.tmp"
    try:
        with temporary.open("xb") as file:
            writer = qpc_container.Writer(file, head=head)
            constants.write(file, constants=lowered.constants, start=writer.constants_start)
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / qpc_container.FILE_NAME)
    except OSError as error:
        raise input_refusal(f"Unable to write {directory}/{qpc_container.FILE_NAME}. Err={error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
