"""Training: exact targets, losses that are minimal at the ground truth, runs that continue after an interruption."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import safetensors
import torch
import torch.nn.functional as F

from raymap3r_ros.cli import main
from raymap3r_ros.errors import CheckpointError, InputError, OptionError
from raymap3r_ros.geometry.cameras import pose_encoding
from raymap3r_ros.network import load_network
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.training import RECIPES, RECORDING, TrainOptions, train, trainer
from raymap3r_ros.training.batches import image_size, make_batch
from raymap3r_ros.training.losses import losses, match_loss, measure, point_loss, pose_loss, predict

CPU = torch.device("cpu")
SIZE = (24, 32)
SHORT = TrainOptions(world="one_room", steps=6, frames=4, longest=2, reuse=2, place_weight=0.5, warmup=2)


@pytest.fixture(autouse=True)
def few_held_out_frames(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer, "_MEASURED_SEQUENCES", 2)
    monkeypatch.setattr(trainer, "_MEASURED_LENGTH", 3)


@pytest.fixture(scope="module")
def batch():
    return make_batch("varied", 7, 4, 3, SIZE, CPU)


def test_targets_are_one_geometry(batch):
    """Static points of frame 2, transformed to frame 0 by its pose, are on the same static world."""
    assert torch.allclose(batch.pose[:, 0], torch.eye(4).expand(4, 4, 4), atol=1e-5)
    again = batch.pose[:, 0] @ torch.linalg.inv(batch.world_pose[:, 0]) @ batch.world_pose[:, 2]
    assert torch.allclose(batch.pose[:, 2], again, atol=1e-5)
    pose = batch.pose[:, 2]
    seen = batch.static_points[:, 2] @ pose[:, None, :3, :3].mT + pose[:, None, None, :3, 3]
    pixel = seen @ batch.intrinsics[:, None].mT
    column, row = ((pixel[..., i] / pixel[..., 2]).round().long() for i in (0, 1))
    inside = (seen[..., 2] > 0.1) & (column >= 0) & (column < SIZE[1]) & (row >= 0) & (row < SIZE[0])
    assert inside.any()
    index = (row.clamp(0, SIZE[0] - 1) * SIZE[1] + column.clamp(0, SIZE[1] - 1)).flatten(1)
    there = batch.static_points[:, 0, ..., 2].flatten(1).gather(1, index).view_as(seen[..., 2])
    assert ((there / seen[..., 2])[inside] - 1).abs().median() < 0.03
    nearer = batch.points[..., 2] < batch.static_points[..., 2]
    assert torch.equal(nearer, batch.moving)
    assert batch.image.min() >= -1 and batch.image.max() <= 1


def test_a_permuted_batch_has_another_first_camera(batch):
    turned = batch.in_order(torch.tensor([2, 0, 1]))
    assert torch.equal(turned.image[:, 0], batch.image[:, 2])
    assert torch.allclose(turned.pose[:, 0], torch.eye(4).expand(4, 4, 4), atol=1e-5)
    assert torch.allclose(turned.pose[:, 1], torch.linalg.inv(batch.pose[:, 2]), atol=1e-4)


def test_losses_are_minimal_at_the_ground_truth(batch):
    generator = torch.Generator().manual_seed(0)
    assert pose_loss(pose_encoding(batch.pose), batch.pose) < 1e-5
    flipped = pose_encoding(batch.pose)
    flipped[..., 3:] *= -1
    assert pose_loss(flipped, batch.pose) < 1e-5
    noisy = pose_encoding(batch.pose) + 0.1 * torch.randn((*batch.pose.shape[:2], 7), generator=generator)
    assert pose_loss(noisy, batch.pose) > 0.1

    sure, unsure = torch.full(batch.points.shape[:-1], 20.0), torch.full(batch.points.shape[:-1], 1.01)
    far = batch.points * 1.5
    assert point_loss(batch.points, sure, batch.points) < point_loss(batch.points, unsure, batch.points) < 0
    assert point_loss(far, unsure, batch.points) < point_loss(far, sure, batch.points)
    # With confidence 1, the loss is the mean relative error.
    one = torch.ones_like(sure)
    assert point_loss(far, one, batch.points).item() == pytest.approx(0.5, rel=1e-4)


def test_matching_tokens_are_those_that_show_the_same_point(batch):
    patch = 4
    middle = batch.points[:, :, patch // 2 :: patch, patch // 2 :: patch].flatten(2, 3)
    world = middle @ batch.pose[..., :3, :3].mT + batch.pose[..., None, :3, 3]
    # Features that depend on the point alone find their match, random ones do not.
    waves = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 4
    distinct = (world @ waves).sin()
    random = torch.randn(distinct.shape, generator=torch.Generator().manual_seed(1))
    assert match_loss(distinct, batch, patch) < 0.6 * match_loss(random, batch, patch)
    assert F.normalize(distinct, dim=-1).isfinite().all()


def test_ray_branch_does_not_change_the_main_branch(batch):
    network = trainer._begin(SHORT, None, CPU).network
    size = image_size(64, 8)
    images = make_batch("one_room", 3, 2, 4, size, CPU)
    with torch.no_grad():
        with_rays, plain = predict(network, images, [1, 3]), predict(network, images, [])
    assert torch.allclose(with_rays.points, plain.points, atol=1e-5)
    assert torch.allclose(with_rays.pose, plain.pose, atol=1e-5)
    assert with_rays.ray_points.shape == (2, 2, *size, 3) and plain.ray_points is None


def test_sequence_length_grows_during_the_run():
    options = TrainOptions(steps=1000, longest=16, frames=64)
    lengths = [options.sequence_length(step) for step in range(0, 1000, 50)]
    assert lengths == sorted(lengths) and set(lengths) == {2, 4, 8, 16}
    assert lengths[0] == 2 and lengths[8:] == [16] * 12
    later = dataclasses.replace(options, shortest=8)
    assert [later.sequence_length(step) for step in (0, 399, 400, 999)] == [8, 8, 16, 16]
    for wrong in ({"longest": 32, "frames": 16}, {"shortest": 16, "longest": 8}):
        with pytest.raises(OptionError, match="longest"):
            TrainOptions(**wrong)


def test_evaluation_scenes_are_never_trained_on():
    """The largest seed that any run can reach lies below those of the suites."""
    limits = {field.name: field.metadata["high"] for field in dataclasses.fields(TrainOptions)}
    assert (limits["seed"] * 1_000_003 + limits["steps"]) * 64 + 63 < EVALUATION_SEEDS


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / trainer.STATE_FILE, weights_only=True)


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path):
    train(SHORT, tmp_path / "whole", "x", CPU, report=lambda _: None)

    def interrupt(line: str) -> None:
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    trainer_log = trainer._LOG_EVERY
    trainer._LOG_EVERY = 3
    try:
        # The first line is printed before the first step. The run stops one step later.
        lines = []
        train(
            SHORT,
            tmp_path / "parts",
            "x",
            CPU,
            report=lambda line: (lines.append(line), len(lines) == 2 and interrupt(line)),
        )
        assert weights(tmp_path / "parts")["step"] == 3
    finally:
        trainer._LOG_EVERY = trainer_log
    assert signal.getsignal(signal.SIGINT) is handler
    train(SHORT, tmp_path / "parts", "x", CPU, report=lambda _: None)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 6
    for part in ("network", "average", "probes"):
        for key, value in whole[part].items():
            assert torch.equal(value, parts[part][key]), key
    assert parts["seconds"] > 0

    path = tmp_path / "parts" / "x.safetensors"
    network = load_network(path)
    assert network.trained
    before = trainer._begin(SHORT, None, CPU).network
    assert any(
        not torch.allclose(a, b, atol=1e-4) for a, b in zip(network.parameters(), before.parameters(), strict=True)
    )
    with safetensors.safe_open(path, framework="pt") as file:
        manifest = file.metadata()
    assert manifest["steps"] == "6" and manifest["frames"] == "24"
    assert json.loads(manifest["options"]) == dataclasses.asdict(SHORT)
    assert {"code", "date", "hardware", "hours", "torch"} <= manifest.keys()

    with pytest.raises(InputError, match="learning_rate"):
        train(dataclasses.replace(SHORT, learning_rate=0.5), tmp_path / "parts", "x", CPU, report=lambda _: None)
    (tmp_path / "parts" / trainer.STATE_FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(SHORT, tmp_path / "parts", "x", CPU, report=lambda _: None)


def test_training_learns(tmp_path: Path):
    """Thirty steps on the same two images reduce the losses."""
    options = dataclasses.replace(SHORT, steps=60, warmup=1, learning_rate=2e-3)
    run = trainer._begin(options, None, CPU)
    images = make_batch("one_room", 1, 2, 2, image_size(64, 8), CPU)
    generator = torch.Generator().manual_seed(0)

    def total() -> torch.Tensor:
        return sum(losses(run.network, run.probes, images, options, generator, 0.0).values())

    before = measure(run.network, images)
    for _ in range(30):
        total().backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
    after = measure(run.network, images)
    for name, most in (("depth", 0.85), ("ray_depth", 0.7), ("position", 0.3), ("rotation", 0.5)):
        assert after[name] < most * before[name], (name, before, after)


def test_a_run_can_begin_with_weights(tmp_path: Path):
    first = train(dataclasses.replace(SHORT, steps=1), tmp_path / "first", "x", CPU, report=lambda _: None)
    run = trainer._begin(SHORT, first, CPU)
    given = load_network(first)
    assert all(torch.equal(a, b) for a, b in zip(run.network.parameters(), given.parameters(), strict=True))
    other = dataclasses.replace(SHORT, preset="cut3r_512_dpt")
    with pytest.raises(InputError, match="another shape"), torch.device("meta"):
        trainer._begin(other, first, torch.device("meta"))


@pytest.mark.parametrize("name", [name for name, (_, options) in RECIPES.items() if options.world != RECORDING])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    arguments = ["train", name, "--out", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--steps", "1", "--frames", "4", "--longest", "2"]) == 0
    assert f"{name}.safetensors" in capsys.readouterr().out
    network = load_network(tmp_path / f"{name}.safetensors")
    assert network.trained and network.manifest["about"] == f"trained on {RECIPES[name][0]}"
    assert main([*arguments, "--frames", "1"]) == 2
    assert "frames" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_complete(name: str):
    text, options = RECIPES[name]
    assert text and options.frames % options.longest == 0
    assert options.sequence_length(0) == 2 and options.sequence_length(options.steps - 1) == options.longest
