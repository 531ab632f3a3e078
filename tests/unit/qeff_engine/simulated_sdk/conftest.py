"""The simulated SDK's tools and runtime, reached as clients reach them."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from qeff_engine.simulated_sdk import compiler_cli
from tests.unit.qeff_engine.simulated_sdk import graphs

Compile = Callable[..., int]


@pytest.fixture
def compile_in(simulated_sdk_root: Path) -> Compile:
    """Run the compiler on a model file with flags; returns its exit code."""

    def run(model_path: Path, *flags: str, specializations: object = None) -> int:
        arguments = graphs.command(model_path, *flags, specializations=specializations)
        return compiler_cli.main(arguments, root=simulated_sdk_root)

    return run


@pytest.fixture
def runtime(simulated_sdk_root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The modules ``qaicrt`` and ``QAicApi_pb2`` of the shared SDK, with one thread per program."""
    monkeypatch.setenv("QAIC_SIM_THREADS", "1")
    monkeypatch.delenv("QAIC_VISIBLE_DEVICES", raising=False)
    for folder in (simulated_sdk_root / "dev/lib" / platform.machine(), simulated_sdk_root / "dev/python"):
        monkeypatch.syspath_prepend(str(folder))
    loaded = importlib.import_module("qaicrt"), importlib.import_module("QAicApi_pb2")
    for module in loaded:
        assert Path(str(module.__file__)).is_relative_to(simulated_sdk_root), "another test loaded another SDK"
    assert "qaicrt" in sys.modules
    return loaded
