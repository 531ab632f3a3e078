"""When a node counts as deaf."""

from __future__ import annotations

from workers.canary import Canary

FIRST, SECOND = (1, 1), (2, 1)


def test_an_idle_node_is_deaf_when_a_message_does_not_come_for_long() -> None:
    canary = Canary(patience_s=30)
    assert not canary.is_deaf(frozenset({FIRST}), busy=0, now=100)
    assert not canary.is_deaf(frozenset({FIRST}), busy=0, now=130)
    assert canary.is_deaf(frozenset({FIRST}), busy=0, now=131)


def test_each_message_has_its_own_time_and_a_claimed_one_is_forgotten() -> None:
    canary = Canary(patience_s=30)
    canary.is_deaf(frozenset({FIRST}), busy=0, now=100)
    canary.is_deaf(frozenset({SECOND}), busy=0, now=129)
    assert not canary.is_deaf(frozenset({SECOND}), busy=0, now=158)
    assert not canary.is_deaf(frozenset(), busy=0, now=200)
    assert not canary.is_deaf(frozenset({FIRST}), busy=0, now=201)


def test_a_busy_node_is_not_deaf_and_waits_anew_afterwards() -> None:
    canary = Canary(patience_s=30)
    canary.is_deaf(frozenset({FIRST}), busy=0, now=100)
    assert not canary.is_deaf(frozenset({FIRST}), busy=1, now=1000)
    assert not canary.is_deaf(frozenset({FIRST}), busy=0, now=1001)
    assert canary.is_deaf(frozenset({FIRST}), busy=0, now=1032)
