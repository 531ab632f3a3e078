"""What a user asks of the places where his jobs are carried out, and whether the farm has such places. Pure."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from farm.errors import Usage
from qeff_engine.spec import Stage

# Which of the needs matter to a stage: only runs see a device, and only they and compiles see the SDK.
_OF_STAGE: Mapping[Stage, tuple[str, ...]] = {
    Stage.COMPILE: ("host", "sdk"),
    Stage.RUN: ("sku", "labels", "host", "sdk"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What places must be; empty where anything will do.

    Attributes:
        sku: kind of device.
        labels: that a device or its host must all have.
        host: name of the host.
        sdk: version of the SDK, or the beginning of one.
        exclusive: nobody else on the devices of a run.
    """

    sku: str = ""
    labels: tuple[str, ...] = ()
    host: str = ""
    sdk: str = ""
    exclusive: bool = False

    def of_stage(self, stage: Stage) -> dict[str, Any] | None:
        """What the place of one stage must be; None when anything will do."""
        asked = {name: getattr(self, name) for name in _OF_STAGE.get(stage, ("host",))}
        kept = {name: list(value) if name == "labels" else value for name, value in asked.items() if value}
        return kept or None

    def to_json(self) -> dict[str, Any]:
        """What is asked, as JSON values; nothing of what is not."""
        asked = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return {name: list(value) if name == "labels" else value for name, value in asked.items()}


ANYWHERE = Needs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownDevice:
    """A device that the farm knows and that is not lost, with the facts that can be asked for."""

    name: str
    host: str
    sku: str
    num_cores: int
    labels: frozenset[str] = frozenset()
    sdk: str = ""


def sdk_of(toolchain: Mapping[str, str]) -> str:
    """The version that people call the SDK by: of its compiler, without the word that tells simulated ones."""
    return toolchain.get("sdk_apps", "").removesuffix("-simulated")


def identifying(
    stage: Stage | str, fields: Mapping[str, Any], *, needs: Mapping[str, Any] | None, exclusive: bool
) -> dict[str, Any]:
    """The fields of a spec with what of its place makes it other work: a measurement on one kind of device is not one
    on another, and one beside others is not one alone."""
    if Stage(stage) is not Stage.RUN or not (needs or exclusive):
        return dict(fields)
    return {**fields, "place": {**(needs or {}), **({"exclusive": True} if exclusive else {})}}


def in_words(needs: Mapping[str, Any] | None, *, exclusive: bool = False) -> str:
    """What a job asks of its place, such as ``sku ultra, labels fast lab-a, alone``; empty when nothing."""
    words = [f"{name} {' '.join(value) if name == 'labels' else value}" for name, value in (needs or {}).items()]
    return ", ".join([*words, "alone"] if exclusive else words)


def meets(
    needs: Mapping[str, Any] | None, *, sku: str = "", labels: Collection[str] = (), host: str = "", sdk: str = ""
) -> bool:
    """Whether a place with these facts is what a job needs."""
    asked = needs or {}
    return (
        asked.get("sku", sku) == sku
        and asked.get("host", host) == host
        and set(asked.get("labels", ())) <= set(labels)
        and ("sdk" not in asked or f"{sdk}.".startswith(f"{asked['sdk']}."))
    )


def with_full_sku(needs: Needs, *, devices: Iterable[KnownDevice]) -> Needs:
    """The needs with the SKU as devices spell it: ``ultra`` is enough for ``PCIe Ultra`` where no other SKU has it."""
    known = {device.sku for device in devices}
    word = needs.sku.lower()
    same = [sku for sku in known if sku.lower() == word] or [sku for sku in known if word in sku.lower().split()]
    return dataclasses.replace(needs, sku=same[0]) if len(same) == 1 else needs


def check(
    needs: Needs,
    *,
    cores: Sequence[int],
    num_devices: int,
    devices: Sequence[KnownDevice],
    hosts: Collection[str],
) -> None:
    """Raise :class:`Usage` when no device, or no host, is what a request needs.

    Args:
        needs: what is asked of the places.
        cores: core counts of the points, each on every device of a run.
        num_devices: devices of one host that a run spans.
        devices: those that are known; empty when none is registered yet, then nothing is checked of them.
        hosts: names of the known hosts; empty when none is registered yet.
    """
    if needs.host and hosts and needs.host not in hosts:
        raise Usage(f"There is no host '{needs.host}', expected one of: {', '.join(sorted(hosts))}.")
    fitting = list(devices)
    for name, known in _FACTS.items():
        asked = getattr(needs, name)
        if not asked or not fitting:
            continue
        kept = [
            device
            for device in fitting
            if meets({name: asked}, sku=device.sku, labels=device.labels, host=device.host, sdk=device.sdk)
        ]
        if not kept:
            words = ", ".join(sorted({word for device in fitting for word in known(device)})) or "none"
            raise Usage(f"No device has {_SAYS[name]} {_said(asked)}. Known: {words}. Correct {_OPTIONS[name]}.")
        fitting = kept
    if fitting:
        _check_width(fitting, cores=max(cores), num_devices=num_devices)


def _check_width(devices: Sequence[KnownDevice], *, cores: int, num_devices: int) -> None:
    widest = max(device.num_cores for device in devices)
    several = len({device.host for device in devices}) > 1
    if cores > widest:
        known = ", ".join(_named(device, several=several) for device in devices)
        raise Usage(f"No device has {cores} cores: {known}. Ask for at most {widest} with --cores.")
    by_host = collections.Counter(device.host for device in devices if device.num_cores >= cores)
    most = max(by_host.values())
    if num_devices > most:
        raise Usage(
            f"No host has {num_devices} devices with {cores} cores: {_counted(by_host)}. "
            f"Ask for at most {most} with --devices."
        )


def _named(device: KnownDevice, *, several: bool) -> str:
    return f"{f'{device.host} ' if several else ''}{device.name} ({device.num_cores} cores)"


def _counted(by_host: Mapping[str, int]) -> str:
    return ", ".join(f"{host} has {number}" for host, number in sorted(by_host.items()))


def _said(asked: object) -> str:
    return ", ".join(asked) if isinstance(asked, tuple) else str(asked)


# What devices have in the place of a need, in the order in which needs are looked at; how it is said; its option.
_FACTS: Mapping[str, Callable[[KnownDevice], Iterable[str]]] = {
    "host": lambda device: (device.host,),
    "sku": lambda device: (device.sku,),
    "sdk": lambda device: (device.sdk,),
    "labels": lambda device: device.labels,
}
_SAYS = {"host": "the host", "sku": "the SKU", "sdk": "the SDK", "labels": "all of the labels"}
_OPTIONS = {"host": "--host", "sku": "--sku", "sdk": "--sdk", "labels": "--device-label"}
