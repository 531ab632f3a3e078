"""Why messages are not acknowledged: what kombu makes of an acknowledgement that a broker's absence swallows."""

from __future__ import annotations

from pathlib import Path

import kombu
import pytest
from kombu.exceptions import OperationalError

from tests import valkey


def test_an_acknowledgement_that_fails_costs_its_credit(tmp_path: Path) -> None:
    """When this fails kombu has mended it, and docs/broker.md has to say so."""
    with valkey.server(tmp_path) as server, valkey.wire(server.port) as wire:
        options = {"socket_timeout": 2, "socket_connect_timeout": 2}
        with kombu.Connection(f"redis://127.0.0.1:{wire.port}/0", transport_options=options) as connection:
            channel = connection.channel()
            queue = kombu.Queue("q", channel=channel)
            queue.declare()
            kombu.Producer(channel).publish({"job": 1}, routing_key="q")
            channel.basic_qos(0, 1, False)
            message = queue.get(no_ack=False)
            assert message is not None
            assert not channel.qos.can_consume()
            wire.cut()
            with pytest.raises((*connection.connection_errors, OperationalError)):
                message.ack()
            wire.heal()
            assert channel.client.ping()
            assert not channel.qos.can_consume(), "the credit came back"
