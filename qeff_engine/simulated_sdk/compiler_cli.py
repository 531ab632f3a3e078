"""``qaic-compile`` and ``qaic-exec``: command line in, program or refusal out."""

from __future__ import annotations

import sys
from pathlib import Path

from qeff_engine.simulated_sdk import compiler_faults, flags, options, version_cli
from qeff_engine.simulated_sdk.refusal import Refusal

_HELP = ("-h", "-help", "--help", "--usage")


def main(arguments: list[str], *, root: Path) -> int:
    """Run the compiler and return its exit code: 0, 1, or 255 for a bad JSON file."""
    if any(argument in _HELP for argument in arguments):
        print(flags.usage(), end="")
        return 0
    try:
        parsed = options.parse(arguments)
        faults = compiler_faults.planned(root, model=parsed.model)
        compiler_faults.before(faults, model=parsed.model, program=parsed.binary_dir)
        # After the options: onnx takes a third of a second to import, a typing mistake should not.
        from qeff_engine.simulated_sdk import compiler

        compiler.compile_program(parsed, version=version_cli.version_of(root, package="apps"))
        compiler_faults.after(faults, program=parsed.binary_dir)
    except Refusal as refusal:
        print(refusal.text, file=sys.stderr, flush=True)
        return refusal.exit_code
    except MemoryError:
        print("QAIC_ERROR: std::bad_alloc", file=sys.stderr, flush=True)
        return 1
    return 0
