"""Names of nodes that follow the modules of the model: ``model.layers.0.self_attn.q_proj/MatMul``."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx_ir as ir
from torch import nn
from torch.fx.experimental import proxy_tensor

from qeff_engine import patching

_SCOPES = "pkg.torch.onnx.name_scopes"  # what torch's exporter says of a node: modules around it, and itself
_ROOT = "model."  # the attribute of our modules that has the model


@contextlib.contextmanager
def noted(module: nn.Module) -> Iterator[None]:
    """Let a trace note the submodule that each operator is in, as it does by itself for parts of the traced module."""

    def replaced(name: str, part: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            mode = proxy_tensor.get_proxy_mode()
            stack = {} if mode is None else mode.tracer.module_stack
            stack[name] = (name, type(part))
            try:
                return original(*args, **kwargs)
            finally:
                del stack[name]

        return forward

    parts = [(_ROOT + name, part) for name, part in module.named_modules() if name]
    with patching.attributes([(part, "forward", replaced(name, part, part.forward)) for name, part in parts]):
        yield


def name_nodes(graph: ir.Graph | ir.Function) -> None:
    """Name nodes by their modules, and values in between by their nodes."""
    counts: dict[str, int] = {}
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        scopes = node.metadata_props.get(_SCOPES)
        if scopes is None and node.op_type != "Constant":
            continue
        name = f"{_module(scopes)}/{node.op_type}".lstrip("/")
        counts[name] = counts.get(name, 0) + 1
        node.name = name if counts[name] == 1 else f"{name}.{counts[name] - 1}"
        _name_values(node.outputs, name=node.name, kept=kept)


def _module(scopes: str | None) -> str:
    names = ast.literal_eval(scopes) if scopes else []
    inner = next((name for name in reversed(names[:-1]) if name.startswith(_ROOT)), "")
    return inner.removeprefix(_ROOT)


def _name_values(values: Iterable[ir.Value], *, name: str, kept: set[int]) -> None:
    for number, value in enumerate(values):
        if id(value) not in kept:
            value.name = f"{name}:{number}" if number else name
