"""Flags of the compiler as the public classes take them."""

from __future__ import annotations

from collections.abc import Mapping

from qeff_engine.compiler_flags import asking
from qeff_engine.errors import InvalidInput


def asked(
    options: Mapping[str, object] | None, *, mos: int | None, ols: int | None, aic_enable_depth_first: bool | None
) -> dict[str, object]:
    """All flags that a call of ``compile`` asks for, by name, files as their texts.

    Raises:
        InvalidInput: one is given both by itself and among ``options``, or a file cannot be read.
    """
    named = {"mos": mos, "ols": ols, "aic-enable-depth-first": aic_enable_depth_first}
    found: dict[str, object] = {name: value for name, value in named.items() if value is not None}
    for word, value in (options or {}).items():
        name = asking.name_of(word)
        if name in found:
            raise InvalidInput(f"The compiler option {name} is given twice, expected each once.")
        found[name] = value
    return asking.with_files(found)
