"""The broker as FARM_BROKER_URL names it: a Redis or Valkey server, with or without TLS and a user of its own.

What every program tells Celery about its connection is made here, and what people may see of it. No Celery is imported.
See docs/broker.md for each setting and its reason.
"""

from __future__ import annotations

import dataclasses
import socket
import ssl
import urllib.parse
from collections.abc import Mapping
from typing import Any

from farm.errors import Usage
from farm.settings import Settings

_TLS = {"rediss": "redis", "valkeys": "redis"}  # scheme of an encrypted connection -> what Celery calls the server
_PLAIN = {"redis": "redis", "valkey": "redis"}
_SOCKET = ("redis+socket", "unix")
_VERIFICATION = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_DEFAULT_PORT = 6379
_TLS_OPTIONS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")

# A connection that is dead without anybody being told is given up: by the kernel when the other side does not answer
# its probes, by kombu when no answer to BRPOP comes within the health check's interval.
_KEEPALIVE = {
    name: value
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if (name := getattr(socket, option, None)) is not None
}
_TRANSPORT: Mapping[str, Any] = {
    # Nothing is acknowledged, so nothing has to be kept for redelivery, and no visibility timeout has to be right.
    "ack_emulation": False,
    "priority_steps": [0],  # one list for a queue instead of four: the order of work is the scheduler's
    "socket_keepalive": True,
    "socket_keepalive_options": _KEEPALIVE,
    "socket_connect_timeout": 2,
    "socket_timeout": 5,
    "health_check_interval": 4,
    "retry_on_timeout": False,  # the outbox tries again, and the scheduler has other duties meanwhile
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broker:
    """Where the broker is.

    Attributes:
        url: as Celery wants it, with the password.
        tls: what Celery wants for an encrypted connection; None without encryption.
        prefix: of all keys and channels, so that a server can be shared, and a user be kept from the rest of it.
    """

    url: str = dataclasses.field(repr=False)
    tls: Mapping[str, Any] | None
    prefix: str

    def celery_settings(self) -> dict[str, Any]:
        """Settings of a Celery application that talks to it."""
        return {
            "broker_url": self.url,
            "broker_use_ssl": dict(self.tls) if self.tls is not None else None,
            "broker_transport_options": {**_TRANSPORT, "global_keyprefix": self.prefix},
        }


def parse(settings: Settings) -> Broker:
    """The broker of a farm.

    Raises:
        Usage: FARM_BROKER_URL is not the URL of a Redis or Valkey server, or has an unknown option.
    """
    parts = urllib.parse.urlsplit(settings.broker_url)
    options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme in _SOCKET:
        _only(options, allowed=("virtual_host",), url=settings.broker_url)
        url = f"redis+socket{settings.broker_url[len(parts.scheme) :]}"
        return Broker(url=url, tls=None, prefix=settings.broker_prefix)
    if parts.scheme not in (*_TLS, *_PLAIN):
        known = ", ".join(f"{scheme}://" for scheme in (*_PLAIN, *_TLS, *_SOCKET))
        raise Usage(f"FARM_BROKER_URL begins with '{parts.scheme}://', expected one of: {known}.")
    encrypted = parts.scheme in _TLS
    _only(options, allowed=_TLS_OPTIONS if encrypted else (), url=settings.broker_url)
    url = urllib.parse.urlunsplit(("redis", parts.netloc, parts.path, "", ""))
    tls = _tls(options, settings) if encrypted else None
    return Broker(url=url, tls=tls, prefix=settings.broker_prefix)


def masked(url: str) -> str:
    """A URL without its password, for people."""
    parts = urllib.parse.urlsplit(url)
    if not parts.password:
        return url
    user, _, place = parts.netloc.rpartition("@")
    return url.replace(parts.netloc, f"{user.partition(':')[0]}:***@{place}", 1)


def ping(settings: Settings, *, timeout_s: float = 2.0) -> str:
    """What the server answers to a PING of the farm's user, such as ``PONG``.

    Raises:
        OSError: it does not answer; also of a certificate that is not trusted.
        Usage: FARM_BROKER_URL is wrong.
    """
    broker = parse(settings)
    parts = urllib.parse.urlsplit(broker.url)
    with _connect(parts, tls=broker.tls, timeout_s=timeout_s) as connection:
        if parts.password is not None:
            user = [urllib.parse.unquote(parts.username)] if parts.username else []
            answer = _ask(connection, "AUTH", *user, urllib.parse.unquote(parts.password))
            if not answer.startswith("+"):
                return answer.removeprefix("-")
        return _ask(connection, "PING").lstrip("+-")


def _only(options: Mapping[str, str], *, allowed: tuple[str, ...], url: str) -> None:
    for name in options:
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise Usage(f"FARM_BROKER_URL {masked(url).partition('?')[0]} has the option '{name}', expected: {known}.")


def _tls(options: Mapping[str, str], settings: Settings) -> dict[str, Any]:
    """Keyword arguments of redis-py's encrypted connections. The server is verified unless the URL says otherwise."""
    verification = options.get("ssl_cert_reqs", "required").removeprefix("CERT_").lower()
    if verification not in _VERIFICATION:
        known = ", ".join(_VERIFICATION)
        raise Usage(f"FARM_BROKER_URL has ssl_cert_reqs={verification}, expected one of: {known}.")
    found: dict[str, Any] = {
        "ssl_cert_reqs": _VERIFICATION[verification],
        "ssl_check_hostname": verification == "required" and options.get("ssl_check_hostname", "true") != "false",
    }
    if settings.broker_ca is not None:
        found["ssl_ca_certs"] = str(settings.broker_ca)
    found.update({name: options[name] for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if name in options})
    return found


def _connect(parts: urllib.parse.SplitResult, *, tls: Mapping[str, Any] | None, timeout_s: float) -> socket.socket:
    if parts.scheme == "redis+socket":
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout_s)
            connection.connect(parts.path)
        except OSError:
            connection.close()
            raise
        return connection
    host = parts.hostname or "localhost"
    connection = socket.create_connection((host, parts.port or _DEFAULT_PORT), timeout=timeout_s)
    if tls is None:
        return connection
    context = ssl.create_default_context(cafile=tls.get("ssl_ca_certs"))
    context.check_hostname = tls["ssl_check_hostname"]
    context.verify_mode = tls["ssl_cert_reqs"]
    if "ssl_certfile" in tls:
        context.load_cert_chain(tls["ssl_certfile"], tls.get("ssl_keyfile"))
    return context.wrap_socket(connection, server_hostname=host)


def _ask(connection: socket.socket, *words: str) -> str:
    """The first line of the answer to a command, see the Redis serialization protocol (RESP2)."""
    sent = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in (word.encode() for word in words))
    connection.sendall(b"*%d\r\n%s" % (len(words), sent))
    answer = b""
    while not answer.endswith(b"\r\n"):
        some = connection.recv(1 << 10)
        if not some:
            raise ConnectionError("the broker closed the connection")
        answer += some
    return answer.decode(errors="replace").strip()
