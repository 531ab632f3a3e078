"""Any decoder of transformers as one graph with retained state: tokens and state in, logits and state out.

Shape legend: B batch, S tokens of a call, C context length, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import nn
from transformers.cache_utils import DummyLayer

from qeff_engine import exported, patching
from qeff_engine.architectures import registry
from qeff_engine.errors import Unsupported
from qeff_engine.onnx_graph import binding, functions, symbolic_sizes, tracing
from qeff_engine.transforms import (
    experts,
    kernels,
    layer_calls,
    layer_functions,
    layer_kinds,
    layout,
    masks,
    norms,
    recurrences,
)
from qeff_engine.transforms.cache import KEY, RECURRENT, LayerLayout, RetainedCache, RetainedLayer
from qeff_engine.transforms.layer_numbers import NoFit
from qeff_engine.transforms.token_order import TokenOrder
from qeff_engine.transforms.weightless import WeightlessModel

_IDS = exported.Tensor(dtype="int64", shape=("batch_size", "seq_len"))
TOKEN_INPUTS: Mapping[str, exported.Tensor] = {"input_ids": _IDS, "position_ids": _IDS}


class InputExtension(Protocol):
    """Further inputs of a decoder that change the embeddings of its tokens, such as what a vision tower saw.

    Attributes:
        inputs: further inputs by name.
        outputs: further outputs by name; one called like an input with :data:`qeff_engine.exported.RETAINED` behind is
            a retained state.
    """

    inputs: Mapping[str, exported.Tensor]
    outputs: Mapping[str, exported.Tensor]

    def embed(
        self,
        embeds_BSD: torch.Tensor,
        *,
        input_ids_BS: torch.Tensor,
        position_ids_BS: torch.Tensor,
        extra: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The embeddings to go on with, and the further outputs by name."""
        ...  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderGraph:
    """An exported decoder.

    Attributes:
        model: the graph; weights are initializers named as in the model, not bound yet.
        inputs: types and shapes by name, in graph order.
        outputs: the same of the outputs.
        num_layers: decoder layers.
        num_layer_functions: functions that the layers are calls of; 0 when the layers are traced one by one.
        why_no_functions: why they are traced one by one; empty when they are not.
        max_seq_len: most tokens of a call; 0 when there is no limit.
    """

    model: ir.Model
    inputs: dict[str, exported.Tensor]
    outputs: dict[str, exported.Tensor]
    num_layers: int
    num_layer_functions: int
    why_no_functions: str
    max_seq_len: int


def export_decoder(weightless: WeightlessModel, *, extension: InputExtension | None = None) -> DecoderGraph:
    """The graph of a decoder, with one function per distinct layer where the layers allow it.

    Args:
        weightless: the model; one with vision has its decoder exported alone, from token ids.
        extension: further inputs that change the embeddings.

    Raises:
        Unsupported: the decoder keeps a state of an unknown kind, or cannot be traced.
    """
    why = ""
    number = 0
    module = weightless.module
    with (
        registry.applied(module.config),
        tracing.prepared(),
        masks.from_positions(),
        norms.fused(module),
        experts.batched(),
        symbolic_sizes.in_modules(kernels.modules_of(module)),
    ):
        layouts = layout.discover(weightless)
        decoder = Decoder(weightless.module, layouts=layouts, extension=extension).eval()
        try:
            model, number = _with_functions(decoder, weightless)
        except (NoFit, Unsupported) as error:
            why = str(error)
            model = _plain(decoder, weightless)
    inputs, outputs = decoder.inputs, {**decoder.outputs(_width(weightless)), **decoder.retained_outputs}
    tracing.name_axes(model, inputs=inputs, outputs=outputs)
    functions.add_to(model)
    binding.add_imports(model)
    return DecoderGraph(
        model=model,
        inputs=inputs,
        outputs=outputs,
        num_layers=len(layouts),
        num_layer_functions=number,
        why_no_functions=why,
        max_seq_len=recurrences.MAX_TOKENS if decoder.is_recurrent else 0,
    )


def _width(weightless: WeightlessModel) -> int:
    head = weightless.module.get_output_embeddings()
    return int(head.weight.shape[0]) if head is not None else int(weightless.config.get_text_config().vocab_size)


class Decoder(nn.Module):
    """A causal language model with its cache as tensors."""

    def __init__(self, model: Any, *, layouts: Sequence[LayerLayout | None], extension: InputExtension | None) -> None:
        super().__init__()
        self.model = model
        self.layouts = list(layouts)
        self.extension = extension
        self.shares_one_state = False
        self._takes = set(inspect.signature(model.forward).parameters)
        self._takes_positions = "position_ids" in self._takes or _passes_positions_on(model)
        self._first_position = _first_position(model)
        self._cache_argument = layout.cache_argument(model)

    @property
    def inputs(self) -> dict[str, exported.Tensor]:
        """All inputs by name, in the order of the graph."""
        return {**TOKEN_INPUTS, **self.extra_inputs, **self.states}

    @property
    def extra_inputs(self) -> Mapping[str, exported.Tensor]:
        """Inputs of the extension."""
        return self.extension.inputs if self.extension else {}

    @property
    def states(self) -> dict[str, exported.Tensor]:
        """What each layer keeps, by name."""
        return {
            f"{stem}.{number}": exported.Tensor(dtype="float32", shape=shape)
            for number, item in enumerate(self.layouts)
            if item is not None
            for stem, shape in item.states.items()
        }

    @property
    def first_keys(self) -> list[str]:
        """The name of the first keys, in a list that is empty when no layer has any."""
        return [name for name in self.states if name.startswith(f"{KEY}.")][:1]

    @property
    def is_recurrent(self) -> bool:
        """Whether a layer keeps the state of a recurrence."""
        return any(name.startswith(RECURRENT) for name in self.states)

    @property
    def retained_outputs(self) -> dict[str, exported.Tensor]:
        """The states' successors by name."""
        return {name + exported.RETAINED: tensor for name, tensor in self.states.items()}

    def outputs(self, vocab_size: int) -> dict[str, exported.Tensor]:
        """Outputs beside the states."""
        logits = exported.Tensor(dtype="float32", shape=("batch_size", 1, vocab_size))
        return {"logits": logits, **(self.extension.outputs if self.extension else {})}

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        extra: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Logits [B, 1, V] of the token with the highest position, further outputs, and the states.

        Args:
            input_ids: tokens [B, S].
            position_ids: their positions [B, S]; -1 is padding.
            extra: inputs of the extension.
            states: what the layers keep, in the order of :attr:`states`. With :attr:`shares_one_state` those of
                :attr:`first_keys` alone, which then stand for the shape of all, and no states are returned.
        """
        order = TokenOrder(position_ids.to(torch.int32))
        layers = self._layers(order, states)
        keys = [layer.keys for layer in layers if isinstance(layer, RetainedLayer) and layer.keys is not None]
        ctx_len = keys[0].shape[2] if keys else position_ids.shape[1]
        cache = RetainedCache(layers, order=order, positions_BS=position_ids, ctx_len=ctx_len)
        last_B = position_ids.argmax(1)
        arguments: dict[str, Any] = {self._cache_argument: cache, "use_cache": True}
        positions_BS = position_ids.clamp(min=0)
        if self._takes_positions:
            arguments["position_ids"] = positions_BS + self._first_position
        if "return_dict" in self._takes:
            arguments["return_dict"] = True
        hooks = _Hooks(self.model, last_B=last_B, positions_BS=positions_BS)
        if self.extension is not None:
            hooks.extend_embeddings(
                self.extension, input_ids, position_ids, dict(zip(self.extra_inputs, extra, strict=True))
            )
        with hooks, kernels.replaced(self.model, cache=cache):
            logits = self.model(input_ids=input_ids, **arguments).logits
        if not hooks.head_has_run:
            logits = _rows(logits, last_B)
        further = [hooks.further[name] for name in (self.extension.outputs if self.extension else ())]
        if self.shares_one_state:
            return (logits, *further)
        kept = [tensor for layer in layers if isinstance(layer, RetainedLayer) for tensor in layer.successors()]
        return (logits, *further, *kept)

    def _layers(self, order: TokenOrder, states: Sequence[torch.Tensor]) -> list[Any]:
        remaining = iter(states)
        layers: list[Any] = []
        for item in self.layouts:
            if item is None:
                layers.append(DummyLayer())
            elif self.shares_one_state:
                lengthy = {stem: states[0] for stem, shape in item.states.items() if "ctx_len" in shape}
                layers.append(RetainedLayer(order=order, states=lengthy, layout=item))
            else:
                own = {stem: next(remaining) for stem in item.states}
                layers.append(RetainedLayer(order=order, states=own, layout=item))
        return layers


class _Hooks:
    """What is changed inside the model during one call."""

    def __init__(self, model: Any, *, last_B: torch.Tensor, positions_BS: torch.Tensor) -> None:
        self._model, self._last, self._positions = model, last_B, positions_BS
        self._handles: list[Any] = []
        self._embed: Any = None
        self.head_has_run = False
        self.further: Mapping[str, torch.Tensor] = {}

    def extend_embeddings(
        self,
        extension: InputExtension,
        input_ids_BS: torch.Tensor,
        position_ids_BS: torch.Tensor,
        extra: Mapping[str, torch.Tensor],
    ) -> None:
        """Let the extension change what the embedding layer gives."""

        def hook(module: nn.Module, arguments: Any, embeds_BSD: torch.Tensor) -> torch.Tensor:
            changed_BSD, self.further = extension.embed(
                embeds_BSD, input_ids_BS=input_ids_BS, position_ids_BS=position_ids_BS, extra=extra
            )
            return changed_BSD

        self._embed = hook

    def __enter__(self) -> None:
        head = self._model.get_output_embeddings()
        if head is not None:
            self._handles.append(head.register_forward_pre_hook(self._keep_last_row))
        if self._embed is not None:
            self._handles.append(self._model.get_input_embeddings().register_forward_hook(self._embed))
        for module in self._model.modules():
            if _counts_positions(module):
                self._handles.append(module.register_forward_hook(self._embed_positions))

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_last_row(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the head, so that scaling and soft caps behind it still apply."""
        if arguments[0].ndim != 3:
            return None
        self.head_has_run = True
        return (_rows(arguments[0], self._last), *arguments[1:])

    def _embed_positions(self, module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(self._positions + getattr(module, "offset", 0), module.weight)


def _counts_positions(module: nn.Module) -> bool:
    """Whether this is a table of positions that counts from the length of the cache instead of being told."""
    if not isinstance(module, nn.Embedding) or type(module) is nn.Embedding:
        return False
    return {"position_ids", "past_key_values_length"} <= set(inspect.signature(type(module).forward).parameters)


def _passes_positions_on(model: Any) -> bool:
    """Whether a model hands what it does not name to a decoder inside that takes positions."""
    kinds = [item.kind for item in inspect.signature(model.forward).parameters.values()]
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    return inspect.Parameter.VAR_KEYWORD in kinds and "position_ids" in inspect.signature(decoder.forward).parameters


def _first_position(model: nn.Module) -> int:
    """The number that a model gives the first token when it is told no positions; some count from behind the padding's.

    Those models say it by a function of the tokens.
    """
    for module in model.modules():
        numbered = getattr(module, "create_position_ids_from_input_ids", None)
        padding = getattr(module, "padding_idx", None)
        if numbered is not None and padding is not None and not isinstance(module, nn.Embedding):
            return int(numbered(torch.tensor([[int(padding) + 1]]), int(padding))[0, 0])
    return 0


def _rows(values_BSD: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
    index = rows_B[:, None, None].expand(values_BSD.shape[0], 1, values_BSD.shape[2])
    return torch.gather(values_BSD, 1, index)


def _plain(decoder: Decoder, weightless: WeightlessModel) -> ir.Model:
    inputs = decoder.inputs
    with weightless.fake_mode:
        made = tracing.examples(inputs, sizes=tracing.sizes_of(inputs))
    arguments = decoder_arguments(decoder, made, states=list(decoder.states))
    model = tracing.trace(
        decoder,
        arguments,
        dynamic_shapes=decoder_arguments(
            decoder,
            {name: tracing.dynamic_axes(tensor) for name, tensor in inputs.items()},
            states=list(decoder.states),
        ),
        input_names=list(inputs),
        output_names=[*decoder.outputs(0), *decoder.retained_outputs],
    )
    binding.rename(model, names=weightless.names(decoder))
    return model


def decoder_arguments(
    decoder: Decoder, values: Mapping[str, Any], *, states: Sequence[str]
) -> tuple[Any, Any, tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of :meth:`Decoder.forward` from values by name, with those states."""
    extra = tuple(values[name] for name in decoder.extra_inputs)
    return values["input_ids"], values["position_ids"], extra, tuple(values[name] for name in states)


def _with_functions(decoder: Decoder, weightless: WeightlessModel) -> tuple[ir.Model, int]:
    """The graph with its layers as calls of functions, and the number of functions."""
    inputs = decoder.inputs
    recorded: list[list[layer_calls.Site]] = []
    layers = layer_calls.find_layers(weightless.module, num_caches=len(decoder.layouts))
    for variant in (0, 1):
        with weightless.fake_mode, tracing.untraceable_is_unsupported(type(weightless.module).__name__):
            made = tracing.examples(inputs, sizes=tracing.sizes_of(inputs, variant=variant))
            arguments = decoder_arguments(decoder, made, states=list(decoder.states))
            recorded.append(
                layer_calls.record(
                    functools.partial(decoder, *arguments), layers=layers, kept=decoder.layouts.__getitem__
                )
            )
    sites = recorded[0]
    kinds = layer_kinds.kinds_of(sites, recorded[1], layouts=decoder.layouts)
    bodies = layer_functions.Bodies(sites, kinds=kinds, fake_mode=weightless.fake_mode)
    first = decoder.first_keys
    with weightless.fake_mode:
        made = tracing.examples(inputs, sizes=tracing.sizes_of(inputs))
    as_one = patching.attributes([(decoder, "shares_one_state", True)])
    with as_one, layer_functions.as_calls(weightless.module, sites=sites, kinds=kinds):
        model = tracing.trace(
            decoder,
            decoder_arguments(decoder, made, states=first),
            dynamic_shapes=decoder_arguments(
                decoder, {name: tracing.dynamic_axes(tensor) for name, tensor in inputs.items()}, states=first
            ),
            input_names=[*TOKEN_INPUTS, *decoder.extra_inputs, *first],
            output_names=list(decoder.outputs(0)),
        )
    binding.rename(model, names=weightless.names(decoder))
    bodies.call_from(model, states=decoder.states, weightless=weightless)
    return model, len(bodies.functions)
