"""Life cycle, resets and errors of the node over real DDS."""

import dataclasses
import gc
import json
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import safetensors.torch
import torch
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger
from topic_helpers import WIDTH, numbers, wait_for_end

from raymap3r_ros.geometry import poses
from raymap3r_ros.network import PRESETS, load_network, save_network, untrained_network
from raymap3r_ros.node import conversions, session, stream_node
from raymap3r_ros.node.guarded_node import GuardedNode
from raymap3r_ros.node.map_publisher import MapPublisher
from raymap3r_ros.streaming import Stream, StreamOptions


@pytest.fixture
def make_bench(make_bench):
    """A bench whose network input has the size of the images sent."""
    return lambda **parameters: make_bench(**{"image_size": WIDTH, **parameters})


# ---------------------------------------------------------------------------------------------------------- life cycle


def test_deactivate_keeps_the_world_and_cleanup_discards_it(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory")
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    assert bench.change_state("deactivate")
    assert bench.state() == "inactive"
    bench.wait_for_diagnostics("state", "inactive")
    assert bench.node.count_subscribers("image") == 0
    bench.send(3)
    assert bench.change_state("activate")
    bench.wait_for_match()
    # A gap of minutes while inactive is not a jump of the stamps.
    sent = bench.send(4, time=300.0)
    bench.wait_for("pose", 4)
    assert wait_for_end(bench, sent) == 4
    assert bench.node.stream.snapshot().frame == 4
    assert bench.count_logs("a new world starts") == 1

    assert bench.change_state("deactivate")
    assert bench.change_state("cleanup")
    assert bench.node.stream is None
    own = [publisher.topic_name for publisher in bench.node.publishers if publisher.topic_name.startswith(bench.name)]
    assert own == [f"{bench.name}/transition_event"] or own == []
    assert bench.change_state("configure") and bench.change_state("activate")
    bench.wait_for_match()
    bench.wait(lambda: bench.subscribed() >= {"pose", "trajectory"}, "match of the outputs")
    sent = bench.send(5)
    assert wait_for_end(bench, sent) == 1
    assert bench.change_state("shutdown") and bench.state() == "finalized"


def test_reset_starts_a_new_world(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory")
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose", 3)
    response = bench.reset()
    assert response.success and "the next image starts a new world" in response.message
    sent = bench.send(0, time=0.3)
    assert wait_for_end(bench, sent) == 1
    first, *_, again = bench.messages["pose"]
    assert numbers(again.pose.position, again.pose.orientation) == numbers(first.pose.position, first.pose.orientation)
    bench.wait_for_diagnostics("resets", 1)


def test_diagnostics_during_configure(make_bench, monkeypatch):
    """The diagnostics timer may fire while the session is only partly created."""
    bench = make_bench()
    reports = []

    class SlowMapPublisher(MapPublisher):
        def __init__(self, *arguments):
            reports.append(pool.submit(bench.node.status))
            wait(reports, timeout=0.2)
            super().__init__(*arguments)

    monkeypatch.setattr(session, "MapPublisher", SlowMapPublisher)
    with ThreadPoolExecutor(1) as pool:
        assert bench.change_state("configure")
        reports[0].result(timeout=60.0)


def test_memory_reset_at_the_interval_keeps_the_world(make_bench):
    bench = make_bench(every_frame=True, reset_interval=4)
    bench.start("trajectory")
    for index in range(6):
        last = bench.send(index)
    assert wait_for_end(bench, last) == 6
    bench.wait_for_diagnostics("resets", 1)
    assert bench.count_logs("first of a new segment") == 0  # with the default interval, one every 100th frame


def test_transitions_and_pauses_are_logged(make_bench):
    bench = make_bench()
    bench.start()
    for value in (True, True, False):
        assert bench.call(SetBool, "set_paused", SetBool.Request(data=value)).success
    bench.wait_for_log("running: images are processed", level=20)
    assert bench.count_logs("paused: images are ignored") == 1
    assert bench.change_state("deactivate")
    bench.wait_for_log("inactive: images are not received; the memory is kept", level=20)
    assert bench.change_state("cleanup")
    bench.wait_for_log("unconfigured: the network is freed", level=20)


def test_reset_requested_while_inactive_does_not_survive_cleanup(make_bench):
    bench = make_bench()
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose", 1)
    assert bench.change_state("deactivate") and bench.reset().success and bench.change_state("cleanup")
    assert bench.change_state("configure") and bench.change_state("activate")
    bench.wait_for_match()
    bench.wait(lambda: bench.send(1) and len(bench.messages["pose"]) >= 2, "pose")
    bench.wait(lambda: bench.count_logs("a new world starts (start)") == 2, "a start, not a reset")
    assert bench.count_logs("(reset)") == 0


def test_memory_reset_without_alignment_starts_a_new_world_at_the_next_image(make_bench):
    bench = make_bench(every_frame=True, reset_interval=4, reset_alignment="off")
    bench.start("pose", "trajectory")
    lengths, sent = [], []
    for index in range(10):
        sent.append(bench.send(index, time=index * 0.5))  # far enough apart that a trajectory is published with each
        lengths.append(wait_for_end(bench, sent[-1]))
    # Frames 4 and 8 are still processed with the old memory.
    assert lengths == [1, 2, 3, 4, 5, 1, 2, 3, 4, 1]
    alone = Stream(load_network("one_room"), StreamOptions(image_size=WIDTH, reset_interval=0))
    uninterrupted = [
        poses.world_pose(alone.step(conversions.image_array(message)).pose.numpy()) for message in sent[:6]
    ]
    bench.wait_for("pose", 10)
    published = [conversions.pose_matrix(message.pose) for message in bench.messages["pose"]]
    np.testing.assert_allclose(published[:5], uninterrupted[:5], atol=1e-5)
    assert np.abs(published[5] - uninterrupted[5]).max() > 1e-3
    bench.wait_for_diagnostics("resets", 2)
    bench.wait(lambda: bench.count_logs("a new world starts (memory not aligned)") == 2, "two lines")
    assert bench.count_logs("new segment") == 0


@pytest.mark.parametrize(
    "name",
    [
        "missing.safetensors", "text.safetensors", "foreign.safetensors", "nested.safetensors", "long.safetensors",
        "text.pth", "cut3r_512",
    ],
)  # fmt: skip
def test_unusable_checkpoint_fails_configure_with_one_log_line(make_bench, tmp_path, monkeypatch, name):
    path = tmp_path / name
    monkeypatch.setenv("RAYMAP3R_HOME", str(tmp_path))
    if name == "cut3r_512":
        path = name
        text = f"configure failed: checkpoint {name} is not in {tmp_path}/weights; fetch it with: raymap3r weights "
    elif name.startswith("text"):
        path.write_text("not a file of weights")
        text = f"configure failed: {path} "
    elif name.startswith("foreign"):
        network = load_network("mini")
        metadata = {"format": "raymap3r-1", "config": json.dumps(network.config.to_dict())}
        safetensors.torch.save_file({"another.network": torch.zeros(3)}, path, metadata)
        text = f"configure failed: {path} does not hold this network"
    elif name.startswith(("nested", "long")):
        length, header = (600_000, b'{"a":' * 120_000) if name.startswith("nested") else (2**64 - 1, b"{}")
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(16))
        text = f"configure failed: {path} is not a readable safetensors file: Error while deserializing header"
    else:
        text = f"configure failed: checkpoint '{path}' is not a file, nor weights that come with the package"
    bench = make_bench(checkpoint=str(path))
    assert not bench.change_state("configure")
    assert bench.state() == "unconfigured"
    line = bench.wait_for_log("configure failed", level=40)
    assert line.startswith(text) and "\n" not in line and len(line) < 1100
    assert bench.count_logs("Traceback") == 0
    assert not any(publisher.topic_name == f"{bench.name}/pose" for publisher in bench.node.publishers)
    # A failed attempt does not affect the next one.
    assert bench.set_parameter("checkpoint", "mini").successful
    assert bench.change_state("configure")


def test_weights_in_the_cache_are_loaded_by_name(make_bench, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMAP3R_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    network = untrained_network(PRESETS["mini"])
    save_network(network, tmp_path / "weights" / "lab.safetensors", manifest={"about": "trained in the lab"})
    bench = make_bench(checkpoint="lab", image_size=48)
    bench.start()
    bench.wait_for_diagnostics("checkpoint", "lab: trained in the lab")


# -------------------------------------------------------------------------------------------------------------- errors


def fail_with(bench, make_error, frames):
    """Make the next `frames` frames of a bench's stream fail."""
    stream = bench.node.stream
    step, left = stream.step, [frames]

    def failing(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise make_error()
        return step(*args, **kwargs)

    stream.step = failing


def test_out_of_gpu_memory_skips_the_frame(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    fail_with(bench, lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), frames=2)
    for index in range(3):
        bench.send(index)
    bench.wait_for("pose")
    assert bench.times("pose") == [0.2]
    bench.wait_for_log("out of GPU memory, frame skipped: CUDA out of memory", level=40)
    bench.wait(lambda: any(level == b"\x02" for level, _ in bench.statuses), "error in the diagnostics")
    assert bench.state() == "active"


def test_three_frames_without_gpu_memory_deactivate_the_node(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    fail_with(bench, lambda: torch.cuda.OutOfMemoryError("CUDA out of memory"), frames=3)
    for index in range(3):
        bench.send(index)
    bench.wait_for_log("3 frames in a row without GPU memory: the node deactivates itself", level=40)
    bench.wait(lambda: bench.state() == "inactive", "deactivation")
    assert bench.change_state("activate")
    bench.wait_for_match()
    bench.send(3)
    bench.wait_for("pose")


def test_unexpected_error_is_logged_with_a_traceback_and_the_node_continues(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    fail_with(bench, lambda: ZeroDivisionError("an unexpected error"), frames=1)
    bench.send(0)
    bench.send(1)
    bench.wait_for("pose")
    assert bench.times("pose") == [0.1]
    line = bench.wait_for_log("frame skipped: ZeroDivisionError: an unexpected error", level=40)
    assert "Traceback" in line
    bench.wait_for_diagnostics("last error", "frame skipped: ZeroDivisionError: an unexpected error")


def test_output_that_is_not_finite_is_not_published(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    stream = bench.node.stream
    step = stream.step

    def unhealthy_step(*args, **kwargs):
        result = step(*args, **kwargs)
        return dataclasses.replace(result, healthy=torch.tensor(result.frame > 0))

    stream.step = unhealthy_step
    bench.send(0)
    bench.send(1)
    bench.wait_for("pose")
    assert bench.times("pose") == [0.1]
    bench.wait_for_log("the network's output is not finite: frame not published", level=40)
    bench.wait_for_diagnostics("last error", "the network's output is not finite: frame not published")
    bench.wait_for_diagnostics("frames out", 1)


def test_bad_parameter_type_does_not_break_the_constructor(make_bench):
    assert make_bench(every_frame="yes").node.get_parameter("every_frame").type_ == Parameter.Type.STRING


def test_destroyed_node_leaves_the_graph_at_once(make_bench):
    """If the garbage collector destroyed it later, it would remove the logger of a new node with the same name."""
    bench = make_bench()
    guest = stream_node.StreamNode(namespace="/guest", context=bench.context)

    def in_graph():
        return ("raymap3r", "/guest") in bench.probe.get_node_names_and_namespaces()

    gc.disable()
    try:
        assert guest.autostart()
        bench.wait(in_graph, "the guest in the graph")
        guest.close()
        guest.destroy_node()
        bench.wait(lambda: not in_graph(), "the guest's removal from the graph")
    finally:
        gc.enable()


def test_foreign_text_reaches_log_responses_and_diagnostics_escaped(make_bench, tmp_path):
    """Names of weights, parameters, folders, frames, and of callbacks' errors, whose traceback is indented."""
    hostile = "x\x1b]0;title\x07\r\n\u202e\x9b31m"
    weights = tmp_path / f"{hostile}.safetensors"
    save_network(untrained_network(PRESETS["mini"]), weights, manifest={"about": hostile * 10**5})
    names = {"checkpoint": str(weights), "output_dir": str(tmp_path / f"out{hostile}")}
    bench = make_bench(image_size=64, **names, **{f"mask.{hostile}": 1, hostile * 10**4: 2})
    bench.start()
    response = bench.call(Trigger, "save", Trigger.Request())
    bench.node.report_failure("a callback", ValueError(hostile), f"Traceback:\n  line\nValueError: {hostile * 10**5}")
    GuardedNode.report_failure(bench.node, "a timer", ValueError(hostile), f"Traceback:\nValueError: {hostile}")
    bench.node.get_logger().info("the last line")
    bench.wait_for_log("the last line")
    texts = [text for _, text in bench.logs] + [response.message] + [text for _, text in bench.statuses]
    assert sum(r"x\x1b]0;title\x07\r\n\u202e\x9b31m" in text for text in texts) >= 7
    for text in (*texts, *bench.current_diagnostics().values()):
        first, *others = text.split("\n")
        assert len(text) < 12_000 and first.isprintable()
        assert all(line.isprintable() and line.startswith("  ") for line in others), text[:2000]
