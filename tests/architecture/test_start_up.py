"""What the command line may load. CPU time follows from it; benchmarks/command_cpu.py measures it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "celery", "kombu", "redis", "alembic", "fsspec")
# Nothing that talks to a database or draws belongs in what only reads arguments.
READING_ARGUMENTS = (*HEAVY, "sqlalchemy", "sqlite3", "rich", "shtab", "psutil", "asyncio")


def loaded(code: str, *arguments: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after running ``code``."""
    script = f"import sys\n{code}\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    assert loaded("import farm.cli") & set(READING_ARGUMENTS) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["list", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"import contextlib, io, farm.cli\nwith contextlib.redirect_stdout(io.StringIO()):\n  run = {arguments}\n"
    code += "  try: farm.cli.main(run)\n  except SystemExit: pass"
    assert loaded(code) & set(READING_ARGUMENTS) == set()


def test_importing_the_engine_and_its_words_loads_nothing_heavy() -> None:
    assert loaded("import qeff_engine, qeff_engine.spec, qeff_engine.checkpoint") & set(HEAVY) == set()


@pytest.mark.parametrize("arguments", [["list"], ["submit", "--model", "{model}", "--cores", "8,14"], ["devices"]])
def test_commands_with_a_database_load_no_broker_migrations_or_terminal(
    arguments: list[str], farm_home: Path, model: Path
) -> None:
    words = ["--home", str(farm_home), *(word.format(model=model) for word in arguments)]
    code = "import contextlib, io, farm.cli\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    code += f"  assert farm.cli.main({words}) == 0"
    found = loaded(code)
    assert found & {*HEAVY, "rich", "shtab", "psutil"} == set()
    assert "sqlalchemy" in found
