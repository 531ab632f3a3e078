"""Quantized checkpoints as an exporter needs them: stand-in modules on meta, and the tensors of their nodes.

A quantized linear becomes one ``com.microsoft::MatMulNBits`` node. Its tensors are a repacking of the checkpoint's
integers (nothing is rounded again), made one module at a time when they are asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.quantizers import base, packing
from qeff_engine.quantizers.checkpoint_files import CheckpointReader
from qeff_engine.quantizers.packing import Array

MATMUL_NBITS = "com.microsoft::MatMulNBits"
OPSET_VERSION = 1  # of com.microsoft
_PACKED = "qweight"
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """What ``quantization_config`` says, of what matters for reading.

    Attributes:
        layout: :data:`qeff_engine.quantizers.base.GPTQ_LAYOUT` or :data:`qeff_engine.quantizers.base.AWQ_LAYOUT`.
        group_size: input columns that share a scale; -1 for the whole row.
        zero_offset: what the layout takes off zero points before it stores them.
        has_order: groups may be out of order, as ``g_idx`` says.
    """

    layout: str
    group_size: int
    zero_offset: int
    has_order: bool


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """How a model's weights are quantized; None when ``config`` (of ``config.json``) says nothing of it.

    Raises:
        Unsupported: by a method, or with options, that cannot be read.
    """
    settings = config.get("quantization_config")
    if not settings:
        return None
    method = settings.get("quant_method")
    if method not in (base.GPTQ_LAYOUT, base.AWQ_LAYOUT):
        raise Unsupported(
            f"The checkpoint is quantized with '{method}', expected gptq or awq.",
            advice="Start from the float checkpoint and quantize it with --quantize.",
        )
    _require(settings, "bits", 4, (4,))
    if method == base.AWQ_LAYOUT:
        _require(settings, "version", "gemm", ("gemm", "GEMM"))
        zero_offset = 0
    else:
        known = ("gptq", "gptq_v2")
        written = _require(settings, "checkpoint_format", settings.get("format", "gptq"), known)
        zero_offset = 1 if written == "gptq" else 0
    return Scheme(
        layout=method,
        group_size=settings.get("group_size", 128),
        zero_offset=zero_offset,
        has_order=bool(settings.get("desc_act", False)),
    )


def _require(settings: Mapping[str, Any], key: str, default: Any, known: tuple[Any, ...]) -> Any:
    value = settings.get(key, default)
    if value not in known:
        raise Unsupported(
            f"quantization_config has {key} {value!r}, expected {' or '.join(map(repr, known))}.",
            advice="Start from the float checkpoint and quantize it with --quantize.",
        )
    return value


class MatMulNBitsLinear(nn.Module):
    """Stands in for a quantized linear while a graph is made: its forward is one symbolic node (and a bias).

    Attributes:
        qweight: uint8 [out, blocks, block/2].
        scales: float32 [out, blocks].
        qzeros: uint8 [out, ceil(blocks/2)].
        order: int64 [in] when columns are in another order than the input's channels, else None.
        bias: as in the linear it replaces.
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    qzeros: torch.Tensor
    order: torch.Tensor | None

    def __init__(
        self, *, in_features: int, out_features: int, block_size: int, has_order: bool, bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.block_size = in_features, out_features, block_size
        blocks = -(-in_features // block_size)
        self.register_buffer("qweight", _meta(out_features, blocks, block_size // 2, dtype=torch.uint8))
        self.register_buffer("scales", _meta(out_features, blocks, dtype=torch.float32))
        self.register_buffer("qzeros", _meta(out_features, -(-blocks // 2), dtype=torch.uint8))
        self.register_buffer("order", _meta(in_features, dtype=torch.int64) if has_order else None)
        self.bias = bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs [..., out] of ``inputs`` [..., in], of the right shape and type but without values."""
        if self.order is not None:
            inputs = inputs.index_select(-1, self.order)
        outputs = torch.onnx.ops.symbolic(
            MATMUL_NBITS,
            (inputs, self.qweight, self.scales, self.qzeros),
            {"K": self.in_features, "N": self.out_features, "bits": 4, "block_size": self.block_size},
            dtype=inputs.dtype,
            shape=(*inputs.shape[:-1], self.out_features),
            version=OPSET_VERSION,
        )
        return outputs if self.bias is None else outputs + self.bias


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class QuantizedCheckpoint:
    """A directory with quantized weights.

    Attributes:
        scheme: how they are quantized.
        modules: names of the quantized linears, as the checkpoint spells them.
    """

    def __init__(self, directory: Path, *, scheme: Scheme) -> None:
        self.scheme = scheme
        self._reader = CheckpointReader(directory)
        self.modules = [name.removesuffix("." + _PACKED) for name in self._reader.names if name.endswith("." + _PACKED)]
        if not self.modules:
            raise InvalidInput(
                f"config.json says {scheme.layout}, but {directory} has no tensor named *.{_PACKED}.",
                advice="Check that all its .safetensors files are there.",
            )
        self._last: tuple[str, packing.MatMulNBits] | None = None

    def integers(self, module: str) -> packing.Integers:
        """The integers of a quantized linear."""
        parts = {suffix: self._reader.array(f"{module}.{suffix}") for suffix in SUFFIXES if self._has(module, suffix)}
        missing = [suffix for suffix in ("qzeros", "scales") if suffix not in parts]
        if missing:
            raise InvalidInput(
                f"{module} has no {' and no '.join(missing)} in the checkpoint, expected it beside qweight."
            )
        group_size = self.scheme.group_size
        if self.scheme.layout == base.AWQ_LAYOUT:
            return packing.unpack_awq(
                qweight=parts["qweight"], qzeros=parts["qzeros"], scales=parts["scales"], group_size=group_size
            )
        return packing.unpack_gptq(
            qweight=parts["qweight"],
            qzeros=parts["qzeros"],
            scales=parts["scales"],
            g_idx=parts.get("g_idx"),
            group_size=group_size,
            zero_offset=self.scheme.zero_offset,
        )

    def matmul_nbits(self, module: str) -> packing.MatMulNBits:
        """The tensors of a quantized linear's node. Those of the last module asked for are kept.

        Raises:
            Unsupported: its groups do not fit blocks of the node; the message names it.
        """
        if self._last is None or self._last[0] != module:
            tensors = packing.to_matmul_nbits(self.integers(module), name=module)
            if tensors.order_I is not None and not self.scheme.has_order:
                raise Unsupported(f"{module} has a g_idx that is out of order, but config.json says desc_act false.")
            self._last = (module, tensors)
        return self._last[1]

    def tensor(self, module: str, suffix: str) -> Array:
        """One tensor of a node, by the name it has in :class:`MatMulNBitsLinear`."""
        tensors = self.matmul_nbits(module)
        if suffix == "order":
            # The stand-in was made before g_idx was read; one that is in order after all changes nothing.
            order_I = tensors.order_I
            return (
                packing.sequential_groups(tensors.in_features, group_size=1).astype("int64")
                if order_I is None
                else order_I
            )
        return {"qweight": tensors.qweight_OBb, "scales": tensors.scales_OB, "qzeros": tensors.qzeros_Oz}[suffix]

    def stand_in(self, module: str, *, bias: nn.Parameter | None) -> MatMulNBitsLinear:
        """The module to put in the place of a linear; reads no weights, only shapes."""
        rows, columns = self._reader.info(f"{module}.{_PACKED}").shape
        words = packing.NIBBLES
        is_awq = self.scheme.layout == base.AWQ_LAYOUT
        in_features, out_features = (rows, columns * words) if is_awq else (rows * words, columns)
        return MatMulNBitsLinear(
            in_features=in_features,
            out_features=out_features,
            block_size=packing.block_size(in_features, group_size=self.scheme.group_size, name=module),
            has_order=self.scheme.has_order,
            bias=bias,
        )

    def _has(self, module: str, suffix: str) -> bool:
        return f"{module}.{suffix}" in self._reader


def replace_linears(model: nn.Module, checkpoint: QuantizedCheckpoint) -> dict[str, str]:
    """Put stand-ins in the place of the quantized linears of a model on meta.

    Returns:
        the checkpoint's name of each quantized linear, by its name in the model.

    Raises:
        Unsupported: the checkpoint quantizes something that is no linear of the model.
    """
    prefix = getattr(model, "base_model_prefix", "")
    replaced: dict[str, str] = {}
    for module in checkpoint.modules:
        found = next(_linears(model, _spellings(module, prefix)), None)
        if found is None:
            raise Unsupported(
                f"The checkpoint quantizes {module}, which is no linear of {type(model).__name__}.",
                advice="Start from the float checkpoint and quantize it with --quantize.",
            )
        name, linear = found
        stand_in = checkpoint.stand_in(module, bias=linear.bias)
        model.set_submodule(name, stand_in.train(linear.training))
        replaced[name] = module
    return replaced


def _spellings(module: str, prefix: str) -> Iterator[str]:
    """A checkpoint's name as the model may know it: with or without the prefix of the bare model."""
    yield module
    if prefix:
        yield f"{prefix}.{module}"
        yield module.removeprefix(prefix + ".")


def _linears(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, nn.Linear]]:
    """Those of the names that are linears of the model, with them."""
    for name in names:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear):
            yield name, module
