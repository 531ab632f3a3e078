"""``qaic-qpc``: whether a program is whole and what it needs; with our own ``dump`` and ``extract`` to look inside.

Published of ``validate`` is that it takes ``-i programqpc.bin`` and prints ``Number of NSP required``; its other lines
are ours, as are both other commands.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from qeff_engine.simulated_sdk import command_options, network_description, qpc_container
from qeff_engine.simulated_sdk.command_options import BadUsage, Option
from qeff_engine.simulated_sdk.network_description import Binding, Network
from qeff_engine.simulated_sdk.qpc_container import Segment

_USAGE = """Usage: qaic-qpc validate -i programqpc.bin
       qaic-qpc dump -i programqpc.bin                          (simulated SDK only) describe it as JSON
       qaic-qpc extract -i programqpc.bin -s SEGMENT -o FILE    (simulated SDK only) write a segment's bytes
"""
_OPTIONS = (Option(short="i", valued=True), Option(short="s", valued=True), Option(short="o", valued=True))
_NEEDED = {"validate": {"i"}, "dump": {"i"}, "extract": {"i", "s", "o"}}


def main(arguments: list[str], *, root: Path) -> int:
    """Run the tool and return its exit code."""
    command = arguments[0] if arguments else ""
    try:
        given = dict(command_options.parse(arguments[1:], tool="qaic-qpc", options=_OPTIONS))
        if given.keys() != _NEEDED.get(command, set()) or command not in _NEEDED:
            raise BadUsage(f"qaic-qpc: got '{' '.join(arguments)}'")
    except BadUsage as error:
        print(f"{error}\n{_USAGE}", file=sys.stderr, end="")
        return 1
    path = Path(given["i"])
    try:
        segments = qpc_container.read_segments(path)
        described = qpc_container.read_segment(path, segment=segments[qpc_container.NETWORK_DESCRIPTION])
        network = network_description.parse(described)
        if command == "extract":
            return _extract(path, segments=segments, name=given["s"], out=Path(given["o"]))
    except OSError as error:
        print(f"Unable to open {error.filename or path}: {error.strerror}", file=sys.stderr)
        return 1
    except (qpc_container.BadContainer, network_description.BadDescription, KeyError) as error:
        print(f"Invalid qpc, failed to create qpc object: {error}", file=sys.stderr)
        return 1
    if command == "dump":
        print(json.dumps(_described(network, segments=segments), indent=1))
    else:
        _validate(network, segments=segments)
    return 0


def _validate(network: Network, *, segments: dict[str, Segment]) -> None:
    print(f"Network name:{network.name}")
    print(f"Hardware version:{network.hw_version}")
    print(f"Number of NSP required:{network.num_cores}")
    print(f"Number of devices required:{network.num_devices}")
    print(f"Batch size:{network.batch_size}")
    print(f"DDR required:{network.dram_bytes} bytes")
    for name, segment in segments.items():
        print(f"Segment {name}:{segment.size} bytes")
    print("Validation successful")


def _extract(path: Path, *, segments: dict[str, Segment], name: str, out: Path) -> int:
    if name not in segments:
        print(f"{path} has no segment '{name}'; it has {', '.join(segments)}", file=sys.stderr)
        return 1
    out.write_bytes(qpc_container.read_segment(path, segment=segments[name]))
    return 0


def _described(network: Network, *, segments: dict[str, Segment]) -> dict[str, Any]:
    """The container and the description in it as JSON values."""
    plain = {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(network)
        if field.name not in ("inputs", "outputs", "works")
    }
    return {
        "segments": {name: dataclasses.asdict(segment) for name, segment in segments.items()},
        **plain,
        "inputs": [_binding(binding) for binding in network.inputs],
        "outputs": [_binding(binding) for binding in network.outputs],
        "works": [dataclasses.asdict(work) for work in network.works],
    }


def _binding(binding: Binding) -> dict[str, Any]:
    return {
        "name": binding.name,
        "graph_name": binding.graph_name,
        "type": binding.io_type.code,
        "shapes": [list(shape) for shape in binding.shapes],
        "state_of": binding.state_of,
    }
