"""One decoder layer quantized: statistics of its linears' inputs, scales folded, weights rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from qeff_engine.errors import Numerics
from qeff_engine.quantizers import folding, rounding
from qeff_engine.quantizers.activations import ActivationStatistics, output_error
from qeff_engine.quantizers.base import Grid, QuantizedWeight, Quantizer
from qeff_engine.quantizers.layerwise import LayerCall


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """What the calibration rows are when they reach a layer.

    Attributes:
        hidden: hidden states [1, seq, hidden] of each row.
        calls: how the layer is called for each row.
    """

    hidden: list[torch.Tensor]
    calls: list[LayerCall]

    def run(self, layer: nn.Module) -> Iterator[torch.Tensor]:
        """The layer's output for each row, one at a time."""
        for hidden_BSH, call in zip(self.hidden, self.calls, strict=True):
            yield call.run(layer, hidden_BSH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearReport:
    """How well a linear was quantized.

    Attributes:
        weight_error: squared error of the weight, relative to the weight.
        output_error_vs_rtn: squared error of the outputs on the calibration rows, relative to rounding to nearest;
            None without calibration.
    """

    weight_error: float
    output_error_vs_rtn: float | None


@dataclasses.dataclass(kw_only=True)
class LayerResult:
    """A quantized layer; its module now holds the dequantized weights.

    Attributes:
        weights: integers by name of the linear in the layer.
        reports: by name of the linear in the layer.
        changed: names of the layer's other parameters that have new values.
        num_inputs: tensors that linears to be quantized read.
        num_folds: how many of these were scaled.
    """

    weights: dict[str, QuantizedWeight] = dataclasses.field(default_factory=dict)
    reports: dict[str, LinearReport] = dataclasses.field(default_factory=dict)
    changed: set[str] = dataclasses.field(default_factory=set)
    num_inputs: int = 0
    num_folds: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Input:
    """A tensor that linears read.

    Attributes:
        readers: names of the linears that read it.
        statistics: of the tensor, over all rows.
    """

    readers: tuple[str, ...]
    statistics: ActivationStatistics


class BlockQuantizer:
    """Quantizes layers of one model, which are mostly alike: what was found out about one is kept for the next."""

    def __init__(self, quantizer: Quantizer, *, grid: Grid) -> None:
        self._quantizer = quantizer
        self._grid = grid
        self._folds: dict[object, folding.Fold | None] = {}

    def quantize(
        self,
        layer: nn.Module,
        *,
        name: str,
        linears: Sequence[str],
        samples: Samples | None,
        stored_dtypes: Mapping[str, torch.dtype],
    ) -> LayerResult:
        """Quantize a loaded layer, in place.

        Args:
            layer: with float32 weights.
            name: of the layer in the model, for messages.
            linears: names (in the layer) of what is to be quantized.
            samples: calibration rows; None for a quantizer that needs none.
            stored_dtypes: the checkpoint's type of each parameter of the layer that it stores as it is.

        Raises:
            Numerics: a weight or an input is not finite.
        """
        result = LayerResult()
        inputs = _observe_inputs(layer, linears, samples) if samples else _unobserved_inputs(linears)
        scales: dict[str, torch.Tensor] = {}
        for item in inputs:
            _require_finite(layer, item, layer_name=name)
            scales_I = None
            if samples is not None and self._quantizer.scales_inputs:
                scales_I = self._scale(layer, item, linears, samples, stored_dtypes, result)
            result.num_folds += scales_I is not None
            scales.update({reader: scales_I for reader in item.readers if scales_I is not None})
        result.num_inputs = len(inputs)
        for item in inputs:
            for linear in [reader for reader in item.readers if reader in linears]:
                self._round(layer, linear, item.statistics, scales.get(linear), result)
        result.changed -= {f"{linear}.weight" for linear in linears}
        return result

    def _scale(
        self,
        layer: nn.Module,
        item: _Input,
        linears: Sequence[str],
        samples: Samples,
        stored_dtypes: Mapping[str, torch.dtype],
        result: LayerResult,
    ) -> torch.Tensor | None:
        """Scale an input if something before it can take the scales; the scales that took effect, [in]."""
        fold = self._fold(layer, item, samples)
        if fold is None or f"{fold.producer}.weight" not in stored_dtypes:
            return None
        weights = {name: _weight(layer, name) for name in item.readers if name in linears}
        wanted_I = self._quantizer.input_scales(
            weights, statistics=item.statistics, grid=self._grid, ties_I=fold.row_of_channel_I
        )
        if wanted_I is None:
            return None
        applied = folding.apply(
            layer, fold, scales_I=wanted_I, readers=item.readers, stored=stored_dtypes[f"{fold.producer}.weight"]
        )
        result.changed.update(applied.changed)
        return applied.scales_I

    def _fold(self, layer: nn.Module, item: _Input, samples: Samples) -> folding.Fold | None:
        kind = tuple((name, type(module), *_shapes(module)) for name, module in layer.named_modules())
        key = (kind, item.readers)
        if key not in self._folds:
            first, call = samples.hidden[0], samples.calls[0]
            self._folds[key] = folding.find(layer, readers=item.readers, run=lambda: call.run(layer, first))
        return self._folds[key]

    def _round(
        self,
        layer: nn.Module,
        name: str,
        statistics: ActivationStatistics,
        scales_I: torch.Tensor | None,
        result: LayerResult,
    ) -> None:
        weight_OI = _weight(layer, name)
        scaled = statistics if scales_I is None else statistics.divided_by(scales_I)
        quantized = self._quantizer.quantize(weight_OI, statistics=scaled, grid=self._grid)
        rounded_OI = quantized.dequantize()
        change_OI = rounded_OI - weight_OI
        energy = float(weight_OI.square().sum())
        ratio = None
        if statistics.num_tokens:
            plain_OI = weight_OI if scales_I is None else weight_OI / scales_I
            nearest_OI = rounding.round_to_nearest(plain_OI, grid=self._grid).dequantize() - plain_OI
            nearest = output_error(nearest_OI, gram_II=statistics.gram_II)
            ratio = output_error(change_OI, gram_II=scaled.gram_II) / nearest if nearest > 0 else 1.0
        result.reports[name] = LinearReport(
            weight_error=float(change_OI.square().sum()) / energy if energy else 0.0, output_error_vs_rtn=ratio
        )
        result.weights[name] = quantized
        weight_OI.copy_(rounded_OI)


def _unobserved_inputs(linears: Sequence[str]) -> list[_Input]:
    return [_Input(readers=(name,), statistics=ActivationStatistics(0)) for name in linears]


def _observe_inputs(layer: nn.Module, linears: Sequence[str], samples: Samples) -> list[_Input]:
    """The tensors that linears read, with their statistics; only those that a linear to be quantized reads."""
    groups = [readers for readers in _readers_by_tensor(layer, samples) if any(name in linears for name in readers)]
    inputs = [
        _Input(readers=readers, statistics=ActivationStatistics(_weight(layer, readers[0]).shape[1]))
        for readers in groups
    ]
    handles = [_watch(layer.get_submodule(item.readers[0]), item.statistics) for item in inputs]
    try:
        for _ in samples.run(layer):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def _readers_by_tensor(layer: nn.Module, samples: Samples) -> list[tuple[str, ...]]:
    """Linears by the tensor that they read in the first row; those that do not run in it are alone."""
    seen: dict[str, torch.Tensor] = {}
    modules = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    handles = [_remember_first(module, name, seen) for name, module in modules.items()]
    try:
        samples.calls[0].run(layer, samples.hidden[0])
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[object, list[str]] = {}
    for name in modules:
        # The tensors are kept, so an address belongs to one of them only.
        tensor = seen.get(name)
        key: object = name if tensor is None else (tensor.data_ptr(), tensor.numel(), tensor.shape[-1])
        groups.setdefault(key, []).append(name)
    return [tuple(names) for names in groups.values()]


def _remember_first(module: nn.Module, name: str, seen: dict[str, torch.Tensor]) -> torch.utils.hooks.RemovableHandle:
    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.setdefault(name, args[0])

    return module.register_forward_pre_hook(note)


def _watch(module: nn.Module, statistics: ActivationStatistics) -> torch.utils.hooks.RemovableHandle:
    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        statistics.add(args[0])

    return module.register_forward_pre_hook(note)


def _weight(layer: nn.Module, name: str) -> torch.Tensor:
    parameter = layer.get_submodule(name).weight
    assert isinstance(parameter, nn.Parameter)
    return parameter.data


def _shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters(recurse=False)]


def _require_finite(layer: nn.Module, item: _Input, *, layer_name: str) -> None:
    for name in item.readers:
        if not bool(torch.isfinite(_weight(layer, name)).all()):
            raise Numerics(
                f"The weight of {layer_name}.{name} is not finite, expected numbers.", advice="Check the checkpoint."
            )
    if item.statistics.num_tokens and not bool(torch.isfinite(item.statistics.abs_mean_I).all()):
        raise Numerics(
            f"The input of {layer_name}.{item.readers[0]} is not finite on the calibration text, expected numbers.",
            advice="Check the checkpoint, or use rtn, which needs no calibration.",
        )
