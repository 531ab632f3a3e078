"""Plans of real shape whose stages are :mod:`tests.small_stages`."""

from __future__ import annotations

from farm.plan import Plan, expand
from farm.sweep import Sweep, SweepModel
from qeff_engine import spec


def plan(
    *sources: str,
    cores: tuple[int, ...] = (8, 14, 16),
    prompt: str = "nothing",
    generation_len: int | None = None,
    num_devices: int = 1,
) -> Plan:
    """A sweep over models; the small stages do what ``sources`` (at resolve) and ``prompt`` (at run) say."""
    models = tuple(
        SweepModel(name=f"model{number}", source=spec.ResolveSpec(source=source, kind="directory", fingerprint=source))
        for number, source in enumerate(sources)
    )
    return expand(
        Sweep(models=models, cores=cores, prompts=(prompt,), generation_len=generation_len, num_devices=num_devices)
    )
