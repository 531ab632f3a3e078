"""Calls of layers that are the same code become calls of one ONNX function, with weights and states as its inputs.

A decoder of 80 layers then costs the tracing of one. Four steps: :mod:`qeff_engine.transforms.layer_calls` finds how
the model calls its layers; :mod:`qeff_engine.transforms.layer_kinds` what functions that needs; :class:`Bodies` traces
one call of each kind; :func:`as_calls` lets the rest of the model be traced around opaque calls, which become calls of
the functions.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache, DummyLayer

from qeff_engine import exported
from qeff_engine.onnx_graph import binding, naming, tracing
from qeff_engine.transforms import kernels
from qeff_engine.transforms.cache import RetainedCache, RetainedLayer
from qeff_engine.transforms.layer_calls import Call, Site, flatten, passed_tensors, tensors_of
from qeff_engine.transforms.layer_kinds import Kind
from qeff_engine.transforms.layer_numbers import NoFit
from qeff_engine.transforms.shared_entries import as_read
from qeff_engine.transforms.token_order import TokenOrder
from qeff_engine.transforms.weightless import WeightlessModel, named_weights

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
        layer = kind.site.layer
        cache = _own_cache(kind, slots_BS=slots_BS, states=states)
        leaves = _arguments(kind, tensors=tensors, cache=cache)
        args, kwargs = pytree.tree_unflatten(leaves, kind.call.spec)
        given = dict(zip(kind.weights, weights, strict=True))
        with kernels.replaced(layer, cache=cache):
            result = torch.func.functional_call(layer, given, args, kwargs)
        written = {place: leaves[place].written for place in kind.call.written}
        kept = [cache.layers[number] for number, layout in kind.layouts.items() if layout is not None]
        unwritten = {stem for item in kept for stem in item.unwritten}
        if unwritten:
            raise NoFit(f"a layer does not write its {', '.join(sorted(unwritten))}")
        return (*tensors_of((result, written)), *(state for item in kept for state in item.successors()))


def _arguments(kind: Kind, *, tensors: Sequence[torch.Tensor], cache: RetainedCache) -> list[Any]:
    """What a layer gets in the places of the arguments of the recorded call."""
    call = kind.call
    given = iter(zip(call.tensors, tensors, strict=True))
    leaves = list(call.leaves)
    for place, leaf in enumerate(call.leaves):
        if isinstance(leaf, torch.Tensor):
            leaves[place] = _as_passed(*next(given))
        elif isinstance(leaf, Cache):
            leaves[place] = cache
    entries = pytree.tree_map_only(torch.Tensor, lambda _: _as_passed(*next(given)), call.entries)
    for place, leaf in enumerate(call.leaves):
        if isinstance(leaf, MutableMapping):
            leaves[place] = as_read(entries.get(place, {}))
    return leaves


def _as_passed(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as the layer takes it; see :func:`_real`."""
    return torch.view_as_complex(tensor) if like.is_complex() else tensor


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is passed to a function: complex numbers as pairs of real ones, along a last axis of 2."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _own_cache(kind: Kind, *, slots_BS: torch.Tensor, states: Sequence[torch.Tensor]) -> RetainedCache:
    """A cache of those that a call uses, at their numbers."""
    order = TokenOrder(slots_BS)
    remaining = iter(states)
    layers: list[Any] = [None] * (max(kind.layouts, default=-1) + 1)
    # In the order of the states, which is that of the call's use, not of the numbers.
    for number, layout in kind.layouts.items():
        layers[number] = DummyLayer()
        if layout is not None:
            own = {stem: next(remaining) for stem in layout.states}
            layers[number] = RetainedLayer(order=order, states=own, layout=layout)
    keys = [item.keys for item in layers if isinstance(item, RetainedLayer) and item.keys is not None]
    ctx_len = keys[0].shape[2] if keys else slots_BS.shape[1]
    return RetainedCache(layers, order=order, positions_BS=slots_BS, ctx_len=ctx_len)


class Bodies:
    """The functions of the kinds of calls.

    Attributes:
        functions: by name.
    """

    def __init__(self, sites: Sequence[Site], *, kinds: Sequence[Kind], fake_mode: Any) -> None:
        """Trace one layer of each kind, of which the sites have those."""
        self._sites, self._kinds = list(sites), list(kinds)
        self.functions: dict[str, ir.Function] = {}
        for kind in kinds:
            if kind.name not in self.functions:
                self.functions[kind.name] = _traced(kind, fake_mode=fake_mode)

    def call_from(self, model: ir.Model, *, states: Mapping[str, exported.Tensor], weightless: WeightlessModel) -> None:
        """Turn the opaque calls of a graph into calls of the functions, and add states and weights to the graph."""
        graph = model.graph
        own_inputs = {value.name: value for value in graph.inputs}
        inputs = {name: own_inputs.pop(name, None) or _state(name, tensor) for name, tensor in states.items()}
        slots = ir.node("Cast", [own_inputs["position_ids"]], attributes={"to": int(ir.DataType.INT32)}, name="slots")
        slots.outputs[0].name = "slots"
        graph.insert_before(graph[0], slots)
        weights = weightless.names(weightless.module)
        names = _names_of_calls(self._sites)
        successors: dict[str, ir.Value] = {}
        for node in [node for node in graph if node.domain == _CALL_DOMAIN]:
            number = node.attributes["site"].as_int()
            site, kind = self._sites[number], self._kinds[number]
            given = [
                binding.add_initializer(model, name, weightless.sources[name])
                for name in (weights[f"{site.path}.{weight}"] for weight in kind.weights)
            ]
            own = kind.names_of_states(site)
            arguments = [slots.outputs[0], *node.inputs, *(inputs[name] for name in own), *given]
            call = _replace(graph, node, arguments, function=kind.name, name=names[number], num_states=len(own))
            successors.update(zip(own, call.outputs[len(node.outputs) :], strict=True))
        graph.inputs.clear()
        graph.inputs.extend([*own_inputs.values(), *inputs.values()])
        for name in states:
            successor = successors[name]
            successor.name = name + exported.RETAINED
            graph.outputs.append(successor)
        for function in self.functions.values():
            model.functions[function.identifier()] = function


def _names_of_calls(sites: Sequence[Site]) -> list[str]:
    """The name of the layer; of its further calls also their number."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for site in sites:
        count = counts[site.path] = counts.get(site.path, -1) + 1
        names.append(f"{site.path}/call.{count}" if count else site.path)
    return names


def _state(name: str, tensor: exported.Tensor) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(list(tensor.shape)))


def _replace(graph: Any, node: ir.Node, arguments: list[Any], *, function: str, name: str, num_states: int) -> ir.Node:
    call = ir.Node(exported.LAYERS_DOMAIN, function, arguments, num_outputs=len(node.outputs) + num_states, name=name)
    graph.insert_before(node, call)
    for index, (old, new) in enumerate(zip(node.outputs, call.outputs, strict=False)):
        new.name = f"{name}/{index}"
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return call


def _traced(kind: Kind, *, fake_mode: Any) -> ir.Function:
    """The function of a layer."""
    auto = torch.export.Dim.AUTO
    layer, states = kind.site.layer, kind.states
    batch, seq = tracing.SIZES["batch_size"], tracing.SIZES["seq_len"]
    weights = [tensor for name, tensor in named_weights(layer) if name in set(kind.weights)]
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
    with naming.noted(layer):
        model = tracing.trace(
            _Body(kind).eval(),
            (slots, [_real(tensor) for tensor in kind.call.tensors], list(made.values()), weights),
            dynamic_shapes=dynamic,
            input_names=[*names, *(f"weight.{name}" for name in kind.weights)],
            output_names=[*outputs, *(f"{stem}{exported.RETAINED}" for stem in states)],
        )
    graph = model.graph
    _initializers_to_constants(graph)
    _copy_what_passes_through(graph)
    function = ir.Function(exported.LAYERS_DOMAIN, kind.name, "", graph=graph, attributes=[])
    function.opset_imports.update(model.opset_imports)
    return function


def _copy_what_passes_through(graph: ir.Graph) -> None:
    """Give an output that is an input, or another output, a value of its own: in a function they cannot be one."""
    for index, output in enumerate(graph.outputs):
        if any(output is value for value in (*graph.inputs, *graph.outputs[index + 1 :])):
            copy = ir.node("Identity", [output])
            copy.outputs[0].name = f"passed.{index}"
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]


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

    def __init__(self, layer: nn.Module, *, kinds: Mapping[int, Kind]) -> None:
        """The kind of each call of the layer by the number of its site, in the order of the calls."""
        super().__init__()
        self.__dict__.update(_layer=layer, _calls=itertools.cycle(kinds.items()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Results of the layer's shapes and types."""
        number, kind = next(self.__dict__["_calls"])
        call: Call = kind.call
        leaves, _ = flatten(args, kwargs)
        entries = [leaves[place][key] for place, item in call.entries.items() for key in item if key in leaves[place]]
        tensors = passed_tensors(leaves, entries)
        shapes = [
            [size if isinstance(size, int) else tensors[size[0]].shape[size[1]] for size in shape]
            for shape in kind.output_shapes
        ]
        results = iter(
            torch.onnx.ops.symbolic_multi_out(
                f"{_CALL_DOMAIN}::Layer",
                [_real(tensor) for tensor in tensors],
                {"site": number},
                dtypes=[leaf.dtype for leaf in tensors_of(call.outputs)],
                shapes=shapes,
                version=1,
            )
        )
        found, written = pytree.tree_map_only(torch.Tensor, lambda _: next(results), (call.results, call.written))
        for place, values in written.items():
            leaves[place].update(values)
        return found


@contextlib.contextmanager
def as_calls(model: nn.Module, *, sites: Sequence[Site], kinds: Sequence[Kind]) -> Iterator[None]:
    """Put opaque calls in the places of the layers of a model, for the time of a block."""
    by_layer: dict[nn.Module, dict[int, Kind]] = {}
    for number, (site, kind) in enumerate(zip(sites, kinds, strict=True)):
        by_layer.setdefault(site.layer, {})[number] = kind
    opaque = {layer: _OpaqueCall(layer, kinds=calls) for layer, calls in by_layer.items()}
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child in opaque
    ]
    try:
        for parent, name, layer in places:
            setattr(parent, name, opaque[layer])
        yield
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)
