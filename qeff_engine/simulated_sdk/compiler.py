"""Compiles an ONNX model to ``programqpc.bin``; memory stays far below the size of the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx

from qeff_engine.simulated_sdk import (
    bindings,
    constants,
    graph_checks,
    lowering,
    metrics,
    network_description,
    onnx_reading,
    output_shapes,
    qpc_container,
    quantized_products,
    sentinels,
    shapes,
    side_files,
)
from qeff_engine.simulated_sdk.cost_model import Work
from qeff_engine.simulated_sdk.network_description import Binding, Network
from qeff_engine.simulated_sdk.options import AI100, Options
from qeff_engine.simulated_sdk.refusal import input_refusal
from qeff_engine.simulated_sdk.static_values import StaticValues

# What a program takes beside constants, states and buffers: code, stacks, descriptors. Assumed.
_PROGRAM_DRAM_BYTES = 64 << 20
_FP16_BYTES = 2


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
    print(f"Generated binary is present at {options.binary_dir}", flush=True)


def _translate(options: Options, *, version: str) -> tuple[lowering.Lowered, Network]:
    """The program's graph, constants and description; weights are not read yet."""
    model = onnx_reading.load_model(options.model)
    weights = onnx_reading.weights_of(model, directory=options.model.parent)
    specializations = _specializations(options, version=version)
    num_devices = 1
    if options.partition is not None:
        num_devices = side_files.read_num_devices(options.partition, num_cores=options.num_cores)
    custom_io = side_files.read_custom_io(options.custom_io) if options.custom_io else {}
    print("Compile started ...............", flush=True)
    print(f"Compiling model with {'FP16' if options.convert_to_fp16 else 'FP32'} precision.", flush=True)
    quantized_products.expand(model, weights=weights)
    static = StaticValues(model)
    graph_checks.check(model, static=static)
    static_shapes = [_shape(model, symbols=symbols, options=options) for symbols in specializations]
    inputs, outputs = bindings.make(model, shapes=static_shapes, custom_io=custom_io, retained=options.retained_state)
    sentinels.apply(model, static=static)
    lowered = lowering.Lowering(
        model, weights=weights, to_fp16=options.convert_to_fp16, mxfp6=options.mxfp6_matmul
    ).lower()
    network = Network(
        name=options.model.stem,
        sdk_version=version,
        hw_version=AI100,
        inputs=inputs,
        outputs=outputs,
        specialized=options.specializations is not None,
        batch_size=int(options.defined.get("stats-batchsize", options.batch_size)),
        num_cores=options.num_cores,
        num_devices=num_devices,
        works=tuple(_work(shape, traffic=lowered.traffic, states=_states(inputs)) for shape in static_shapes),
        dram_bytes=_dram_bytes(inputs, outputs, traffic=lowered.traffic),
        constants_bytes=lowered.traffic.card_bytes,
        round_states_to_fp16=options.convert_to_fp16,
    )
    return lowered, network


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


def _shape(model: onnx.ModelProto, *, symbols: Mapping[str, int], options: Options) -> shapes.StaticShape:
    if options.batch_size > 1:
        raise input_refusal("Option -batchsize is supported by the simulated compiler for the value 1 only.")
    shape = shapes.specialize(model, symbols=symbols)
    if any(dims is None for dims in shape.outputs.values()):
        return output_shapes.complete(shape, model_path=options.model, symbols=symbols)
    return shape


def _states(inputs: tuple[Binding, ...]) -> tuple[Binding, ...]:
    return tuple(binding for binding in inputs if binding.state_of)


def _state_bytes(states: tuple[Binding, ...]) -> int:
    """Bytes of all states as the card keeps them."""
    total = 0
    for state in states:
        fp32 = state.io_type.item_bytes == 4
        total += prod(state.largest) * _FP16_BYTES if fp32 else state.io_type.num_bytes(state.largest)
    return total


def _work(shape: shapes.StaticShape, *, traffic: lowering.Traffic, states: tuple[Binding, ...]) -> Work:
    # A decoder layer keeps a key and a value; without states a layer has about eight products (q k v o, two of
    # attention, two or three of the feed-forward part). Two all-reduces per layer.
    layers = len(states) // 2 if states else shape.matrix_ops // 8
    return Work(
        flops=shape.flops,
        weight_bytes=traffic.weight_bytes,
        mx_weights=traffic.mx_weights,
        state_bytes=_state_bytes(states),
        matrix_ops=shape.matrix_ops,
        reductions=2 * layers,
    )


def _dram_bytes(inputs: tuple[Binding, ...], outputs: tuple[Binding, ...], *, traffic: lowering.Traffic) -> int:
    buffers = sum(item.io_type.num_bytes(item.largest) for item in inputs + outputs if not item.state_of)
    return traffic.card_bytes + _state_bytes(_states(inputs)) + buffers + _PROGRAM_DRAM_BYTES


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
