"""Driver and simulated compiler were written apart from the same documents: what they say about flags is the same."""

from __future__ import annotations

import pytest

from qeff_engine.compiler_flags import table, values
from qeff_engine.simulated_sdk import flags
from qeff_engine.simulated_sdk.options import MAX_CORES


def of_the_driver(kind: values.Kind) -> tuple[object, ...]:
    """What a flag takes, in words that both sides can be put into."""
    match kind:
        case values.Bare():
            return ("nothing",)
        case values.Switch():
            return ("on or off",)
        case values.Integer(least, most):
            return "integer", least, most
        case values.Decimal(least, most):
            return "number", least, most
        case values.Numbers():
            return ("numbers",)
        case values.Choice(words):
            return "word", frozenset(words)
        case values.Names(most):
            return "names", most
    return ("text",)


def of_the_simulated_compiler(form: flags.Form) -> tuple[object, ...]:
    if form.takes in ("integer", "number"):
        return form.takes, form.least, form.most
    if form.takes == "word":
        return ("on or off",) if "true" in form.words else ("word", frozenset(form.words))
    if form.takes == "names":
        return "names", form.most
    return ("text" if form.takes == "symbol" else form.takes,)


def test_both_know_the_same_flags() -> None:
    assert set(table.FLAGS) | set(table.ALIASES) == set(flags.FLAGS)


@pytest.mark.parametrize("name", sorted({*table.FLAGS, *table.ALIASES}))
def test_both_say_the_same_about_the_values_of_a_flag(name: str) -> None:
    flag = table.FLAGS[table.ALIASES.get(name, name)]
    assert of_the_driver(flag.kind) == of_the_simulated_compiler(flags.FLAGS[name])


def test_both_know_how_many_cores_a_device_has() -> None:
    assert table.MOST_CORES["ai100"] == MAX_CORES
