import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from qeff_engine import exported
from qeff_engine.errors import Unsupported
from qeff_engine.sdk import command
from qeff_engine.sdk.location import Sdk
from qeff_engine.spec import CompileSpec
from tests import toy_decoder

TOY = toy_decoder.description()
ENCODER = exported.Component(
    file="BertModel.onnx",
    inputs=dict.fromkeys(
        ("input_ids", "attention_mask"), exported.Tensor(dtype="int64", shape=("batch_size", "seq_len"))
    ),
    outputs={"output": exported.Tensor(dtype="float32", shape=("batch_size", "seq_len", 8))},
)


def model_of(**components):
    return dataclasses.replace(TOY, components=components)


def sdk_of(version):
    return Sdk(root=Path("/sdk"), versions={"apps": version}, simulated=False)


def line(compile_spec, *, directory, component="decoder", model=TOY):
    side_files = command.write_side_files(
        directory,
        sdk=sdk_of("1.21.2.0"),
        model=model,
        component=component,
        compile_spec=compile_spec,
        onnx=Path("/none"),
    )
    arguments = command.command_line(
        ("/sdk/exec/qaic-compile",),
        onnx=Path("/onnx") / model.components[component].file,
        component=model.components[component],
        compile_spec=compile_spec,
        side_files=side_files,
        program=directory / "qpc",
    )
    return [argument.replace(str(directory), "OUT") for argument in arguments]


def test_decoder_command(tmp_path):
    assert line(CompileSpec(num_cores=14), directory=tmp_path) == [
        "/sdk/exec/qaic-compile",
        "-aic-hw",
        "-aic-hw-version=ai100",
        "-m=/onnx/ToyForCausalLM.onnx",
        "-retained-state",
        "-convert-to-fp16",
        "-aic-num-cores=14",
        "-network-specialization-config=OUT/specializations.json",
        "-custom-IO-list-file=OUT/custom_io.yaml",
        "-aic-binary-dir=OUT/qpc",
    ]


def test_formats_and_devices_reach_the_command(tmp_path):
    spec = CompileSpec(num_cores=16, num_devices=4, precision="mxfp6", kv_precision="mxint8")
    assert line(spec, directory=tmp_path)[5:9] == [
        "-convert-to-fp16",
        "-mxfp6-matmul",
        "-aic-num-cores=16",
        "-mdp-load-partition-config=OUT/mdp_ts_4.json",
    ]
    assert json.loads((tmp_path / "mdp_ts_4.json").read_text()) == {
        "connections": [{"devices": [0, 1, 2, 3], "type": "p2p"}],
        "partitions": [
            {"name": "Partition0", "devices": [{"deviceId": number, "numCores": 16} for number in range(4)]}
        ],
    }


def test_layers_that_are_functions_are_compiled_once(tmp_path):
    decoder = dataclasses.replace(TOY.components["decoder"], num_layer_functions=1)
    assert "-sub-functions" in line(CompileSpec(), directory=tmp_path, model=model_of(decoder=decoder))


def test_encoder_has_neither_retained_state_nor_custom_io(tmp_path):
    arguments = line(CompileSpec(), directory=tmp_path, component="encoder", model=model_of(encoder=ENCODER))
    assert not [argument for argument in arguments if "retained" in argument or "custom" in argument]
    assert not (tmp_path / "custom_io.yaml").exists()
    written = json.loads((tmp_path / "specializations.json").read_text())
    assert written == {"specializations": [{"batch_size": "1", "seq_len": "32"}]}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            "1.21.2.0",
            [
                {"batch_size": "2", "seq_len": "16", "ctx_len": "64"},
                {"batch_size": "2", "seq_len": "1", "ctx_len": "64"},
            ],
        ),
        (
            "1.22.0.1",
            [
                {"name": "Prefill", "symbols": {"batch_size": "2", "seq_len": "16", "ctx_len": "64"}},
                {"name": "Decode", "symbols": {"batch_size": "2", "seq_len": "1", "ctx_len": "64"}},
            ],
        ),
    ],
)
def test_specializations_have_the_form_that_the_sdk_reads(tmp_path, version, expected):
    spec = CompileSpec(batch_size=2, prefill_len=16, ctx_len=64)
    command.write_side_files(
        tmp_path, sdk=sdk_of(version), model=TOY, component="decoder", compile_spec=spec, onnx=Path("/none")
    )
    assert json.loads((tmp_path / "specializations.json").read_text()) == {"specializations": expected}


def test_a_prefill_of_one_token_needs_no_second_shape():
    shapes = command.specializations(TOY, component="decoder", compile_spec=CompileSpec(prefill_len=1))
    assert [shape.symbols["seq_len"] for shape in shapes] == [1]


def test_symbols_of_a_model_itself_come_from_its_export():
    pixels = exported.Tensor(dtype="float32", shape=("batch_size", 3, "img_size", "img_size"))
    vision = exported.Component(file="vision.onnx", inputs={"pixel_values": pixels}, outputs={"vision_embeds": pixels})
    model = dataclasses.replace(model_of(vision=vision), extra={"symbols": {"img_size": 28}})
    shapes = command.specializations(model, component="vision", compile_spec=CompileSpec())
    assert shapes == [command.Specialization(name="Vision", symbols={"batch_size": 1, "img_size": 28})]
    with pytest.raises(Unsupported, match="'img_size'"):
        command.specializations(model_of(vision=vision), component="vision", compile_spec=CompileSpec())


def test_a_graph_without_symbols_needs_no_specializations(tmp_path):
    fixed = exported.Tensor(dtype="float32", shape=(1, 4))
    vision = exported.Component(file="v.onnx", inputs={"x": fixed}, outputs={"y": fixed})
    arguments = line(CompileSpec(), directory=tmp_path, component="vision", model=model_of(vision=vision))
    assert not [argument for argument in arguments if "specialization" in argument]


@pytest.mark.parametrize(("kv", "expected"), [("fp16", "float16"), ("mxint8", "mxint8")])
def test_custom_io_names_every_retained_tensor_on_both_sides(kv, expected):
    entries = yaml.safe_load(command.custom_io_yaml(TOY.components["decoder"], kv_precision=kv))
    assert entries == [
        {"IOName": name, "Precision": expected}
        for name in (
            "past_key.0",
            "past_key.0_RetainedState",
            "past_value.0",
            "past_value.0_RetainedState",
        )
    ]


def test_states_that_are_no_kv_stay_in_half_precision():
    state = exported.Tensor(dtype="float32", shape=("batch_size", 4))
    component = exported.Component(
        file="x.onnx", inputs={"conv_state.0": state}, outputs={"conv_state.0_RetainedState": state}
    )
    entries = yaml.safe_load(command.custom_io_yaml(component, kv_precision="mxint8"))
    assert {entry["Precision"] for entry in entries} == {"float16"}


def test_options_are_spelt_as_the_compiler_reads_them(tmp_path):
    spec = CompileSpec(
        num_cores=14,
        compiler_options={
            "mos": "1:2",
            "aic_enable_depth_first": True,
            "vtcm-working-set-limit-ratio": 1,
            "combine-inputs": False,
            "use-producer-dma": True,
            "node-precision-info": "FP32NodeInstanceNames: [x]\n",
            "mdp-dump-partition-config": "dump.json",
        },
        unlisted_flags=("-new=3",),
    )
    assert line(spec, directory=tmp_path)[7:-3] == [
        "-aic-enable-depth-first",
        "-combine-inputs=false",
        "-mdp-dump-partition-config=OUT/dump.json",
        "-mos=1,2",
        "-node-precision-info=OUT/node-precision-info.yaml",
        "-use-producer-dma=1",
        "-vtcm-working-set-limit-ratio=1",
        "-new=3",
    ]
    assert (tmp_path / "node-precision-info.yaml").read_text() == "FP32NodeInstanceNames: [x]\n"


def test_the_older_tool_gets_the_chip_by_its_number(tmp_path):
    arguments = command.command_line(
        ("/sdk/exec/qaic-exec", "-compile-only"),
        onnx=Path("/onnx/x.onnx"),
        component=ENCODER,
        compile_spec=CompileSpec(),
        side_files=command.SideFiles(),
        program=tmp_path / "qpc",
    )
    assert arguments[1:4] == ["-compile-only", "-aic-hw", "-aic-hw-version=2.0"]


def test_devices_that_exchange_through_the_host_have_no_connections(tmp_path):
    line(CompileSpec(num_devices=2, device_link="host"), directory=tmp_path)
    assert json.loads((tmp_path / "mdp_ts_2.json").read_text()).keys() == {"partitions"}


def test_values_that_fp16_is_too_coarse_for_stay_fp32_unless_the_user_names_others(tmp_path):
    model = model_of(decoder=dataclasses.replace(TOY.components["decoder"], fp32_values=("rotary/Cos", "rotary/Mul")))
    assert "-node-precision-info=OUT/node_precision.yaml" in line(CompileSpec(), directory=tmp_path, model=model)
    written = yaml.safe_load((tmp_path / "node_precision.yaml").read_text())
    assert written == {"FP32NodeInstanceNames": ["rotary/Cos", "rotary/Mul"]}
    spec = CompileSpec(compiler_options={"node-precision-info": "FP32NodeInstanceNames: [x]\n"})
    arguments = line(spec, directory=tmp_path, model=model)
    given = [argument for argument in arguments if argument.startswith("-node-precision-info")]
    assert given == ["-node-precision-info=OUT/node-precision-info.yaml"]
