"""The page about caching and failures says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from farm import settings
from farm.lifecycle import failures
from farm.lifecycle.failures import POLICIES

PAGE = (Path(__file__).parents[3] / "docs" / "caching.md").read_text(encoding="utf-8")


def test_the_table_of_failure_classes_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    expected = []
    for failure_class, policy in POLICIES.items():
        pause = f"{policy.first_pause_s:g} s, x {policy.factor:g}" if policy.retries else "-"
        expected.append((str(failure_class), str(policy.retries), pause, "yes" if policy.deterministic else "no"))
    assert rows == expected


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    assert f"at most {failures.MOST_FAILURES} times" in PAGE
    assert f"for {settings.FAILURES_BELIEVED_S / 86400:.0f} days" in PAGE
