"""What is taken on a device, across processes: cores, memory and channels, freed when the holder dies.

Every active program holds one file under ``state/<device>/`` and an exclusive ``flock`` on it for as long as it is
active; the kernel drops that lock when the process ends, however it ends. A holder's file says what it took. Reading
and taking happen under the device's own lock, so two processes never take the same cores. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

from qeff_engine.simulated_sdk.devices import VIRTUAL_CHANNELS, Device

STATE_DIRECTORY = "state"
_LOCK_FILE = "lock"
_HOLDER_PREFIX = "active-"


class Exhausted(Exception):
    """A device has less free than an activation needs; ``args[0]`` is the firmware's text for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amounts:
    """What an active program holds on one device."""

    cores: int = 0
    dram_mb: int = 0
    channels: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            cores=self.cores + other.cores,
            dram_mb=self.dram_mb + other.dram_mb,
            channels=self.channels + other.channels,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What all active programs of a device hold together, and how many they are."""

    taken: Amounts
    programs: int


class Holding:
    """An activation's share of one device; :meth:`release` gives it back, and so does the end of the process."""

    def __init__(self, *, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        _open_holdings.add(self)

    def release(self) -> None:
        """Give everything back. A second call does nothing."""
        if self._descriptor < 0:
            return
        # The file goes first: once the lock is dropped, its name may be another holder's.
        if not self.lost:
            self._path.unlink(missing_ok=True)
        self.forget()

    @property
    def lost(self) -> bool:
        """Whether a reset of the device has taken everything back."""
        return self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0

    def forget(self) -> None:
        """Close this process's copy of the lock, as a forked child must, which does not hold the program."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_open_holdings: weakref.WeakSet[Holding] = weakref.WeakSet()
_numbers = itertools.count()


def _forget_all() -> None:
    for holding in list(_open_holdings):
        holding.forget()


os.register_at_fork(after_in_child=_forget_all)


def take(root: Path, *, device: Device, amounts: Amounts) -> Holding:
    """Take ``amounts`` of a device at once or not at all; never waits for a holder to end.

    Raises:
        Exhausted: too little is free.
        OSError: the SDK's state folder cannot be used.
    """
    folder = device_folder(root, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _require(device, amounts=amounts, taken=_usage(folder).taken)
        path = folder / f"{_HOLDER_PREFIX}{os.getpid()}-{next(_numbers)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, json.dumps(dataclasses.asdict(amounts)).encode())
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return Holding(path=path, descriptor=descriptor)


def usage(root: Path, *, device: Device) -> Usage:
    """What is taken on a device at this moment.

    Raises:
        OSError: the SDK's state folder cannot be used.
    """
    folder = device_folder(root, device=device)
    if not folder.exists() and (root / STATE_DIRECTORY).is_dir():
        return Usage(taken=Amounts(), programs=0)
    with _locked(folder):
        return _usage(folder)


def reset(root: Path, *, device: Device) -> None:
    """Take everything back from all holders, who find out at their next call.

    Raises:
        OSError: the SDK's state folder cannot be used.
    """
    folder = device_folder(root, device=device)
    if folder.exists():
        with _locked(folder):
            for path in folder.glob(f"{_HOLDER_PREFIX}*"):
                path.unlink(missing_ok=True)


def device_folder(root: Path, *, device: Device) -> Path:
    """Where the state of a device is kept that all processes of the host share."""
    return root / STATE_DIRECTORY / device.pci_address.replace(":", "-")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _usage(folder: Path) -> Usage:
    """The sum over living holders; what dead ones left is removed. The device's lock must be held."""
    taken, programs = Amounts(), 0
    for path in folder.glob(f"{_HOLDER_PREFIX}*"):
        amounts = _held(path)
        if amounts is None:
            path.unlink(missing_ok=True)
        else:
            taken, programs = taken + amounts, programs + 1
    return Usage(taken=taken, programs=programs)


def _held(path: Path) -> Amounts | None:
    """What the holder of this file has, or None when it is dead."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Amounts(**json.loads(os.read(descriptor, 4096)))
        return None
    finally:
        os.close(descriptor)


def _require(device: Device, *, amounts: Amounts, taken: Amounts) -> None:
    """Raise the firmware's answer when a device cannot give ``amounts`` on top of ``taken``."""
    if taken.cores + amounts.cores > device.traits.cores:
        raise Exhausted("Failed to allocate NSP resources")
    if taken.channels + amounts.channels > VIRTUAL_CHANNELS:
        raise Exhausted("Failed to allocate virtual channel")
    if taken.dram_mb + amounts.dram_mb > device.usable_dram_mb:
        raise Exhausted("Memory resource exhausted")
