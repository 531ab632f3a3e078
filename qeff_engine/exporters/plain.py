"""Graphs of modules that take and give tensors alone: encoders and vision towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from qeff_engine import exported
from qeff_engine.architectures import registry
from qeff_engine.exporters import description
from qeff_engine.onnx_graph import binding, functions, tracing
from qeff_engine.transforms.weightless import WeightlessModel


def write(
    module: nn.Module, *, model: WeightlessModel, name: str, component: exported.Component, out: Path
) -> dict[str, Any]:
    """Trace a module around a weightless model, write its graph with its weights by reference, and measure that.

    Args:
        module: takes the component's inputs in their order and gives its outputs in theirs.
        model: whose weights the module uses.
        name: of the component.
        component: file, inputs and outputs.
        out: directory of the artifact.

    Raises:
        Unsupported: the module cannot be traced.
    """
    with registry.applied(model.config):
        graph = tracing.trace_plain(
            module, inputs=component.inputs, outputs=component.outputs, fake_mode=model.fake_mode
        )
    binding.rename(graph, names=model.names(module))
    functions.add_to(graph)
    binding.add_imports(graph)
    bound = binding.bind(graph, sources=model.sources, snapshot=model.snapshot, out=out, side_file=f"{name}.side.bin")
    return description.figures(bound, graph_bytes=binding.save(graph, out / component.file))
