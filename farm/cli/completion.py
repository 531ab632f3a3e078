"""``farm completion``: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse

from farm.cli._context import Context

SHELLS = ("bash", "zsh", "tcsh")
DESCRIPTION = (
    "Print a completion script. For bash: farm completion bash > ~/.local/share/bash-completion/completions/farm. "
    "For zsh: farm completion zsh > a directory of $fpath, as _farm."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the script."""
    import shtab

    from farm import cli

    context.out.raw(shtab.complete(cli.full_parser(), shell=options.shell))
    return 0
