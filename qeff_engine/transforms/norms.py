"""Root-mean-square norms as one node each, for the classes of a model that were found to compute just that."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from qeff_engine import patching

RMS_NORM = "com.qti.aisw.onnx::CustomRMSNorm"
_CLASS_NAMES = re.compile(r"RMSNorm|RmsNorm|T5LayerNorm")
_EPSILON_NAMES = ("variance_epsilon", "eps", "norm_eps", "epsilon")
_TOLERANCE = 1e-5


@contextlib.contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Let the norms of a model be traced as :data:`RMS_NORM` nodes, for the time of a block."""
    changes = [
        (kind, "forward", _fused_forward(kind.forward, epsilon_name=name, plus=plus))
        for kind, (name, plus) in recognized(model).items()
    ]
    with patching.attributes(changes):
        yield


def recognized(model: nn.Module) -> dict[Any, tuple[str, float]]:
    """Classes whose forward is x / rms(x) * (w + plus), by trying it: attribute of epsilon and ``plus`` (0 or 1)."""
    found: dict[Any, tuple[str, float]] = {}
    tried: set[type] = set()
    for module in model.modules():
        kind = type(module)
        if kind in tried or not _CLASS_NAMES.search(kind.__name__):
            continue
        tried.add(kind)
        name = next((name for name in _EPSILON_NAMES if isinstance(getattr(module, name, None), float)), None)
        if name is None or not _has_shape_of_a_norm(module):
            continue
        plus = _tried_plus(module, epsilon=getattr(module, name))
        if plus is not None:
            found[kind] = (name, plus)
    return found


def _has_shape_of_a_norm(module: nn.Module) -> bool:
    """One weight vector, no children, and one argument: gated norms take two."""
    parameters = dict(module.named_parameters(recurse=False))
    arguments = [
        item
        for item in inspect.signature(module.forward).parameters.values()
        if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
    ]
    weight = parameters.get("weight")
    one_weight = len(parameters) == 1 and weight is not None and weight.ndim == 1
    return one_weight and not list(module.children()) and len(arguments) == 1


def _tried_plus(module: nn.Module, *, epsilon: float) -> float | None:
    clone = copy.copy(module)
    width = module.get_parameter("weight").shape[0]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, generator=generator)
    clone._parameters = {"weight": nn.Parameter(weight, requires_grad=False)}
    inputs = torch.randn(2, 3, width, generator=generator)
    normed = inputs * torch.rsqrt(inputs.pow(2).mean(-1, keepdim=True) + epsilon)
    with torch.no_grad():
        outputs = clone(inputs)
    for plus in (0.0, 1.0):
        if torch.allclose(outputs, normed * (weight + plus), atol=_TOLERANCE):
            return plus
    return None


def _fused_forward(original: Callable[..., Any], *, epsilon_name: str, plus: float) -> Callable[..., Any]:
    def forward(self: Any, inputs: torch.Tensor) -> Any:
        weight = getattr(self, "weight", None)
        if weight is None:  # an instance that only normalizes
            return original(self, inputs)
        return torch.onnx.ops.symbolic(
            RMS_NORM,
            [inputs, weight + plus if plus else weight],
            {"epsilon": float(getattr(self, epsilon_name))},
            dtype=inputs.dtype,
            shape=list(inputs.shape),
            version=1,
        )

    return forward
