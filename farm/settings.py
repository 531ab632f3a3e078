"""The farm's settings: one frozen value, the only reader of ``FARM_*`` variables."""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from farm import durations, sizes
from farm.errors import Usage

# The longest path of a unix socket is 108 bytes with its final zero (sockaddr_un).
_MAX_SOCKET_PATH_BYTES = 100

# A checkpoint of 100s of GB comes over the network in an hour or two; quantizing and compiling the largest models takes
# half a day.
RUN_LIMITS_S = MappingProxyType(
    {"resolve": 6 * 3600.0, "quantize": 24 * 3600.0, "export": 6 * 3600.0, "compile": 24 * 3600.0, "run": 6 * 3600.0}
)

FAILURES_BELIEVED_S = 7 * 24 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Where one farm lives.

    Attributes:
        home: directory of the embedded farm: database, artifact store, logs, sockets, pids.
        database_url: SQLAlchemy URL.
        broker_url: of a Redis or Valkey server, see :mod:`farm.brokers`.
        broker_ca: certificates of the authorities that may vouch for an encrypted broker; None for the system's.
        broker_prefix: what the names of all keys and channels on the broker begin with.
        store: directory of the artifact store; with a URL, of what this host has of it.
        store_url: of a store of several hosts, for fsspec; None: the directory is the store.
        store_options: of that file system, a JSON object. Secret.
        store_cache_budget_bytes: of the directory when there is a URL; None: any.
        store_budget_bytes: above which the scheduler deletes artifacts that nobody needs; None: never.
        sdk_root: Cloud AI SDK given by the user; None for the default search.
        owner: who submits.
        host: name of this host in the farm.
        lease_s: how long a claim holds without a heartbeat.
        heartbeat_s: how often a supervisor renews.
        queued_resend_s: after how long an unclaimed message is sent again.
        meter_s: how often a node looks at what its attempts use.
        memory_factor: how many times the memory that was predicted a stage may hold.
        log_limit_bytes: how much of an attempt's output is kept.
        own_log_limit_bytes: above which a log of the farm's own processes is put aside; twice as much is kept.
        cancel_grace_s: between SIGTERM and SIGKILL of a stage.
        share_half_life_s: after which half of what an owner has used no longer counts against him.
        history_keys: kinds of work of which the scheduler remembers what they took; beyond, the longest unused go.
        failures_believed_s: for how long a failure that would come again is taken for the result of the same work.
        cancel_poll_s: how often a node looks for what users ask of its attempts.
        device_check_s: how often a host asks its tool about its devices.
        cool_down_s: how long a device that failed gets no work at least, before it is tested.
        quarantine_after: after how many failures in a row a device gets a rest.
        quarantine_s: how long its first rest is; each further failure doubles it.
        run_limits_s: by stage, how long an attempt may run whose submission says nothing; a stage that is not there has
            no limit. Far above what stages take, for it is there for what hangs: only then is an attempt that still
            renews its lease ended.
    """

    home: Path
    database_url: str = dataclasses.field(repr=False)  # may have a password
    broker_url: str = dataclasses.field(repr=False)
    store: Path
    store_url: str | None = None
    store_options: str = dataclasses.field(default="", repr=False)
    store_cache_budget_bytes: int | None = None
    store_budget_bytes: int | None = None
    sdk_root: Path | None = None
    owner: str = ""
    host: str = ""
    broker_ca: Path | None = None
    broker_prefix: str = "qeff-farm:"
    lease_s: float = 60.0
    heartbeat_s: float = 2.0
    queued_resend_s: float = 10.0
    meter_s: float = 1.0
    memory_factor: float = 2.0
    log_limit_bytes: int = 64 << 20
    own_log_limit_bytes: int = 16 << 20
    cancel_grace_s: float = 1.0
    share_half_life_s: float = 24 * 3600.0
    history_keys: int = 20_000
    failures_believed_s: float = FAILURES_BELIEVED_S
    cancel_poll_s: float = 0.5
    device_check_s: float = 30.0
    cool_down_s: float = 5.0
    quarantine_after: int = 3
    quarantine_s: float = 60.0
    run_limits_s: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(RUN_LIMITS_S))

    @property
    def run_dir(self) -> Path:
        """Directory of pid files and sockets."""
        return self.home / "run"

    @property
    def log_dir(self) -> Path:
        """Directory of the logs of the farm's own processes and, below ``jobs/``, of attempts."""
        return self.home / "logs"

    @property
    def broker_socket(self) -> Path:
        """Unix socket of the embedded Valkey; in the temporary directory when the home's path is too long."""
        path = self.run_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            return path
        tag = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"qeff-farm-{os.getuid()}-{tag}.sock"

    @property
    def embedded_database(self) -> bool:
        """Whether the database is the home's own SQLite file."""
        return self.database_url.startswith("sqlite")


def load(*, home: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of the environment; ``home`` (from ``--home``) wins over ``FARM_HOME``."""
    home_path = Path(home or environ.get("FARM_HOME") or _default_home(environ)).expanduser().absolute()
    store = environ.get("FARM_STORE") or ""
    is_url = "://" in store
    directory = environ.get("FARM_STORE_CACHE") if is_url else store
    draft = Settings(home=home_path, database_url="", broker_url="", store=home_path)
    sdk_root = environ.get("QAIC_SDK_ROOT")
    broker_ca = environ.get("FARM_BROKER_CA")
    return dataclasses.replace(
        draft,
        database_url=environ.get("FARM_DATABASE_URL") or f"sqlite:///{home_path / 'farm.db'}",
        broker_url=environ.get("FARM_BROKER_URL") or f"redis+socket://{draft.broker_socket}",
        store=Path(directory or home_path / "store").absolute(),
        store_url=store if is_url else None,
        store_options=environ.get("FARM_STORE_OPTIONS") or "",
        store_cache_budget_bytes=_size(environ.get("FARM_STORE_CACHE_BUDGET")),
        store_budget_bytes=_size(environ.get("FARM_STORE_BUDGET")),
        sdk_root=Path(sdk_root).absolute() if sdk_root else None,
        owner=environ.get("FARM_OWNER") or _login(),
        broker_ca=Path(broker_ca).absolute() if broker_ca else None,
        broker_prefix=environ.get("FARM_BROKER_PREFIX") or draft.broker_prefix,
        host=environ.get("FARM_HOST") or platform.node() or "localhost",
        lease_s=float(environ.get("FARM_LEASE_S") or draft.lease_s),
        heartbeat_s=float(environ.get("FARM_HEARTBEAT_S") or draft.heartbeat_s),
        queued_resend_s=float(environ.get("FARM_QUEUED_RESEND_S") or draft.queued_resend_s),
        meter_s=float(environ.get("FARM_METER_S") or draft.meter_s),
        memory_factor=float(environ.get("FARM_MEMORY_FACTOR") or draft.memory_factor),
        log_limit_bytes=int(environ.get("FARM_LOG_LIMIT_BYTES") or draft.log_limit_bytes),
        own_log_limit_bytes=int(environ.get("FARM_OWN_LOG_LIMIT_BYTES") or draft.own_log_limit_bytes),
        cancel_grace_s=float(environ.get("FARM_CANCEL_GRACE_S") or draft.cancel_grace_s),
        share_half_life_s=float(environ.get("FARM_SHARE_HALF_LIFE_S") or draft.share_half_life_s),
        history_keys=_count(environ, "FARM_HISTORY_KEYS", draft.history_keys),
        failures_believed_s=_duration(environ, "FARM_FAILURES_BELIEVED", draft.failures_believed_s),
        cancel_poll_s=float(environ.get("FARM_CANCEL_POLL_S") or draft.cancel_poll_s),
        device_check_s=float(environ.get("FARM_DEVICE_CHECK_S") or draft.device_check_s),
        cool_down_s=float(environ.get("FARM_COOL_DOWN_S") or draft.cool_down_s),
        quarantine_after=int(environ.get("FARM_QUARANTINE_AFTER") or draft.quarantine_after),
        quarantine_s=float(environ.get("FARM_QUARANTINE_S") or draft.quarantine_s),
        run_limits_s=_run_limits(environ.get("FARM_RUN_LIMITS") or ""),
    )


def _run_limits(text: str) -> dict[str, float]:
    """The limits of ``FARM_RUN_LIMITS``, such as ``compile=36h,run=none``, over those that hold without it."""
    named = durations.parse_by_name(text, names=frozenset(RUN_LIMITS_S))
    return {stage: limit_s for stage, limit_s in {**RUN_LIMITS_S, **named}.items() if limit_s is not None}


def to_environ(settings: Settings) -> dict[str, str]:
    """The variables that give a child process the same settings."""
    variables = {
        "FARM_HOME": str(settings.home),
        "FARM_DATABASE_URL": settings.database_url,
        "FARM_BROKER_URL": settings.broker_url,
        "FARM_BROKER_PREFIX": settings.broker_prefix,
        "FARM_STORE": settings.store_url or str(settings.store),
        "FARM_OWNER": settings.owner,
        "FARM_HOST": settings.host,
        "FARM_LEASE_S": repr(settings.lease_s),
        "FARM_HEARTBEAT_S": repr(settings.heartbeat_s),
        "FARM_QUEUED_RESEND_S": repr(settings.queued_resend_s),
        "FARM_METER_S": repr(settings.meter_s),
        "FARM_MEMORY_FACTOR": repr(settings.memory_factor),
        "FARM_LOG_LIMIT_BYTES": str(settings.log_limit_bytes),
        "FARM_OWN_LOG_LIMIT_BYTES": str(settings.own_log_limit_bytes),
        "FARM_CANCEL_GRACE_S": repr(settings.cancel_grace_s),
        "FARM_SHARE_HALF_LIFE_S": repr(settings.share_half_life_s),
        "FARM_HISTORY_KEYS": str(settings.history_keys),
        "FARM_FAILURES_BELIEVED": f"{settings.failures_believed_s!r}s",
        "FARM_CANCEL_POLL_S": repr(settings.cancel_poll_s),
        "FARM_DEVICE_CHECK_S": repr(settings.device_check_s),
        "FARM_COOL_DOWN_S": repr(settings.cool_down_s),
        "FARM_QUARANTINE_AFTER": str(settings.quarantine_after),
        "FARM_QUARANTINE_S": repr(settings.quarantine_s),
        "FARM_RUN_LIMITS": ",".join(
            f"{stage}={settings.run_limits_s[stage]!r}s" if stage in settings.run_limits_s else f"{stage}=none"
            for stage in RUN_LIMITS_S
        ),
    }
    if settings.broker_ca:
        variables["FARM_BROKER_CA"] = str(settings.broker_ca)
    if settings.store_url is not None:
        variables |= {"FARM_STORE_CACHE": str(settings.store), "FARM_STORE_OPTIONS": settings.store_options}
    for name, num_bytes in (
        ("FARM_STORE_BUDGET", settings.store_budget_bytes),
        ("FARM_STORE_CACHE_BUDGET", settings.store_cache_budget_bytes),
    ):
        if num_bytes is not None:
            variables[name] = str(num_bytes)
    if settings.sdk_root:
        variables["QAIC_SDK_ROOT"] = str(settings.sdk_root)
    return variables


def _duration(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    try:
        return durations.parse(text) if text else default
    except Usage as error:
        raise Usage(f"{name}: {error}.") from error


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise Usage(f"{name} is '{text}', expected a whole number above zero.")
    return int(text)


def _size(text: str | None) -> int | None:
    return sizes.parse(text) if text else None


def _default_home(environ: Mapping[str, str]) -> Path:
    data_home = environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data_home) / "qeff-farm"


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a passwd entry, as in many containers
        return f"uid-{os.getuid()}"
