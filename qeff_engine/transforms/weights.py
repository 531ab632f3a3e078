"""Which bytes of a checkpoint belong to which tensor of a model, by the rules of transformers' own loader."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import conversion_mapping, core_model_loading

from qeff_engine import checkpoint
from qeff_engine.errors import InvalidInput
from qeff_engine.onnx_graph.arrangements import Arrangement, Part
from qeff_engine.onnx_graph.sources import Arranged, Made, Source, Stored
from qeff_engine.quantizers.checkpoint_files import CheckpointReader
from qeff_engine.safetensors_header import TensorPlace
from qeff_engine.transforms import pieces
from qeff_engine.transforms.arranging import Recorder

_NAMED = 3  # tensors named in a message


def sources_of(model: Any, *, snapshot: Path, taken: Iterable[str] = ()) -> dict[str, Source]:
    """The source of each tensor of the model's state, by the model's name.

    A tensor that is renamed, or a part of another, is :class:`Stored`; one that the loader puts together from several,
    such as stacked experts, is :class:`Arranged`; one that it computes is :class:`Made`. Names that a tied tensor has
    besides its own may be left out.

    Args:
        model: the model, on meta.
        snapshot: directory of the checkpoint.
        taken: tensors of the checkpoint that something else already uses.

    Raises:
        InvalidInput: a tensor is missing, has another shape, or is one that the model does not have.
    """
    index = checkpoint.safetensors_index(snapshot)
    state = dict(model.state_dict())
    found, unexpected = _assigned(model, index={name: index[name] for name in index if name not in set(taken)})
    sources: dict[str, Source] = {}
    reader: list[CheckpointReader] = []  # opened when a first tensor is made
    for target, (converter, keys) in found.items():
        if converter is None:
            sources[target] = Stored(place=index[keys[0][0]])
        else:
            made = _made(converter, keys, target=target, state=state, index=index, model=model)
            sources.update(made(lambda: _opened(reader, snapshot)))
    _refuse_unexpected(model, unexpected)
    _refuse_misshapen(sources, state=state)
    return sources


def require_complete(names: Iterable[str], *, model: Any) -> None:
    """Refuse tensors of the model that no source was found for.

    Raises:
        InvalidInput: the message names some.
    """
    optional = [r"^pooler\."] if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters else []
    pattern = _any_of([*(model._keys_to_ignore_on_load_missing or ()), *optional])
    missing = sorted(name for name in names if pattern is None or not pattern.search(name))
    if missing:
        raise InvalidInput(
            f"The checkpoint lacks {len(missing)} tensors of {type(model).__name__}: {_some(missing)}.",
            advice="Check that config.json belongs to these weights.",
        )


_Keys = list[tuple[str, str]]  # name in the checkpoint, pattern of the converter that it matched


def _assigned(model: Any, *, index: Mapping[str, TensorPlace]) -> tuple[dict[str, tuple[Any, _Keys]], list[str]]:
    """By name in the model: the converter, if any, and what goes into it. Also the names that go nowhere."""
    mapping = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [item for item in mapping if isinstance(item, core_model_loading.WeightRenaming)]
    converters = [item for item in mapping if isinstance(item, core_model_loading.WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, tuple[Any, _Keys]] = {}
    unexpected: list[str] = []
    for name in sorted(index, key=core_model_loading.dot_natural_key):
        target, pattern = core_model_loading.rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = core_model_loading.rename_source_key(name, [], [], prefix, state)
        if target not in state:
            unexpected.append(name)
        elif pattern is None:
            found[target] = (None, [(name, name)])
        else:
            found.setdefault(target, (by_pattern[pattern], []))[1].append((name, pattern))
    return found, unexpected


def _made(
    converter: Any, keys: _Keys, *, target: str, state: Mapping[str, Any], index: Mapping[str, TensorPlace], model: Any
) -> Callable[[Callable[[], CheckpointReader]], dict[str, Source]]:
    """The sources of what a converter makes; several when it splits one tensor."""
    recorder = Recorder()

    def noted(name: str) -> torch.Tensor:
        place = index[name]
        return recorder.note(torch.empty(place.shape, device="meta"), Part(name=name, place=place))

    try:
        with recorder:
            shapes = _converted(converter, keys, target=target, model=model, read=noted)
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        raise _refusal(keys, target=target, state=state, index=index) from error
    if target in shapes and target in state and shapes[target].shape != state[target].shape:
        raise _refusal(keys, target=target, state=state, index=index)
    found = {name: recorder.arrangement(empty) for name, empty in shapes.items()}

    def sources(reader: Callable[[], CheckpointReader]) -> dict[str, Source]:
        def make(name: str) -> torch.Tensor:
            made = _converted(converter, keys, target=target, model=model, read=lambda key: reader().tensor(key))
            return made[name].contiguous()

        dtype = index[keys[0][0]].dtype
        return {
            name: _arranged(found[name])
            or Made(dtype=dtype, shape=tuple(empty.shape), make=functools.partial(make, name))
            for name, empty in shapes.items()
            if name in state
        }

    return sources


def _refusal(keys: _Keys, *, target: str, state: Mapping[str, Any], index: Mapping[str, TensorPlace]) -> InvalidInput:
    groups: dict[str, list[str]] = {}
    for name, pattern in keys:
        groups.setdefault(pattern, []).append(name)
    shapes = {name: index[name].shape for name, _ in keys}
    return pieces.refusal(target, groups=groups, shapes=shapes, expected=tuple(state[target].shape))


def _arranged(arrangement: Arrangement | None) -> Source | None:
    if arrangement is None:
        return None
    return Stored(place=arrangement.place) if isinstance(arrangement, Part) else Arranged(arrangement=arrangement)


def _converted(
    converter: Any, keys: _Keys, *, target: str, model: Any, read: Callable[[str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    working = copy.deepcopy(converter)
    for name, pattern in keys:
        working.add_tensor(target, name, pattern, functools.partial(read, name))
    made = working.convert(target, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _opened(reader: list[CheckpointReader], snapshot: Path) -> CheckpointReader:
    if not reader:
        reader.append(CheckpointReader(snapshot))
    return reader[0]


def _refuse_unexpected(model: Any, unexpected: list[str]) -> None:
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]
    pattern = _any_of(patterns)
    assert pattern is not None
    extra = [name for name in unexpected if not pattern.search(name)]
    if extra and not _is_base_of_another(model):
        raise InvalidInput(
            f"The checkpoint has {len(extra)} tensors that {type(model).__name__} does not have: {_some(extra)}.",
            advice="Check that config.json belongs to these weights.",
        )


def _is_base_of_another(model: Any) -> bool:
    """Whether the checkpoint is of a class with a head and the model is the base below it, as encoders often are."""
    architectures = getattr(model.config, "architectures", None) or ()
    return not hasattr(model, model.base_model_prefix) and type(model).__name__ not in architectures


def _refuse_misshapen(sources: Mapping[str, Source], *, state: Mapping[str, Any]) -> None:
    for name, source in sources.items():
        expected = tuple(state[name].shape)
        if source.shape != expected:
            raise InvalidInput(
                f"Tensor {name} has the shape {list(source.shape)}, expected {list(expected)}.",
                advice="Check that config.json belongs to these weights.",
            )


def _any_of(patterns: Iterable[str] | None) -> re.Pattern[str] | None:
    listed = list(patterns or ())
    return re.compile("|".join(f"(?:{pattern})" for pattern in listed)) if listed else None


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def same_bytes(snapshot: Path, first: Source, second: Source) -> bool:
    """Whether two stored tensors are equal; never for one that is made."""
    if not (isinstance(first, Stored) and isinstance(second, Stored)):
        return False
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return _digest(snapshot, first.place) == _digest(snapshot, second.place)


def _digest(snapshot: Path, place: TensorPlace) -> bytes:
    digest = hashlib.sha256()
    with (snapshot / place.file).open("rb") as stream:
        stream.seek(place.offset)
        left = place.nbytes
        while left:
            piece = stream.read(min(left, 1 << 24))
            digest.update(piece)
            left -= len(piece)
    return digest.digest()
