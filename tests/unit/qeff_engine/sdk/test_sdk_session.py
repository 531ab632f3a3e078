"""The session on the simulated SDK: the same modules and calls as on a card."""

import subprocess
import sys

import numpy as np
import pytest

from qeff_engine import errors, generation
from qeff_engine.sdk import devices, location, runtime
from qeff_engine.sdk.session import Session
from qeff_engine.spec import CompileSpec
from qeff_engine.stage import ONNX, StageContext
from qeff_engine.stages import compile as compile_stage
from tests import toy_decoder

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3], [5, 8, 9, 7, 9]]
SPEC = CompileSpec(num_cores=8, batch_size=2, prefill_len=4, ctx_len=32)
SHAPE = generation.DecoderShape(batch_size=2, prefill_len=4, ctx_len=32)


@pytest.fixture(scope="module")
def sdk(simulated_sdk_root):
    return location.find(simulated_sdk_root)


@pytest.fixture(scope="module")
def compiled(sdk, tmp_path_factory):
    """Directory of the toy's program for 8 cores."""
    return compile_toy(tmp_path_factory.mktemp("toy"), sdk=sdk, spec=SPEC)


def compile_toy(directory, *, sdk, spec):
    for name in ("onnx", "out", "work"):
        (directory / name).mkdir()
    toy_decoder.export(directory / "onnx")
    context = StageContext(
        out=directory / "out", work=directory / "work", inputs={ONNX: directory / "onnx"}, sdk_root=sdk.root
    )
    compile_stage.run(spec, context)
    return directory / "out" / "decoder" / "qpc"


def feeds(*, seq_len, batch_size=2):
    ids = np.ones((batch_size, seq_len), np.int64)
    return {"input_ids": ids, "position_ids": np.tile(np.arange(seq_len), (batch_size, 1))}


def free_cores(sdk, qid=0):
    return next(device.nsp_free for device in devices.discover(sdk) if device.qid == qid)


def test_inputs_and_outputs_are_those_that_leave_the_device(sdk, compiled):
    session = Session(sdk, program=compiled, qids=[0])
    assert set(session.inputs) == {"input_ids", "position_ids"}
    assert set(session.outputs) == {"logits"}
    assert [shapes["input_ids"] for shapes in session.specializations] == [(2, 4), (2, 1)]


def test_generation_on_a_device_gives_the_tokens_of_plain_numpy(sdk, compiled):
    with Session(sdk, program=compiled, qids=[0]) as session:
        result = generation.generate(session, prompts=PROMPTS, shape=SHAPE, generation_len=6)
    assert result.tokens == [toy_decoder.greedy(prompt, num_tokens=6) for prompt in PROMPTS]
    assert 0 < result.timings.ttft_s[0] < result.timings.total_s


def test_inputs_go_to_the_runtime_without_a_copy_and_others_are_cast(sdk, compiled, monkeypatch):
    given = feeds(seq_len=1) | {"position_ids": np.zeros((2, 1), np.int32)}
    with Session(sdk, program=compiled, qids=[0]) as session:
        plain, handed = session._runtime.qaicrt.QBuffer, []
        monkeypatch.setattr(session._runtime.qaicrt, "QBuffer", lambda data: handed.append(data) or plain(data))
        session.run(given, outputs=["logits"])
    arrays = [data for data in handed if isinstance(data, np.ndarray)]
    assert [np.shares_memory(data, given["input_ids"]) for data in arrays] == [True, False]
    assert {data.dtype for data in arrays} == {np.dtype(np.int64)}


def test_a_program_sliced_over_two_devices_holds_cores_of_both(sdk, tmp_path):
    spec = CompileSpec(num_cores=4, num_devices=2, batch_size=2, prefill_len=4, ctx_len=32)
    program = compile_toy(tmp_path, sdk=sdk, spec=spec)
    before = free_cores(sdk, 0), free_cores(sdk, 1)
    with Session(sdk, program=program, qids=[0, 1]) as session:
        assert (free_cores(sdk, 0), free_cores(sdk, 1)) == (before[0] - 4, before[1] - 4)
        result = generation.generate(session, prompts=PROMPTS, shape=SHAPE, generation_len=4)
    assert result.tokens == [toy_decoder.greedy(prompt, num_tokens=4) for prompt in PROMPTS]


def test_block_formats_run_from_command_line_to_tokens(sdk, tmp_path):
    spec = CompileSpec(num_cores=4, batch_size=2, prefill_len=4, ctx_len=32, precision="mxfp6", kv_precision="mxint8")
    program = compile_toy(tmp_path, sdk=sdk, spec=spec)
    with Session(sdk, program=program, qids=[0]) as session:
        assert not {"past_key.0", "past_value.0"} & session.inputs.keys()
        result = generation.generate(session, prompts=PROMPTS, shape=SHAPE, generation_len=4)
    assert [len(tokens) for tokens in result.tokens] == [4, 4, 4]


def test_time_is_the_devices_own(sdk, compiled):
    def timings():
        with Session(sdk, program=compiled, qids=[0]) as session:
            return generation.generate(session, prompts=PROMPTS, shape=SHAPE, generation_len=6).timings

    assert timings().total_s == pytest.approx(timings().total_s, rel=1e-9)


def test_cores_are_held_inside_the_block_only(sdk, compiled):
    before = free_cores(sdk)
    with Session(sdk, program=compiled, qids=[0]):
        assert free_cores(sdk) == before - 8
    assert free_cores(sdk) == before


def test_cores_are_given_back_after_an_error(sdk, compiled):
    before = free_cores(sdk)
    with pytest.raises(KeyError), Session(sdk, program=compiled, qids=[0]):
        raise KeyError
    assert free_cores(sdk) == before


def test_cores_in_use_are_a_loss_that_may_pass(sdk, compiled):
    with (
        Session(sdk, program=compiled, qids=[1]),
        pytest.raises(errors.DeviceLost, match="NSP"),
        Session(sdk, program=compiled, qids=[1]),
    ):
        pytest.fail("14 cores cannot hold two programs of 8")
    with Session(sdk, program=compiled, qids=[1]) as session:
        session.run(feeds(seq_len=1), outputs=("logits",))


def test_a_device_that_does_not_exist_is_lost(sdk, compiled):
    with pytest.raises(errors.DeviceLost, match="device 9"), Session(sdk, program=compiled, qids=[9]):
        pytest.fail("there is no device 9")


def test_program_larger_than_the_devices_memory_is_refused_for_good(sdk, tmp_path):
    # 2 states of 500,000 x 4096 x 16 halves are 131 GB; the device has 32.
    spec = CompileSpec(num_cores=1, batch_size=500_000, prefill_len=1, ctx_len=4096)
    model = toy_decoder.description()
    assert model.max_positions == 64
    directory = tmp_path
    program = compile_unchecked(directory, sdk=sdk, spec=spec)
    with pytest.raises(errors.DeviceOutOfMemory, match="Memory resource exhausted"):
        Session(sdk, program=program, qids=[0]).__enter__()


def compile_unchecked(directory, *, sdk, spec):
    """Compile the toy for more positions than it has, which only the stage refuses."""
    import io

    from qeff_engine.sdk import command, compiler

    model = toy_decoder.export(directory)
    component = model.components["decoder"]
    side_files = command.write_side_files(
        directory, sdk=sdk, model=model, component="decoder", compile_spec=spec, onnx=directory
    )
    arguments = command.command_line(
        sdk.compiler(),
        onnx=directory / component.file,
        component=component,
        compile_spec=spec,
        side_files=side_files,
        program=directory / "qpc",
    )
    compiler.compile_program(
        arguments,
        program=directory / "qpc",
        log=io.StringIO(),
        log_path=directory / "log",
        work=directory,
        emit=lambda event: None,
    )
    return directory / "qpc"


def test_shapes_that_fit_no_specialization_are_our_message(sdk, compiled):
    with (
        Session(sdk, program=compiled, qids=[0]) as session,
        pytest.raises(errors.InvalidInput, match=r"No specialization .* \(2, 3\)"),
    ):
        session.run(feeds(seq_len=3), outputs=("logits",))


def test_missing_and_unknown_inputs_are_named(sdk, compiled):
    with (
        Session(sdk, program=compiled, qids=[0]) as session,
        pytest.raises(errors.InvalidInput, match=r"\['input_ids', 'position_ids'\], got \['input_ids', 'mask'\]"),
    ):
        session.run({"input_ids": feeds(seq_len=1)["input_ids"], "mask": np.ones(1)}, outputs=("logits",))


def test_a_closed_session_refuses_to_run(sdk, compiled):
    with Session(sdk, program=compiled, qids=[0]) as session:
        pass
    with pytest.raises(errors.InvalidInput, match="not active"):
        session.run(feeds(seq_len=1), outputs=("logits",))


def test_a_session_can_be_entered_again_with_fresh_state(sdk, compiled):
    session = Session(sdk, program=compiled, qids=[0])
    answers = []
    for _ in range(2):
        with session:
            answers.append(generation.generate(session, prompts=PROMPTS, shape=SHAPE, generation_len=3).tokens)
    assert answers[0] == answers[1]


def test_directory_without_program_is_refused(sdk, tmp_path):
    with pytest.raises(errors.InvalidInput, match=r"no programqpc.bin"):
        Session(sdk, program=tmp_path, qids=[0])


def test_search_path_is_left_as_it_was(sdk):
    before = list(sys.path)
    runtime.load(sdk)
    assert sys.path == before


def test_a_second_sdk_in_one_process_is_refused(sdk, tmp_path):
    runtime.load(sdk)
    other = location.Sdk(root=tmp_path, versions={}, simulated=True)
    with pytest.raises(errors.Infrastructure, match="already uses the runtime of"):
        runtime.load(other)


def test_sdk_without_runtime_says_where_it_was_expected(tmp_path):
    code = (
        "from pathlib import Path; from qeff_engine.sdk import location, runtime;"
        f"runtime.load(location.Sdk(root=Path({str(tmp_path)!r}), versions={{}}, simulated=False))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has no runtime that this Python can load: No module named 'qaicrt'" in done.stderr
    assert str(tmp_path / "dev" / "python") in done.stderr


def test_module_from_another_place_is_not_taken_for_the_sdks(tmp_path):
    (tmp_path / "qaicrt.py").touch()
    (tmp_path / "QAicApi_pb2.py").touch()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import qaicrt, QAicApi_pb2; sys.path.pop(0)\n"
        "from pathlib import Path; from qeff_engine.sdk import location, runtime\n"
        f"root = Path({str(tmp_path / 'sdk')!r}); [path.mkdir(parents=True) for path in"
        " location.Sdk(root=root, versions={}, simulated=False).runtime_directories]\n"
        "runtime.load(location.Sdk(root=root, versions={}, simulated=False))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "already imported qaicrt from" in done.stderr
