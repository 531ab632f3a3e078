import dataclasses
import json
import subprocess
import sys

import pytest

from qeff_engine import errors, exported, pipeline, program
from qeff_engine.sdk import location
from qeff_engine.spec import CompileSpec
from qeff_engine.stage import ONNX, StageContext
from tests import toy_decoder


@pytest.fixture
def context(tmp_path, simulated_sdk_root):
    for name in ("onnx", "out", "work"):
        (tmp_path / name).mkdir()
    toy_decoder.export(tmp_path / "onnx")
    told = []
    return StageContext(
        out=tmp_path / "out",
        work=tmp_path / "work",
        inputs={ONNX: tmp_path / "onnx"},
        sdk_root=simulated_sdk_root,
        emit=told.append,
    ), told


def test_the_program_is_a_whole_tree_that_describes_itself(context, simulated_sdk_root):
    context, _ = context
    spec = CompileSpec(num_cores=14, ctx_len=32, prefill_len=8, precision="mxfp6", kv_precision="mxint8")
    figures = pipeline.run_stage(spec, context=context).figures
    files = {str(path.relative_to(context.out)) for path in context.out.rglob("*") if path.is_file()}
    assert files >= {
        "program.json",
        "compile.log",
        "export.json",
        "decoder/specializations.json",
        "decoder/custom_io.yaml",
        "decoder/qpc/programqpc.bin",
    }
    found = program.load(context.out)
    assert found.compile_spec == spec
    assert found.simulated
    assert found.sdk_versions == location.find(simulated_sdk_root).versions
    assert exported.load(context.out) == exported.load(context.inputs[ONNX])
    qpc = context.out / "decoder" / "qpc"
    assert figures["program_bytes"] == sum(path.stat().st_size for path in qpc.rglob("*") if path.is_file())
    assert figures["simulated"] is True
    assert figures["compile_s"] > 0
    assert figures["compiler_cpu_s"] > 0
    assert figures["compiler_peak_rss_bytes"] > 1_000_000


def test_recorded_command_names_its_own_files_relative_to_the_program(context):
    context, _ = context
    pipeline.run_stage(CompileSpec(ctx_len=32), context=context)
    command = program.load(context.out).commands["decoder"]
    assert "-aic-binary-dir=decoder/qpc" in command
    assert not [argument for argument in command if str(context.out) in argument]


def test_compiler_output_is_told_and_kept(context):
    context, told = context
    pipeline.run_stage(CompileSpec(ctx_len=32), context=context)
    lines = [event.message for event in told if event.kind == "log"]
    assert any(line.startswith("Reading ONNX Model from") for line in lines)
    assert (context.out / "compile.log").read_text().splitlines()[1:] == lines


def test_the_driver_passes_no_option_that_the_compiler_does_not_know(context, simulated_sdk_root):
    """Everything the driver can be asked for at once; the compiler refuses options it does not know."""
    context, _ = context
    spec = CompileSpec(
        num_cores=8, num_devices=2, batch_size=2, ctx_len=32, precision="mxfp6", kv_precision="mxint8", hw_version="2.0"
    )
    pipeline.run_stage(spec, context=context)
    compiler = location.find(simulated_sdk_root).compiler()[0]
    refused = subprocess.run([compiler, "-no-such-option"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "Invalid option -no-such-option" in refused.stdout + refused.stderr


def test_a_context_longer_than_the_models_positions_is_refused(context):
    context, _ = context
    with pytest.raises(errors.InvalidInput, match="context length is 128, expected at most the 64 positions"):
        pipeline.run_stage(CompileSpec(ctx_len=128), context=context)


def test_calls_longer_than_the_graphs_recurrences_are_refused(context):
    context, _ = context
    described = exported.load(context.inputs[ONNX])
    component = described.components[exported.DECODER]
    limited = dataclasses.replace(component, max_seq_len=16)
    dataclasses.replace(described, components={exported.DECODER: limited}).save(context.inputs[ONNX])
    with pytest.raises(errors.InvalidInput, match="prefill length is 17, expected at most the 16 tokens of a call"):
        pipeline.run_stage(CompileSpec(ctx_len=32, prefill_len=17), context=context)


def test_a_graph_that_the_compiler_refuses_is_a_compiler_error_with_its_words(context):
    context, _ = context
    (context.inputs[ONNX] / toy_decoder.FILE).write_bytes(b"no graph at all")
    with pytest.raises(errors.CompilerError) as caught:
        pipeline.run_stage(CompileSpec(ctx_len=32), context=context)
    assert str(context.out / "compile.log") in caught.value.advice
    assert not (context.out / "program.json").exists()


def test_missing_weights_are_found_out(context):
    context, _ = context
    (context.inputs[ONNX] / "toy.bin").unlink()
    with pytest.raises(errors.CompilerError, match=r"toy\.bin"):
        pipeline.run_stage(CompileSpec(ctx_len=32), context=context)


def test_an_existing_directory_without_an_export_is_refused(context, tmp_path):
    context, _ = context
    (context.inputs[ONNX] / "export.json").unlink()
    with pytest.raises(errors.InvalidInput, match="not an exported model"):
        pipeline.run_stage(CompileSpec(), context=context)


def test_a_compiler_killed_for_its_memory_is_out_of_memory(tmp_path):
    tool = tmp_path / "sdk" / "exec" / "qaic-compile"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!{sys.executable}\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    tool.chmod(0o755)
    for name in ("onnx", "out", "work"):
        (tmp_path / name).mkdir()
    toy_decoder.export(tmp_path / "onnx")
    context = StageContext(
        out=tmp_path / "out", work=tmp_path / "work", inputs={ONNX: tmp_path / "onnx"}, sdk_root=tmp_path / "sdk"
    )
    with pytest.raises(errors.HostOutOfMemory):
        pipeline.run_stage(CompileSpec(ctx_len=32), context=context)


def test_missing_sdk_is_named(tmp_path):
    context = StageContext(out=tmp_path, work=tmp_path, inputs={ONNX: tmp_path}, sdk_root=tmp_path / "nowhere")
    with pytest.raises(errors.Infrastructure, match="No Cloud AI SDK at"):
        pipeline.run_stage(CompileSpec(), context=context)


def test_two_compilers_at_once_do_not_meet(context, tmp_path):
    """Same export, same SDK, two output trees: the specializations of one never reach the other."""
    context, _ = context
    for cores in (4, 8):
        out = tmp_path / f"out-{cores}"
        out.mkdir()
        single = StageContext(out=out, work=tmp_path / "work", inputs=context.inputs, sdk_root=context.sdk_root)
        pipeline.run_stage(CompileSpec(num_cores=cores, ctx_len=cores * 4, prefill_len=2), context=single)
    written = [
        json.loads((tmp_path / f"out-{cores}" / "decoder" / "specializations.json").read_text()) for cores in (4, 8)
    ]
    assert written[0] != written[1]
    assert not list((tmp_path / "work").iterdir())


def test_metrics_of_the_compiler_become_figures_when_they_are_asked_for(context):
    context, _ = context
    options = {"aic-perf-metrics": True, "time-passes": True}
    figures = pipeline.run_stage(
        CompileSpec(num_cores=2, ctx_len=32, compiler_options=options), context=context
    ).figures
    assert figures["decoder_hmx_macs"] > 0
    (said,) = [
        line for line in (context.out / "compile.log").read_text().splitlines() if "Predicted compile time" in line
    ]
    assert said.endswith(f": {figures['decoder_simulated_compile_s']:.1f} s")
    assert figures["decoder_vtcm_bytes_by_core"] == [figures["decoder_vtcm_max_bytes"]] * 2
    assert figures["decoder_static_constants_bytes"] == figures["decoder_qpc_constants_bytes"] > 0
    assert {"decoder_elf_bytes", "decoder_ddr_read_bytes", "decoder_barriers_by_core"} <= figures.keys()
    assert program.load(context.out).figures.items() <= figures.items()


def test_a_graph_without_layers_is_no_pipeline_and_devices_may_exchange_through_the_host(context):
    context, _ = context
    with pytest.raises(errors.Unsupported, match="has 0 layers as functions, expected at least the 2 parts"):
        pipeline.run_stage(CompileSpec(num_cores=2, ctx_len=32, num_devices=2, num_partitions=2), context=context)
    (context.out / "compile.log").unlink()
    (context.out / "decoder").rmdir()
    pipeline.run_stage(CompileSpec(num_cores=2, ctx_len=32, num_devices=2, device_link="host"), context=context)
    assert "connections" not in json.loads((context.out / "decoder" / "mdp_ts_2.json").read_text())
