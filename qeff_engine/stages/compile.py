"""The ``compile`` stage: an exported model becomes a program for the card.

Leaves the tree that :mod:`qeff_engine.program` describes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from qeff_engine import events, exported, spec, stage
from qeff_engine.errors import InvalidInput
from qeff_engine.program import Program
from qeff_engine.sdk import location, qpc
from qeff_engine.sdk.command import command_line, write_side_files
from qeff_engine.sdk.compiler import CompileCost, compile_program

LOG_NAME = "compile.log"


def run(compile_spec: spec.CompileSpec, context: stage.StageContext) -> stage.StageResult:
    """Compile every component of the exported model in ``inputs["onnx"]``.

    Raises:
        InvalidInput: the spec does not fit the model.
        Infrastructure: there is no SDK, or the host is at fault.
        CompilerError, CompilerCrash, HostOutOfMemory, Unsupported: the compiler failed.
        StageTimeout: it ran for longer than ``context.compiler_limit_s``.
    """
    sdk = location.find(context.sdk_root)
    onnx = context.inputs[stage.ONNX].absolute()
    model = exported.load(onnx)
    _require_fitting(compile_spec, model=model)
    commands: dict[str, list[str]] = {}
    costs: dict[str, CompileCost] = {}
    needs: list[qpc.Needs] = []
    log_path = context.out / LOG_NAME
    with log_path.open("w") as log:
        for name, component in model.components.items():
            folder = (context.out / name).absolute()
            folder.mkdir()
            graph = onnx / component.file
            side_files = write_side_files(
                folder, sdk=sdk, model=model, component=name, compile_spec=compile_spec, onnx=graph
            )
            command = command_line(
                sdk.compiler(),
                onnx=graph,
                component=component,
                compile_spec=compile_spec,
                side_files=side_files,
                program=folder / "qpc",
            )
            context.emit(events.progress(f"compiling the {name} for {compile_spec.num_cores} cores"))
            costs[name] = compile_program(
                command,
                program=folder / "qpc",
                log=log,
                log_path=log_path,
                work=context.work,
                emit=context.emit,
                limit_s=context.compiler_limit_s,
            )
            needs.append(qpc.validated(sdk, program=folder / "qpc"))
            commands[name] = command
    figures = _figures(costs, simulated=sdk.simulated) | _needs(needs)
    shutil.copyfile(onnx / exported.FILE_NAME, context.out / exported.FILE_NAME)
    Program(
        compile_spec=compile_spec,
        commands={name: _relocatable(command, out=context.out) for name, command in commands.items()},
        sdk_versions=dict(sdk.versions),
        simulated=sdk.simulated,
        figures=figures,
    ).save(context.out)
    return stage.StageResult(figures=figures)


def _figures(costs: dict[str, CompileCost], *, simulated: bool) -> dict[str, Any]:
    """What all components together cost, as they are compiled one after another, and what the compiler said of each."""
    said = {f"{name}_{key}": value for name, cost in costs.items() for key, value in cost.metrics.items()}
    return {
        "compile_s": round(sum(cost.wall_s for cost in costs.values()), 3),
        "compiler_cpu_s": round(sum(cost.cpu_s for cost in costs.values()), 3),
        "compiler_peak_rss_bytes": max(cost.peak_rss_bytes for cost in costs.values()),
        "program_bytes": sum(cost.program_bytes for cost in costs.values()),
        "simulated": simulated,
        **said,
    }


def _needs(needs: list[qpc.Needs]) -> dict[str, Any]:
    """Memory that the largest component takes of its devices, where it is known: only one is active at a time."""
    told = [one.dram_bytes for one in needs if one.dram_bytes is not None]
    return {"dram_bytes": max(told)} if told else {}


def _require_fitting(compile_spec: spec.CompileSpec, *, model: exported.ExportedModel) -> None:
    """Refuse lengths that the graph does not have: the compiler would accept them, and tokens would be wrong."""
    encoder = exported.ENCODER in model.components
    name, length = ("sequence", compile_spec.seq_len) if encoder else ("context", compile_spec.ctx_len)
    if model.max_positions and length > model.max_positions:
        raise InvalidInput(
            f"The {name} length is {length}, expected at most the {model.max_positions} positions that "
            f"{model.class_name} has.",
            advice=f"Lower --{'seq' if encoder else 'ctx'}-len.",
        )
    longest = min((item.max_seq_len for item in model.components.values() if item.max_seq_len), default=0)
    if longest and compile_spec.prefill_len > longest:
        raise InvalidInput(
            f"The prefill length is {compile_spec.prefill_len}, expected at most the {longest} tokens of a call that "
            f"the recurrences of {model.class_name} are exported for.",
            advice="Lower --prefill-len; prompts are cut into calls of that length.",
        )


def _relocatable(command: list[str], *, out: Path) -> list[str]:
    """A command whose own files are named relative to the program, since the tree moves when it is published."""
    return [argument.replace(f"{out.absolute()}/", "") for argument in command]
