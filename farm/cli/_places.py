"""Devices and hosts as people write them: the names that ``farm devices`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm.errors import NotFound, Usage

if TYPE_CHECKING:
    import sqlalchemy as sa

    from farm.lifecycle.steering import Place


def parse(connection: sa.Connection, text: str) -> Place:
    """The host ``box``, or the device ``PCIe Ultra/0``; ``box/PCIe Ultra/0`` where several hosts have one of that name.

    The end of a name is enough where it can only mean one: ``ultra/0``, or the device's number alone.

    Raises:
        Usage: several devices are called so.
        NotFound: nothing is called so.
    """
    from farm.lifecycle import steering

    known = steering.places(connection)
    for matches in (_is_name, _is_end):
        found = [place for place in known if matches(place, text)]
        if len(found) > 1:
            names = ", ".join(place.name for place in found)
            raise Usage(f"{len(found)} devices are called {text}, expected one of: {names}.")
        if found:
            return found[0]
    names = ", ".join(place.name for place in known) or "none"
    raise NotFound(f"There is no device and no host '{text}', expected one of: {names}.")


def _is_name(place: Place, text: str) -> bool:
    return place.name == text


def _is_end(place: Place, text: str) -> bool:
    """Whether the text is the name from a word of it on, in whatever case."""
    name, end = place.name.lower(), text.lower()
    return name == end or (bool(end) and place.device_id is not None and name.endswith((f" {end}", f"/{end}")))
