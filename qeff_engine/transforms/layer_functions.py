"""Layers that are the same code become calls of one ONNX function, with their weights and states as its inputs.

A decoder of 80 layers then costs the tracing of one. Three steps: :mod:`qeff_engine.transforms.layer_calls` finds how
the model calls its layers; :class:`Bodies` traces one layer of each kind; :func:`as_calls` lets the rest of the model
be traced around opaque calls, which become calls of the functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache, DummyLayer

from qeff_engine import exported, patching
from qeff_engine.onnx_graph import binding, naming, tracing
from qeff_engine.transforms import kernels
from qeff_engine.transforms.cache import RetainedCache, RetainedLayer
from qeff_engine.transforms.layer_calls import NUMBERS, Kind, LayerNumber, NoFit, OwnNumber
from qeff_engine.transforms.token_order import TokenOrder
from qeff_engine.transforms.weightless import WeightlessModel, named_weights

DOMAIN = "qeff.layers"
_CALL_DOMAIN = "qeff.calls"


class _Body(nn.Module):
    """A layer as a function of everything that differs between calls."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        # Not as a submodule: its weights are inputs here.
        self.__dict__["_kind"] = kind

    def forward(
        self,
        slots_BS: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Results of the layer, then the successors of its states."""
        kind: Kind = self.__dict__["_kind"]
        order = TokenOrder(slots_BS)
        own = _own_cache(kind, order=order, states=states)
        keys = own.keys if own.keys is not None else slots_BS[:, None]
        cache = RetainedCache([None] * kind.number + [own], order=order, positions_BS=slots_BS, ctx_len=keys.shape[2])
        remaining = iter(tensors)
        leaves = [_argument(leaf, kind=kind, tensors=remaining, cache=cache) for leaf in kind.call.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, kind.call.spec)
        given = dict(zip(kind.weights, weights, strict=True))
        with kernels.replaced(kind.layer, cache=cache):
            result = torch.func.functional_call(kind.layer, given, args, kwargs)
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not isinstance(own, RetainedLayer):
            return tuple(outputs)
        if own.unwritten:
            raise NoFit(f"a layer does not write its {', '.join(sorted(own.unwritten))}")
        return (*outputs, *own.successors())


def _argument(leaf: Any, *, kind: Kind, tensors: Iterator[torch.Tensor], cache: RetainedCache) -> Any:
    """What a layer gets in the place of an argument of the recorded call."""
    if isinstance(leaf, torch.Tensor):
        return next(tensors)
    if isinstance(leaf, OwnNumber):
        return LayerNumber(kind.number)
    return cache if isinstance(leaf, Cache) else leaf


def _own_cache(kind: Kind, *, order: TokenOrder, states: Sequence[torch.Tensor]) -> Any:
    if kind.layout is None:
        return DummyLayer()
    return RetainedLayer(order=order, states=dict(zip(kind.layout.states, states, strict=True)), layout=kind.layout)


class Bodies:
    """The functions of the kinds of layers.

    Attributes:
        functions: by name.
    """

    def __init__(self, kinds: Sequence[Kind], *, fake_mode: Any) -> None:
        """Trace one layer of each kind."""
        self._kinds = list(kinds)
        self.functions: dict[str, ir.Function] = {}
        for kind in kinds:
            if kind.name not in self.functions:
                self.functions[kind.name] = _traced(kind, fake_mode=fake_mode)

    def call_from(
        self,
        model: ir.Model,
        *,
        layers: nn.ModuleList,
        states: Mapping[str, exported.Tensor],
        weightless: WeightlessModel,
    ) -> None:
        """Turn the opaque calls of a graph into calls of the functions, and add states and weights to the graph."""
        graph = model.graph
        own_inputs = {value.name: value for value in graph.inputs}
        inputs = {name: own_inputs.pop(name, None) or _state(name, tensor) for name, tensor in states.items()}
        slots = ir.node("Cast", [own_inputs["position_ids"]], attributes={"to": int(ir.DataType.INT32)}, name="slots")
        slots.outputs[0].name = "slots"
        graph.insert_before(graph[0], slots)
        names = weightless.names(layers)
        successors: dict[str, ir.Value] = {}
        for node in [node for node in graph if node.domain == _CALL_DOMAIN]:
            number = node.attributes["layer"].as_int()
            kind = self._kinds[number]
            weights = [
                binding.add_initializer(model, name, weightless.sources[name])
                for name in (names[f"{number}.{weight}"] for weight in kind.weights)
            ]
            own = kind.layout.names(number) if kind.layout is not None else []
            arguments = [slots.outputs[0], *node.inputs, *(inputs[name] for name in own), *weights]
            call = _replace(graph, node, arguments, name=kind.name, number=number, num_states=len(own))
            successors.update(zip(own, call.outputs[len(node.outputs) :], strict=True))
        graph.inputs.clear()
        graph.inputs.extend([*own_inputs.values(), *inputs.values()])
        for name in states:
            successor = successors[name]
            successor.name = name + exported.RETAINED
            graph.outputs.append(successor)
        for function in self.functions.values():
            model.functions[function.identifier()] = function


def _state(name: str, tensor: exported.Tensor) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(list(tensor.shape)))


def _replace(graph: Any, node: ir.Node, arguments: list[Any], *, name: str, number: int, num_states: int) -> ir.Node:
    call = ir.Node(DOMAIN, name, arguments, num_outputs=len(node.outputs) + num_states, name=f"layer.{number}")
    graph.insert_before(node, call)
    for index, (old, new) in enumerate(zip(node.outputs, call.outputs, strict=False)):
        new.name = f"layer.{number}/{index}"
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return call


def _traced(kind: Kind, *, fake_mode: Any) -> ir.Function:
    """The function of a layer."""
    auto = torch.export.Dim.AUTO
    states = kind.layout.states if kind.layout is not None else {}
    batch, seq = tracing.SIZES["batch_size"], tracing.SIZES["seq_len"]
    weights = [tensor for name, tensor in named_weights(kind.layer) if name in set(kind.weights)]
    tensors = {stem: exported.Tensor(dtype="float32", shape=shape) for stem, shape in states.items()}
    with fake_mode:
        slots = torch.zeros(batch, seq, dtype=torch.int32)
        made = tracing.examples(tensors, sizes=tracing.SIZES)
    dynamic: tuple[Any, ...] = (
        {0: auto, 1: auto},
        [dict.fromkeys(axes, auto) for axes in kind.dynamic],
        [tracing.dynamic_axes(tensor) for tensor in tensors.values()],
        [{} for _ in weights],
    )
    names = ["slots", *(f"input.{number}" for number in range(len(kind.call.tensors))), *states]
    outputs = [f"output.{number}" for number in range(len(kind.output_shapes))]
    with _watched_numbers(kind.layer), naming.noted(kind.layer):
        model = tracing.trace(
            _Body(kind).eval(),
            (slots, kind.call.tensors, list(made.values()), weights),
            dynamic_shapes=dynamic,
            input_names=[*names, *(f"weight.{name}" for name in kind.weights)],
            output_names=[*outputs, *(f"{stem}{exported.RETAINED}" for stem in states)],
        )
    graph = model.graph
    _initializers_to_constants(graph)
    _copy_what_passes_through(graph)
    function = ir.Function(DOMAIN, kind.name, "", graph=graph, attributes=[])
    function.opset_imports.update(model.opset_imports)
    return function


def _copy_what_passes_through(graph: ir.Graph) -> None:
    """Give an output that is an input a value of its own: in a function they cannot be one."""
    for index, output in enumerate(graph.outputs):
        if any(output is value for value in graph.inputs):
            copy = ir.node("Identity", [output])
            copy.outputs[0].name = f"passed.{index}"
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]


@contextlib.contextmanager
def _watched_numbers(layer: nn.Module) -> Iterator[None]:
    changes = [
        (module, name, LayerNumber(vars(module)[name]))
        for module in layer.modules()
        for name in NUMBERS
        if type(vars(module).get(name)) is int
    ]
    with patching.attributes(changes):
        yield


def _initializers_to_constants(graph: ir.Graph) -> None:
    """Functions have no initializers."""
    for name, value in list(graph.initializers.items()):
        constant = ir.node("Constant", [], attributes={"value": value.const_value})
        constant.outputs[0].name = name
        graph.insert_before(graph[0], constant)
        del graph.initializers[name]
        ir.convenience.replace_all_uses_with(value, constant.outputs[0], replace_graph_outputs=True)


class _OpaqueCall(nn.Module):
    """Stands in for a layer: its forward is one node. Everything else that is asked of it, the layer answers."""

    def __init__(self, kind: Kind, *, layer: nn.Module, number: int) -> None:
        super().__init__()
        self.__dict__.update(_kind=kind, _layer=layer, _number=number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Results of the layer's shapes and types."""
        kind: Kind = self.__dict__["_kind"]
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        given = [leaf for leaf in kind.call.outputs if isinstance(leaf, torch.Tensor)]
        shapes = [
            [size if isinstance(size, int) else tensors[size[0]].shape[size[1]] for size in shape]
            for shape in kind.output_shapes
        ]
        results = iter(
            torch.onnx.ops.symbolic_multi_out(
                f"{_CALL_DOMAIN}::Layer",
                tensors,
                {"layer": self.__dict__["_number"]},
                dtypes=[leaf.dtype for leaf in given],
                shapes=shapes,
                version=1,
            )
        )
        leaves = [next(results) if isinstance(leaf, torch.Tensor) else leaf for leaf in kind.call.outputs]
        return pytree.tree_unflatten(leaves, kind.call.output_spec)


@contextlib.contextmanager
def as_calls(layers: nn.ModuleList, *, kinds: Sequence[Kind]) -> Iterator[None]:
    """Put opaque calls in the places of the layers, for the time of a block."""
    originals = list(layers)
    try:
        for number, (layer, kind) in enumerate(zip(originals, kinds, strict=True)):
            layers[number] = _OpaqueCall(kind, layer=layer, number=number)
        yield
    finally:
        for number, layer in enumerate(originals):
            layers[number] = layer
