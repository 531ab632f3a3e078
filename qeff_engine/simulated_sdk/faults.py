"""Faults that somebody asked for: read from the environment and from a file of the SDK, chosen and counted down.

::

    {"faults": [
      {"id": "f1", "kind": "device-ssr", "device": "0000:01:00.0", "after": 3, "times": 1},
      {"id": "f2", "kind": "compiler-error", "error": "constant", "model": "decoder*"}
    ]}

``kind`` is one of :data:`~qeff_engine.simulated_sdk.fault_kinds.KINDS`, whose parameters stand beside it. All else may
be left out: ``device`` (number as installed, board serial, PCI address or ``serial/address``), ``tool``, ``model``
(pattern of the model's file name without its ending), ``after`` (so many calls that fit pass first), ``times`` (then
it is over; without it never), ``probability`` and ``seed`` (of each call), ``id``.

The file ``faults.json`` is replaced by rename and read at each call, so faults come and go while programs run. The
variable ``QAIC_SIM_FAULTS`` holds the same text, or a path of such a file. How often a fault had its turn is counted in
the SDK's state folder under a lock, before it shows: whatever dies in between, it shows at most so often. Standard
library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qeff_engine.simulated_sdk.devices import FAULTS_FILE, Device
from qeff_engine.simulated_sdk.devices import FAULTS_VARIABLE as VARIABLE
from qeff_engine.simulated_sdk.fault_kinds import COMPILERS, KINDS
from qeff_engine.simulated_sdk.occupancy import STATE_DIRECTORY

_FOLDER = "faults"
_LOCK_FILE = "lock"
_DIGITS = 12
_SELECTORS = ("device", "tool", "model", "after", "times", "probability", "seed")


class BadFaults(ValueError):
    """Faults that cannot be understood; the message says which and what was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault and the calls that it is for.

    Attributes:
        id: its name, unique among those of one place.
        kind: key of :data:`~qeff_engine.simulated_sdk.fault_kinds.KINDS`.
        parameters: of the kind, complete.
        device: which device, in one of the forms above; empty for any.
        tool: which tool; empty for all that the kind shows in.
        model: pattern of model names.
        after: calls that pass first.
        times: calls that it shows at; None for no end.
        probability: of each of those calls.
        seed: decides which.
    """

    id: str
    kind: str
    parameters: Mapping[str, Any]
    device: str = ""
    tool: str = ""
    model: str = "*"
    after: int = 0
    times: int | None = None
    probability: float = 1.0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The entry of the file: what differs from the defaults."""
        standard = Fault(id=self.id, kind=self.kind, parameters={})
        fields = {name: getattr(self, name) for name in _SELECTORS if getattr(self, name) != getattr(standard, name)}
        return {"id": self.id, "kind": self.kind, **fields, **self.parameters}

    def shows_in(self, tool: str) -> bool:
        """Whether it shows in a tool at all."""
        return tool in KINDS[self.kind].tools and self.tool in ("", tool)

    def is_for_device(self, device: Device) -> bool:
        """Whether it is for this device."""
        names = (
            str(device.qid),
            device.board_serial,
            device.pci_address,
            f"{device.board_serial}/{device.pci_address}",
        )
        return self.device in ("", *names)

    def is_for_model(self, model: str) -> bool:
        """Whether it is for a model of this name."""
        return fnmatch.fnmatchcase(model, self.model)


def parse(text: str, *, origin: str) -> list[Fault]:
    """The faults of a text.

    Args:
        text: JSON.
        origin: where it stands, for messages.

    Raises:
        BadFaults: it is not of this form.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadFaults(f"{origin} is no JSON: {error}.") from error
    entries = document.get("faults") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise BadFaults(f"{origin} has no list of faults, expected {{'faults': [{{'kind': ...}}]}}.")
    faults = [from_fields(entry, number=number, origin=origin) for number, entry in enumerate(entries, 1)]
    seen: set[str] = set()
    for fault in faults:
        if fault.id in seen:
            raise BadFaults(f"{origin} has two faults with the id '{fault.id}', expected different ones.")
        seen.add(fault.id)
    return faults


def from_fields(entry: object, *, number: int, origin: str) -> Fault:
    """One entry of a list of faults; ``number`` counts from 1 and names an entry without an id.

    Raises:
        BadFaults: a field is unknown or has a wrong value.
    """
    if not isinstance(entry, dict):
        raise BadFaults(f"{origin}: fault {number} is {entry!r}, expected an object with a kind.")
    fields = dict(entry)
    name = fields.pop("id", f"f{number}")
    where = f"{origin}: fault '{name}'"
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadFaults(f"{where} has the kind {kind!r}, expected one of {', '.join(KINDS)}.")
    selectors = {key: fields.pop(key) for key in _SELECTORS if key in fields}
    if isinstance(selectors.get("device"), int):
        selectors["device"] = str(selectors["device"])
    parameters = {key: parameter.default for key, parameter in KINDS[kind].parameters.items()}
    for key, value in fields.items():
        if key not in parameters:
            known = ", ".join((*parameters, *_SELECTORS))
            raise BadFaults(f"{where} has the field '{key}', expected one of {known}.")
        parameter = KINDS[kind].parameters[key]
        if not parameter.accepts(value):
            raise BadFaults(f"{where} has {key} {value!r}, expected {parameter.expected}.")
        parameters[key] = value
    for key, value in selectors.items():
        accepts, expected = _SELECTOR_VALUES[key]
        if not accepts(value):
            raise BadFaults(f"{where} has {key} {value!r}, expected {expected}.")
    if not isinstance(name, str) or not name or not all(sign.isalnum() or sign in "._-" for sign in name):
        raise BadFaults(f"{where}: an id has letters, digits, dots, dashes and underscores only.")
    fault = Fault(id=name, kind=kind, parameters=parameters, **selectors)
    if fault.tool and fault.tool not in KINDS[kind].tools:
        raise BadFaults(f"{where} has tool '{fault.tool}', expected one of {', '.join(KINDS[kind].tools)}.")
    if fault.device and KINDS[kind].tools == COMPILERS:
        raise BadFaults(f"{where} has a device, expected none: a compiler uses no device.")
    return fault


def _is_count(least: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


_SELECTOR_VALUES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "device": (_is_text, "a number, a serial or a PCI address"),
    "tool": (_is_text, "the name of a tool"),
    "model": (_is_text, "a pattern of names"),
    "after": (_is_count(0), "a whole number from 0"),
    "times": (lambda value: value is None or _is_count(1)(value), "a whole number from 1"),
    "probability": (_is_probability, "a number from 0 to 1"),
    "seed": (_is_count(0), "a whole number from 0"),
}

_read: dict[Path, tuple[tuple[int, int, int], list[Fault]]] = {}


def asked_for(root: Path, *, environ: Mapping[str, str] | None = None) -> list[Fault]:
    """All faults of the SDK at ``root``: those of the environment, then those of its file.

    Raises:
        BadFaults: one of both cannot be understood.
    """
    given = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
    faults: list[Fault] = []
    if given.startswith(("{", "[")):
        faults += parse(given, origin=f"The variable {VARIABLE}")
    elif given:
        if not Path(given).is_file():
            raise BadFaults(f"{VARIABLE} names {given}, expected a file or JSON that begins with a brace.")
        faults += of_file(Path(given))
    return faults + of_file(root / FAULTS_FILE)


def of_file(path: Path) -> list[Fault]:
    """The faults of a file, read again only when it has changed; none when there is no file."""
    try:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        known = _read.get(path)
        if known is None or known[0] != stamp:
            known = stamp, parse(path.read_text(), origin=str(path))
            _read[path] = known
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise BadFaults(f"{path} cannot be read: {error}.") from error
    return known[1]


def occurring(
    root: Path, *, tool: str, kinds: tuple[str, ...], device: Device | None = None, model: str = ""
) -> list[Fault]:
    """The faults that show at this call, counted down.

    Args:
        root: the SDK.
        tool: who asks.
        kinds: kinds that can show now.
        device: that the call is about; None: of no device.
        model: that the call is about; empty: of none, and patterns of models do not matter.

    Raises:
        BadFaults: the faults cannot be understood.
        OSError: the SDK's state folder cannot be used.
    """
    fitting = [
        fault
        for fault in asked_for(root)
        if fault.kind in kinds
        and fault.shows_in(tool)
        and (device is None or fault.is_for_device(device))
        and (not model or fault.is_for_model(model))
    ]
    if not any(map(_is_counted, fitting)):
        return fitting
    with locked(root) as folder:  # for all of them at once: faults that fit the same calls number them alike
        return [fault for fault in fitting if not _is_counted(fault) or _has_its_turn(folder, fault)]


def _is_counted(fault: Fault) -> bool:
    return fault.after > 0 or fault.times is not None or fault.probability < 1


def _has_its_turn(folder: Path, fault: Fault) -> bool:
    """Count a call that fits, and decide whether the fault shows at it."""
    calls, shown = count_of(folder, fault)
    shows = calls >= fault.after and (fault.times is None or shown < fault.times) and _chance(fault, calls)
    _write(folder / _count_file(fault), text=json.dumps([calls + 1, shown + shows]))
    return shows


def _chance(fault: Fault, call: int) -> bool:
    if fault.probability >= 1:
        return True
    return bool(int(_digest(f"{fault.seed}:{fault.id}:{call}"), 16) < fault.probability * 16**_DIGITS)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[Path]:
    """The folder of counts, for this process alone."""
    folder = root / STATE_DIRECTORY / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def count_of(folder: Path, fault: Fault) -> tuple[int, int]:
    """Calls that fitted a fault so far, and at how many of them it showed."""
    try:
        calls, shown = json.loads((folder / _count_file(fault)).read_text())
    except (OSError, ValueError):
        return 0, 0
    return int(calls), int(shown)


def _count_file(fault: Fault) -> str:
    # A fault that is set again with other words begins anew.
    return f"{fault.id}-{_digest(json.dumps(fault.to_json(), sort_keys=True))}"


def _digest(text: str) -> str:
    import hashlib  # only where something is counted: qaic-util is quick without

    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def forget_counts(folder: Path, fault: Fault) -> None:
    """Let a fault begin anew."""
    (folder / _count_file(fault)).unlink(missing_ok=True)


def save(root: Path, faults: list[Fault]) -> None:
    """Write the SDK's file, whole or not at all, under the lock of :func:`locked`; without faults there is none."""
    if faults:
        text = json.dumps({"faults": [fault.to_json() for fault in faults]}, indent=1) + "\n"
        _write(root / FAULTS_FILE, text=text)
    else:
        (root / FAULTS_FILE).unlink(missing_ok=True)


def _write(path: Path, *, text: str) -> None:
    """Replace a file; the lock of :func:`locked` must be held."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
