"""What the ``compile`` stage leaves behind: ``program.json`` beside the QPCs. Standard library only.

::

    program.json                         this description
    compile.log                          what the compiler printed, all components
    export.json                          the exported model's description (no weights)
    <component>/specializations.json     shapes given to the compiler
    <component>/custom_io.yaml           I/O precisions given to the compiler
    <component>/qpc/programqpc.bin       the program
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from qeff_engine import files, spec

FILE_NAME = "program.json"
FORMAT = 1
BINARY = "programqpc.bin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled model.

    Attributes:
        compile_spec: what was asked.
        commands: compiler command line by component.
        sdk_versions: ``apps`` and ``platform`` versions of the SDK.
        simulated: the SDK is the simulated one.
        figures: what the compiler reported and cost.
    """

    compile_spec: spec.CompileSpec
    commands: dict[str, list[str]]
    sdk_versions: dict[str, str]
    simulated: bool
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Write ``program.json`` into ``directory``."""
        files.save_description(directory, FILE_NAME, version=FORMAT, fields=dataclasses.asdict(self))


def load(directory: Path) -> Program:
    """The description in ``directory``.

    Raises:
        InvalidInput: there is none, or it has another format.
    """
    fields = files.load_description(
        directory, FILE_NAME, version=FORMAT, what="a compiled program", advice="Compile the model first."
    )
    return Program(compile_spec=spec.CompileSpec.from_json(fields.pop("compile_spec")), **fields)
