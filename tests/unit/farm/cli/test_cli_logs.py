"""Logs are shown as text: nothing in them steers the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.cli import logs


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m and \x1b[1;4mbold\x1b[m\n", "red and bold\n"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b(Bplain", "Bplain"),
        ("10 %\r20 %\r\n", "10 %\n20 %\n"),
        ("a\tb\x00\x07\x9b", "a\tb"),
        ("naïve ≤ 漢字", "naïve ≤ 漢字"),
    ],
)
def test_escape_sequences_are_taken_out(raw: str, shown: str) -> None:
    assert logs.clean(raw) == shown


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\x1b[]()0;m\x07\r\n\t"), max_size=40))
def test_no_control_character_is_left(raw: str) -> None:
    shown = logs.clean(raw)
    assert not [character for character in shown if ord(character) < 32 and character not in "\n\t"]
    assert logs.clean(shown) == shown
