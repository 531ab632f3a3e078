"""Devices and hosts as people write them: the names that ``farm devices`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm.errors import NotFound, Usage

if TYPE_CHECKING:
    import sqlalchemy as sa

    from farm.steering import Place


def parse(connection: sa.Connection, text: str) -> Place:
    """The host ``box``, or the device ``ultra/0``; ``box/ultra/0`` where several hosts have a device of that name.

    Raises:
        Usage: devices of several hosts have that name.
        NotFound: nothing has it.
    """
    from farm import steering

    known = steering.places(connection)
    found = [place for place in known if place.name == text]
    if not found:
        several = [place.name for place in known if place.name.endswith(f"/{text}")]
        if several:
            raise Usage(f"{len(several)} devices are called {text}, expected one of: {', '.join(several)}.")
        names = ", ".join(place.name for place in known) or "none"
        raise NotFound(f"There is no device and no host '{text}', expected one of: {names}.")
    return found[0]
