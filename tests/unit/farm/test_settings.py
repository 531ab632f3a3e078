"""Settings from the environment: how they are written, refused, and handed to other processes."""

from __future__ import annotations

import pytest

from farm import settings
from farm.errors import Usage


def test_settings_of_a_child_are_those_of_its_parent() -> None:
    environ = {"FARM_HISTORY_KEYS": "7", "FARM_FAILURES_BELIEVED": "1d12h", "FARM_RUN_LIMITS": "compile=36h,run=none"}
    found = settings.load(home="/nowhere", environ=environ)
    assert (found.history_keys, found.failures_believed_s) == (7, 36 * 3600.0)
    assert settings.load(environ=settings.to_environ(found)) == found


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("FARM_FAILURES_BELIEVED", "a week", "FARM_FAILURES_BELIEVED: 'a week' is not a duration, expected"),
        ("FARM_FAILURES_BELIEVED", "0s", "FARM_FAILURES_BELIEVED: '0s' is no time at all"),
        ("FARM_HISTORY_KEYS", "0", "FARM_HISTORY_KEYS is '0', expected a whole number above zero"),
        ("FARM_HISTORY_KEYS", "many", "FARM_HISTORY_KEYS is 'many', expected"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name: str, text: str, words: str) -> None:
    with pytest.raises(Usage, match=words):
        settings.load(home="/nowhere", environ={name: text})
