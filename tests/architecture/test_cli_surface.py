"""Every command has help, stands in the docs, and keeps its options unless a golden file says otherwise."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from farm import cli
from tests.architecture import cli_surface

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = cli_surface.commands()


def test_options_are_those_of_the_golden_file() -> None:
    assert list(cli_surface.surface()) == cli_surface.GOLDEN.read_text().splitlines(), cli_surface.__doc__


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_has_help(name: str) -> None:
    parser = COMMANDS[name]
    assert parser.description
    silent = [action.dest for action in parser._actions if not action.help and not action.choices]
    assert silent == []


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_stands_in_the_docs(name: str) -> None:
    text = DOCS.read_text()
    assert f"\n## farm {name}\n" in text
    section = text.partition(f"\n## farm {name}\n")[2].partition("\n## ")[0]
    general = text.partition("\n## farm up\n")[0]
    for action in COMMANDS[name]._actions:
        longest = max(action.option_strings, key=len, default="")
        if longest and not isinstance(action, argparse._HelpAction):
            where = general if longest in ("--home", "--verbose") else section
            spelt = longest if longest not in ("--verbose", "--follow") else action.option_strings[0]
            assert re.search(rf"{re.escape(spelt)}\b", where), f"docs/cli.md does not explain farm {name} {longest}"


def test_the_docs_know_no_other_command() -> None:
    documented = re.findall(r"^## farm (\S+)$", DOCS.read_text(), re.MULTILINE)
    assert documented == list(cli.COMMANDS)


def test_the_exit_codes_of_help_and_docs_are_the_same() -> None:
    table = re.findall(r"^\| (\d+) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    listed = re.findall(r"^  (\d+) +(.*)$", cli.EPILOG, re.MULTILINE)
    assert table == listed


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in cli.COMMANDS)
