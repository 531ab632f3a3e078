"""The processes of a farm and its broker, as far as they matter to the rows: they do what they are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from farm.records import Claim, Message
from farm.scheduling.dispatch import BrokerDown
from tests.proof.stepping import Stepped

Key = tuple[int, int]  # job, attempt


class Broker:
    """Keeps messages for ever, so that each may come late, again, or in another order; or loses all."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.is_down = False

    def send(self, messages: Sequence[Message]) -> list[int]:
        """As :meth:`farm.scheduling.dispatch.Sender.send`."""
        if self.is_down:
            raise BrokerDown("down")
        self.messages += messages
        return [message.id for message in messages]


@dataclasses.dataclass(kw_only=True)
class Node:
    """A node's process, or the one that took its place."""

    host_id: int
    kind: str
    queue: str
    node_id: int
    device_id: int | None
    skew_s: float


@dataclasses.dataclass(kw_only=True)
class Stage:
    """A stage's process, as its host has it."""

    claim: Claim
    node: Node
    is_alive: bool = True

    @property
    def key(self) -> Key:
        """The attempt."""
        return self.claim.job_id, self.claim.attempt

    @property
    def cores(self) -> set[tuple[int, int]]:
        """The cores that it works on."""
        return {(grant.device_id, core) for grant in self.claim.grants for core in grant.cores}


@dataclasses.dataclass(kw_only=True)
class Scheduler:
    """A scheduler's process."""

    holder: str
    term: int | None = None
    round: Stepped | None = None
