"""``qaic-qpc validate -i programqpc.bin``: whether a program is whole, and what it needs."""

from __future__ import annotations

import sys
from pathlib import Path

from qeff_engine.simulated_sdk import network_description, qpc_container

_USAGE = "Usage: qaic-qpc validate -i programqpc.bin"


def main(arguments: list[str], *, root: Path) -> int:
    """Run the tool and return its exit code."""
    if len(arguments) != 3 or arguments[:2] != ["validate", "-i"]:
        print(_USAGE, file=sys.stderr)
        return 1
    path = Path(arguments[2])
    try:
        segments = qpc_container.read_segments(path)
        described = qpc_container.read_segment(path, segment=segments[qpc_container.NETWORK_DESCRIPTION])
        network = network_description.parse(described)
    except OSError as error:
        print(f"Unable to open {path}: {error.strerror}", file=sys.stderr)
        return 1
    except (qpc_container.BadContainer, network_description.BadDescription, KeyError) as error:
        print(f"Invalid qpc, failed to create qpc object: {error}", file=sys.stderr)
        return 1
    print(f"Network name:{network.name}")
    print(f"Number of NSP required:{network.num_cores}")
    print(f"Number of devices required:{network.num_devices}")
    print(f"DDR required:{network.dram_bytes} bytes")
    for name, segment in segments.items():
        print(f"Segment {name}:{segment.size} bytes")
    print("Validation successful")
    return 0
