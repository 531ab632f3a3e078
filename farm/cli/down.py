"""``farm down``: stop the embedded farm of a home."""

from __future__ import annotations

import argparse

from farm.cli._context import Context

DESCRIPTION = (
    "Stop the farm of this home with all of its processes. Running work is interrupted, which is not counted against "
    "it, and goes on with the next `farm up`."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""


def run(options: argparse.Namespace, context: Context) -> int:
    """Stop everything and return when it is gone."""
    from farm import local

    ran = local.stop(context.settings)
    context.out.talk(f"The farm of {context.settings.home} {'is down' if ran else 'was not up'}.")
    return 0
