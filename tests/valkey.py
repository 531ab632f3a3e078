"""A real Valkey server for tests, and a wire to it that can be stalled, broken and cut."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from farm.home import valkey

LIMIT_S = 30.0  # a deadline, not a measurement


@dataclasses.dataclass
class Server:
    """A server on a TCP port of this host.

    Attributes:
        port: where it listens.
        acl: the lines of its file of users; empty for none.
    """

    directory: Path
    port: int
    acl: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty, and return when it answers."""
        command = [
            valkey.binary(),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--loglevel",
            "warning",
        ]
        if self.acl:
            path = self.directory / "users.acl"
            path.write_text(self.acl)
            command += ["--aclfile", str(path)]
        self.process = subprocess.Popen(list(map(str, command)), cwd=self.directory, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + LIMIT_S
        while not self._answers():
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once; what it held is lost."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def ask(self, *words: str, user: str = "default", password: str = "") -> str:
        """What the server answers to a command: everything that comes at once."""
        commands = [f"AUTH {user} {password}"] if password else []
        commands.append(" ".join(words))
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S) as connection:
            for command in commands:
                connection.sendall(command.encode() + b"\r\n")
                answer = connection.recv(1 << 20)
        return answer.decode()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("PING"))
        return False


@contextlib.contextmanager
def server(directory: Path, *, acl: str = "") -> Iterator[Server]:
    """A server that runs until the block ends."""
    found = Server(directory=directory, port=free_port(), acl=acl)
    found.start()
    try:
        yield found
    finally:
        found.kill()


def free_port() -> int:
    """A TCP port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Wire:
    """A TCP proxy in front of a server: it passes bytes on until it is told to do harm.

    Args:
        target: port of the server.
        tls: speak TLS with clients, and none with the server.
    """

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._tls = tls
        self._flowing = threading.Event()
        self._flowing.set()
        self._cut = False
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lost: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Pass nothing on, and lose nothing: what comes meanwhile arrives after :meth:`heal`."""
        self._flowing.clear()

    def lose(self) -> None:
        """Swallow for ever what the connections of this moment carry, and let neither side know."""
        with self._lock:
            self._lost.update(side for pair in self._pairs for side in pair)

    def cut(self) -> None:
        """Reset all connections and take no new ones."""
        self._cut = True
        self._close_all()

    def heal(self) -> None:
        """Do no more harm."""
        self._cut = False
        self._flowing.set()

    def close(self) -> None:
        """End the proxy."""
        self._flowing.set()
        self._listener.close()
        self._close_all()

    @property
    def num_connections(self) -> int:
        """How many connections carry something."""
        with self._lock:
            return len([pair for pair in self._pairs if pair[0] not in self._lost])

    def _close_all(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for side in pair:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                client.close()
                continue
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        pair = (client, server)
        with self._lock:
            self._pairs.append(pair)
        for source, target in (pair, pair[::-1]):
            threading.Thread(target=self._pump, args=(source, target, pair), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(1 << 16):
                self._flowing.wait()
                if source not in self._lost:
                    target.sendall(some)
        if source in self._lost:
            return  # the other side must not hear that it is over
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
        for side in pair:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()


@contextlib.contextmanager
def wire(target: int, *, tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """A proxy that runs until the block ends."""
    found = Wire(target, tls=tls)
    try:
        yield found
    finally:
        found.close()


def password() -> str:
    """A password that a URL has to escape."""
    return f"p@ss/{secrets.token_hex(8)}"
