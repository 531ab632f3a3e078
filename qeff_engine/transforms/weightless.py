"""A model of a snapshot without its weights: every weight is a shape and a source, so that a graph can be traced.

Tensors that code computes, such as RoPE frequencies, are real. Quantized linears are stand-ins (see
:mod:`qeff_engine.quantizers.reading`) whose tensors have sources like any other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from qeff_engine import checkpoint
from qeff_engine.architectures import buffers, classes
from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.onnx_graph.sources import Made, Source
from qeff_engine.quantizers import reading
from qeff_engine.transforms import weights

_WITH_SPARE_VALUE = (torch.int64, torch.int32, torch.int16)
_LARGEST_BUFFER_BYTES = 2 << 30  # of a table that code computes: rotary frequencies, triangular masks
_NAMES_OF_NODE_TENSORS = {"qweight": "U8", "qzeros": "U8", "scales": "F32", "order": "I64"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightlessModel:
    """A model ready to be traced.

    Attributes:
        module: the transformers model with eager attention, in ``eval`` mode; weights are fake tensors of float32 (or
            integers, in quantized linears).
        fake_mode: the mode that inputs of a trace must be made in.
        sources: where each weight comes from, by its name in ``module``; a tied weight has one entry.
        snapshot: directory of the checkpoint.
    """

    module: Any
    fake_mode: FakeTensorMode
    sources: Mapping[str, Source]
    snapshot: Path

    @property
    def config(self) -> Any:
        """The config object of transformers."""
        return self.module.config

    @property
    def num_parameters(self) -> int:
        """Elements of all weights, tied ones once; a packed byte counts as one."""
        return sum(tensor.numel() for tensor in {id(item): item for item in self.module.parameters()}.values())

    def names(self, root: nn.Module) -> dict[str, str]:
        """The name in :attr:`module` of each weight of ``root``, a module that contains it, by the name in ``root``."""
        by_id: dict[int, str] = {}
        for name, tensor in named_weights(self.module):
            if name in self.sources:
                by_id.setdefault(id(tensor), name)
        return {name: by_id[id(tensor)] for name, tensor in named_weights(root) if id(tensor) in by_id}


def load(snapshot: Path, *, task: str) -> WeightlessModel:
    """The model of a snapshot for a task of :data:`qeff_engine.spec.TASKS`.

    Raises:
        InvalidInput: a tensor is missing, misshapen or not the model's, or the config has sizes that cannot be true.
        Unsupported: transformers does not know the architecture, or the weights are quantized in an unknown way.
    """
    classes.require_possible(checkpoint.config(snapshot), num_tensors=len(checkpoint.safetensors_index(snapshot)))
    module = classes.empty_model(classes.load_config(snapshot), task=task)
    quantized, taken = _stand_ins(module, snapshot=snapshot)
    stored = weights.sources_of(module, snapshot=snapshot, taken=taken)
    _tie(module, sources=stored, snapshot=snapshot)
    sources: dict[str, Source] = {**stored, **quantized}
    _compute_buffers(module, kept=set(sources))
    fake_mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    _make_fake(module, fake_mode=fake_mode, kept=set(sources))
    _refuse_missing(module, sources)
    return WeightlessModel(module=module.requires_grad_(False), fake_mode=fake_mode, sources=sources, snapshot=snapshot)


def named_weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name, shared ones with each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def fake_weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of :func:`named_weights` that have no values."""
    return ((name, tensor) for name, tensor in named_weights(module) if is_fake(tensor))


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a shape but no values."""
    return isinstance(tensor, FakeTensor) or isinstance(getattr(tensor, "data", None), FakeTensor)


def _stand_ins(module: Any, *, snapshot: Path) -> tuple[dict[str, Source], set[str]]:
    """Replace quantized linears; sources of their tensors, and the tensors of the checkpoint that they use."""
    scheme = reading.scheme_of(checkpoint.config(snapshot))
    if scheme is None:
        return {}, set()
    quantized = reading.QuantizedCheckpoint(snapshot, scheme=scheme)
    replaced = reading.replace_linears(module, quantized)
    sources: dict[str, Source] = {}
    taken: set[str] = set()
    for name, original in replaced.items():
        taken.update(f"{original}.{suffix}" for suffix in reading.SUFFIXES)
        for suffix, buffer in module.get_submodule(name).named_buffers():
            sources[f"{name}.{suffix}"] = Made(
                dtype=_NAMES_OF_NODE_TENSORS[suffix],
                shape=tuple(buffer.shape),
                make=functools.partial(quantized.tensor, original, suffix),
            )
    return sources, taken


def _tie(module: Any, *, sources: dict[str, Source], snapshot: Path) -> None:
    """Undo ties of the config that the checkpoint contradicts, and drop second names of tied weights."""
    for target, origin in dict(module.all_tied_weights_keys).items():
        if target not in sources or origin not in sources:
            continue
        if weights.same_bytes(snapshot, sources[origin], sources[target]):
            del sources[target]
            continue
        parent, _, name = target.rpartition(".")
        tied = module.get_parameter(target)
        module.get_submodule(parent).register_parameter(name, nn.Parameter(torch.empty_like(tied)))


def _compute_buffers(module: Any, *, kept: set[str]) -> None:
    """Give values to the buffers that code computes: in the constructor, or as transformers' loader does after meta.

    Raises:
        InvalidInput: one of them would fill the memory.
        Unsupported: nothing computes one of them.
    """
    empty = [
        (path, owner, name)
        for path, owner in module.named_modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if buffer.device.type == "meta" and (f"{path}.{name}" if path else name) not in kept
    ]
    for path, owner, name in empty:
        _refuse_too_large(owner._buffers[name], name=f"{path}.{name}")
    known = buffers.constructed(module) if empty else {}
    for path, owner, name in empty:
        found = known.get(f"{path}.{name}" if path else name)
        owner._buffers[name] = _uncomputed(owner._buffers[name]) if found is None else found
    with torch.no_grad():
        for path in dict.fromkeys(path for path, _, _ in empty):
            _innermost_model(module, path)._init_weights(module.get_submodule(path))
        for path, owner, name in empty:
            around = path
            # A model may compute a buffer once for all of its layers.
            while around and _is_uncomputed(owner._buffers[name]):
                around = around.rpartition(".")[0]
                _innermost_model(module, around)._init_weights(module.get_submodule(around))
            if _is_uncomputed(owner._buffers[name]):
                raise Unsupported(
                    f"The tensor {path}.{name} of {type(module).__name__} is neither in the checkpoint nor computed by "
                    "the model's code."
                )


def _uncomputed(like: torch.Tensor) -> torch.Tensor:
    """A tensor that shows when nothing was written into it, but for types that have no value to spare."""
    value: Any = 0
    if like.is_floating_point():
        value = torch.nan
    elif like.dtype in _WITH_SPARE_VALUE:
        value = torch.iinfo(like.dtype).min
    return torch.full(like.shape, value, dtype=like.dtype)


def _is_uncomputed(buffer: torch.Tensor) -> bool:
    if buffer.numel() == 0:
        return False
    if buffer.is_floating_point():
        return bool(buffer.isnan().all())
    return buffer.dtype in _WITH_SPARE_VALUE and bool((buffer == torch.iinfo(buffer.dtype).min).all())


def _refuse_too_large(buffer: Any, *, name: str) -> None:
    num_bytes = buffer.numel() * buffer.element_size()
    if num_bytes > _LARGEST_BUFFER_BYTES:
        raise InvalidInput(
            f"The config asks for the table {name} of the shape {list(buffer.shape)}, which takes {num_bytes} bytes, "
            f"expected at most {_LARGEST_BUFFER_BYTES}.",
            advice="Check the sizes in config.json.",
        )


def _innermost_model(module: Any, path: str) -> Any:
    """The model around a submodule that knows its buffers: a vision tower in a larger model has its own rules."""
    parts = path.split(".")
    around = (module.get_submodule(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    return next((item for item in around if hasattr(item, "_init_weights")), module)


def _make_fake(module: nn.Module, *, fake_mode: FakeTensorMode, kept: set[str]) -> None:
    """Put fake tensors in the places of those on meta; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with fake_mode:
                made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return made[id(tensor)]

    parameters: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                if id(parameter) not in parameters:
                    parameters[id(parameter)] = nn.Parameter(fake(parameter), requires_grad=False)
                owner._parameters[name] = parameters[id(parameter)]
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                owner._buffers[name] = fake(buffer)


def _refuse_missing(module: Any, sources: Mapping[str, Source]) -> None:
    by_id: dict[int, list[str]] = {}
    for name, tensor in fake_weights(module):
        by_id.setdefault(id(tensor), []).append(name)
    missing = [names[0] for names in by_id.values() if not any(name in sources for name in names)]
    weights.require_complete(missing, model=module)
