"""The compiler's command line: what it takes, prints, leaves behind and refuses, with the documented texts."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import compiler_cli
from qeff_engine.simulated_sdk.install import install
from tests.unit.qeff_engine.simulated_sdk import graphs

_MODEL_ERROR = "QAIC_ERROR:\nError message:  "


@pytest.fixture
def decoder(tmp_path):
    return graphs.save(graphs.decoder(), tmp_path)


def test_a_compile_prints_what_the_real_one_prints_and_leaves_the_container(decoder, simulated_sdk_root):
    flags = ["-retained-state", "-convert-to-fp16", "-aic-num-cores=4", "-mos=1", "-ols=2", "-compile-threads=2"]
    line = graphs.command(decoder, *flags, specializations=graphs.SPECIALIZATIONS)
    done = subprocess.run(
        [simulated_sdk_root / "exec/qaic-compile", *line], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"Reading ONNX Model from {decoder}",
        "Compile started ...............",
        "Compiling model with FP16 precision.",
        f"Generated binary is present at {decoder.parent / 'qpc'}",
    ]
    assert [path.name for path in (decoder.parent / "qpc").iterdir()] == ["programqpc.bin"]


def test_the_older_tool_takes_its_older_form(decoder, simulated_sdk_root):
    line = graphs.command(decoder, "-compile-only", specializations=graphs.SPECIALIZATIONS)
    line[1] = "-aic-hw-version=2.0"
    done = subprocess.run([simulated_sdk_root / "exec/qaic-exec", *line], capture_output=True, check=False)
    assert done.returncode == 0
    assert (decoder.parent / "qpc" / "programqpc.bin").is_file()


def test_compiling_twice_gives_the_same_bytes(decoder, compile_in):
    outcomes = []
    for _ in range(2):
        assert compile_in(decoder, "-mxfp6-matmul", "-convert-to-fp16", specializations=graphs.SPECIALIZATIONS) == 0
        outcomes.append((decoder.parent / "qpc" / "programqpc.bin").read_bytes())
        (decoder.parent / "qpc" / "programqpc.bin").unlink()
        (decoder.parent / "qpc").rmdir()
    assert outcomes[0] == outcomes[1]


def test_performance_metrics_count_packed_sizes(decoder, compile_in, capsys):
    flags = ("-convert-to-fp16", "-mxfp6-matmul", "-aic-perf-metrics", "-aic-num-cores=2")
    assert compile_in(decoder, *flags, specializations=graphs.SPECIALIZATIONS) == 0
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    # The embedding is stored twice: fp16 for the lookup, MXFP6 for the product with it.
    packed = (graphs.KEY_HH.size + graphs.EMBEDDING_VH.size) * 6.25 / 8
    printed = {name: value.split()[0] for name, value in printed.items() if value.split()}
    assert int(printed["StaticConstantsSize"]) == packed + graphs.EMBEDDING_VH.size * 2
    assert {"VTCM0Size", "VTCM1Size", "VTCMMaxSize", "StaticSharedDDRSize"} <= printed.keys()
    assert printed["constants.bin QPC section size"] == printed["StaticConstantsSize"]
    # Four tokens through the key weight, one through the embedding.
    assert int(printed["Original MAC estimate"]) == 4 * graphs.KEY_HH.size + graphs.EMBEDDING_VH.size


def test_the_predicted_time_of_the_real_compiler_is_printed_and_grows_with_cores(decoder, compile_in, capsys):
    taken = []
    for cores in (1, 14):
        flags = ("-convert-to-fp16", "-time-passes", f"-aic-num-cores={cores}")
        assert compile_in(decoder, *flags, specializations=graphs.SPECIALIZATIONS) == 0
        (decoder.parent / "qpc" / "programqpc.bin").unlink()
        (decoder.parent / "qpc").rmdir()
        printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
        taken.append(float(printed["Predicted compile time of the real compiler"].removesuffix(" s")))
        assert printed["Predicted compile memory of the real compiler"].endswith(" MiB")
    assert 0 < taken[0] < taken[1]


def _refused(compile_in, capsys, path, *flags, specializations=graphs.SPECIALIZATIONS, code=1):
    assert compile_in(path, *flags, specializations=specializations) == code
    assert not (path.parent / "qpc").exists(), "a refused compile leaves no directory behind"
    return capsys.readouterr().err


def test_an_unknown_option_is_refused_with_the_real_text(decoder, compile_in, capsys):
    text = _refused(compile_in, capsys, decoder, "-retained-stat")
    assert text == "Invalid option -retained-stat. Use -h, -help, or --help for list of options.\n"


@pytest.mark.parametrize(
    "flag",
    [
        *("-aic-num-cores=0", "-aic-num-cores=17", "-aic-num-cores=x", "-aic-num-cores", "-aic-num-cores="),
        *("-aic-hw-version=ai300", "-aic-hw-version=ai200", "-mos=2", "-ols=0", "-retained-state=true"),
        *("-mos=1,", "-mos=0", "-allocator-dealloc-delay=11", "-size-split-granularity=256", "-combine-inputs=maybe"),
        *("-aic-pmu-recipe=All", "-aic-pmu-events=a,b,c,d,e,f,g,h,i", "-execute-nodes-in-fp16=", "-stats-level=-1"),
        *("-percentile-calibration-value=89", "-quantization-precision=Int4", "-vtcm-working-set-limit-ratio=nan"),
        *("-aic-depth-first-mem=4", "-vtcm-working-set-limit-ratio=2", "-onnx-define-symbol=a", "-batchsize=2"),
        *("-load-profile=x.yaml", "-sdp-cluster-sizes=7,7"),
    ],
)
def test_a_bad_value_is_refused_and_named(decoder, compile_in, capsys, flag):
    text = _refused(compile_in, capsys, decoder, flag)
    assert text.startswith("QAIC_ERROR: ")
    assert flag.split("=")[0] in text


@pytest.mark.parametrize("missing", ["-aic-hw", "-m=", "-aic-binary-dir="])
def test_what_a_compile_needs_is_asked_for(decoder, simulated_sdk_root, capsys, missing):
    line = graphs.command(decoder, specializations=graphs.SPECIALIZATIONS)
    rest = [item for item in line if item != missing and not (missing.endswith("=") and item.startswith(missing))]
    assert compiler_cli.main(rest, root=simulated_sdk_root) == 1
    assert missing.rstrip("=") in capsys.readouterr().err


@pytest.mark.parametrize("other", ["-aic-enable-depth-first", "-mdp-load-partition-config=x.json", "-stats-level=50"])
def test_partitioning_one_device_excludes_what_is_documented(decoder, compile_in, capsys, other):
    text = _refused(compile_in, capsys, decoder, "-aic-num-cores=14", "-sdp-cluster-sizes=7,7", other)
    assert "Single device partitioning does not support" in text


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("-aic-depth-first-mem=8",), "Option -aic-depth-first-mem needs option -aic-enable-depth-first."),
        (("-mdts-mos=2",), "Option -mdts-mos needs option -mdp-load-partition-config."),
        (("-host-preproc", "-aic-preproc"), "Option -host-preproc does not go with -aic-preproc."),
        (("-convert-to-quantize", "-dump-profile=x"), "Option -convert-to-quantize does not go with -dump-profile."),
        (("-percentile-calibration-value=99",), "needs option -quantization-calibration=Percentile."),
        (("-aic-num-cores=8", "-sdp-cluster-sizes=7,7"), "must fit -aic-num-cores, which is 8."),
        (("-aic-num-cores=14", "-sdp-cluster-sizes=7,7", "-mos=1,2,3"), "one for each of 2 clusters"),
        (("-enable-rowwise",), "Option -enable-rowwise is not supported by the simulated compiler."),
    ],
)
def test_what_does_not_go_together_is_refused(decoder, compile_in, capsys, flags, text):
    assert text in _refused(compile_in, capsys, decoder, *flags)


def test_every_flag_that_goes_together_is_taken(decoder, compile_in):
    flags = (
        *("-retained-state", "-convert-to-fp16", "-aic-num-cores=14", "-sdp-cluster-sizes=7,7", "-mos=1,4", "-ols=5"),
        *("-use-producer-dma", "-combine-inputs=false", "-combine-outputs=0", "-allocator-dealloc-delay=0", "-v"),
        *(
            "-size-split-granularity=2048",
            "-vtcm-working-set-limit-ratio=0.25",
            "-multicast-weights",
        ),
        *("-aic-pmu-recipe=KernelUtil", "-execute-nodes-in-fp16=Add,Div", "-compile-threads=4", "-stats-level=70"),
    )
    assert compile_in(decoder, *flags, specializations=graphs.SPECIALIZATIONS) == 0


def test_named_specializations_are_a_json_error_before_1_22(decoder, compile_in, capsys):
    named = [{"name": "Prefill", "symbols": graphs.SPECIALIZATIONS[0]}]
    text = _refused(compile_in, capsys, decoder, specializations=named, code=255)
    assert text == "[json.exception.type_error.302] type must be string, but is object\n"


def test_named_specializations_compile_from_1_22_on(decoder, tmp_path):
    root = install(tmp_path / "sdk", devices="ultra:1", version="1.22.0")
    named = [{"name": "Decode", "symbols": graphs.SPECIALIZATIONS[1]}]
    assert compiler_cli.main(graphs.command(decoder, specializations=named), root=root) == 0


def test_a_size_that_is_no_text_is_a_json_error(decoder, compile_in, capsys):
    text = _refused(compile_in, capsys, decoder, specializations=[{"batch_size": 1}], code=255)
    assert text == "[json.exception.type_error.302] type must be string, but is number\n"


def test_broken_json_is_a_json_error(decoder, simulated_sdk_root, capsys):
    line = graphs.command(decoder, specializations=[])
    (decoder.parent / "specializations.json").write_text('{"specializations": [')
    assert compiler_cli.main(line, root=simulated_sdk_root) == 255
    assert capsys.readouterr().err.startswith("[json.exception.parse_error.101] parse error at line 1, column 22")


@pytest.mark.parametrize("entries", [[], [{"batch_size": "0"}], [{"batch_size": "-1"}], [{"batch_size": "two"}]])
def test_sizes_must_be_positive_integers(decoder, compile_in, capsys, entries):
    assert _refused(compile_in, capsys, decoder, specializations=entries).startswith("QAIC_ERROR: ")


def test_an_axis_without_a_size_is_named(decoder, compile_in, capsys):
    text = _refused(compile_in, capsys, decoder, specializations=[{"batch_size": "1", "seq_len": "4"}])
    assert text.startswith(_MODEL_ERROR)
    assert text.endswith("Unable to AddNodesToGraphFromModel\n")
    assert "'past_key.0'" in text
    assert "'ctx_len'" in text


def test_a_defined_symbol_gives_an_axis_its_size(decoder, compile_in):
    partial = [{"batch_size": "1", "seq_len": "4"}]
    assert compile_in(decoder, "-onnx-define-symbol=ctx_len,8", specializations=partial) == 0


def test_all_unsupported_operators_are_listed(tmp_path, compile_in, capsys):
    path = graphs.save(
        graphs.model(
            [
                helper.make_node("NonZero", ["x"], ["a"]),
                helper.make_node("NonZero", ["x"], ["b"]),
                helper.make_node("Magic", ["x"], ["y"], domain="com.example"),
            ],
            inputs={"x": (TensorProto.FLOAT, [2, 2])},
            outputs={"y": (TensorProto.FLOAT, [2, 2])},
            opsets={"com.example": 1},
        ),
        tmp_path,
    )
    text = _refused(compile_in, capsys, path, specializations=None)
    assert "Operator NonZero is not supported (2 nodes)" in text
    assert "Operator com.example::Magic is not supported (1 nodes)" in text


def test_shapes_that_do_not_fit_name_the_operator_and_the_versions(tmp_path, compile_in, capsys):
    path = graphs.save(
        graphs.model(
            [helper.make_node("Reshape", ["x", "shape"], ["y"], name="/layers.16/Reshape")],
            inputs={"x": (TensorProto.FLOAT, ["rows", 6])},
            outputs={"y": (TensorProto.FLOAT, [5, 2])},
            weights={"shape": np.array([5, 2], np.int64)},
        ),
        tmp_path,
    )
    text = _refused(compile_in, capsys, path, specializations=[{"rows": "4"}])
    assert (
        f"{_MODEL_ERROR}[Operator-'/layers.16/Reshape', opset_version-18, ir_version-10] : Reshape: input shape (4, 6) "
        "and output shape (5, 2) have different number of elements" in text
    )


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (helper.make_node("Range", ["zero", "n", "one"], ["y"], name="r"), "Range: 'limit' input must be a constant"),
        (helper.make_node("Slice", ["x", "v", "n1"], ["y"], name="r"), "Slice: Non-constant ends tensor not supported"),
        (helper.make_node("Split", ["x", "n2"], ["y", "z"], name="r"), "Non-constant split tensor not supported"),
    ],
)
def test_arguments_that_depend_on_data_are_refused(tmp_path, compile_in, capsys, node, text):
    path = graphs.save(
        graphs.model(
            [node],
            inputs={
                name: (TensorProto.INT64, dims) for name, dims in {"x": [4], "n": [], "n1": [1], "n2": [2]}.items()
            },
            outputs={"y": (TensorProto.INT64, ["some"])},
            weights={"zero": np.array(0), "one": np.array(1), "v": np.array([0])},
        ),
        tmp_path,
    )
    refusal = _refused(compile_in, capsys, path, specializations=[{"some": "2"}])
    assert "[Operator-'r', opset_version-18" in refusal
    assert text in refusal


def test_arguments_computed_from_shapes_are_constants(tmp_path, compile_in):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1),
        helper.make_node("Squeeze", ["shape"], ["size"]),
        helper.make_node("Range", ["zero", "size", "one"], ["y"]),
    ]
    path = graphs.save(
        graphs.model(
            nodes,
            inputs={"x": (TensorProto.FLOAT, ["rows", "columns"])},
            outputs={"y": (TensorProto.INT64, ["unnamed"])},
            weights={"zero": np.array(0), "one": np.array(1)},
        ),
        tmp_path,
    )
    assert compile_in(path, specializations=[{"rows": "2", "columns": "3"}]) == 0


def _with_external(path, **changes):
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = str(changes.get(entry.key, entry.value))
    onnx.save(model, path)


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "a/../../weights.bin", ""])
def test_external_data_must_stay_inside_the_models_directory(decoder, compile_in, capsys, location):
    _with_external(decoder, location=location)
    text = _refused(compile_in, capsys, decoder)
    assert text.startswith(_MODEL_ERROR)
    assert "inside the model's directory" in text


@pytest.mark.parametrize("change", ["missing", "short", "offset", "length"])
def test_external_data_that_is_missing_or_truncated_is_refused(decoder, compile_in, capsys, change):
    weights = decoder.parent / "weights.bin"
    if change == "missing":
        weights.unlink()
    elif change == "short":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        _with_external(decoder, **{change: 10**9})
    text = _refused(compile_in, capsys, decoder)
    assert text.startswith(_MODEL_ERROR)
    assert "External data of '" in text


def test_what_is_no_model_is_refused(tmp_path, compile_in, capsys):
    path = tmp_path / "model.onnx"
    assert "Unable to open" in _refused(compile_in, capsys, path, specializations=None)
    for content in (b"", b"no protobuf", bytes(100)):
        path.write_bytes(content)
        assert "is not an ONNX model" in _refused(compile_in, capsys, path, specializations=None)
    path = path.rename(tmp_path / "model.pt")
    assert "extension .onnx" in _refused(compile_in, capsys, path, specializations=None)


def test_an_output_directory_that_exists_or_cannot_be_made_is_refused(decoder, compile_in, simulated_sdk_root, capsys):
    (decoder.parent / "qpc").mkdir()
    assert compile_in(decoder, specializations=graphs.SPECIALIZATIONS) == 1
    text = capsys.readouterr().err
    assert text == f"QAIC_ERROR: Unable to create {decoder.parent}/qpc/ directory. Err=File exists\n"
    (decoder.parent / "qpc").rmdir()
    line = graphs.command(decoder, specializations=graphs.SPECIALIZATIONS)
    line[-1] = f"-aic-binary-dir={decoder.parent}/none/qpc"
    assert compiler_cli.main(line, root=simulated_sdk_root) == 1
    assert capsys.readouterr().err.endswith("/none/qpc/ directory. Err=No such file or directory\n")


@pytest.mark.parametrize(
    ("precisions", "text"),
    [
        ({"past_key.7": "float16"}, "no input or output 'past_key.7'"),
        ({"past_key.0": "float12"}, "invalid precision 'float12'"),
        ({"input_ids": "float16"}, "'input_ids' cannot have the precision float16"),
        ({"logits": "mxint8"}, "retained states only"),
    ],
)
def test_a_custom_io_list_that_does_not_fit_is_refused(decoder, compile_in, capsys, precisions, text):
    flag = graphs.custom_io(decoder.parent, precisions)
    assert text in _refused(compile_in, capsys, decoder, "-retained-state", flag)


@pytest.mark.parametrize("content", [" - IOName: logits\n", "   Precision: float16\n", "logits: float16\n"])
def test_a_custom_io_list_that_cannot_be_read_is_refused(decoder, compile_in, capsys, content):
    (decoder.parent / "custom_io.yaml").write_text(content)
    flag = f"-custom-IO-list-file={decoder.parent / 'custom_io.yaml'}"
    assert "QAIC_ERROR: " in _refused(compile_in, capsys, decoder, flag)


@pytest.mark.parametrize(
    "document", [{}, {"partitions": []}, {"partitions": [{"devices": [{"deviceId": 0, "numCores": 3}]}]}]
)
def test_a_partition_that_does_not_fit_is_refused(decoder, compile_in, capsys, document):
    path = decoder.parent / "mdp.json"
    path.write_text(json.dumps(document))
    assert str(path) in _refused(compile_in, capsys, decoder, "-aic-num-cores=4", f"-mdp-load-partition-config={path}")


def test_help_is_not_an_error(simulated_sdk_root, capsys):
    assert compiler_cli.main(["-h"], root=simulated_sdk_root) == 0
    assert "-aic-num-cores" in capsys.readouterr().out


def test_a_full_disk_is_named_and_leaves_nothing(decoder, compile_in, capsys, monkeypatch):
    def full(file, *, constants, start):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qeff_engine.simulated_sdk.constants.write", full)
    text = _refused(compile_in, capsys, decoder)
    assert text == f"QAIC_ERROR: Unable to write {decoder.parent}/qpc/programqpc.bin. Err=No space left on device\n"


def _truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with_a_file_in_the_way(path):
    (path.parent / "qpc").write_text("")


CUSTOM = {"past_key.7": "float16"}
# What is wrong; what is done to the model before, flags, specializations; exit code and what the tool says.
WRONG = {
    "missing model": (lambda path: path.unlink(), (), None, 1, "Unable to open"),
    "truncated model": (_truncated, (), None, 1, "model.onnx is not an ONNX model"),
    "data outside": (
        lambda path: _with_external(path, location="../w.bin"),
        (),
        None,
        1,
        "inside the model's directory",
    ),
    "unknown option": (None, ("-retaind-state",), None, 1, "Invalid option -retaind-state. Use -h, -help, or --help"),
    "too many cores": (None, ("-aic-num-cores=17",), None, 1, "Invalid value '17' for option -aic-num-cores"),
    "symbol without value": (None, (), [{"batch_size": "1", "ctx_len": "8"}], 1, "symbolic axis 'seq_len'"),
    "same shapes": (None, (), [*graphs.SPECIALIZATIONS, graphs.SPECIALIZATIONS[0]], 1, "Specializations 0 and 2 of"),
    "named form": (
        None,
        (),
        [{"name": "a", "symbols": {}}],
        255,
        "[json.exception.type_error.302] type must be string",
    ),
    "unknown tensor": (None, ("custom",), None, 1, "no input or output 'past_key.7'"),
    "unwritable target": (_with_a_file_in_the_way, (), None, 1, "/qpc/ directory. Err=File exists"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_bad_input_of_the_tool_itself_ends_with_its_text_and_code(decoder, simulated_sdk_root, fault):
    spoil, flags, specializations, code, text = WRONG[fault]
    if spoil is not None:
        spoil(decoder)
    if flags == ("custom",):
        flags = ("-retained-state", graphs.custom_io(decoder.parent, CUSTOM))
    line = graphs.command(decoder, *flags, specializations=specializations or graphs.SPECIALIZATIONS)
    done = subprocess.run(
        [simulated_sdk_root / "exec/qaic-compile", *line], capture_output=True, text=True, check=False
    )
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (decoder.parent / "qpc").is_dir()
