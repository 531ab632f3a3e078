"""Hands messages to the broker. Only this module of the farm knows Celery, and only the scheduler uses it."""

from __future__ import annotations

from collections.abc import Sequence

import kombu.exceptions
from celery import Celery

from farm import brokers, wire
from farm.records import Message
from farm.settings import Settings

# One try with the pooled connection and one with a new one: the caller has its own patience.
_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class BrokerDown(Exception):
    """The broker did not take a message. It stays in the outbox."""


class Sender:
    """A connection to the broker that sends messages to nodes.

    Raises:
        Usage: FARM_BROKER_URL is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = Celery("qeff-farm", backend=None, set_as_current=False)
        self._app.conf.update(
            brokers.parse(settings).celery_settings(), task_serializer="json", task_ignore_result=True
        )

    def send(self, messages: Sequence[Message]) -> list[int]:
        """Send messages in order and return the ids of those that the broker took.

        Raises:
            BrokerDown: it took none.
        """
        sent: list[int] = []
        try:
            with self._app.producer_or_acquire() as producer:
                for message in messages:
                    self._app.send_task(
                        wire.TASK_NAME,
                        args=[message.job_id, message.attempt],
                        queue=message.queue,
                        producer=producer,
                        ignore_result=True,
                        retry=True,
                        retry_policy=_RETRY,
                    )
                    sent.append(message.id)
        except (kombu.exceptions.KombuError, OSError) as error:
            if not sent:
                raise BrokerDown(str(error)) from error
        return sent

    def close(self) -> None:
        """Close the connection."""
        self._app.close()
