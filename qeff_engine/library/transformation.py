"""``transform`` in its two forms: of an object, and of a class with a loaded model as Qualcomm's library has it."""

from __future__ import annotations

from typing import Any, Generic, Protocol, Self, TypeVar, overload

FORM_FACTORS = ("cloud",)


class Transformable(Protocol):
    """A public class: it can wrap a loaded model."""

    @classmethod
    def of_loaded(cls, model: Any) -> Self:
        """The object for a loaded transformers model."""


_Model = TypeVar("_Model", bound=Transformable)


class Transformation:
    """Descriptor: ``model.transform(form_factor=...)`` and ``Class.transform(model, form_factor=...)``."""

    @overload
    def __get__(self, instance: None, owner: type[_Model]) -> _OfClass[_Model]: ...

    @overload
    def __get__(self, instance: _Model, owner: type[_Model]) -> _OfObject[_Model]: ...

    def __get__(self, instance: _Model | None, owner: type[_Model]) -> _OfClass[_Model] | _OfObject[_Model]:
        return _OfClass(owner) if instance is None else _OfObject(instance)


class _OfObject(Generic[_Model]):
    """``transform`` of an object."""

    def __init__(self, instance: _Model) -> None:
        self._instance = instance

    def __call__(self, form_factor: str = "cloud") -> _Model:
        """Say for which kind of card the model is; its graph is rewritten when it is exported.

        Returns:
            The object itself.

        Raises:
            ValueError: there is no such form factor.
        """
        _require_known(form_factor)
        return self._instance


class _OfClass(Generic[_Model]):
    """``transform`` of a class."""

    def __init__(self, owner: type[_Model]) -> None:
        self._owner = owner

    def __call__(self, model: Any, form_factor: str = "cloud") -> _Model:
        """The object for a model: a loaded transformers model, or an object of ours, which is returned as it is.

        Raises:
            ValueError: there is no such form factor.
            EngineError: the class cannot do this model.
        """
        _require_known(form_factor)
        return self._owner.of_loaded(model)


def _require_known(form_factor: str) -> None:
    if form_factor not in FORM_FACTORS:
        raise ValueError(f"form_factor is {form_factor!r}, expected one of: {', '.join(FORM_FACTORS)}.")
