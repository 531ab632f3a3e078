"""Buffers that a constructor computes and no checkpoint holds, of model classes that are not part of transformers.

Loaders make models without storage, which loses such buffers; classes of transformers compute them again in
``_init_weights``, others often do not, and would go on with whatever the memory holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qeff_engine import patching
from qeff_engine.errors import Unsupported


def constructed(model: Any) -> dict[str, torch.Tensor]:
    """What a model's constructor computes of its non-persistent buffers, by name; empty for a class of transformers.

    Raises:
        Unsupported: the constructor needs weights for that.
    """
    kind = type(model)
    if kind.__module__.partition(".")[0] == "transformers":
        return {}
    try:
        with _parameters_on_meta(), torch.no_grad():
            again = kind._from_config(model.config, dtype=torch.float32, attn_implementation="eager")
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise Unsupported(f"The constructor of {kind.__name__} cannot do without weights: {error}") from error
    return {
        f"{path}.{name}" if path else name: owner._buffers[name]
        for path, owner in again.named_modules()
        for name in owner._non_persistent_buffers_set
        if owner._buffers.get(name) is not None and not owner._buffers[name].is_meta
    }


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let parameters have no storage as soon as a module has them."""
    register = nn.Module.register_parameter

    def registered(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    with patching.attributes([(nn.Module, "register_parameter", registered)]):
        yield
