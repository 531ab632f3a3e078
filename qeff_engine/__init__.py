"""The model pipeline for Qualcomm Cloud AI 100: load, transform, quantize, export, compile and run.

Importing this package loads no torch; the public classes are loaded when first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "QEFFAutoModel": "qeff_engine.auto",
    "QEffAutoModel": "qeff_engine.auto",
    "QEFFAutoModelForCausalLM": "qeff_engine.auto",
    "QEFFAutoModelForImageTextToText": "qeff_engine.auto",
}

__all__ = sorted([*_PUBLIC, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'qeff_engine' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
