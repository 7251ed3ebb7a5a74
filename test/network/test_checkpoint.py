"""Weights files: the public form, the own format, broken and malicious files."""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raymap3r_ros.errors import CheckpointError, InputError
from raymap3r_ros.network import (
    PRESETS,
    NetworkConfig,
    convert_checkpoint,
    load_network,
    save_network,
    untrained_network,
)
from raymap3r_ros.network.checkpoint import STORED_DTYPES, network_from_public, public_shapes, stored_dtype
from raymap3r_ros.network.metadata import copy_with_metadata
from raymap3r_ros.network.torch_file import open_torch_file

TINY = NetworkConfig(
    image_size=64,
    encoder_width=16,
    encoder_depth=1,
    encoder_heads=2,
    ray_encoder_depth=1,
    ray_encoder_heads=2,
    decoder_width=16,
    decoder_depth=4,
    decoder_heads=2,
    state_heads=2,
    state_tokens=5,
    memory_slots=3,
    memory_heads=2,
    dpt_width=8,
    dpt_last_width=4,
    dpt_level_widths=(4, 4, 4, 4),
)


def public_tensors(config: NetworkConfig) -> dict[str, torch.Tensor]:
    """Tensors in the public form. Each repeats one number, so that even the full network is a small file."""
    return {
        key: torch.tensor(float(index)).expand(shape)
        for index, (key, shape) in enumerate(public_shapes(config).items())
    }


@pytest.fixture
def tiny_is_public(monkeypatch: pytest.MonkeyPatch):
    """Make the loader expect a tiny network in public files."""
    monkeypatch.setitem(PRESETS, "cut3r_512_dpt", TINY)


def test_keys_and_shapes_are_those_of_the_public_checkpoint(shared: Path):
    listed = json.loads((shared / "checkpoint_keys.json").read_text())["state_dict"]
    expected = {entry[0]: tuple(entry[1]) for entry in listed}
    assert {key: tuple(shape) for key, shape in public_shapes(PRESETS["cut3r_512_dpt"]).items()} == expected


def test_a_file_with_the_full_key_list_loads(tmp_path: Path):
    tensors = public_tensors(PRESETS["cut3r_512_dpt"])
    path = tmp_path / "cut3r_512_dpt_4_64.pth"
    torch.save({"model": {"module." + key: value for key, value in tensors.items()}, "epoch": 3}, path)
    network = load_network(path)
    assert network.config == PRESETS["cut3r_512_dpt"]
    names = list(tensors)
    for parameter, key in (
        (network.image_encoder.blocks[23].mlp.fc1.weight, "enc_blocks.23.mlp.fc1.weight"),
        (network.rgb_head.levels[3].smooth.weight, "downstream_head.dpt_rgb.scratch.layer4_rn.weight"),
    ):
        assert parameter.unique().tolist() == [names.index(key)]


def test_the_public_form_is_read_with_an_omegaconf_object_beside_the_tensors(shared: Path):
    path = shared / "golden" / "ckpt_format_sample.pth"
    with open_torch_file(path) as file:
        tensors = file.content["model"]
    assert set(tensors) == {"module.pose_token", "module.enc_norm.weight", "module.dec_blocks_state.0.norm1.bias"}
    with pytest.raises(CheckpointError, match=r"missing: .*1 misshapen|misshapen"):
        load_network(path)


def test_weights_are_loaded_into_the_right_parameters(tmp_path: Path, tiny_is_public: None):
    tensors = {key: torch.randn(shape) for key, shape in public_shapes(TINY).items()}
    path = tmp_path / "public.pth"
    torch.save({"model": {"module." + key: value for key, value in tensors.items()}, "args": None}, path)
    network = load_network(path)
    assert network.trained and network.source == "public.pth"
    state = network.state_dict()
    for ours, public in (
        ("image_encoder.blocks.0.attn.qkv.weight", "enc_blocks.0.attn.qkv.weight"),
        ("decoder.state_blocks.3.cross_attn.projk.bias", "dec_blocks_state.3.cross_attn.projk.bias"),
        ("decoder.state_tokens", "register_tokens.weight"),
        ("pose_memory.read_blocks.1.mlp.fc2.weight", "pose_retriever.read_blocks.1.mlp.fc2.weight"),
        ("modulation.1.norm2.linear.weight", "downstream_head.final_transform.1.norm2.mlp.1.weight"),
        ("world_head.levels.3.resample.weight", "downstream_head.dpt_cross.act_postprocess.3.1.weight"),
        (
            "rgb_head.fusion.2.skip_unit.conv1.bias",
            "downstream_head.dpt_rgb.scratch.refinenet3.resConfUnit1.conv1.bias",
        ),
        ("self_head.conv3.bias", "downstream_head.dpt_self.head.4.bias"),
    ):
        assert torch.equal(state[ours], tensors[public]), ours


class UnknownConfig:
    """An object of a class that exists only here."""


def test_an_unknown_object_beside_the_tensors_is_skipped_with_a_warning(tmp_path: Path, tiny_is_public: None, caplog):
    path = tmp_path / "public.pth"
    torch.save({"model": public_tensors(TINY), "args": UnknownConfig(), "other": argparse.Namespace(a=1)}, path)
    assert load_network(path).trained
    (record,) = caplog.records
    assert f"skipped objects that are not tensors ({__name__}.UnknownConfig)" in record.getMessage()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64])
def test_weights_that_are_not_floating_point_numbers_are_refused(tmp_path: Path, tiny_is_public: None, dtype):
    tensors = {**public_tensors(TINY), "enc_norm.bias": torch.zeros(16, dtype=dtype)}
    path = tmp_path / "public.pth"
    torch.save({"model": tensors}, path)
    with pytest.raises(CheckpointError, match=rf"public\.pth: enc_norm\.bias contains {dtype}, expected floating"):
        load_network(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_read(tmp_path: Path, tiny_is_public: None, dtype):
    tensors = {key: torch.randn(shape).to(dtype) for key, shape in public_shapes(TINY).items()}
    path = tmp_path / "public.pth"
    torch.save({"model": tensors}, path)
    weight = load_network(path).image_encoder.norm.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, tensors["enc_norm.weight"].float())


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_network(untrained_network(TINY), path)
    path.chmod(0o600)
    save_network(untrained_network(TINY, seed=1), path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_all_mismatches_are_in_one_error():
    tensors = public_tensors(TINY)
    del tensors["enc_norm.bias"], tensors["pose_retriever.mem"]
    tensors["spare"] = torch.zeros(1)
    tensors["dec_norm.weight"] = torch.zeros(9)
    with pytest.raises(CheckpointError) as caught:
        network_from_public(tensors, TINY, "some.pth")
    message = str(caught.value)
    assert "some.pth does not hold this network" in message
    assert "2 missing: enc_norm.bias, pose_retriever.mem" in message
    assert "1 unexpected: spare" in message
    assert "1 misshapen: dec_norm.weight is (9,), expected (16,)" in message


def test_files_that_are_not_checkpoints_are_reported(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"'/nowhere/x\.pth' is not a file, nor weights that come with"):
        load_network("/nowhere/x.pth")
    text = tmp_path / "notes.pth"
    text.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"notes\.pth cannot be read as a checkpoint"):
        load_network(text)
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3), "epoch": 7}, buffer)
    other = tmp_path / "other.pth"
    other.write_bytes(buffer.getvalue())
    with pytest.raises(
        CheckpointError, match=r'under "model" \(it contains weights, epoch\).*torch\.save\(\{"model":'
    ):
        load_network(other)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(buffer.getvalue()[:-100])
    with pytest.raises(
        CheckpointError, match=rf"cut\.pth cannot be read.*incomplete: it has {cut.stat().st_size} bytes"
    ):
        load_network(cut)


def test_weights_that_are_cut_off_are_reported_with_the_missing_bytes(tmp_path: Path):
    path = tmp_path / "cut.safetensors"
    save_network(untrained_network(TINY), path)
    path.write_bytes(path.read_bytes()[:-1234])
    with pytest.raises(CheckpointError, match="1234 bytes are missing at its end"):
        load_network(path)


@pytest.mark.parametrize(
    "use", [load_network, lambda path: convert_checkpoint(path, path.parent / "target.safetensors")]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_not_a_file_is_no_checkpoint(tmp_path: Path, suffix: str, use):
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"fifo{suffix}")
    (tmp_path / f"link{suffix}").symlink_to("nowhere")
    for name, what in (
        ("folder", "a folder"), ("fifo", "a FIFO"), ("link", "a link that leads nowhere"),
        ("missing", "not a file, nor weights that come with"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=rf"{name}\{suffix}' is {what}.*give the path of"):
            use(tmp_path / f"{name}{suffix}")


def test_a_bare_state_dict_is_read(tiny_is_public, tmp_path: Path):
    tensors, paths = public_tensors(TINY), (tmp_path / "model.pth", tmp_path / "bare.pth")
    torch.save({"model": tensors}, paths[0])
    torch.save(tensors, paths[1])
    expected, loaded = (load_network(path).state_dict() for path in paths)
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


def test_skipped_objects_are_reported_although_loading_fails(tmp_path: Path, caplog):
    class Settings:
        pass

    Settings.__module__, Settings.__qualname__ = "lab.settings", "Settings"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lab", types.ModuleType("lab"))
        patch.setitem(sys.modules, "lab.settings", types.SimpleNamespace(Settings=Settings))
        torch.save({"model": {"a": torch.zeros(1)}, "settings": Settings()}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="1 unexpected: a"):
        load_network(tmp_path / "odd.pth")
    assert "lab.settings.Settings" in caplog.text


def test_writers_of_weights_keep_permissions_and_replace_no_device(tmp_path: Path):
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    network = untrained_network(TINY)
    save_network(network, source)
    writers = (
        lambda path: save_network(network, path),
        lambda path: convert_checkpoint(source, path),
        lambda path: copy_with_metadata(source, path, {"name": "x"}),
    )
    for write in writers:
        target.touch()
        target.chmod(0o600)
        write(target)
        assert load_network(target).trained and target.stat().st_mode & 0o777 == 0o600
        target.unlink()
        write(target)
        assert target.stat().st_mode == source.stat().st_mode
        target.unlink()
        os.mkfifo(target)
        with pytest.raises(InputError, match=r"target\.safetensors: is a FIFO"):
            write(target)
        assert target.is_fifo()
        target.unlink()
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_our_own_format_keeps_weights_and_configuration(tmp_path: Path, dtype: torch.dtype):
    config = dataclasses.replace(TINY, head_type="linear")
    network = untrained_network(config, seed=3)
    path = tmp_path / "deep" / "weights.safetensors"
    save_network(network, path, dtype, {"steps": "12"})
    loaded = load_network(path)
    assert loaded.config == config and loaded.trained and not loaded.training
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.to(dtype).float()), key
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.safetensors"]
    assert path.stat().st_mode & 0o444 == 0o444


def test_a_name_that_is_not_utf8(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"B\xfcro %d")
    folder.mkdir()
    network = untrained_network(TINY, seed=3)
    save_network(network, folder / "w.safetensors", torch.float32, {"steps": "12"})
    loaded = load_network(folder / "w.safetensors")
    assert all(torch.equal(*pair) for pair in zip(loaded.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_conversion_gives_the_same_network(tmp_path: Path, tiny_is_public: None, dtype: str):
    path, target = tmp_path / "public.pth", tmp_path / "ours.safetensors"
    tensors = {key: torch.randn(shape) for key, shape in public_shapes(TINY).items()}
    torch.save({"model": tensors}, path)
    conversion = convert_checkpoint(path, target, dtype)
    first, second = load_network(path).state_dict(), load_network(target).state_dict()
    assert all(
        torch.equal(first[key].to(stored_dtype(key, first[key].shape, dtype)).float(), second[key]) for key in first
    )
    kinds = {value.dtype for value in safetensors.torch.load_file(target).values()}
    assert kinds == {
        "float32": {torch.float32}, "mixed": {torch.float32, torch.float16}, "float16": {torch.float16}
    }[dtype]  # fmt: skip
    assert conversion.bytes == target.stat().st_size
    assert conversion.parameters == sum(value.numel() for value in first.values())
    for part, error in conversion.rounding.items():
        mine = torch.cat([value.flatten() for key, value in first.items() if key.startswith(part)])
        written = torch.cat([value.flatten() for key, value in second.items() if key.startswith(part)])
        assert error == pytest.approx(float((written - mine).norm() / mine.norm()), rel=1e-3, abs=1e-9), part


def test_conversion_of_our_own_file_keeps_its_manifest(tmp_path: Path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    manifest = {"steps": "12", "covariance": '{\n  "position": {}\n}'}
    save_network(untrained_network(TINY), source, manifest=manifest)
    convert_checkpoint(source, target, "float16")
    assert load_network(target).manifest == manifest


def test_conversion_of_a_public_file_has_no_manifest(tiny_is_public, tmp_path: Path):
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save({"model": public_tensors(TINY)}, source)
    convert_checkpoint(source, target)
    assert load_network(target).manifest == {}


def test_copy_with_metadata_keeps_every_tensor(tmp_path: Path):
    source, target = tmp_path / "a.safetensors", tmp_path / "folder" / "b.safetensors"
    save_network(untrained_network(TINY), source, torch.float16, {"steps": "12", "name": "a"})
    copy_with_metadata(source, target, {"name": "b", "covariance": "{}"})
    first, second = (safetensors.torch.load_file(path) for path in (source, target))
    assert first.keys() == second.keys()
    assert all(second[key].dtype == value.dtype and torch.equal(second[key], value) for key, value in first.items())
    assert load_network(target).manifest == {"steps": "12", "name": "b", "covariance": "{}"}
    copy_with_metadata(target, target, {"name": "c"})  # in place
    assert load_network(target).manifest["name"] == "c"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_copy_with_metadata_that_fails_keeps_the_target(tmp_path: Path):
    broken, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    target.write_text("kept")
    broken.write_bytes(b"\x05\0\0\0\0\0\0\0{]   ")
    for source in (broken, tmp_path / "missing.safetensors"):
        with pytest.raises(CheckpointError, match=source.name):
            copy_with_metadata(source, target, {})
    assert target.read_text() == "kept" and len(list(tmp_path.iterdir())) == 2


CONVERT = """
import sys, torch
from raymap3r_ros.network import PRESETS, NetworkConfig, convert_checkpoint, load_network
PRESETS["cut3r_512_dpt"] = NetworkConfig(**{config})
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
before = peak()
{work}
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux' /proc")
@pytest.mark.parametrize(
    ("work", "limit"),
    [
        # Relative to a file of 260 MB. A conversion holds a few tensors at a time, a network all of them once.
        ('convert_checkpoint("public.pth", "ours.safetensors", "float16")', 0.4),
        ('convert_checkpoint("public.pth", "ours.safetensors", "float32")', 0.4),
        ('load_network("public.pth")', 1.3),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_memory_does_not_grow_beyond_the_file(tmp_path: Path, work: str, limit: float, zipped: bool):
    config = dataclasses.replace(TINY, encoder_width=512, encoder_depth=20)
    path = tmp_path / "public.pth"
    model = {key: torch.randn(shape) for key, shape in public_shapes(config).items()}
    torch.save({"model": model}, path, _use_new_zipfile_serialization=zipped)
    script = CONVERT.format(config=config.to_dict(), work=work)
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    size = path.stat().st_size
    assert size > 2e8 and int(result.stdout) < limit * size


def test_weights_outside_half_precision_are_refused_and_the_old_file_is_kept(tmp_path: Path):
    network = untrained_network(TINY)
    path = tmp_path / "weights.safetensors"
    save_network(network, path)
    before = path.read_bytes()
    network.first_pose_token.data[:] = 1e6
    with pytest.raises(CheckpointError, match=r"do not fit into torch\.float16.*first_pose_token"):
        save_network(network, path, torch.float16)
    assert path.read_bytes() == before


def test_broken_files_in_the_own_format_are_reported(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_network(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not written by this package"):
        load_network(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"format": "raymap3r-1", "config": "{}"})
    with pytest.raises(CheckpointError, match="holds no usable network configuration"):
        load_network(path)
    config = json.dumps(TINY.to_dict())
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"format": "raymap3r-1", "config": config})
    with pytest.raises(CheckpointError, match=r"1 unexpected: a.* missing: "):
        load_network(path)
