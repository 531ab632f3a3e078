"""GPTQ: rounding column by column, the error of each column carried over to those that are still free.

Source: E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023 (arXiv 2210.17323), algorithm 1. With the layer's Gram matrix H and the upper
Cholesky factor U of its inverse, column i is rounded and the columns j > i of each row change by
``-(w_i - rounded_i) / U_ii * U_ij``. Inside a block that is done at once; the columns after a block get the block's
errors in one matrix product.

Matrices are kept transposed ([in, out]) in the loop, so that a step touches contiguous memory.
"""

from __future__ import annotations

import dataclasses

import torch

from qeff_engine.errors import Numerics
from qeff_engine.quantizers import rounding
from qeff_engine.quantizers.base import Grid, QuantizedWeight

_DAMPING_TRIES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How GPTQ proceeds.

    Attributes:
        damping: part of the mean diagonal of H that is added to the diagonal (paper: 1 %).
        block_columns: columns rounded before the rest is updated.
        activation_order: round the columns with the largest activations first. Groups keep their columns and get
            their scales from the weight before anything is rounded ("static groups"), so the layout does not change.
    """

    damping: float = 0.01
    block_columns: int = 32
    activation_order: bool = False


def inverse_factor(gram_II: torch.Tensor, *, damping: float) -> torch.Tensor:
    """Upper Cholesky factor U of the inverse of the damped Gram matrix: ``H^-1 = U^T U``.

    A channel that was never active (a zero on the diagonal) gets a one there: it neither gives nor takes errors, so
    its weights are just rounded. They are not zeroed, since a channel that was silent on a few thousand calibration
    tokens need not be silent for ever.

    Raises:
        Numerics: the matrix is not positive definite even when damped a hundred thousand times as much.
    """
    diagonal_I = gram_II.diagonal()
    dead_I = diagonal_I <= 0
    alive_mean = diagonal_I[~dead_I].mean() if bool((~dead_I).any()) else torch.ones(())
    identity_II = torch.eye(gram_II.shape[0])
    for attempt in range(_DAMPING_TRIES):
        added_I = torch.where(dead_I, torch.ones(()), damping * 10.0**attempt * alive_mean)
        # H = R R^T with R upper, the Cholesky factor of H read backwards; then U is R^-1, without inverting H itself.
        factor = torch.linalg.cholesky_ex((gram_II + torch.diag(added_I)).flip(0, 1))
        if int(factor.info) == 0:
            upper_II: torch.Tensor = torch.linalg.solve_triangular(factor.L.flip(0, 1), identity_II, upper=True)
            if bool(torch.isfinite(upper_II).all()):
                return upper_II
    raise Numerics(
        f"The Gram matrix of {gram_II.shape[0]} input channels is not positive definite, not even with "
        f"{damping * 10.0 ** (_DAMPING_TRIES - 1):g} times its mean diagonal added.",
        advice="Calibrate with more text, or use rtn.",
    )


def quantize(weight_OI: torch.Tensor, *, gram_II: torch.Tensor, grid: Grid, settings: Settings) -> QuantizedWeight:
    """The integers of a weight, float32 [out, in], for inputs with the Gram matrix ``gram_II``."""
    if settings.activation_order:
        return _quantize_by_activation(weight_OI, gram_II=gram_II, grid=grid, settings=settings)
    in_features = weight_OI.shape[1]
    columns = grid.columns(in_features)
    free_IO = weight_OI.T.clone()
    groups = _Groups.adaptive(columns)
    q_IO = _round_columns(
        free_IO,
        upper_II=inverse_factor(gram_II, damping=settings.damping),
        groups=groups,
        grid=grid,
        block=_block(settings.block_columns, columns),
    )
    return groups.assemble(q_IO, columns=columns)


def _quantize_by_activation(
    weight_OI: torch.Tensor, *, gram_II: torch.Tensor, grid: Grid, settings: Settings
) -> QuantizedWeight:
    in_features = weight_OI.shape[1]
    columns = grid.columns(in_features)
    order_I = torch.argsort(gram_II.diagonal(), descending=True, stable=True)
    scales_OG, zeros_OG = rounding.fit(weight_OI.view(weight_OI.shape[0], -1, columns), grid=grid)
    groups = _Groups.static(scales_OG, zeros_OG, group_of_column=(order_I // columns).tolist())
    upper_II = inverse_factor(gram_II[order_I][:, order_I], damping=settings.damping)
    q_ordered_IO = _round_columns(
        weight_OI.T[order_I].clone(), upper_II=upper_II, groups=groups, grid=grid, block=settings.block_columns
    )
    q_IO = torch.empty_like(q_ordered_IO)
    q_IO[order_I] = q_ordered_IO
    return groups.assemble(q_IO, columns=columns)


def _block(block_columns: int, group_columns: int) -> int:
    """Columns of a block: a group lies inside one or starts with one, so its grid sees the errors of all before it."""
    fits = group_columns % block_columns == 0 or block_columns % group_columns == 0
    return block_columns if fits else group_columns


def _round_columns(
    free_IO: torch.Tensor, *, upper_II: torch.Tensor, groups: _Groups, grid: Grid, block: int
) -> torch.Tensor:
    """Integers uint8 [in, out] of ``free_IO``, which is used up."""
    in_features = free_IO.shape[0]
    q_IO = torch.empty(free_IO.shape, dtype=torch.uint8)
    for start in range(0, in_features, block):
        stop = min(start + block, in_features)
        errors_BO = torch.empty(stop - start, free_IO.shape[1])
        for column in range(start, stop):
            scales_O, zeros_O = groups.at(column, free_IO=free_IO, grid=grid)
            q_O, rounded_O = rounding.round_to(free_IO[column], scales=scales_O, zeros=zeros_O, grid=grid)
            q_IO[column] = q_O.to(torch.uint8)
            error_O = (free_IO[column] - rounded_O) / upper_II[column, column]
            errors_BO[column - start] = error_O
            free_IO[column + 1 : stop].addr_(upper_II[column, column + 1 : stop], error_O, alpha=-1)
        free_IO[stop:].addmm_(upper_II[start:stop, stop:].T, errors_BO, alpha=-1)
    return q_IO


class _Groups:
    """Scale and zero point of each group: known beforehand (static), or chosen when its first column is reached."""

    def __init__(self, columns: int, group_of_column: list[int] | None) -> None:
        self._columns = columns
        self._group_of_column = group_of_column
        self._scales: list[torch.Tensor] = []
        self._zeros: list[torch.Tensor] = []

    @classmethod
    def adaptive(cls, columns: int) -> _Groups:
        return cls(columns, None)

    @classmethod
    def static(cls, scales_OG: torch.Tensor, zeros_OG: torch.Tensor, *, group_of_column: list[int]) -> _Groups:
        groups = cls(0, group_of_column)
        groups._scales, groups._zeros = list(scales_OG.T.contiguous()), list(zeros_OG.T.contiguous())
        return groups

    def at(self, column: int, *, free_IO: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zero points [out] of a column; columns come in ascending order."""
        if self._group_of_column is not None:
            group = self._group_of_column[column]
        else:
            group = column // self._columns
            if group == len(self._scales):
                scales_O, zeros_O = rounding.fit(free_IO[column : column + self._columns].T, grid=grid)
                self._scales.append(scales_O)
                self._zeros.append(zeros_O)
        return self._scales[group], self._zeros[group]

    def assemble(self, q_IO: torch.Tensor, *, columns: int) -> QuantizedWeight:
        return QuantizedWeight(
            q_OI=q_IO.T.contiguous(),
            scales_OG=torch.stack(self._scales, dim=1),
            zeros_OG=torch.stack(self._zeros, dim=1).to(torch.uint8),
            group_size=columns,
        )
