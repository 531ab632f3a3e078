"""SmolLM2-135M (real weights) exported, and compiled by a simulated SDK, for the benchmarks that run it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from benchmarks import measure
from benchmarks.export_smollm2 import resolve
from qeff_engine.sdk import location
from qeff_engine.sdk.session import Session

_ENGINE = (sys.executable, "-m", "qeff_engine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Directories: the checkpoint, its export, and a simulated SDK with one SoC of an Ultra card."""

    snapshot: Path
    onnx: Path
    sdk_root: Path

    def compile(self, out: Path, *flags: str) -> Path:
        """Compile the decoder with flags of the compile stage; returns the directory with the program."""
        paths = ["--onnx", str(self.onnx), "--sdk-root", str(self.sdk_root), "--out", str(out)]
        measure.run([*_ENGINE, "compile", *paths, *flags])
        return out / "decoder" / "qpc"

    def session(self, program: Path) -> Session:
        """The program on the device, not yet active."""
        return Session(location.find(self.sdk_root), program=program, qids=[0])


def install(directory: Path) -> Path:
    """A simulated SDK."""
    command = [sys.executable, "-m", "qeff_engine.simulated_sdk", "install", str(directory), "--devices", "ultra:1"]
    measure.run(command)
    return directory


def make(root: Path) -> Bench:
    """Resolve, export and install below ``root``."""
    snapshot = resolve(root / "snapshot")
    measure.run([*_ENGINE, "export", "--snapshot", str(snapshot), "--out", str(root / "onnx")])
    return Bench(snapshot=snapshot, onnx=root / "onnx", sdk_root=install(root / "sdk"))
