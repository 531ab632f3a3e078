"""Which of many tensors of a checkpoint is to blame when a tensor of the model cannot be put together from them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from qeff_engine.errors import InvalidInput

_ADVICE = "Check that config.json belongs to these weights."
Shape = tuple[int, ...]


def refusal(
    target: str, *, groups: Mapping[str, Sequence[str]], shapes: Mapping[str, Shape], expected: Shape
) -> InvalidInput:
    """The error that names the piece which is missing, not expected or misshapen.

    Args:
        target: the model's tensor.
        groups: names of its pieces, by what they are (gates, for example); numbered, as experts are.
        shapes: of the pieces.
        expected: shape of the model's tensor; the first size is the number of pieces of a group.
    """
    for names in groups.values():
        usual, _ = Counter(shapes[name] for name in names).most_common(1)[0]
        odd = [name for name in names if shapes[name] != usual]
        if odd:
            return InvalidInput(
                f"Tensor {odd[0]} has the shape {list(shapes[odd[0]])}, expected {list(usual)} as of the others that "
                f"become {target}.",
                advice=_ADVICE,
            )
    for names in groups.values():
        by_number = _numbered(names)
        missing = [number for number in range(expected[0]) if number not in by_number]
        extra = [name for number, name in by_number.items() if number >= expected[0]]
        if by_number and missing:
            lacked = _with_number(names, missing[0])
            return InvalidInput(f"The checkpoint lacks {lacked}, a part of {target}.", advice=_ADVICE)
        if extra:
            return InvalidInput(
                f"The checkpoint has {extra[0]}, expected {expected[0]} such parts of {target}.", advice=_ADVICE
            )
    some = next(iter(groups.values()))[0]
    return InvalidInput(
        f"Tensor {target}, which is made of {some} and others, cannot have the shape {list(expected)}.", advice=_ADVICE
    )


def _numbered(names: Sequence[str]) -> dict[int, str]:
    """The names by the number that tells them apart; empty when none does."""
    place = _place_of_number(names)
    return {} if place is None else {int(_split(name)[place]): name for name in names}


def _with_number(names: Sequence[str], number: int) -> str:
    """The name that another number would give."""
    words = _split(names[0])
    place = _place_of_number(names)
    assert place is not None
    words[place] = str(number)
    return "".join(words)


def _place_of_number(names: Sequence[str]) -> int | None:
    split = [_split(name) for name in names]
    if len({len(words) for words in split}) != 1:
        return None
    varying = [place for place, words in enumerate(zip(*split, strict=True)) if len(set(words)) > 1]
    return varying[0] if len(varying) == 1 and split[0][varying[0]].isdigit() else None


def _split(name: str) -> list[str]:
    return re.split(r"(\d+)", name)
