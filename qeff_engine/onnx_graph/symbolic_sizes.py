"""``min`` and ``max`` of sizes that a trace does not know, as nodes instead of a decision for the traced size."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from qeff_engine import patching

_SYMBOLIC = (("min", builtins.min, torch.sym_min), ("max", builtins.max, torch.sym_max))


@contextlib.contextmanager
def in_modules(modules: Iterable[Any]) -> Iterator[None]:
    """Let the code of Python modules compare sizes without deciding, for the time of a block.

    A model that chooses ``min(2048, length)`` positions would otherwise be fixed to one of the two.
    """
    changes = [
        (module, name, _either(plain, symbolic))
        for module in modules
        for name, plain, symbolic in _SYMBOLIC
        if name not in vars(module)
    ]
    with patching.attributes(changes):
        yield


def _either(plain: Callable[..., Any], symbolic: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def choose(*values: Any, **kwargs: Any) -> Any:
        if len(values) == 2 and any(isinstance(value, torch.SymInt) for value in values):
            return symbolic(*values)
        return plain(*values, **kwargs)

    return choose
