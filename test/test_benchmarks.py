"""The benchmarks: the baseline does the same work, the figures are computed correctly, and every script runs."""

import csv
import dataclasses
import gc
import json
import math
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raymap3r_ros.geometry import cameras
from raymap3r_ros.network import Network, NetworkConfig, load_network, save_network, untrained_network
from raymap3r_ros.network.attention import Attention
from raymap3r_ros.streaming import METHOD, Stream, StreamOptions
from raymap3r_ros.streaming.onnx_graphs import missing_packages
from raymap3r_ros.synthetic import suite_sequence

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scripts(benchmark_script):
    names = ("common", "naive", "engine", "parity_precision", "scaling")
    return SimpleNamespace(**{name: benchmark_script(name) for name in names})


@pytest.fixture(scope="module")
def tiny(tiny_config: NetworkConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tiny network."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_network(untrained_network(tiny_config), path)
    return path


@pytest.fixture(scope="module")
def network():
    return load_network()


@pytest.fixture(scope="module")
def images(network):
    edge = network.config.image_size
    sequence = suite_sequence("heavy", 0, world="one_room", size=(edge * 3 // 4, edge))
    return [frame.image for frame in islice(sequence.frames(), 10)]


# --- the naive mode ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["raymap3r", "ttt3r", "cut3r"])
def test_the_naive_mode_gives_the_same_results(scripts, network, images, rule: str):
    rays = rule == "raymap3r"
    options = StreamOptions(update_rule=rule, smoothing="off", reset_interval=0, token_pooling="raster")
    stream, naive = Stream(network, options), scripts.naive.NaiveStream(network, rule)
    for frame, image in enumerate(images):
        expected, result = stream.step(image, motion=rays), naive.step(image)
        np.testing.assert_allclose(result.pose, expected.pose, atol=1e-4)
        np.testing.assert_allclose(result.depth, expected.depth, rtol=1e-4)
        np.testing.assert_allclose(result.points, expected.points, atol=1e-3)
        np.testing.assert_allclose(result.confidence, expected.confidence, rtol=1e-3)
        if rays and frame >= METHOD.warmup_frames:
            np.testing.assert_allclose(result.staticness, expected.staticness, atol=2e-3)
        else:
            assert result.staticness is None


def test_the_results_depend_on_the_rule(scripts, network, images):
    """Otherwise the test above would prove little."""
    naive = [scripts.naive.NaiveStream(network, rule) for rule in ("raymap3r", "ttt3r", "cut3r")]
    for image in images:
        depths = [stream.step(image).depth for stream in naive]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not np.allclose(depths[first], depths[second], rtol=1e-3)


@pytest.mark.parametrize("rule", ["raymap3r", "ttt3r", "cut3r"])
def test_the_naive_mode_uses_the_fused_kernel_where_the_public_code_does(
    scripts, network, images, rule: str, monkeypatch: pytest.MonkeyPatch
):
    naive = scripts.naive.NaiveStream(network, rule)
    modules = attention_modules(naive.network)
    called, fused = count_fused_calls(modules, monkeypatch)
    kept: list[set[str]] = []  # names of the attentions whose logits each branch keeps
    run_branch = naive._run_branch

    def record_logits(*args):
        result = run_branch(*args)
        kept.append({name for name, module in modules.items() if module in result.logits})
        assert len(kept[-1]) == len(result.logits)
        return result

    monkeypatch.setattr(naive, "_run_branch", record_logits)
    for image in images[: METHOD.warmup_frames + 2]:
        naive.step(image)

    in_decoder = {name for name in modules if name.startswith("decoder.")}
    explicit = set() if rule == "cut3r" else in_decoder
    for name in modules:
        runs = rule == "raymap3r" or not name.startswith("ray_encoder.")
        assert (called[name] > 0) == runs
        assert fused[name] == (0 if name in explicit else called[name]), name
    for part in ("image_encoder.", "pose_memory.read_blocks.", "pose_memory.write_blocks.", "modulation."):
        assert any(fused[name] for name in modules if name.startswith(part))
    branches = METHOD.warmup_frames + 2 + (2 if rule == "raymap3r" else 0)
    assert len(in_decoder) == 4 * network.config.decoder_depth and kept == [explicit] * branches


def test_the_naive_mode_does_not_change_the_network(scripts, network, images, monkeypatch: pytest.MonkeyPatch):
    scripts.naive.NaiveStream(network).step(images[0])
    modules = attention_modules(network)
    called, fused = count_fused_calls(modules, monkeypatch)
    Stream(network).step(images[0])
    assert called == fused and any(name.startswith("decoder.") for name in fused)


def attention_modules(network: Network) -> dict[str, Attention]:
    """Every attention of a network, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Attention)}


def count_fused_calls(
    modules: dict[str, Attention], monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter[str], Counter[str]]:
    """Calls of each attention by name, and calls of the fused kernel within them, counted from this call on."""
    called, fused, running = Counter(), Counter(), []
    kernel = F.scaled_dot_product_attention

    def count(*args, **kwargs):
        fused[running[-1]] += 1
        return kernel(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", count)
    for name, module in modules.items():
        forward = module.forward

        def counted(*args, name=name, forward=forward, **kwargs):
            called[name] += 1
            running.append(name)
            try:
                return forward(*args, **kwargs)
            finally:
                running.pop()

        monkeypatch.setattr(module, "forward", counted)
    return called, fused


def test_the_naive_mode_runs_all_heads_in_both_branches_on_the_same_weights(scripts, network, images):
    naive = scripts.naive.NaiveStream(network)
    for given, used in zip(network.parameters(), naive.network.parameters(), strict=True):
        assert torch.equal(given, used)
        if given.ndim == 4:
            assert used.is_contiguous()  # for any memory layout of the network's convolutions
        else:
            assert given.data_ptr() == used.data_ptr()
    calls = []
    for name in ("self_head", "world_head", "rgb_head", "pose_head"):
        getattr(naive.network, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    naive.network.decoder.state_blocks[-1].register_forward_hook(lambda *_: calls.append("last state block"))
    for frame, image in enumerate(images[:7]):
        calls.clear()
        naive.step(image)
        branches = 2 if frame >= METHOD.warmup_frames else 1
        assert len(set(calls)) == 5 and len(calls) == 5 * branches


def test_host_geometry_agrees_with_the_stream(scripts):
    encoding = torch.tensor([0.1, -0.2, 0.3, 0.9, 0.1, -0.3, 0.2])
    pose = cameras.pose_matrix(encoding)
    np.testing.assert_allclose(scripts.naive.pose_of(encoding.numpy()), pose, atol=1e-6)
    size, focal = (24, 32), 27.0
    matrix = cameras.pinhole(torch.tensor([focal]), size)
    rays = cameras.ray_map(pose[None], matrix, size)[0]
    np.testing.assert_allclose(scripts.naive.rays_of(pose.numpy(), focal, size), rays, atol=1e-6)
    row, column = np.mgrid[:24, :32].astype(np.float32)
    depth = 2 + np.sin(row) + 0.1 * column
    points = torch.from_numpy(np.stack(((column - 16) / focal * depth, (row - 12) / focal * depth, depth), axis=-1))
    assert scripts.naive.focal_of(points, 10) == pytest.approx(focal, rel=1e-5)
    points[:3, :, :2] *= 1.5  # an eighth of outliers, which a least-squares fit would follow
    robust = scripts.naive.focal_of(points, 10)
    assert robust == pytest.approx(focal, rel=0.02)
    assert robust == pytest.approx(cameras.focal_from_points(points[None], 10).item(), rel=1e-4)
    points[:, :, 0] *= -1
    points[:, :, 1] *= -1
    assert scripts.naive.focal_of(points, 10) == 0


# --- the figures ------------------------------------------------------------------------------------------------


def test_candidates_take_turns_and_only_timed_frames_count(scripts):
    log: list[tuple[str, int]] = []

    def candidate(name: str):
        def step(index: int):
            log.append((name, index))
            return SimpleNamespace(timings={"a": 0.001, "b": 0.0})

        return scripts.common.Candidate(lambda: step)

    pair = [candidate("A"), candidate("B")]
    rounds = scripts.common.ROUNDS
    frames = 3 * rounds + 1
    scripts.common.take_turns(pair, frames, warmup=3, device=CPU)
    turns = [name for (name, _), (before, _) in zip(log[1:], log, strict=False) if name != before]
    assert "".join(turns) == "BA" * rounds + "B"  # after A's warm-up
    for name, one in zip("AB", pair, strict=True):
        assert [index for logged, index in log if logged == name] == list(range(3 + frames + rounds))
        assert len(one.latencies) == len(one.stages) == frames
        medians = one.stage_medians()
        assert medians["a"] == 0.001 and medians["b"] == 0
        assert medians["rest"] == pytest.approx(np.median(one.latencies) - 0.001)
        assert one.peak > 1e6  # this process uses more memory


def test_latency_of_known_times(scripts):
    latency = scripts.common.Latency.of(list(range(1, 102)), streams=2)
    assert (latency.median_ms, latency.p95_ms, latency.p99_ms) == (51, 96, 100)
    assert latency.frames_per_second == pytest.approx(2 * 1000 / 51)  # the mean of 1..101 is 51 ms


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be reset on Linux only")
def test_peak_memory_is_measured_since_the_reset(scripts):
    if "since it began" in scripts.common.memory_kind(CPU):
        pytest.skip("the peak cannot be reset here")
    gc.collect()  # nothing large may be freed in between
    scripts.common.reset_peak(CPU)
    before = scripts.common.peak_memory(CPU)
    block = np.ones(100_000_000, np.uint8)
    during = scripts.common.peak_memory(CPU)
    del block
    assert scripts.common.peak_memory(CPU) >= during - 1e6  # the peak remains after the memory is freed
    scripts.common.reset_peak(CPU)
    assert during - before > 90e6 and during - scripts.common.peak_memory(CPU) > 90e6


def test_each_row_has_the_baseline_that_does_the_same_work(scripts, tiny):
    setting = scripts.engine.Setting("net", 64)
    without_rays = {"ttt3r": "ttt3r", "ttsa3r": "ttt3r", "filt3r": "cut3r", "cut3r": "cut3r"}
    for rule in scripts.engine.RULES:
        for motion in ("on", "off"):
            baseline = dataclasses.replace(setting, rule=rule, motion=motion).baseline()
            expected = "raymap3r" if motion == "on" else without_rays.get(rule, "raymap3r")
            assert (baseline.mode, baseline.rule, baseline.precision) == ("naive", expected, "float32")
            assert baseline.motion == ("on" if expected == "raymap3r" else "off")
    varied = {"precision": ("float32", "bfloat16"), "streams": (1, 2, 4)}
    rows = scripts.engine.combinations(setting, varied)
    assert len(set(rows)) == 6 and {row.rule for row in rows} == {"raymap3r"}
    rows = scripts.engine.combinations(setting, {"rule": ("raymap3r", "cut3r"), "motion": ("auto", "off")})
    assert [(row.rule, row.motion) for row in rows] == [("raymap3r", "on"), ("raymap3r", "off"), ("cut3r", "off")]
    network = load_network(tiny)
    rows = scripts.engine.default_settings(setting, network, torch.device("cuda"))
    assert len(set(rows)) == len(rows) > 10
    assert {row.streams for row in rows} == {1, 2, 4, 8} and {row.size for row in rows} == {64, 48, 32}


def test_deviation_of_known_paths(scripts):
    parity = scripts.parity_precision
    straight = np.tile(np.eye(4), (11, 1, 1))
    straight[:, 2, 3] = np.arange(11)  # ten metres
    other = straight.copy()
    other[5, 0, 3] = 0.4
    other[10, 1, 3] = 0.1
    turn = np.radians(0.02)
    other[3, :3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    reference = parity.Record(poses=list(straight))
    measured = parity.Record(poses=list(other), depth_errors=[0.01, 0.02, 0.06], both=30, either=40)
    deviation = measured.deviation(reference)
    assert deviation.drift_worst_percent == pytest.approx(4)
    assert deviation.drift_final_percent == pytest.approx(1)
    assert deviation.rotation_worst_deg == pytest.approx(0.02, rel=1e-4)
    assert deviation.rotation_final_deg == 0
    assert deviation.depth_median_percent == pytest.approx(2)
    assert deviation.depth_worst_percent == pytest.approx(6)
    assert deviation.mask_iou == 0.75


def test_a_frame_that_is_not_finite_is_only_counted(scripts):
    parity = scripts.parity_precision

    def result(depth: float, healthy: bool, moving: int = 2):
        arrays = {
            "pose": np.eye(4),
            "depth": np.full((2, 3), depth),
            "dynamic_mask": np.arange(6).reshape(2, 3) < moving,
            "healthy": np.array(healthy),
        }
        return SimpleNamespace(frame=0, numpy=lambda *names: {name: arrays[name] for name in names})

    record = parity.Record()
    record.add(result(2.2, True, moving=3), result(2.0, True))
    record.add(result(np.nan, False), result(2.0, True))
    assert record.unhealthy == 1 and len(record.poses) == 2
    assert record.depth_errors == [pytest.approx(0.1)]
    assert (record.both, record.either) == (2, 3)
    with pytest.raises(scripts.parity_precision.Raymap3rError, match="frame 0"):
        record.add(result(2.0, True), result(np.nan, False))


def test_digits_that_float16_removes(scripts):
    parity = scripts.parity_precision
    shipped, finer = load_network(), load_network()
    parity.add_lost_digits(finer)
    rounded = parity.as_stored(finer, "float16").state_dict()
    changed = 0
    for (key, weight), fine in zip(shipped.state_dict().items(), finer.state_dict().values(), strict=True):
        assert torch.equal(rounded[key], weight), key
        changed += int((fine != weight).sum())
    assert changed > 0.99 * sum(weight.numel() for weight in rounded.values())
    before = {key: value.clone() for key, value in finer.state_dict().items()}
    parity.add_lost_digits(finer)  # no effect: the weights are no longer float16 values
    assert all(torch.equal(before[key], value) for key, value in finer.state_dict().items())


def test_a_slope_and_an_exponent_are_found(scripts):
    rng = np.random.default_rng(0)
    times = 5 + 0.002 * np.arange(5000) + rng.normal(0, 0.05, 5000)
    times[::100] += 50  # some slow frames
    found, error = scripts.scaling.slope(list(times))
    assert found == pytest.approx(0.002, abs=4 * error) and error < 1e-5
    assert scripts.scaling.exponent([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


# --- the scripts ------------------------------------------------------------------------------------------------


def run(script: ModuleType, *arguments: object) -> None:
    assert script.main([str(argument) for argument in ("--device", "cpu", *arguments)]) == 0


def finite_rows(path: Path, part: str = "rows") -> list[dict]:
    """Read the rows that a script wrote, and check that all numbers are finite."""
    rows = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))[part]
    for row in rows:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, int | float))
    return rows


def test_engine_runs(scripts, tiny, tmp_path, capsys):
    target, table = tmp_path / "engine.json", tmp_path / "engine.csv"
    run(
        scripts.engine, "--checkpoint", tiny, "--precision", "float32", "bfloat16", "--rule", "raymap3r", "filt3r",
        "--motion", "off", "--streams", 1, 2, "--frames", 2, "--warmup", 7, "--json", target, "--csv", table,
    )  # fmt: skip
    rows = finite_rows(target)
    assert [row["mode"] for row in rows] == ["naive"] * 2 + ["engine"] * 8
    for row in rows:
        assert row["pixels"] == "32x24" and row["frames"] == 2 and row["network"] == "tiny"
        assert 0 < row["median_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["torch"] == torch.__version__ and row["device"] and row["memory_mb"] > 0
        assert row["stage_encode_ms"] > 0
        # The ray branch runs if the rule needs it, although no dynamic map is requested.
        assert (row.get("stage_ray_branch_ms", 0) > 0) == (row["rule"] == "raymap3r")
        base = rows[0 if row["rule"] == "raymap3r" else 1]
        assert row["ratio_to_naive"] == pytest.approx(row["frames_per_second"] / base["frames_per_second"])
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["median_ms"]) for line in lines] == [row["median_ms"] for row in rows]
    printed = capsys.readouterr().out
    assert "naive raymap3r" in printed and "filt3r bfloat16" in printed and torch.__version__ in printed


def test_engine_without_options_measures_the_default_settings_and_those_with_the_least_work(scripts, tiny, tmp_path):
    target = tmp_path / "engine.json"
    run(scripts.engine, "--checkpoint", tiny, "--frames", 2, "--warmup", 7, "--json", target)
    rows = finite_rows(target)
    executions = ("plain", "trace") if missing_packages() else ("plain", "trace", "onnx")
    assert [(row["mode"], row["rule"], row["motion"], row["execution"]) for row in rows] == [
        ("naive", "raymap3r", "on", "plain"), ("naive", "cut3r", "off", "plain"),
        *(("engine", "raymap3r", "on", execution) for execution in executions),
        *(("engine", "filt3r", "off", execution) for execution in executions),
    ]  # fmt: skip
    assert all(0 < row["share_of_sgemm"] < 1 for row in rows)


def test_parity_precision_runs(scripts, tiny, tmp_path, capsys):
    target = tmp_path / "parity.json"
    run(scripts.parity_precision, "--checkpoint", tiny, "--frames", 8, "--execution", "plain", "--json", target)
    rows = finite_rows(target)
    assert [(row["precision"], row["stored"], row["changed"]) for row in rows] == [
        ("bfloat16", "float32", False), ("float16", "float32", False), ("float32", "mixed", False),
        ("float32", "float16", False), ("float32", "float32", True),
    ]  # fmt: skip
    for row in rows:
        assert row["drift_worst_percent"] >= row["drift_final_percent"] >= 0 and 0 <= row["mask_iou"] <= 1
        assert row["unhealthy_frames"] == 0 and row["path_m"] > 0
    # bfloat16 has eight bits of mantissa, float16 eleven.
    assert rows[0]["depth_median_percent"] > rows[1]["depth_median_percent"] > 0
    # `mixed` stores some weights in float32, which are exact.
    assert rows[3]["depth_median_percent"] > rows[2]["depth_median_percent"] > 0
    assert "bfloat16 plain" in capsys.readouterr().out


def test_scaling_runs(scripts, tiny, tmp_path, capsys):
    target, table = tmp_path / "scaling.json", tmp_path / "scaling.csv"
    run(
        scripts.scaling, "--checkpoint", tiny, "--frames", 10, "--samples", 1, "--warmup", 7,
        "--json", target, "--csv", table,
    )  # fmt: skip
    rows, trends = finite_rows(target), finite_rows(target, "trends")
    values = {over: [row["value"] for row in rows if row["over"] == over] for over in scripts.scaling.TITLES}
    assert values == {
        "frames": list(range(1, 11)),
        "pixels": [16 * 8, 24 * 16, 32 * 24, 48 * 32],
        "streams": [1, 2, 4, 8],
        "state": [3, 6, 12, 24],
    }
    assert [trend["over"] for trend in trends] == list(values)
    assert "slope_ms_per_1000_frames" in trends[0] and "time_exponent" in trends[1]
    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert "per 1000 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("engine", ["--device", "gpu"], "device is 'gpu'"),
        ("engine", ["--checkpoint", "none.pth"], "'none.pth' is not a file"),
        ("engine", ["--warmup", "3"], "warmup is 3"),
        ("engine", ["--json", "no/such/folder.json"], "no/such/folder.json: cannot be written"),
        ("engine", ["--size", "9999"], "image_size is 9999"),
        ("parity_precision", ["--frames", "1001"], "frames is 1001; allowed range: 2 to 1000"),
        ("parity_precision", ["--checkpoint", "none.pth"], "'none.pth' is not a file"),
        ("scaling", ["--frames", "9"], "frames is 9"),
        ("scaling", ["--csv", "."], ".: cannot be written"),
    ],
)
def test_unusable_arguments_are_one_line(scripts, capsys, name: str, arguments: list[str], message: str):
    assert getattr(scripts, name).main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{name}.py: error: ") and message in line and line.count("\n") == 1


@pytest.mark.parametrize("name", ["engine", "parity_precision", "scaling"])
def test_help_explains_every_option(scripts, capsys, name: str):
    with pytest.raises(SystemExit) as stopped:
        getattr(scripts, name).main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--preset", "--checkpoint", "--device", "--json", "--precision", "--execution", "--frames"):
        assert f"\n  {option} " in printed
    with pytest.raises(SystemExit) as stopped:
        getattr(scripts, name).main(["--frames", "0"])
    assert stopped.value.code == 2 and "'0' is not a whole number above 0" in capsys.readouterr().err
