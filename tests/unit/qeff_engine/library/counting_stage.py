"""A stage that counts its runs, for tests of what is done twice and what is not."""

from qeff_engine.errors import CompilerError
from qeff_engine.stage import StageResult

runs: list[str] = []
fails_with: list[BaseException] = []


def run(stage_spec, context):
    runs.append(stage_spec.STAGE)
    (context.out / "half.txt").write_text("half")
    if fails_with:
        raise fails_with.pop()
    for name, directory in context.inputs.items():
        (context.out / f"{name}.txt").write_text(",".join(sorted(path.name for path in directory.iterdir())))
    (context.out / "whole.txt").write_text("whole")
    return StageResult(figures={"num_runs": len(runs)})


def refused():
    return CompilerError("No such operator.")
