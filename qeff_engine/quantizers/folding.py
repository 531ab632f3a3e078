"""Where a scale of input channels can go: into which rows of which earlier module, found by experiment.

A linear may have its columns multiplied by s if its input is divided by s for free, that is if some earlier module
computes each channel with a factor of its own: a norm's weight, the rows of a linear (values before attention, the
ungated half of an MLP). Which module that is, and which of its rows makes which channel, is not looked up by name.
The candidate's rows are multiplied by distinct factors, and the factors are looked for in the input. Then rows and
columns are scaled against each other by powers of two: only if the layer's output stays the same is it a fold.
So grouped-query attention (a row feeds many channels), fused projections and norms that multiply by one plus their
weight need no special case, and a module that also feeds something else is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

Run = Callable[[], torch.Tensor]

_DIGIT_TOLERANCE = 0.2  # of the distance between two factors
_RESIDUAL_TOLERANCE = 2e-3  # of a channel's largest value: float32 through an attention leaves about 1e-5
_OUTPUT_TOLERANCE = 1e-3  # of the largest output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
    """The rows that make a linear's input.

    Attributes:
        producer: name of the module in the layer.
        start: first of the rows.
        num_rows: how many rows.
        offset: the module multiplies by ``offset + weight``: 0, or 1 for some norms.
        row_of_channel_I: int64 [in], the row (counted from ``start``) that makes each channel.
    """

    producer: str
    start: int
    num_rows: int
    offset: float
    row_of_channel_I: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Applied:
    """What became of a fold.

    Attributes:
        scales_I: the scales as they are after the producer's weight was rounded to its stored type.
        changed: names of the layer's parameters whose values changed.
    """

    scales_I: torch.Tensor
    changed: tuple[str, ...]


def find(layer: nn.Module, *, readers: Sequence[str], run: Run) -> Fold | None:
    """The fold for the input that all ``readers`` (names of linears) share, or None if there is none.

    Args:
        layer: with its weights loaded; they are the same afterwards.
        readers: every linear that reads the input.
        run: runs the layer on a sample and returns its output.
    """
    probe = _Probe(layer, readers=readers, run=run)
    for candidate in _candidates(layer, readers=readers, width=probe.width):
        rows_I = probe.rows_of_channels(candidate)
        if rows_I is None:
            continue
        fold = dataclasses.replace(candidate, row_of_channel_I=rows_I)
        if probe.keeps_output(fold):
            return fold
    return None


def apply(
    layer: nn.Module, fold: Fold, *, scales_I: torch.Tensor, readers: Sequence[str], stored: torch.dtype
) -> Applied:
    """Divide the fold's rows by the scales and multiply the readers' columns by them.

    A norm's weight is rounded to its stored type, and the scales are then taken from what it became: so the product
    is exact in spite of the rounding. Rows that no channel reads are left alone.
    """
    rows = slice(fold.start, fold.start + fold.num_rows)
    scales_N = torch.ones(fold.num_rows)
    scales_N[fold.row_of_channel_I] = scales_I
    producer = layer.get_submodule(fold.producer)
    weight = _parameter(producer, "weight")
    changed = [f"{fold.producer}.weight"]
    if weight.dim() == 1:
        factor_N = weight[rows] + fold.offset
        weight[rows] = (factor_N / scales_N - fold.offset).to(stored).float()
        exact_N = factor_N / (weight[rows] + fold.offset)
        scales_N = torch.where(torch.isfinite(exact_N) & (exact_N > 0), exact_N, torch.ones_like(exact_N))
    else:
        weight[rows] /= scales_N[:, None]
    bias = getattr(producer, "bias", None)
    if isinstance(bias, torch.Tensor):
        bias[rows] /= scales_N
        changed.append(f"{fold.producer}.bias")
    exact_I = scales_N[fold.row_of_channel_I]
    for name in readers:
        _parameter(layer.get_submodule(name), "weight").mul_(exact_I)
        changed.append(f"{name}.weight")
    return Applied(scales_I=exact_I, changed=tuple(changed))


def _candidates(layer: nn.Module, *, readers: Sequence[str], width: int) -> Iterator[Fold]:
    """Modules with as many rows as the input has channels, or with rows that could be shared or be a part."""
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if name in readers or not isinstance(weight, nn.Parameter) or weight.dim() > 2:
            continue
        if weight.dim() == 2 and not isinstance(module, nn.Linear):
            continue
        num_rows = weight.shape[0]
        if num_rows > width and weight.dim() == 2:
            ranges = [(num_rows - width, width), (0, width)]
        elif width % num_rows == 0:
            ranges = [(0, num_rows)]
        else:
            ranges = []
        for start, count in ranges:
            for offset in (0.0, 1.0) if weight.dim() == 1 else (0.0,):
                yield Fold(producer=name, start=start, num_rows=count, offset=offset, row_of_channel_I=torch.empty(0))


class _Probe:
    """Experiments on a layer, against how it behaves untouched."""

    def __init__(self, layer: nn.Module, *, readers: Sequence[str], run: Run) -> None:
        self._layer, self._readers, self._run = layer, readers, run
        self._input_TI, self._output = self._observe()

    @property
    def width(self) -> int:
        """Channels of the input."""
        return self._input_TI.shape[-1]

    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        reader = self._layer.get_submodule(self._readers[0])
        handle = reader.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
        try:
            output = self._run()
        finally:
            handle.remove()
        return seen[0].flatten(0, -2), output.detach().clone()

    def rows_of_channels(self, candidate: Fold) -> torch.Tensor | None:
        """The row that makes each channel, int64 [in]; None if not every channel has exactly one.

        A row's number is written with two digits, one experiment for each, so that factors stay far apart.
        """
        base = math.isqrt(candidate.num_rows - 1) + 1
        numbers_N = torch.arange(candidate.num_rows)
        high_I = self._digits(candidate, numbers_N // base, base=base)
        low_I = None if high_I is None else self._digits(candidate, numbers_N % base, base=base)
        if high_I is None or low_I is None:
            return None
        rows_I = high_I * base + low_I
        silent_I = self._input_TI.abs().amax(dim=0) == 0
        if bool(silent_I.any()):
            # Nothing can be read off a channel without values; if all others are in order, so is this one.
            own_I = torch.arange(self.width)
            if candidate.num_rows != self.width or not torch.equal(rows_I[~silent_I], own_I[~silent_I]):
                return None
            rows_I = own_I
        return rows_I if bool((rows_I < candidate.num_rows).all()) else None

    def _digits(self, candidate: Fold, digits_N: torch.Tensor, *, base: int) -> torch.Tensor | None:
        factors_N = 1 + (digits_N + 1) / (2 * base)
        with _kept(self._layer, [candidate.producer]):
            _multiply_rows(self._layer, candidate, factors_N)
            changed_TI, _ = self._observe()
        energy_I = self._input_TI.square().sum(dim=0)
        ratio_I = (changed_TI * self._input_TI).sum(dim=0) / energy_I
        residual_I = (changed_TI - ratio_I * self._input_TI).abs().amax(dim=0)
        alive_I = energy_I > 0
        if bool((residual_I > _RESIDUAL_TOLERANCE * self._input_TI.abs().amax(dim=0))[alive_I].any()):
            return None
        exact_I = torch.where(alive_I, (ratio_I - 1) * (2 * base) - 1, torch.zeros_like(ratio_I))
        digits_I = exact_I.round()
        good_I = ((exact_I - digits_I).abs() < _DIGIT_TOLERANCE) & (digits_I >= 0) & (digits_I < base)
        return digits_I.long() if bool(good_I.all()) else None

    def keeps_output(self, fold: Fold) -> bool:
        """Whether scaling rows down and columns up by powers of two leaves the layer's output as it was."""
        scales_N = 2.0 ** (torch.arange(fold.num_rows) * 7 % 3 - 1)
        with _kept(self._layer, [fold.producer, *self._readers]):
            _multiply_rows(self._layer, fold, 1 / scales_N)
            for name in self._readers:
                _parameter(self._layer.get_submodule(name), "weight").mul_(scales_N[fold.row_of_channel_I])
            output = self._run()
        limit = _OUTPUT_TOLERANCE * float(self._output.abs().max())
        return bool((output - self._output).abs().max() <= limit)


def _parameter(module: nn.Module, name: str) -> torch.Tensor:
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter.data


def _multiply_rows(layer: nn.Module, fold: Fold, factors_N: torch.Tensor) -> None:
    """Multiply what the fold's rows compute."""
    rows = slice(fold.start, fold.start + fold.num_rows)
    producer = layer.get_submodule(fold.producer)
    weight = _parameter(producer, "weight")
    if weight.dim() == 1:
        weight[rows] = (weight[rows] + fold.offset) * factors_N - fold.offset
    else:
        weight[rows] *= factors_N[:, None]
    bias = getattr(producer, "bias", None)
    if isinstance(bias, torch.Tensor):
        bias[rows] *= factors_N


@contextlib.contextmanager
def _kept(layer: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Parameters of some modules are put back when the block ends."""
    parameters = [parameter for name in names for parameter in layer.get_submodule(name).parameters(recurse=False)]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, values in zip(parameters, before, strict=True):
            parameter.data.copy_(values)
