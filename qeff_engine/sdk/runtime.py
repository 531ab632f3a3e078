"""The SDK's Python runtime: the modules ``qaicrt`` and ``QAicApi_pb2``, imported from the SDK's own directories."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from qeff_engine.errors import Infrastructure
from qeff_engine.sdk.location import Sdk

_MODULES = ("qaicrt", "QAicApi_pb2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """The imported runtime of one SDK.

    Attributes:
        root: the SDK.
        qaicrt: runtime module.
        api: protobuf module with ``IoDesc`` and the type constants.
    """

    root: Path
    qaicrt: Any
    api: Any

    @property
    def clock(self) -> Callable[[], float]:
        """A clock in seconds: the simulated device's own time where there is such a thing, else real time."""
        simulated_ns = getattr(self.qaicrt, "simulatedTimeNs", None)
        if simulated_ns is None:
            return time.perf_counter
        return lambda: float(simulated_ns()) / 1e9


_lock = threading.Lock()
_loaded: Runtime | None = None


def load(sdk: Sdk) -> Runtime:
    """The runtime of ``sdk``, imported at the first call. ``sys.path`` is afterwards what it was before.

    Raises:
        Infrastructure: the SDK has no runtime for this Python, or this process already uses another SDK's.
    """
    global _loaded
    root = sdk.root.resolve()
    with _lock:
        if _loaded is None:
            _loaded = _import(root, directories=sdk.runtime_directories)
        if _loaded.root != root:
            raise Infrastructure(
                f"This process already uses the runtime of {_loaded.root}, so it cannot load the one of {root}: "
                "a process can hold one.",
                advice="Run programs of another SDK in another process.",
            )
        return _loaded


def _import(root: Path, *, directories: tuple[Path, Path]) -> Runtime:
    folders = [str(folder) for folder in directories]
    sys.path[:0] = folders
    try:
        qaicrt, api = (importlib.import_module(name) for name in _MODULES)
    except ImportError as error:
        raise Infrastructure(
            f"The SDK at {root} has no runtime that this Python can load: {error}.",
            advice=f"Expected the modules qaicrt and QAicApi_pb2 in {' and '.join(folders)}, built for Python "
            f"{sys.version_info.major}.{sys.version_info.minor}.",
        ) from error
    finally:
        for folder in folders:
            sys.path.remove(folder)
    for module in (qaicrt, api):
        _require_origin(module, root=root)
    return Runtime(root=root, qaicrt=qaicrt, api=api)


def _require_origin(module: ModuleType, *, root: Path) -> None:
    """Refuse a module that something else imported before from another place."""
    origin = Path(module.__file__ or "").resolve()
    if not origin.is_relative_to(root):
        raise Infrastructure(
            f"This process already imported {module.__name__} from {origin}, which is not part of the SDK at {root}.",
            advice="Point QAIC_SDK_ROOT to that SDK, or use another process.",
        )
