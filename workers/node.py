"""A node: one Celery process that carries out attempts, for a host or pinned to one device of it.

Imports no torch; stages run in processes of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import filelock
import sqlalchemy as sa
from celery import signals

from farm import db, wire
from farm.errors import Refused
from farm.fleet import devices
from farm.lifecycle import health, succession
from farm.settings import Settings
from farm.store import stores
from qeff_engine import toolchain
from qeff_engine.sdk import location
from qeff_engine.sdk.devices import Device
from workers import app as celery_app
from workers import bridge, discovery, inspection, recovery, tasks
from workers.canary import Canary
from workers.checkup import Checkup
from workers.device_test import DeviceTest
from workers.forks import PRELOAD, ForkServer
from workers.installed import Installed, files_fingerprint
from workers.intake import CarryOut, Intake
from workers.lease import Leases
from workers.ledger import Ledger
from workers.meter import Meter
from workers.steering import Steering
from workers.supervisor import carry_out
from workers.workplace import Stopping, Workplace

_logger = logging.getLogger(__name__)
_DEVICE_WARM_UP_S = 5.0
_OWN_PACKAGES = ("farm", "workers")  # imported by this process; the engine's code is the stage processes' alone
_BEATS_OF_A_LOOK = 5  # heartbeats from one look at the installed code to the next
_DEAF_AFTER_RESENDS = 3
_LAST_BEAT_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """What the node runs as stages.

    Attributes:
        entry: ``module:function`` that is called as :func:`qeff_engine.pipeline.run_stage` is.
        preload: modules that the fork server imports.
        carry_out: what becomes of a claim, see :class:`workers.intake.Intake`.
    """

    entry: str = bridge.ENTRY
    preload: tuple[str, ...] = PRELOAD
    carry_out: CarryOut = carry_out


ENGINE = Stages()


def run_host(settings: Settings, *, num_slots: int | None = None, stages: Stages = ENGINE) -> int:
    """Be the node of this host's stages without a device until a signal ends it; the exit code.

    Args:
        settings: of the farm.
        num_slots: stages that run at the same time; None for what processors and memory allow.
        stages: what is run.

    Raises:
        Refused: another process is this node.
    """
    sdk = discovery.find_sdk(settings.sdk_root)
    facts = discovery.host_facts(sdk, num_slots=num_slots)
    node = _Node(settings, queue=wire.host_queue(settings.host), sdk=sdk, facts=facts)
    return node.run(stages, places=facts.num_slots, environ=os.environ)


def run_device(
    settings: Settings,
    *,
    qid: int | None = None,
    identity: str | None = None,
    num_slots: int | None = None,
    stages: Stages = ENGINE,
) -> int:
    """Be the node of a device until a signal ends it, or until the device has another number; the exit code.

    Args:
        settings: of the farm.
        qid: the device's number; it must be there now.
        identity: its board serial and PCI address, if not by number: then it is waited for.
        num_slots: stages without a device that the host runs at once.
        stages: what is run.

    Raises:
        Refused: another process is this node.
        NotFound: this host has no such device that is ready.
    """
    sdk = discovery.find_sdk(settings.sdk_root)
    if qid is not None:
        device = discovery.device(sdk, qid=qid)
    else:
        device = discovery.await_device(sdk, identity=identity or "", look_s=settings.device_check_s)
    facts = discovery.host_facts(sdk, num_slots=num_slots)
    node = _Node(settings, queue=wire.device_queue(settings.host, device.qid), sdk=sdk, facts=facts, device=device)
    return node.run(stages, places=device.nsp_total, environ=os.environ)


class _Node:
    def __init__(
        self,
        settings: Settings,
        *,
        queue: str,
        sdk: location.Sdk | None,
        facts: discovery.HostFacts,
        device: Device | None = None,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._sdk = sdk
        self._facts = facts
        self._device = device
        self._device_id: int | None = None
        self._test: DeviceTest | None = None
        self._database = db.open_database(settings.database_url)
        self._stopping = Stopping()
        self._installed = Installed(toolchain=lambda: toolchain.versions(sdk))
        self._toolchain = facts.toolchain  # as it is registered
        self._own_code = files_fingerprint(_OWN_PACKAGES)
        self._beats = 0
        self._host_id = 0
        self._node_id = 0

    def run(self, stages: Stages, *, places: int, environ: Mapping[str, str]) -> int:
        """Register, put right what an earlier node left, and consume."""
        with self._alone():
            self._database.check()
            self._register()
            workplace = self._workplace(stages, environ=environ)
            recovery.take_over(workplace)
            app = celery_app.make(self._settings, queue=self._queue)
            intake = Intake(workplace, places=places, carry_out=stages.carry_out)
            tasks.register(app, intake=intake)
            inspection.answer(workplace.steering, name=self._queue)
            with self._device_tests(), self._heartbeats(workplace), self._checkups():
                # A device's first stage comes after several of the host's: let the host's imports have the processors.
                workplace.forks.warm_up(after_s=0.0 if self._device is None else _DEVICE_WARM_UP_S)
                # Sent when a signal asks Celery to stop taking messages; it then waits for those that it has.
                signals.worker_shutting_down.connect(self._on_shutdown, weak=False)
                code = celery_app.start_worker(app, queue=self._queue, name=self._queue)
                intake.close()
                workplace.forks.close()
            with contextlib.suppress(sa.exc.DBAPIError), self._database.write() as connection:
                devices.stop_node(connection, self._node_id)
        return code

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of this queue: whoever has it may end what an earlier process of the queue left."""
        path = recovery.lock_path(self._settings, self._queue)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(path, timeout=0):
                yield
        except filelock.Timeout as error:
            raise Refused(
                f"Another process is the node of {self._queue} in {self._settings.home}. End it first."
            ) from error

    def _register(self) -> None:
        simulated = self._sdk is not None and self._sdk.simulated
        # A device's node knows of its own: in a container it may see no other.
        found = discovery.all_devices(self._sdk) if self._device is None else [self._device]
        with self._database.write() as connection:
            self._host_id = devices.register_host(
                connection,
                name=self._settings.host,
                num_cpus=self._facts.num_cpus,
                ram_bytes=self._facts.ram_bytes,
                num_slots=self._facts.num_slots,
                toolchain=dict(self._facts.toolchain),
            )
            ids = devices.register_devices(
                connection,
                host_id=self._host_id,
                found=[discovery.record(device, simulated=simulated) for device in found],
                complete=self._device is None,
                quarantine=health.Quarantine.of(self._settings),
            )
            if self._device is not None:
                self._device_id = ids[0]
            self._node_id = devices.register_node(
                connection,
                host_id=self._host_id,
                device_id=self._device_id,
                kind="host" if self._device is None else "device",
                queue=self._queue,
                pid=os.getpid(),
            )

    def _workplace(self, stages: Stages, *, environ: Mapping[str, str]) -> Workplace:
        facts = self._facts
        return Workplace(
            settings=self._settings,
            database=self._database,
            leases=Leases(self._database, settings=self._settings),
            ledger=Ledger(self._database),
            store=stores.open_store(stores.place(self._settings)),
            forks=ForkServer(preload=stages.preload, environ=bridge.allowed(environ), code=self._installed),
            entry=stages.entry,
            host_id=self._host_id,
            node_id=self._node_id,
            records=self._settings.run_dir / "attempts" / self._queue,
            scratch=self._settings.home / "scratch",
            sdk_root=self._sdk.root if self._sdk is not None else None,
            environ=environ,
            num_threads=max(1, facts.num_cpus // facts.num_slots),
            meter=Meter(period_s=self._settings.meter_s, lock=self._settings.run_dir / "memory.lock"),
            steering=Steering(self._database, poll_s=self._settings.cancel_poll_s),
            stopping=self._stopping,
        )

    @contextlib.contextmanager
    def _heartbeats(self, workplace: Workplace) -> Iterator[None]:
        """Let the farm know that this node lives, from a thread of its own, until the block ends."""
        ended = threading.Event()
        canary = Canary(patience_s=_DEAF_AFTER_RESENDS * self._settings.queued_resend_s)

        def beat() -> None:
            while not ended.wait(_heartbeat_s(self._settings)):
                try:
                    why = self._beat(workplace, canary)
                except sa.exc.DBAPIError as error:
                    _logger.warning("the database does not answer: %s", error)
                    continue
                if why:
                    _logger.error("%s; this node ends to be started again", why)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_LAST_BEAT_S)  # it is no reason to stay that the database is cut off

    def _beat(self, workplace: Workplace, canary: Canary) -> str:
        """Say that this node lives and what is installed; why it should be started again, or nothing."""
        self._beats += 1
        looks = self._beats % _BEATS_OF_A_LOOK == 0
        code = self._installed.now().toolchain if looks else self._toolchain
        with self._database.write() as connection:
            devices.node_heartbeat(connection, self._node_id)
            if code != self._toolchain:
                devices.renew_toolchain(connection, self._host_id, toolchain=code)
            sent = succession.sent_to(connection, queue=self._queue)
            moved = self._has_moved(connection)
            test = self._test if self._device_id and health.is_due(connection, self._device_id) else None
        self._toolchain = code
        if test is not None and not moved:
            test.start()
        if moved:
            return "the device has another number now, or is away and another has its number"
        if canary.is_deaf(sent, busy=workplace.busy.count, now=time.monotonic()):
            return "messages were sent and do not arrive"
        if looks and not workplace.busy.count and not sent and files_fingerprint(_OWN_PACKAGES) != self._own_code:
            return "the code of the farm itself has changed"
        return ""

    def _has_moved(self, connection: sa.Connection) -> bool:
        """Whether the number that this node's queue is named by stands for its device no more."""
        if self._device is None or self._device_id is None:
            return False
        return devices.is_displaced(connection, self._device_id, qid=self._device.qid)

    @contextlib.contextmanager
    def _device_tests(self) -> Iterator[None]:
        """Be ready to test this node's device, if it has one, until the block ends."""
        if self._sdk is None or self._device is None or self._device_id is None:
            yield
            return
        self._test = DeviceTest(
            self._database,
            quarantine=health.Quarantine.of(self._settings),
            sdk_root=self._sdk.root,
            device_id=self._device_id,
            qid=self._device.qid,
            programs=self._settings.run_dir / "device-tests",
            environ=bridge.allowed(os.environ),
        )
        try:
            yield
        finally:
            self._test.stop()

    @contextlib.contextmanager
    def _checkups(self) -> Iterator[None]:
        """Look at the host's devices until the block ends, if this is the host's own node."""
        if self._sdk is None or self._device is not None:
            yield
            return
        checkup = Checkup(self._database, settings=self._settings, sdk=self._sdk, host_id=self._host_id)
        checkup.start()
        try:
            yield
        finally:
            checkup.stop()

    def _on_shutdown(self, *_: Any, **__: Any) -> None:
        self._stopping.set()


def _heartbeat_s(settings: Settings) -> float:
    """How often a node says that it lives: less often than attempts do, which also tell how far they are."""
    return max(settings.heartbeat_s, min(2.5 * settings.heartbeat_s, settings.lease_s / 8))
