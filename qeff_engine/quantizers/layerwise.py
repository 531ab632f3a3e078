"""A causal language model of which one decoder layer at a time is in memory.

The model is built on meta. What lies outside its decoder layers is loaded once, to see how the layers are called:
with layers that hand their input on unchanged, one pass gives every layer's arguments (masks, rotary tables, ...)
and the embedded tokens. Then a layer is loaded, run and unloaded again, any number of times.

Checkpoint names are translated by transformers' own conversions, which also stack experts and rename old checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from qeff_engine.architectures import buffers, classes
from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.quantizers.checkpoint_files import CheckpointReader

_NUM_RESULTS = (0, 1, 2, 3)  # of a layer, hidden states first; 0 for hidden states that are no tuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCall:
    """How the model calls a layer, but for the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, layer: nn.Module, hidden_BSH: torch.Tensor) -> torch.Tensor:
        """The layer's hidden states for ``hidden_BSH``."""
        output = layer(hidden_BSH, *self.args, **self.kwargs)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


class LayeredModel:
    """A checkpoint's model on meta, with its layers by number.

    Attributes:
        config: transformers' config.
        module: the model; parameters are on meta unless loaded.
        layer_names: module names of the decoder layers, in order.
        key_of_parameter: checkpoint name of each parameter that is stored as it is, by the parameter's name.
        converted_keys: checkpoint names whose tensors become parts of other parameters.
    """

    def __init__(self, snapshot: Path, *, reader: CheckpointReader) -> None:
        self._reader = reader
        self.config = classes.load_config(snapshot)
        self.module = _build_on_meta(self.config)
        self.layer_names = _decoder_layers(self.module)
        self.key_of_parameter: dict[str, str] = {}
        self.converted_keys: set[str] = set()
        self._keys_by_parameter: dict[str, list[str]] = {}
        self._conversions = get_model_conversion_mapping(self.module)
        self._translate_names()

    def _translate_names(self) -> None:
        renamings = [rule for rule in self._conversions if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in self._conversions if isinstance(rule, WeightConverter)]
        expected = self.module.state_dict()
        for key in self._reader.names:
            name, pattern = rename_source_key(key, renamings, converters, self.module.base_model_prefix, expected)
            self._keys_by_parameter.setdefault(name, []).append(key)
            if pattern is not None:
                self.converted_keys.add(key)
            elif name in expected:
                self.key_of_parameter[name] = key

    def layer(self, number: int) -> nn.Module:
        """The layer of a number, loaded or not."""
        layer: nn.Module = self.module.get_submodule(self.layer_names[number])
        return layer

    @contextlib.contextmanager
    def loaded_layer(self, number: int) -> Iterator[nn.Module]:
        """A layer with its weights in float32 while the block lasts."""
        prefix = self.layer_names[number] + "."
        layer = self.layer(number)
        try:
            self._load(lambda name: name.startswith(prefix))
            _require_loaded(layer, prefix=prefix)
            yield layer
        finally:
            _unload(layer)

    def record(self, rows_NS: torch.Tensor) -> tuple[list[torch.Tensor], list[list[LayerCall]]]:
        """Embedded tokens [1, seq, hidden] of each row, and by row how each layer is called.

        Raises:
            Unsupported: the model does something to the hidden states between its layers.
        """
        base = self.module.base_model
        layers = [self.layer(number) for number in range(len(self.layer_names))]
        with self._loaded_outside():
            for num_results in _NUM_RESULTS:
                recorders = _record_calls(base, layers, rows_NS, num_results=num_results)
                if recorders and all(recorder.is_chained for recorder in recorders):
                    break
            else:
                raise Unsupported(
                    f"{type(self.module).__name__} changes hidden states between its decoder layers, "
                    "expected each layer to read what the one before it returned.",
                    advice="Quantize this model with rtn, which does not run it, or leave it as it is.",
                )
        hidden = [row.clone() for row in recorders[0].inputs]
        return hidden, [[recorder.calls[row] for recorder in recorders] for row in range(len(rows_NS))]

    @contextlib.contextmanager
    def _loaded_outside(self) -> Iterator[None]:
        base, prefix = self.module.base_model, self.module.base_model_prefix + "."
        inside = tuple(name + "." for name in self.layer_names)
        handles = []
        try:
            for name, module in self.module.named_modules():
                key = self.key_of_parameter.get(name + ".weight")
                if isinstance(module, nn.Embedding) and key is not None and not name.startswith(inside):
                    handles.append(_map_embedding(module, self._reader.mapped(key)))
            self._load(lambda name: name.startswith(prefix) and not name.startswith(inside))
            _require_loaded(base, prefix=prefix, except_for=inside)
            yield
        finally:
            for handle in handles:
                handle.remove()
            _unload(base)

    def _load(self, wanted: Callable[[str], bool]) -> None:
        keys = [
            key
            for name, keys in self._keys_by_parameter.items()
            if wanted(name) and self._is_on_meta(name)
            for key in keys
        ]
        settings = LoadStateDictConfig(dtype=torch.float32, weight_mapping=self._conversions)
        with _without_progress_bars():
            convert_and_load_state_dict_in_model(self.module, {key: self._float32(key) for key in keys}, settings)

    def _float32(self, key: str) -> torch.Tensor:
        """A tensor in float32 already: transformers would convert it in threads, whose memory is not given back."""
        tensor = self._reader.tensor(key)
        return tensor.float() if tensor.is_floating_point() else tensor

    def _is_on_meta(self, parameter: str) -> bool:
        owner, _, name = parameter.rpartition(".")
        try:
            tensor = getattr(self.module.get_submodule(owner), name)
        except AttributeError:
            return False
        return isinstance(tensor, torch.Tensor) and tensor.is_meta


class _Recorder:
    """A layer's forward that notes how it is called and hands its input on."""

    def __init__(self, before: _Recorder | None, *, num_results: int) -> None:
        self._before = before
        self._num_results = num_results
        self.inputs: list[torch.Tensor] = []
        self.calls: list[LayerCall] = []
        self.is_chained = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            hidden, args = args[0], args[1:]
        else:
            hidden = kwargs.pop("hidden_states")
        if self._before is not None:
            self.is_chained &= hidden is self._before.inputs[-1]
        self.inputs.append(hidden)
        self.calls.append(LayerCall(args=args, kwargs=kwargs))
        return (hidden, *[None] * (self._num_results - 1)) if self._num_results else hidden


def _record_calls(
    base: nn.Module, layers: Sequence[nn.Module], rows_NS: torch.Tensor, *, num_results: int
) -> list[_Recorder]:
    """The recorders of the layers; none when the model expects another number of results."""
    recorders: list[_Recorder] = []
    for _ in layers:
        recorders.append(_Recorder(recorders[-1] if recorders else None, num_results=num_results))
    try:
        for layer, recorder in zip(layers, recorders, strict=True):
            layer.forward = recorder
        for row_S in rows_NS:
            base(input_ids=row_S[None], use_cache=False)
    except ValueError:
        return []
    finally:
        for layer in layers:
            del layer.forward
    return recorders


def _build_on_meta(config: Any) -> Any:
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise Unsupported(
            f"'{config.model_type}' is not a causal language model that transformers {transformers.__version__} knows.",
            advice="Quantization is for text-generation models.",
        ) from error
    model.eval().requires_grad_(requires_grad=False)
    _restore_buffers(model)
    return model


def _restore_buffers(model: Any) -> None:
    """Compute the buffers that no checkpoint holds (rotary frequencies, ...), which meta has lost."""
    known = buffers.constructed(model)
    for path, module in model.named_modules():
        lost = [name for name in module._non_persistent_buffers_set if getattr(module, name).is_meta]
        for name in lost:
            found = known.get(f"{path}.{name}" if path else name)
            setattr(module, name, torch.zeros_like(getattr(module, name), device="cpu") if found is None else found)
        if lost:
            model._init_weights(module)


def _decoder_layers(model: Any) -> list[str]:
    """Names of the layers: the first list of modules that is as long as the config says the model is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and depth > 0:
            return [f"{name}.{number}" for number in range(depth)]
    raise Unsupported(
        f"{type(model).__name__} has no list of {depth} decoder layers, expected one.",
        advice="Leave this model unquantized.",
    )


def _require_loaded(module: nn.Module, *, prefix: str, except_for: tuple[str, ...] = ()) -> None:
    missing = [
        prefix + name
        for name, parameter in module.named_parameters()
        if parameter.is_meta and not (except_for and (prefix + name).startswith(except_for))
    ]
    if missing:
        raise InvalidInput(
            f"The checkpoint lacks {len(missing)} tensors that the model needs, such as {missing[0]}.",
            advice="Check that all its .safetensors files are there.",
        )


def _unload(module: nn.Module) -> None:
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and not parameter.is_meta:
                owner._parameters[name] = nn.Parameter(parameter.to("meta", torch.float32), requires_grad=False)


def _map_embedding(embedding: nn.Embedding, weight: torch.Tensor) -> torch.utils.hooks.RemovableHandle:
    """Look rows up in the file's memory map, in the stored type; only the rows become float32."""
    embedding.weight = nn.Parameter(weight, requires_grad=False)
    return embedding.register_forward_hook(lambda module, inputs, output: output.float())


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
