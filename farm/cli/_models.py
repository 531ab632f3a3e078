"""The models that a command line names, and the consent to run their own code."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farm.errors import Usage
from farm.sweep import SweepModel
from qeff_engine import spec
from qeff_engine.errors import EngineError


def add_arguments(group: Any) -> None:
    """Add the options to a group of a parser."""
    group.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="MODEL",
        help="directory of a checkpoint, .gguf file, or hub id[@revision]; may be repeated",
    )
    group.add_argument(
        "--trust-remote-code",
        action="append",
        default=[],
        metavar="COMMIT",
        help="run the code that comes with a model, in its stages: the commit of a hub id, which is then its revision, "
        "or sha256:DIGEST of a directory's code; may be repeated (no code is run)",
    )


def read(options: argparse.Namespace) -> tuple[SweepModel, ...]:
    """The models, each looked at as far as that is cheap: no weight is read, no hub is asked, no code is run.

    Raises:
        Usage: a consent belongs to no model.
        InvalidInput, Unsupported: a model is wrong, or the consent is not to its code.
    """
    sources: list[str] = options.model
    consents = _consents(sources, given=options.trust_remote_code)
    found = zip(sources, _names(sources), consents, strict=True)
    return tuple(_model(source, name=name, consent=consent) for source, name, consent in found)


def _model(source: str, *, name: str, consent: str) -> SweepModel:
    from qeff_engine import checkpoint

    place, revision = _place_and_revision(source)
    resolve = checkpoint.resolve_spec(place, revision=revision or None, trust_remote_code=consent)
    if resolve.kind == "hub" and not spec.COMMIT.fullmatch(resolve.revision or ""):
        # A branch moves: what it was at another time says nothing about now, so the hub is asked again.
        resolve = dataclasses.replace(resolve, fingerprint=f"asked at {time.time():.6f}")
    return SweepModel(name=name, source=resolve)


def _place_and_revision(source: str) -> tuple[str, str]:
    if os.path.exists(source):  # noqa: PTH110  a path may hold an @
        return source, ""
    place, _, revision = source.partition("@")
    return place, revision


def _consents(sources: Sequence[str], *, given: Sequence[str]) -> list[str]:
    """The consent to each model's code, or nothing. With several models, it is known by what it names."""
    if len(sources) == len(given) == 1:
        return list(given)
    digests = {consent for consent in given if spec.CODE_DIGEST.fullmatch(consent)}
    found = []
    for source in sources:
        place, revision = _place_and_revision(source)
        named = revision if revision in given else ""
        found.append(named or (_digest(place) if digests and Path(place).is_dir() else ""))
    known = [consent if consent in given else "" for consent in found]
    for consent in given:
        if consent not in known:
            others = [f"{source} has {digest}" for source, digest in zip(sources, found, strict=True) if digest]
            raise Usage(
                f"--trust-remote-code {consent} belongs to none of {len(sources)} models"
                + (f" ({', '.join(others)})." if others else ".")
                + " Write a hub id as id@COMMIT; the code of a directory must have the digest."
            )
    return known


def _digest(directory: str) -> str:
    """The digest of a directory's code; empty where there is none that could run."""
    from qeff_engine import checkpoint

    try:
        return checkpoint.code_digest(Path(directory))
    except (EngineError, OSError):
        return ""


def _names(sources: Sequence[str]) -> list[str]:
    """A short name of each: the last part of a path, or the hub id; the whole source where that is not unique."""
    short = [Path(source).name.removesuffix(".gguf") if os.path.exists(source) else source for source in sources]  # noqa: PTH110
    return [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]
