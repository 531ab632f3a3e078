"""Which :class:`~qeff_engine.architectures.form.Architecture` there are: modules of this package, and entry points.

A module beside this one that has an ``ARCHITECTURE`` is found by itself. A distribution adds one from outside with an
entry point of the group :data:`GROUP`, called like the ``model_type``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Any

from qeff_engine import architectures, patching
from qeff_engine.architectures import form
from qeff_engine.architectures.form import Architecture
from qeff_engine.errors import InvalidInput, Unsupported

GROUP = "qeff_engine.architectures"


def of_model_type(model_type: str) -> Architecture | None:
    """What is said of an architecture; an entry point goes before our own. None when the generic rules are enough.

    Raises:
        InvalidInput: an entry point of this name gives something else than an architecture of this name.
    """
    for entry in importlib.metadata.entry_points(group=GROUP, name=model_type):
        return _loaded(entry)
    return _own().get(model_type)


def from_outside() -> dict[str, str]:
    """Name and version of the distribution that adds an architecture, by ``model_type``."""
    entries = importlib.metadata.entry_points(group=GROUP)
    return {entry.name: f"{entry.dist.name} {entry.dist.version}" for entry in entries if entry.dist is not None}


@contextlib.contextmanager
def applied(config: Any) -> Iterator[None]:
    """Put the replacements of a config's architectures in place, for the time of a block.

    Args:
        config: of transformers; the configs inside it count, too.

    Raises:
        InvalidInput: a replacement names something that is not there.
        Unsupported: one of the architectures is known to come out wrong.
    """
    found = [item for name in _model_types(config) if (item := of_model_type(name)) is not None]
    for item in found:
        if item.unsupported:
            raise Unsupported(f"'{config.model_type}' cannot be exported: {item.unsupported}")
    with patching.attributes(_changes(found)):
        yield


def _changes(found: Iterable[Architecture]) -> list[tuple[Any, str, Any]]:
    places = {old: new for item in found for old, new in item.replacements.items()}
    return [(*form.owner_and_name(old), form.find(new)) for old, new in places.items()]


def _model_types(config: Any) -> list[str]:
    inner = [getattr(config, name, None) for name in config.sub_configs]
    names = (getattr(item, "model_type", None) for item in (config, *inner))
    return list(dict.fromkeys(name for name in names if name))


@functools.cache
def _own() -> dict[str, Architecture]:
    modules = [
        importlib.import_module(f"{architectures.__name__}.{item.name}")
        for item in pkgutil.iter_modules(architectures.__path__)
    ]
    found = [vars(module)["ARCHITECTURE"] for module in modules if "ARCHITECTURE" in vars(module)]
    return {name: item for item in found for name in item.model_types}


def _loaded(entry: importlib.metadata.EntryPoint) -> Architecture:
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise InvalidInput(
            f"The entry point {entry.name} of the group {GROUP} cannot be loaded: {error}.",
            advice=f"Repair the distribution that has it: {entry.value}.",
        ) from error
    if not isinstance(found, Architecture) or entry.name not in found.model_types:
        raise InvalidInput(
            f"The entry point {entry.name} of the group {GROUP} gives {found!r}, expected an Architecture with "
            f"'{entry.name}' among its model_types.",
            advice="See docs/adding-architectures.md.",
        )
    return found
