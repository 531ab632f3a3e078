"""What ``qaic-runner`` feeds a program: given files, a batch of them, or random values; and the files it writes.

The JSON form of a batch is the one that the reference library writes and the vendor's examples pass:
``{"IO-files": [[{"path", "io-direction": "in"|"out", "elem-size", "map-to", "dims"}]]}``, one list for each inference.
Paths in it are looked for beside the JSON file, then in the working directory; entries of outputs are not looked at.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qeff_engine.simulated_sdk.buffers import BufferDimensionsVecRef, QBuffer
from qeff_engine.simulated_sdk.network_description import Binding, Network
from qeff_engine.simulated_sdk.runner_options import RunnerOptions

_SEED = 0
_BOUND = 100  # of random integers, below the vocabulary of every model


class BadInputs(ValueError):
    """Inputs that the program cannot take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """The buffers of one inference.

    Attributes:
        specialization: number of the static shape.
        inputs: bytes by input index; retained states that stay on the device are missing.
        expected: bytes by output index that the outputs shall be.
    """

    specialization: int
    inputs: Mapping[int, bytes]
    expected: Mapping[int, bytes]

    def buffers(self, network: Network) -> tuple[list[QBuffer], BufferDimensionsVecRef]:
        """Buffers and dims of all bindings for a call that asks for every output but retained states."""
        buffers = [QBuffer(b"") for _ in network.bindings]
        dims = BufferDimensionsVecRef([(1, [0]) for _ in network.bindings])
        for index, binding in enumerate(network.bindings):
            shape = binding.shapes[self.specialization]
            if index in self.inputs:
                buffers[index] = QBuffer(self.inputs[index])
            elif index >= len(network.inputs) and not binding.state_of:
                buffers[index] = QBuffer(bytes(binding.io_type.num_bytes(shape)))
            else:
                continue
            dims[index] = (binding.io_type.item_bytes, list(shape))
        return buffers, dims


def samples(options: RunnerOptions, *, network: Network) -> list[Sample]:
    """The inferences that the options ask for; one of random values when they name no inputs.

    Raises:
        BadInputs: files do not fit the program, or a list of them cannot be understood.
        OSError: a file cannot be read.
    """
    if options.batch_json is not None:
        return [_mapped(entries, network=network) for entries in _json_lists(options.batch_json)]
    if options.batch_list is not None:
        lines = [line.strip() for line in options.batch_list.read_text().splitlines()]
        return [_in_order([Path(item.strip()) for item in line.split(",")], network=network) for line in lines if line]
    if options.batch_directory is not None:
        files = sorted(path for path in options.batch_directory.iterdir() if path.is_file())
        return [_in_order([path], network=network) for path in files]
    if options.input_files:
        return [_in_order(options.input_files, network=network, expected=options.expected_files)]
    return [_random(network, bounded=options.bounded, expected=options.expected_files)]


def _passed(network: Network) -> dict[int, Binding]:
    """Inputs that a call must pass: all but retained states."""
    return {index: binding for index, binding in enumerate(network.inputs) if not binding.state_of}


def _returned(network: Network) -> dict[int, Binding]:
    """Outputs that leave the device."""
    first = len(network.inputs)
    return {index: binding for index, binding in enumerate(network.outputs, start=first) if not binding.state_of}


def _in_order(paths: Sequence[Path], *, network: Network, expected: Sequence[Path] = ()) -> Sample:
    wanted = _passed(network)
    if len(paths) != len(wanted):
        names = ", ".join(binding.name for binding in wanted.values())
        raise BadInputs(f"{len(paths)} input files were given, the program has {len(wanted)} inputs: {names}")
    inputs = {index: path.read_bytes() for index, path in zip(wanted, paths, strict=True)}
    return _fitting(inputs, network=network, expected=_expected(expected, network=network))


def _expected(paths: Sequence[Path], *, network: Network) -> dict[int, bytes]:
    if len(paths) > len(_returned(network)):
        raise BadInputs(f"Wrong validation buffer index {len(_returned(network))} numBuffers {len(paths)}")
    return {index: path.read_bytes() for index, path in zip(_returned(network), paths, strict=False)}


def _fitting(inputs: Mapping[int, bytes], *, network: Network, expected: Mapping[int, bytes]) -> Sample:
    """The inputs with the first specialization whose sizes they have."""
    sizes = [
        {index: network.bindings[index].io_type.num_bytes(network.bindings[index].shapes[number]) for index in inputs}
        for number in range(len(network.works))
    ]
    given = {index: len(data) for index, data in inputs.items()}
    for number, wanted in enumerate(sizes):
        if wanted == given:
            return Sample(specialization=number, inputs=inputs, expected=expected)
    names = {network.bindings[index].name: size for index, size in given.items()}
    known = [{network.bindings[index].name: size for index, size in wanted.items()} for wanted in sizes]
    raise BadInputs(f"Input files have the bytes {names}, the program takes {known}")


def _json_lists(path: Path) -> list[list[dict[str, Any]]]:
    try:
        lists = json.loads(path.read_text())["IO-files"]
        return [
            [
                {**entry, "path": _found(Path(entry["path"]), beside=path), "map-to": str(entry["map-to"])}
                for entry in item
            ]
            for item in lists
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputs(f"{path} is no list of inputs ({type(error).__name__}: {error})") from error


def _found(path: Path, *, beside: Path) -> Path:
    local = beside.parent / path
    return local if local.is_file() else path


def _mapped(entries: Sequence[Mapping[str, Any]], *, network: Network) -> Sample:
    index_of = {binding.name: index for index, binding in enumerate(network.bindings)}
    unknown = [entry["map-to"] for entry in entries if entry["map-to"] not in index_of]
    if unknown:
        raise BadInputs(f"The program has no input or output '{unknown[0]}'; it has {', '.join(index_of)}")
    files = {index_of[entry["map-to"]]: entry for entry in entries}
    inputs = {index: entry["path"].read_bytes() for index, entry in files.items() if _is_input(entry)}
    missing = [binding.name for index, binding in _passed(network).items() if index not in inputs]
    if missing:
        raise BadInputs(f"No file is mapped to the input '{missing[0]}'")
    return _fitting(inputs, network=network, expected={})


def _is_input(entry: Mapping[str, Any]) -> bool:
    return str(entry.get("io-direction", "in")) == "in"


def _random(network: Network, *, bounded: bool, expected: Sequence[Path]) -> Sample:
    """Values of the largest specialization, the same ones in every run."""
    passed = _passed(network)
    sizes = [
        sum(item.io_type.num_bytes(item.shapes[number]) for item in passed.values())
        for number in range(len(network.works))
    ]
    number = max(range(len(sizes)), key=sizes.__getitem__)
    generator = np.random.default_rng(_SEED)
    inputs = {
        index: _values(binding, dims=binding.shapes[number], generator=generator, bounded=bounded)
        for index, binding in passed.items()
    }
    return Sample(specialization=number, inputs=inputs, expected=_expected(expected, network=network))


def _values(binding: Binding, *, dims: tuple[int, ...], generator: np.random.Generator, bounded: bool) -> bytes:
    kind = binding.io_type
    if not bounded:
        return generator.bytes(kind.num_bytes(dims))
    if kind.dtype is None:
        return kind.to_client(generator.random(dims, np.float32)).tobytes()
    dtype = np.dtype(kind.dtype)
    if dtype.kind == "f":
        return kind.to_client(generator.random(dims, np.float32)).tobytes()
    return kind.to_client(generator.integers(0, 2 if dtype.kind == "b" else _BOUND, dims)).tobytes()


def write(outputs: Sequence[QBuffer], *, network: Network, directory: Path, activation: int, number: int) -> list[Path]:
    """Write an inference's outputs and return the files.

    Raises:
        OSError: they cannot be written.
    """
    written = []
    for index, binding in _returned(network).items():
        path = directory / f"{binding.name.replace('/', '_')}-activation-{activation}-inf-{number}.bin"
        path.write_bytes(bytes(outputs[index]))
        written.append(path)
    return written
