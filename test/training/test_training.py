"""Training: exact targets, losses that are minimal at the ground truth, runs that continue after an interruption."""

import csv
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
from raymap3r_ros.geometry.cameras import pose_encoding, ray_map
from raymap3r_ros.network import Network, load_network, untrained_network
from raymap3r_ros.network.checkpoint import save_network
from raymap3r_ros.network.config import PRESETS
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.training import RECIPES, TrainOptions, train, trainer
from raymap3r_ros.training.batches import Batch, draw, image_size, make_batch, make_pool
from raymap3r_ros.training.losses import (
    Probes,
    choose_known,
    losses,
    match_loss,
    measure,
    point_loss,
    pose_loss,
    predict,
)
from raymap3r_ros.training.progress import Progress
from raymap3r_ros.training.sources import RECORDING, SOURCES
from raymap3r_ros.training.throughput import count_operations

CPU = torch.device("cpu")
SIZE = (24, 32)
MINI_SIZE = image_size(PRESETS["mini"].image_size, PRESETS["mini"].patch_size)
SHORT = TrainOptions(world="one_room", steps=6, frames=4, longest=2, reuse=2, place_weight=0.5, warmup=2)


@pytest.fixture(autouse=True)
def few_held_out_frames(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer, "_MEASURED_SEQUENCES", 2)
    monkeypatch.setattr(trainer, "_MEASURED_LENGTH", 3)


@pytest.fixture(scope="module")
def batch():
    return make_batch(SOURCES["varied"], 7, 4, 3, SIZE, CPU)


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


def test_a_batch_is_made_of_windows_of_the_pool_in_random_order():
    pool = make_pool(SOURCES["one_room"], [7, 8], 2, 6, SIZE, CPU)
    drawn = draw(pool, 3, 4, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.pose[:, 0], torch.eye(4).expand(3, 4, 4), atol=1e-5)
    assert drawn.image.shape == (3, 4, 3, *SIZE)
    sequences, orders = [], []
    for row in range(3):
        place = [(drawn.world_pose[row, t] == pool.pose).all(-1).all(-1).nonzero().tolist() for t in range(4)]
        (sequence,) = {number for found in place for number, _ in found}
        columns = [found[0][1] for found in place]
        assert sorted(columns) == list(range(min(columns), min(columns) + 4))
        for t, column in enumerate(columns):
            assert torch.equal(drawn.points[row, t, ..., 2], pool.depth[sequence, column])
            assert torch.equal(drawn.static_points[row, t, ..., 2], pool.static_depth[sequence, column])
            seen = pool.image[sequence, column].movedim(-1, 0).float()
            assert torch.allclose((drawn.image[row, t] + 1) * 127.5, seen, atol=1e-3)
        sequences.append(sequence)
        orders.append([column - min(columns) for column in columns])
    assert len(set(sequences)) == 3  # none twice while others have not been drawn
    assert any(order != sorted(order) for order in orders)
    # Half of the windows begin with the frame that is farthest from the mean position of all.
    far = []
    for seed in range(100):
        position = draw(pool, 3, 4, torch.Generator().manual_seed(seed)).world_pose[..., :3, 3]
        distance = (position - position.mean(1, keepdim=True)).norm(dim=-1)
        far.extend((distance.argmax(1) == 0).tolist())
    assert sum(far) / len(far) == pytest.approx(0.5 + 0.5 / 4, abs=0.08)
    # More windows than sequences.
    assert draw(pool, 9, 2, torch.Generator().manual_seed(0)).image.shape[:2] == (9, 2)


def test_pixels_of_unknown_depth_have_no_part_in_the_losses(batch):
    """Whatever the network predicts there, and however many there are."""
    network = untrained_network(dataclasses.replace(PRESETS["mini"], patch_size=4))
    probes = Probes(network)
    options = TrainOptions(frames=12, longest=3, place_weight=0.5, match_weight=0.3, rgb_share=0.0, world_share=1.0)
    unknown = batch.moving.clone()
    unknown[..., 5:15, 3:20] = True

    def total(hidden_depth: float, **changes: torch.Tensor) -> dict[str, float]:
        points = {
            name: torch.where(unknown[..., None], hidden_depth * getattr(batch, name), getattr(batch, name))
            for name in ("points", "static_points")
        }
        images = dataclasses.replace(batch, **points, **changes)
        parts = losses(network, probes, images, options, torch.Generator().manual_seed(0), 0.0)
        return {name: part.item() for name, part in parts.items()}

    known, hidden = total(1.0), total(0.0)
    assert {"points", "ray", "world", "place", "match", "pose"} == hidden.keys()
    assert hidden["pose"] == known["pose"] and all(hidden[name] != known[name] for name in hidden if name != "pose")
    # The mean error of the known pixels alone.
    predicted = predict(network, batch, [])
    seen = ~unknown
    alone = point_loss(predicted.points[seen], predicted.confidence[seen], batch.points[seen])
    assert hidden["points"] == pytest.approx(alone.item(), rel=1e-5)
    everything = dataclasses.replace(batch, points=0 * batch.points, static_points=0 * batch.static_points)
    parts = losses(network, probes, everything, options, torch.Generator().manual_seed(0), 0.0)
    assert all(parts[name] == 0 for name in ("points", "ray", "world", "match"))
    assert measure(network, everything)["depth"] == 0
    # A camera that moves to a point of the first frame, and measures no depth there, has not found that point again.
    there = batch.world_pose[:1, :2].clone()
    point = batch.points[:1, 0, 2, 2]
    there[:, 1, :3, 3] = there[:, 0, :3, 3] + (there[:, 0, :3, :3] @ point[..., None])[..., 0]
    points = torch.stack((batch.points[:1, 0], 0 * batch.points[:1, 1]), dim=1)
    moved = dataclasses.replace(batch, points=points, world_pose=there)
    assert match_loss(torch.randn(1, 2, 48, 8, generator=torch.Generator().manual_seed(0)), moved, 4) == 0


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


def one_pass_after_the_other(
    network: Network, images: Batch, ray_frames: list[int], known: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The predictions of the definition: each sequence alone, the rays of a frame before its image."""
    size, found = images.image.shape[-2:], {name: [] for name in ("points", "pose", "states", "ray_points")}
    grid = tuple(side // network.config.patch_size for side in size)
    for row in range(len(images.image)):
        state, memory = network.initial_state(1), network.initial_memory(1)
        for t in range(images.image.shape[1]):
            rays = network.encode_rays(ray_map(images.pose[row, t, None], images.intrinsics[row, None], size))
            if t in ray_frames:
                decoded = network.decode(rays, grid, network.read_memory(memory, rays), state)
                found["ray_points"].append(network.self_points(decoded, size)[0])
            tokens = network.encode_image(images.image[row, t, None])
            if known[row, t]:
                tokens = tokens + rays
            token = network.read_memory(memory, tokens) if t else network.first_pose_token
            decoded = network.decode(tokens, grid, token, state)
            state, memory = decoded.state, network.write_memory(memory, tokens, decoded.pose_token)
            found["points"].append(network.self_points(decoded, size)[0])
            found["pose"].append(network.pose(decoded))
            if t + 1 < images.image.shape[1]:
                found["states"].append(state.mean(1))
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["images", "images and known poses"])
def test_batched_passes_are_those_of_the_definition(share: float):
    """Predictions and gradients, to 1e-5 of their size."""
    network = untrained_network(PRESETS["mini"])
    size = image_size(network.config.image_size, network.config.patch_size)
    images = make_batch(SOURCES["one_room"], 3, 2, 4, size, CPU)
    known = choose_known(2, 4, share, torch.Generator().manual_seed(0))
    assert (known is None) == (share == 0) and (share == 0 or not known[:, 0].any())
    batched = predict(network, images, [1, 3], known=known)
    definition = one_pass_after_the_other(network, images, [1, 3], torch.zeros(2, 4) if known is None else known)
    gradients = []
    for outputs in (definition, {name: getattr(batched, name).flatten(0, 1) for name in definition}):
        for name, output in outputs.items():
            assert torch.allclose(output, definition[name], rtol=1e-5, atol=1e-5), name
        sum((output * definition[name].detach().sin()).mean() for name, output in outputs.items()).backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        network.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys() and "ray_encoder.patch_embed.0.weight" in gradients[0]
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * largest), name


def test_bfloat16_has_the_losses_and_gradients_of_float32():
    network, found = load_network("one_room"), []
    images = make_batch(SOURCES["one_room"], 3, 2, 4, (48, 64), CPU)
    probes = Probes(network)
    for precision in ("float32", "bfloat16"):
        options = dataclasses.replace(SHORT, known_share=0.5, world_share=0.5, precision=precision)
        network.requires_grad_(True)
        parts = losses(network, probes, images, options, torch.Generator().manual_seed(0), 0.0)
        assert all(part.dtype is torch.float32 for part in parts.values())
        sum(parts.values()).backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        found.append(({name: float(part.detach()) for name, part in parts.items()}, gradient))
        network.zero_grad(set_to_none=True)
    (parts, gradient), (rounded_parts, rounded) = found
    for name, part in parts.items():
        assert rounded_parts[name] == pytest.approx(part, abs=0.03), name
    assert F.cosine_similarity(gradient, rounded, dim=0) > 0.95


def test_share_of_known_poses():
    generator = torch.Generator().manual_seed(0)
    known = choose_known(2000, 9, 0.2, generator)[:, 1:]
    assert known.any(dim=1).float().mean() == pytest.approx(0.2, abs=0.03)
    assert known[known.any(dim=1)].float().mean() == pytest.approx(0.8, abs=0.03)
    assert choose_known(1, 1, 1.0, generator) is None


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


def check_reports(folder: Path, lines: list[str]) -> None:
    """Log and curves of a run that was interrupted at step 3."""
    assert sum(line.startswith("validation: step 0") for line in lines) == 1
    with (folder / "curves.csv").open(newline="") as file:
        curves = list(csv.DictReader(file))
    # At the start of each session and at the end.
    assert [(row["step"], row["frames"]) for row in curves] == [("0", "0"), ("3", "12"), ("6", "24")]
    assert all(float(row[name]) > 0 for row in curves for name in ("position", "rotation", "depth", "ray_depth"))
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 3, 6]
    assert all(0 < entry["sgemm_share"] < 1 and entry["frames_per_cpu_s"] > 0 for entry in entries)


def test_curves_keep_their_columns_beside_new_ones(tmp_path: Path):
    progress = Progress(tmp_path, CPU, 4, 2, lambda _: None)
    progress.validated(1, 3600.0, {"depth": 0.5})
    progress.validated(2, 7200.0, {"depth": 0.4, "iou": 0.3})
    assert (tmp_path / "curves.csv").read_text().split() == [
        "step,frames,hours,depth,iou", "1,8,1.000,0.5000,", "2,16,2.000,0.4000,0.3000",
    ]  # fmt: skip


def test_operations_are_counted_in_both_directions():
    """A product of (20, 30) and (30, 40) takes 2 x 20 x 30 x 40, and as many again for each gradient."""
    first, second = torch.randn(20, 30, requires_grad=True), torch.randn(30, 40, requires_grad=True)
    assert count_operations(lambda: (first @ second).sum().backward()) == 3 * 2 * 20 * 30 * 40


def test_a_run_in_the_folder_of_the_recording_is_refused(tmp_path):
    with pytest.raises(InputError, match="run: is in the input"):
        train(SHORT, tmp_path / "run", "x", CPU, data=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_repeated_signals_while_the_state_is_saved_are_ignored(tmp_path: Path, monkeypatch):
    save = trainer._save

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        return save(*arguments)

    usual = {signal.SIGTERM: signal.SIG_IGN, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    monkeypatch.setattr(trainer, "_save", interrupted)
    try:
        train(dataclasses.replace(SHORT, steps=1, warmup=1), tmp_path, "x", CPU, report=lambda _: None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (tmp_path / "training.pt").exists() and weights(tmp_path)["step"] == 1


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path):
    train(SHORT, tmp_path / "whole", "x", CPU, report=lambda _: None)

    lines = []

    def report(line: str) -> None:
        lines.append(line)
        if line.startswith("step"):
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    trainer_log = trainer._LOG_EVERY
    trainer._LOG_EVERY = 2
    try:
        # The run stops one step after the first line about a step.
        train(SHORT, tmp_path / "parts", "x", CPU, report=report)
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
    check_reports(tmp_path / "parts", lines)

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

    state = weights(tmp_path / "parts")
    older = json.loads(state["options"])
    del older["precision"]  # as if the file were older than this option
    torch.save({**state, "options": json.dumps(older)}, tmp_path / "parts" / trainer.STATE_FILE)
    assert (
        trainer._resume(trainer._begin(SHORT, None, CPU), tmp_path / "parts" / trainer.STATE_FILE, SHORT, CPU).step
        == 6
    )

    with pytest.raises(InputError, match="learning_rate"):
        train(dataclasses.replace(SHORT, learning_rate=0.5), tmp_path / "parts", "x", CPU, report=lambda _: None)
    (tmp_path / "parts" / trainer.STATE_FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(SHORT, tmp_path / "parts", "x", CPU, report=lambda _: None)


def test_training_learns(tmp_path: Path):
    """Thirty steps on the same two images reduce the losses."""
    options = dataclasses.replace(SHORT, steps=60, warmup=1, learning_rate=2e-3)
    run = trainer._begin(options, None, CPU)
    images = make_batch(SOURCES["one_room"], 1, 2, 2, MINI_SIZE, CPU)
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


def test_a_run_can_begin_with_weights_of_half_the_image_size(tmp_path: Path):
    half = dataclasses.replace(PRESETS["mini"], image_size=64, patch_size=8)
    given = untrained_network(half, seed=3)
    save_network(given, tmp_path / "half.safetensors", torch.float32, {})
    network = trainer._begin(SHORT, tmp_path / "half.safetensors", CPU).network
    generator = torch.Generator().manual_seed(0)
    for encoder, smaller, channels in (
        (network.image_encoder, given.image_encoder, 3),
        (network.ray_encoder, given.ray_encoder, 6),
    ):
        planes = torch.randn(2, channels, *MINI_SIZE, generator=generator)
        with torch.no_grad():
            tokens, expected = encoder(planes), smaller(F.avg_pool2d(planes, 2))
        assert (tokens - expected).abs().max() < 1e-4
    for (name, here), there in zip(network.decoder.named_parameters(), given.decoder.parameters(), strict=True):
        assert torch.equal(here, there), name
    narrow = dataclasses.replace(half, encoder_width=48)
    save_network(untrained_network(narrow), tmp_path / "narrow.safetensors", torch.float32, {})
    with pytest.raises(InputError, match="another shape"):
        trainer._begin(SHORT, tmp_path / "narrow.safetensors", CPU)


@pytest.mark.parametrize("name", [name for name, (_, options) in RECIPES.items() if options.world != RECORDING])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    arguments = ["train", name, "--out", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--steps", "1", "--frames", "4", "--shortest", "2", "--longest", "2"]) == 0
    assert f"{name}.safetensors" in capsys.readouterr().out
    network = load_network(tmp_path / f"{name}.safetensors")
    assert network.trained and network.manifest["about"] == f"trained on {RECIPES[name][0]}"
    assert main([*arguments, "--frames", "1"]) == 2
    assert "frames" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_complete(name: str):
    text, options = RECIPES[name]
    assert text and options.frames % options.longest == 0
    assert (
        options.sequence_length(0) == options.shortest
        and options.sequence_length(options.steps - 1) == options.longest
    )
