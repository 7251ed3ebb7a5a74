import dataclasses

import pytest
import yaml
from rclpy.parameter import Parameter

from raymap3r_ros.errors import OptionError
from raymap3r_ros.node import parameters
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.options import option_fields
from raymap3r_ros.streaming import RULES, MaskOptions, StreamOptions

NAMES = {
    "checkpoint", "device", "preset", "precision", "execution", "image_size", "update_rule", "router", "smoothing",
    "reset_interval", "reset_alignment", "keyframes.size", "keyframes.relocalize", "ray_interval", "token_pooling",
    "world_frame", "odom_frame", "base_frame", "child_frame", "tf_mode",
    "invert_tf", "publish_tf", "pose_source", "published_pose", "output_dir", "memory", "shared_world",
    "depth_encoding", "confidence_threshold",
    "points.stride", "points.static_only", "every_frame", "max_gap", "image_transport", "rectified",
    "static_map.voxel_size", "static_map.max_points", "static_map.rate", "static_map.always",
    "occupancy.enabled", "occupancy.resolution", "occupancy.min_height", "occupancy.max_height",
    "scale.source", "scale.value", "scale.camera_height",
    *(f"mask.{item.name}" for item in dataclasses.fields(MaskOptions)),
}  # fmt: skip


def test_parameter_file_is_up_to_date(root):
    text = (root / "config" / "stream.yaml").read_text()
    command = "from raymap3r_ros.node import parameters as p; print(p.default_yaml_file(), end='')"
    assert text == parameters.default_yaml_file(), f'update it: python -c "{command}" > config/stream.yaml'


def test_documented_parameter_table_is_up_to_date(root):
    path = "docs/ros.md"
    text = (root / path).read_text()
    command = (
        "from pathlib import Path; from raymap3r_ros.node.parameters import insert_table; "
        f"page = Path('{path}'); page.write_text(insert_table(page.read_text()))"
    )
    assert text == parameters.insert_table(text), f'update it: python -c "{command}"'
    rows = [line.split(" | ") for line in parameters.parameter_table().splitlines()[2:]]
    assert len(rows) == len(NAMES) and all(len(row) == 4 for row in rows)
    by_name = {row[0]: row[1:3] for row in rows}
    assert by_name["| `mask.high`\\*"] == ["`4.25`", "0.0 to 1000.0"]
    assert by_name["| `image_transport`"] == ["`raw`", "`raw`, `compressed`"]
    assert by_name["| `child_frame`"] == ['`""`', ""]


def test_page_without_table_markers_is_an_error():
    with pytest.raises(ValueError, match="no table between"):
        parameters.insert_table("# A page\n")


def test_parameter_file_contains_every_parameter_with_its_default_and_a_comment(root):
    text = (root / "config" / "stream.yaml").read_text()
    found = {}

    def walk(values, prefix):
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value

    walk(yaml.safe_load(text)["/**"]["ros__parameters"], "")
    declared = {name: item.default for kind in (NodeOptions, StreamOptions) for name, item in option_fields(kind)}
    assert found == declared
    lines = text.splitlines()
    for name in declared:
        key = name.rpartition(".")[2] + ":"
        line = next(number for number, line in enumerate(lines) if line.strip().startswith(key))
        assert lines[line - 1].strip().startswith("# "), name


def test_declared_parameters_have_descriptions(make_bench):
    node = make_bench().node
    assert set(node.list_parameters([], 0).names) - {"use_sim_time", "start_type_description_service"} == NAMES
    for name in NAMES:
        assert node.describe_parameter(name).description, name
    assert node.describe_parameter("update_rule").additional_constraints == "one of: " + ", ".join(RULES)
    stride = node.describe_parameter("points.stride").integer_range[0]
    assert (stride.from_value, stride.to_value) == (1, 64)
    high = node.describe_parameter("mask.high").floating_point_range[0]
    assert (high.from_value, high.to_value) == (0.0, 1000.0)
    assert parameters.read(node, NodeOptions) == NodeOptions()
    assert parameters.read(node, StreamOptions) == StreamOptions(execution="plain")


def test_values_are_read_into_the_options(make_bench):
    node = make_bench(
        update_rule="ttt3r",
        max_gap=5,
        mask__high=7,
        mask__low=1.5,
        points__stride=4,
        smoothing=False,
        every_frame=True,
    ).node
    options, stream_options = parameters.read(node, NodeOptions), parameters.read(node, StreamOptions)
    assert (options.max_gap, type(options.max_gap)) == (5.0, float)  # an integer for a double
    assert (options.points.stride, options.every_frame) == (4, True)
    assert (stream_options.mask.high, stream_options.mask.low) == (7.0, 1.5)
    assert stream_options.smoothing == "off"  # an unquoted off is false in YAML
    assert stream_options == dataclasses.replace(
        StreamOptions(execution="plain"), update_rule="ttt3r", smoothing="off", mask=stream_options.mask
    )


def test_preset_sets_the_parameters_that_have_their_default_value(make_bench):
    bench = make_bench(preset="published", router="adaptive")
    assert parameters.read(bench.node, StreamOptions) == StreamOptions.published(router="adaptive", execution="plain")
    for name, value in {"smoothing": "off", "mask.kind": "absolute", "mask.high": 5.0}.items():
        assert bench.set_parameter(name, value).successful
    expected = StreamOptions.published(
        router="adaptive", smoothing="off", execution="plain", mask=MaskOptions(kind="published", high=5.0)
    )
    assert parameters.read(bench.node, StreamOptions) == expected
    result = bench.set_parameter("preset", "paper")
    assert not result.successful and result.reason == "preset is 'paper'; allowed values: default, published"
    assert bench.change_state("configure")
    assert bench.node.describe_parameter("preset").read_only
    assert bench.change_state("cleanup")
    assert bench.set_parameter("preset", "default").successful
    assert parameters.read(bench.node, StreamOptions).reset_alignment == "robust"


def test_bad_values_are_refused_with_the_allowed_values(make_bench):
    node = make_bench().node
    for name, value, text in [
        ("image_transport", "theora", "image_transport is 'theora'; allowed values: raw, compressed"),
        ("points.stride", 65, "points.stride is 65; allowed range: 1 to 64"),
        ("points.stride", "two", "points.stride is 'two'; allowed: a whole number"),
        ("points.stride", True, "points.stride is True; allowed: a whole number"),
        ("mask.low", 900.0, "mask.low is 900.0, above mask.high 4.25; allowed: low <= high"),
        ("mask.reach", -1, "mask.reach is -1; allowed range: 0 to 200"),
        ("max_gap", -1, "max_gap is -1.0; allowed range: 0.01 to 86400.0"),
        ("max_gap", float("nan"), "max_gap is nan; allowed range: 0.01 to 86400.0"),
        ("every_frame", 1, "every_frame is 1; allowed: true or false"),
        ("reset_interval", 1, "reset_interval is 1; allowed range: 0, or 2 to 1000000"),
        ("world_frame", "/map", "world_frame is '/map'; allowed: names without a leading slash"),
        ("world_frame", "", "world_frame is empty; allowed with tf_mode camera: any frame name"),
        ("child_frame", "map", "child_frame is 'map', as world_frame; allowed: names that differ"),
        ("checkpoint", None, "checkpoint is None; allowed: a text"),
    ]:
        with pytest.raises(OptionError) as caught:
            for kind in (NodeOptions, StreamOptions):
                parameters.read(node, kind, {name: value})
        assert str(caught.value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("update_rule", "ttt4r", "update_rule is 'ttt4r'; allowed values: " + ", ".join(RULES)),
        ("points.stride", 0, "points.stride is 0; allowed range: 1 to 64"),
        ("max_gap", "long", "max_gap is 'long'; allowed: a number"),
        ("device", "tpu", "device is 'tpu'; on this machine there are: auto, cpu"),
    ],
)
def test_bad_override_fails_configure_with_one_log_line(make_bench, name, value, text):
    bench = make_bench(**{name.replace(".", "__"): value})
    assert not bench.change_state("configure")
    assert bench.state() == "unconfigured"
    line = bench.wait_for_log("configure failed", level=40)
    assert text in line and "\n" not in line
    assert bench.count_logs("Traceback") == 0
    bench.wait(lambda: text in bench.diagnostics.get("last error", ""), "error in the diagnostics")
    # After a correction the node can be configured.
    good = {**dict(option_fields(NodeOptions)), **dict(option_fields(StreamOptions))}[name].default
    assert bench.set_parameter(name, good).successful
    assert bench.change_state("configure")


def test_bad_overrides_can_be_corrected_one_by_one(make_bench):
    wrong = {"points.stride": 0, "update_rule": "ttt4r", "max_gap": "long", "mask.low": 900.0}
    right = {"points.stride": 2, "update_rule": "cut3r", "max_gap": 5.0, "mask.low": 1.0}
    texts = {
        "points.stride": "points.stride is 0; ",
        "update_rule": "update_rule is 'ttt4r'; ",
        "max_gap": "max_gap is 'long'; ",
        "mask.low": "mask.low is 900.0, above mask.high",
    }
    bench = make_bench(**{name.replace(".", "__"): value for name, value in wrong.items()})
    left = list(wrong)
    while left:
        assert not bench.change_state("configure")
        # A value that is invalid itself is refused, whether or not other values are invalid.
        for name, value in {**wrong, "device": 1, "reset_interval": 1}.items():
            assert not bench.set_parameter(name, value).successful, name
        name = left.pop(0)
        result = bench.set_parameter(name, right[name])
        assert result.successful, result.reason
        failed = len(wrong) - len(left)
        bench.wait(lambda failed=failed: bench.count_logs("configure failed") == failed, "one line for each attempt")
    failures = [text for level, text in bench.logs if level == 40]
    assert len(failures) == len(wrong) and texts["mask.low"] in failures[-1]
    assert all(any(text in failure for text in texts.values()) for failure in failures)
    assert bench.change_state("configure")
    assert parameters.read(bench.node, NodeOptions).points.stride == 2


def test_bad_value_is_refused_on_set(make_bench):
    bench = make_bench()
    result = bench.set_parameter("update_rule", "ttt4r")
    assert not result.successful
    assert result.reason == "update_rule is 'ttt4r'; allowed values: " + ", ".join(RULES)
    assert not bench.set_parameter("points.stride", 65).successful
    assert not bench.set_parameter("mask.high", MaskOptions().low / 2).successful
    assert bench.set_parameter("mask.high", 9).successful
    assert parameters.read(bench.node, StreamOptions).mask.high == 9.0


def test_fixed_parameters_are_read_only_from_configure_to_cleanup(make_bench):
    bench = make_bench()
    assert bench.set_parameter("update_rule", "ttt3r").successful
    assert bench.change_state("configure")
    assert bench.node.describe_parameter("update_rule").read_only
    assert not bench.node.describe_parameter("mask.high").read_only
    result = bench.set_parameter("update_rule", "cut3r")
    assert not result.successful
    assert result.reason == "update_rule: read-only from configure to cleanup; request the transition cleanup first"
    assert bench.set_parameter("mask.high", 8.0).successful
    assert bench.change_state("cleanup")
    assert bench.set_parameter("update_rule", "cut3r").successful


def test_whole_number_for_a_double_stays_a_double(make_bench):
    bench = make_bench(max_gap=5, mask__low=1)
    assert bench.set_parameter("mask.high", 9).successful
    assert bench.node.set_parameters([Parameter("confidence_threshold", value=2)])[0].successful
    for name, value in {"max_gap": 5.0, "mask.low": 1.0, "mask.high": 9.0, "confidence_threshold": 2.0}.items():
        parameter = bench.node.get_parameter(name)
        assert (parameter.type_, parameter.value) == (Parameter.Type.DOUBLE, value), name


def test_parameters_that_the_node_does_not_have_are_one_warning_each(make_bench):
    bench = make_bench(updaterule="cut3r", mask__hihg=5.0, wholly_other=1, use_sim_time=False)
    lines = {
        "updaterule": "did you mean update_rule?",
        "mask.hihg": "did you mean mask.high?",
        "wholly_other": "`ros2 param list` names",
    }
    for name, hint in lines.items():
        line = bench.wait_for_log(f"the parameter '{name}' is ignored", level=30)
        assert hint in line
    assert bench.count_logs("is ignored: the node has no such parameter") == len(lines)


def test_mask_changes_while_running(make_bench):
    bench = make_bench()
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose", 1)
    assert bench.set_parameter("mask.high", 8.5).successful
    bench.send(1)
    bench.wait_for("pose", 2)
    assert bench.node.stream.options.mask.high == 8.5
    line = bench.wait_for_log("options changed", level=20)
    assert line == "options changed: mask.high 4.25 -> 8.5"
    assert (
        bench.set_parameter("points.stride", 2).successful and bench.set_parameter("max_gap", 2.0).successful is False
    )
    bench.send(2)
    assert bench.wait_for_log("points.stride") == "options changed: points.stride 1 -> 2"


def test_parameters_are_read_on_change_and_not_for_each_image(make_bench, monkeypatch):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    reads = []
    read = parameters.read
    monkeypatch.setattr(parameters, "read", lambda node, kind, *rest: reads.append(rest) or read(node, kind, *rest))
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    assert reads == []
    assert bench.set_parameter("points.stride", 2).successful
    assert reads


def test_parameters_that_are_valid_only_together_can_be_set_atomically(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    values = {"mask.low": 8.0, "mask.high": 9.0}  # each alone is inconsistent with the default of the other
    changes = [Parameter(name, value=value) for name, value in values.items()]
    assert bench.node.set_parameters_atomically(changes).successful
    bench.send(0)
    bench.wait_for("pose", 1)
    mask = bench.node.stream.options.mask
    assert (mask.low, mask.high) == (8.0, 9.0)
    # One by one, in an order in which every step is valid.
    results = bench.node.set_parameters([Parameter("mask.low", value=1.0), Parameter("mask.high", value=2.0)])
    assert all(result.successful for result in results)
    bench.send(1)
    bench.wait_for("pose", 2)
    mask = bench.node.stream.options.mask
    assert (mask.low, mask.high) == (1.0, 2.0)


def test_atomic_set_that_is_refused_changes_nothing(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    changes = [Parameter("mask.high", value=6.0), Parameter("mask.reach", value=-1)]
    assert not bench.node.set_parameters_atomically(changes).successful
    bench.send(0)
    bench.wait_for("pose", 1)
    assert bench.node.stream.options.mask == MaskOptions()
