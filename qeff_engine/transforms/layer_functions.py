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
from transformers.cache_utils import Cache

from qeff_engine import exported, patching
from qeff_engine.onnx_graph import binding, tracing
from qeff_engine.transforms.cache import RetainedCache, RetainedLayer
from qeff_engine.transforms.layer_calls import Kind, NoFit
from qeff_engine.transforms.weightless import WeightlessModel, named_weights

DOMAIN = "qeff.layers"
_CALL_DOMAIN = "qeff.calls"


class _LayerIndex(int):
    """The number of a layer; says so when something is computed with it, since then layers differ by it."""

    used = False

    def _note(self, *_: Any) -> Any:
        type(self).used = True
        raise NoFit("a layer computes with its own number")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __floordiv__ = _note
    __truediv__ = __rtruediv__ = __float__ = __pow__ = _note
    __lt__ = __le__ = __gt__ = __ge__ = _note


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
        key_BHCD: torch.Tensor,
        value_BHCD: torch.Tensor,
        weights: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Results of the layer, then its keys and values."""
        kind: Kind = self.__dict__["_kind"]
        own = RetainedLayer(slots_BS=slots_BS, key_BHCD=key_BHCD, value_BHCD=value_BHCD, layout=kind.layout)
        cache = RetainedCache([None] * kind.number + [own], positions_BS=slots_BS, ctx_len=key_BHCD.shape[2])
        remaining = iter(tensors)
        leaves = [
            next(remaining) if isinstance(leaf, torch.Tensor) else cache if isinstance(leaf, Cache) else leaf
            for leaf in kind.call.leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, kind.call.spec)
        given = dict(zip(kind.weights, weights, strict=True))
        result = torch.func.functional_call(kind.layer, given, args, kwargs)
        if not own.updated:
            raise NoFit("a layer does not write into its cache")
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        return (*outputs, own.keys, own.values)


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
            key, value = f"past_key.{number}", f"past_value.{number}"
            arguments = [slots.outputs[0], *node.inputs, inputs[key], inputs[value], *weights]
            call = _replace(graph, node, arguments, name=kind.name, number=number)
            successors[key + exported.RETAINED], successors[value + exported.RETAINED] = call.outputs[-2:]
        graph.inputs.clear()
        graph.inputs.extend([*own_inputs.values(), *inputs.values()])
        for name in states:
            successor = successors[name + exported.RETAINED]
            successor.name = name + exported.RETAINED
            graph.outputs.append(successor)
        for function in self.functions.values():
            model.functions[function.identifier()] = function


def _state(name: str, tensor: exported.Tensor) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(list(tensor.shape)))


def _replace(graph: Any, node: ir.Node, arguments: list[Any], *, name: str, number: int) -> ir.Node:
    call = ir.Node(DOMAIN, name, arguments, num_outputs=len(node.outputs) + 2, name=f"layer.{number}")
    graph.insert_before(node, call)
    for index, (old, new) in enumerate(zip(node.outputs, call.outputs, strict=False)):
        new.name = f"layer.{number}/{index}"
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return call


def _traced(kind: Kind, *, fake_mode: Any) -> ir.Function:
    """The function of a layer."""
    auto = torch.export.Dim.AUTO
    layout = kind.layout
    batch, seq, ctx = (tracing.SIZES[name] for name in ("batch_size", "seq_len", "ctx_len"))
    weights = [tensor for name, tensor in named_weights(kind.layer) if name in set(kind.weights)]
    with fake_mode:
        slots = torch.zeros(batch, seq, dtype=torch.int32)
        key = torch.zeros(batch, layout.key_heads, ctx, layout.key_dim)
        value = torch.zeros(batch, layout.value_heads, ctx, layout.value_dim)
    dynamic: tuple[Any, ...] = (
        {0: auto, 1: auto},
        [dict.fromkeys(axes, auto) for axes in kind.dynamic],
        {0: auto, 2: auto},
        {0: auto, 2: auto},
        [{} for _ in weights],
    )
    names = ["slots", *(f"input.{number}" for number in range(len(kind.call.tensors))), "past_key", "past_value"]
    outputs = [f"output.{number}" for number in range(len(kind.output_shapes))]
    with _watched_numbers(kind.layer):
        model = tracing.trace(
            _Body(kind).eval(),
            (slots, kind.call.tensors, key, value, weights),
            dynamic_shapes=dynamic,
            input_names=[*names, *(f"weight.{name}" for name in kind.weights)],
            output_names=[*outputs, "key", "value"],
        )
    graph = model.graph
    _initializers_to_constants(graph)
    function = ir.Function(DOMAIN, kind.name, "", graph=graph, attributes=[])
    function.opset_imports.update(model.opset_imports)
    return function


@contextlib.contextmanager
def _watched_numbers(layer: nn.Module) -> Iterator[None]:
    owners = [module for module in layer.modules() if type(vars(module).get("layer_idx")) is int]
    with patching.attributes([(owner, "layer_idx", _LayerIndex(owner.layer_idx)) for owner in owners]):  # type: ignore[arg-type]
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
