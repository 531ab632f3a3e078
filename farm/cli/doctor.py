"""``farm doctor``: whether a farm can work here, and the cure of what is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from farm.cli import _words
from farm.cli._context import Context
from farm.errors import FarmError, FarmNotUp

DESCRIPTION = (
    "Check home, database, broker, nodes, disk, SDK, packages and this host with its cards. "
    "Exits with 1 when something is wrong; a warning is not."
)

LEAST_FREE_BYTES = 2 << 30
_DEFAULT_SDK_ROOT = Path("/opt/qti-aic")
_HOST_LIMIT_S = 180.0
_LOOKED_AT = ("SDK", "disk", "packages")  # by other checks, for the farm's own places
_ELSEWHERE = ("compiler", "runtime", "devices")  # what another host of the farm may do
_ENGINE_PACKAGES = ("torch", "transformers", "safetensors", "gguf", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether the farm can work with it.
        found: what was found.
        cure: what to do when it is not fine.
        level: ``ok``, ``warn`` or ``fail``; a warning is something that some work would miss.
    """

    name: str
    ok: bool
    found: str
    cure: str = ""
    level: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", self.level or ("ok" if self.ok else "fail"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON document: a list of {name, ok, found, cure, level}"
    )


def run(options: argparse.Namespace, context: Context) -> int:
    """Print a line per check."""
    found = [*(check(context) for check in CHECKS), *_host(context)]
    if options.json:
        context.out.json([dataclasses.asdict(check) for check in found])
    else:
        rows = [(check.level, check.name, check.found) for check in found]
        context.out.table(("", "check", "found"), rows)
        for check in found:
            if check.level != "ok" and check.cure:
                context.out.text(f"{check.name}: {check.cure}")
    return 0 if all(check.ok for check in found) else 1


def _home(context: Context) -> Check:
    home = context.settings.home
    nearest = next(path for path in (home, *home.parents) if path.exists())
    cure = f"Make {nearest} writable for this user, or choose another home with --home or FARM_HOME."
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return Check(name="home", ok=True, found=str(home))
    except OSError as error:
        return Check(name="home", ok=False, found=f"{nearest}: {error.strerror}", cure=cure)


def _database(context: Context) -> Check:
    from farm import brokers

    try:
        with context.reading():
            return Check(name="database", ok=True, found=brokers.masked(context.settings.database_url))
    except FarmError as error:
        return Check(name="database", ok=False, found=str(error).partition(".")[0], cure=str(error))


def _broker(context: Context) -> Check:
    from farm import brokers

    url = brokers.masked(context.settings.broker_url)
    cure = "Start the farm with `farm up`, or the broker that FARM_BROKER_URL names."
    try:
        answer = brokers.ping(context.settings)
    except (OSError, FarmError) as error:
        return Check(name="broker", ok=False, found=f"{url}: {getattr(error, 'strerror', None) or error}", cure=cure)
    if answer == "PONG":
        return Check(name="broker", ok=True, found=url)
    cure = "Give FARM_BROKER_URL the user and the password that the broker knows, see docs/broker.md."
    return Check(name="broker", ok=False, found=f"{url} answers: {answer}", cure=cure)


def _nodes(context: Context) -> Check:
    cure = "Start the farm with `farm up`; on other hosts start their nodes. `farm status` lists those that were heard."
    try:
        from farm import db
        from farm.views import inventory

        with context.reading() as connection:
            heard_since = context.heard_since(db.now(connection))
            nodes = [node for node in inventory.node_list(connection) if node.heartbeat_at >= heard_since]
    except FarmError:
        return Check(name="nodes", ok=False, found="not known without the database", cure=cure)
    kinds = {node.kind for node in nodes}
    found = ", ".join(node.queue for node in nodes) or "none was heard lately"
    missing = sorted({"device", "host"} - kinds)
    if nodes and missing:
        found = f"{found}; no {missing[0]} node"
    return Check(name="nodes", ok=not missing, found=found, cure=cure)


def _disk(context: Context) -> Check:
    store = context.settings.store
    nearest = next(path for path in (store, *store.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    return Check(
        name="disk",
        ok=free >= LEAST_FREE_BYTES,
        found=f"{_words.size(free)} free at {store}",
        cure=f"Free at least {_words.size(LEAST_FREE_BYTES)}, or put the artifacts elsewhere with FARM_STORE.",
    )


def _store(context: Context) -> Check:
    """Whether the artifact store answers, and how full it is by the books."""
    settings = context.settings
    where = settings.store_url or str(settings.store)
    cure = "`farm gc` makes room; a store at a URL needs its options and credentials, see FARM_STORE_OPTIONS."
    try:
        if settings.store_url is not None:
            from farm.store import stores

            store = stores.open_store(stores.place(settings))
            where = store.name
            store.touched_at("0" * 64)
        from farm.store import catalogue

        with context.reading() as connection:
            totals = catalogue.totals(connection)
    except FarmNotUp:
        return Check(name="store", ok=True, found=f"nothing yet at {where}")
    except FarmError as error:
        return Check(name="store", ok=False, found=str(error).partition(":")[0], cure=f"{error} {cure}")
    told = [f"{_words.plural(totals.num_artifacts, 'artifact')}, {_words.size(totals.num_bytes)}"]
    if settings.store_budget_bytes is not None:
        told.append(f"budget {_words.size(settings.store_budget_bytes)}")
    if totals.num_condemned:
        told.append(f"{totals.num_condemned} condemned")
    damaged = settings.store / "damaged"
    num_damaged = len(list(damaged.iterdir())) if damaged.is_dir() else 0
    if num_damaged:
        told.append(f"{num_damaged} damaged and set aside")
    return Check(name="store", ok=True, found=f"{'; '.join(told)} at {where}")


def _sdk_root(context: Context) -> Path:
    """The SDK that an embedded farm uses: the one that was named, the installed one, or the one of its home."""
    in_home = context.settings.home / "sdk"
    if context.settings.sdk_root is not None or _is_sdk(_DEFAULT_SDK_ROOT) or not _is_sdk(in_home):
        return context.settings.sdk_root or _DEFAULT_SDK_ROOT
    return in_home


def _is_sdk(root: Path) -> bool:
    return any((root / folder).is_dir() for folder in ("exec", "tools"))


def _sdk(context: Context) -> Check:
    """The SDK that nodes of this host would use, else the one that registered hosts have."""
    root = _sdk_root(context)
    if _is_sdk(root):
        return Check(name="SDK", ok=True, found=str(root))
    try:
        from farm.views import inventory

        with context.reading() as connection:
            version = inventory.toolchain(connection).get("sdk_apps")
    except FarmError:
        version = None
    cure = "Set QAIC_SDK_ROOT to a Cloud AI SDK, or start simulated devices with `farm up`."
    found = f"hosts have {version}" if version else f"no SDK at {root}"
    return Check(name="SDK", ok=version not in (None, "absent"), found=found, cure=cure)


def _host(context: Context) -> list[Check]:
    """This host as a place for stages, if it has an SDK: what the engine's own doctor finds."""
    root = _sdk_root(context)
    if not _is_sdk(root):
        return []
    command = [sys.executable, "-m", "qeff_engine", "doctor", "--json", "--sdk-root", str(root)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_HOST_LIMIT_S, check=False
        )
        findings = json.loads(done.stdout)["checks"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        cure = f"Run it by hand: {' '.join(command)}"
        return [Check(name="host", ok=True, level="warn", found=f"cannot be looked at: {error}", cure=cure)]
    return [_of_host(finding) for finding in findings if finding["name"] not in _LOOKED_AT]


def _of_host(finding: Mapping[str, str]) -> Check:
    """A finding of the engine's; what another host may do instead is only a warning."""
    name, level = finding["name"], finding["level"]
    if level == "fail" and name in _ELSEWHERE:
        level = "warn"
    return Check(name=name, ok=level != "fail", found=finding["found"], cure=finding["advice"], level=level)


def _engine(context: Context) -> Check:
    """Whether this machine could run stages; the farm's own commands need none of it."""
    missing, found = [], []
    for package in _ENGINE_PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    words = f"missing: {', '.join(missing)}" if missing else ", ".join(found[:2])
    return Check(name="engine", ok=not missing, found=words, cure="Install them: pip install 'qeff-farm[engine]'.")


def _socket(context: Context) -> Check:
    path = context.settings.broker_socket
    length = len(os.fsencode(path))
    return Check(
        name="socket",
        ok=length <= 107,  # sockaddr_un holds 108 bytes with the final zero
        found=f"{path} ({length} bytes)",
        cure="Choose a home with a shorter path, or a shorter TMPDIR: a unix socket's path has at most 107 bytes.",
    )


CHECKS: tuple[Callable[[Context], Check], ...] = (
    _home,
    _socket,
    _database,
    _broker,
    _nodes,
    _disk,
    _store,
    _sdk,
    _engine,
)
