"""What can be said of one architecture where the generic rules are not enough: data alone. Standard library only.

A *place* names something in Python code without importing it: ``package.module:Class.attribute``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from qeff_engine.errors import InvalidInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """What architectures of these names need.

    Attributes:
        model_types: names, as ``model_type`` of a config says them.
        config_class: place of the config class, for an architecture that transformers does not know; else empty.
        model_classes: place of the model class by task of :data:`qeff_engine.spec.TASKS`, with ``config_class``.
        replacements: place of the code that takes the place of another while a graph is traced, by the place of that
            other one. Code must be replaced where torch cannot follow it, or where it counts on being called without
            padding; what replaces it has the same signature and gives the same values.
        unsupported: why a graph of this architecture would be wrong, if so; it is then refused.
    """

    model_types: tuple[str, ...]
    config_class: str = ""
    model_classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    replacements: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unsupported: str = ""


def owner_and_name(place: str) -> tuple[Any, str]:
    """The object that has what a place names as an attribute, and the attribute's name.

    Raises:
        InvalidInput: there is nothing at the place.
    """
    module, _, path = place.partition(":")
    *parents, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        getattr(owner, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(
            f"There is nothing at {place}: {error}.",
            advice="A place is written package.module:Class.attribute; see docs/adding-architectures.md.",
        ) from error
    return owner, name


def find(place: str) -> Any:
    """What a place names.

    Raises:
        InvalidInput: there is nothing at the place.
    """
    return getattr(*owner_and_name(place))
