"""Which store a farm has: a directory, or a URL with a directory of each host."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farm.errors import Usage
from farm.settings import Settings
from farm.store.artifacts import Store

# Where libraries of fsspec look for credentials. Stages never see these variables.
_CREDENTIALS = ("AWS_", "GOOGLE_", "GCS_", "AZURE_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorePlace:
    """What a process must know to open the store.

    Attributes:
        root: the directory, of the store or of this host.
        url: of a store of several hosts; None: the directory is all of it.
        options: of its file system. Secret.
        environ: variables with credentials. Secret.
        cache_budget_bytes: of the directory, when there is a URL; None: any.
    """

    root: Path
    url: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    cache_budget_bytes: int | None = None


def place(settings: Settings, *, environ: Mapping[str, str] | None = None) -> StorePlace:
    """The store of some settings.

    Args:
        settings: of the farm.
        environ: where credentials are, when the process that opens the store will not have them.

    Raises:
        Usage: the options are not a JSON object.
    """
    if settings.store_url is None:
        return StorePlace(root=settings.store)
    return StorePlace(
        root=settings.store,
        url=settings.store_url,
        options=_options(settings.store_options),
        environ={name: value for name, value in (environ or {}).items() if name.startswith(_CREDENTIALS)},
        cache_budget_bytes=settings.store_cache_budget_bytes,
    )


def open_store(place: StorePlace) -> Store:
    """The store; a place at a URL is asked when it is first needed."""
    if place.url is None:
        return Store(place.root)
    from farm.store.remote import Remote
    from farm.store.remote_store import RemoteStore

    remote = Remote(place.url, options=place.options, environ=place.environ)
    return RemoteStore(place.root, remote=remote, cache_budget_bytes=place.cache_budget_bytes)


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None  # the text may hold a password, and so may the error
    if not isinstance(found, dict):
        raise Usage('FARM_STORE_OPTIONS is not a JSON object, expected one such as {"endpoint_url": "https://..."}.')
    return found
