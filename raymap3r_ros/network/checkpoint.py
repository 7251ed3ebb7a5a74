"""Weights from files, safely: nothing in a file is ever executed, and every tensor must be the expected one."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import pickletools
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raymap3r_ros.errors import CheckpointError, OptionError
from raymap3r_ros.network.config import PRESETS, NetworkConfig
from raymap3r_ros.network.model import Network, initialise

FORMAT = "raymap3r-1"  # of our own files; stands in their metadata
# What a file may ask for. Ten times the largest of these networks; a file that asks for more wants to do harm.
MAX_DEPTH, MAX_WIDTH = 128, 16_384
MAX_PICKLE = 2**26  # bytes; that of the public checkpoint has less than a hundredth
DEFAULT_CHECKPOINT = "one_room"  # comes with the package
_SHIPPED = Path(__file__).resolve().parents[1] / "weights"
_UNTRAINED_SEED = 0

# Our names -> the public checkpoint's. Applied in order to each of our keys.
_PUBLIC_NAMES: tuple[tuple[str, str], ...] = (
    (r"^first_pose_token$", "pose_token"),
    (r"^image_encoder\.patch_embed\.", "patch_embed.proj."),
    (r"^image_encoder\.blocks\.", "enc_blocks."),
    (r"^image_encoder\.norm\.", "enc_norm."),
    (r"^ray_encoder\.patch_embed\.", "patch_embed_ray_map.proj."),
    (r"^ray_encoder\.blocks\.", "enc_blocks_ray_map."),
    (r"^ray_encoder\.norm\.", "enc_norm_ray_map."),
    (r"^decoder\.image_embed\.", "decoder_embed."),
    (r"^decoder\.image_blocks\.", "dec_blocks."),
    (r"^decoder\.image_norm\.", "dec_norm."),
    (r"^decoder\.state_tokens$", "register_tokens.weight"),
    (r"^decoder\.state_embed\.", "decoder_embed_state."),
    (r"^decoder\.state_blocks\.", "dec_blocks_state."),
    (r"^decoder\.state_norm\.", "dec_norm_state."),
    (r"^pose_memory\.initial$", "pose_retriever.mem"),
    (r"^pose_memory\.mask_token$", "pose_retriever.masked_token"),
    (r"^pose_memory\.embed\.", "pose_retriever.proj_q."),
    (r"^pose_memory\.", "pose_retriever."),
    (r"^pose_head\.", "downstream_head.pose_head."),
    (r"^modulation\.(\d+)\.norm(\d)\.linear\.", r"downstream_head.final_transform.\1.norm\2.mlp.1."),
    (r"^modulation\.", "downstream_head.final_transform."),
    (r"^world_head\.", "downstream_head.dpt_cross."),
    (r"^(self|rgb)_head\.", r"downstream_head.dpt_\1."),
    (r"\.levels\.(\d)\.project\.", r".act_postprocess.\1.0."),
    (r"\.levels\.(\d)\.resample\.", r".act_postprocess.\1.1."),
    (r"\.levels\.0\.smooth\.", ".scratch.layer1_rn."),
    (r"\.levels\.1\.smooth\.", ".scratch.layer2_rn."),
    (r"\.levels\.2\.smooth\.", ".scratch.layer3_rn."),
    (r"\.levels\.3\.smooth\.", ".scratch.layer4_rn."),
    (r"\.fusion\.0\.", ".scratch.refinenet1."),
    (r"\.fusion\.1\.", ".scratch.refinenet2."),
    (r"\.fusion\.2\.", ".scratch.refinenet3."),
    (r"\.fusion\.3\.", ".scratch.refinenet4."),
    (r"(refinenet\d)\.skip_unit\.", r"\1.resConfUnit1."),
    (r"(refinenet\d)\.unit\.", r"\1.resConfUnit2."),
    (r"(refinenet\d)\.out\.", r"\1.out_conv."),
    (r"(dpt_\w+)\.conv1\.", r"\1.head.0."),
    (r"(dpt_\w+)\.conv2\.", r"\1.head.2."),
    (r"(dpt_\w+)\.conv3\.", r"\1.head.4."),
)


def load_network(
    checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
    device: str | torch.device = "cpu",
    precision: str = "float32",
) -> Network:
    """A network ready to run, in evaluation mode on `device`, with weights of the `precision` that it will run in.

    `checkpoint` is one of ours (.safetensors), the public CUT3R file (.pth), the name of weights that come with the
    package, or the name of a preset, which gives untrained weights from a fixed seed. Raises CheckpointError.
    """
    name = str(checkpoint)
    shipped = shipped_weights()
    if name in shipped:
        network = _read_native(shipped[name])
        network.trained = True
        network.source = f"{name}: {network.manifest.get('about', 'comes with the package')}"
    elif name in PRESETS:
        network = untrained_network(PRESETS[name])
        network.source = f"preset {name}: untrained weights, its geometry means nothing"
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            raise CheckpointError(
                f"checkpoint {name!r} is not a file, nor weights that come with the package "
                f"({', '.join(shipped) or 'none'}), nor one of the untrained presets {', '.join(PRESETS)}; "
                "give the path of a .safetensors or .pth file"
            )
        network = _read_native(path) if path.suffix == ".safetensors" else _read_public(path)
        network.trained = True
        network.source = path.name
    if precision != "float32":
        network.lower_precision(precision)
    # Tokens are rows of channels, so feature maps made of them lie channels last anyway, and so do images.
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def shipped_weights() -> dict[str, Path]:
    """Name and file of the weights that come with the package; docs/weights.md tells what each knows."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.safetensors"))}


def untrained_network(config: NetworkConfig, seed: int = _UNTRAINED_SEED) -> Network:
    """A network of this shape with starting weights that depend on the seed alone."""
    network = Network(config)
    initialise(network, seed)
    return network


def convert_checkpoint(
    source: str | os.PathLike, target: str | os.PathLike, dtype: torch.dtype = torch.float32
) -> Network:
    """Write the public checkpoint, or one of ours, as ours (safetensors, configuration in the metadata).

    `dtype` is torch.float32 or torch.float16. Raises CheckpointError; an existing `target` stays whole then.
    """
    if str(source) in PRESETS:
        raise CheckpointError(f"{source!s} is a preset without weights; give the path of a .pth or .safetensors file")
    network = load_network(source)
    save_network(network, target, dtype, network.manifest)
    return network


def save_network(
    network: Network,
    target: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    manifest: dict[str, str] | None = None,
) -> None:
    """Write a network in our format: safetensors, with the configuration and `manifest` in the metadata.

    The file appears under its name only when it is whole. Raises CheckpointError where it cannot be written, or
    where a weight does not fit into `dtype`.
    """
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()}
    overflown = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if overflown:
        raise CheckpointError(f"weights do not fit into {dtype}, or are not finite: {', '.join(overflown[:5])}")
    metadata = {**(manifest or {}), "format": FORMAT, "config": json.dumps(network.config.to_dict())}
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            whole = Path(folder) / target.name
            safetensors.torch.save_file(tensors, whole, metadata)
            whole.chmod(0o644)  # safetensors writes files that only their owner may read
            whole.replace(target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from error


def public_shapes(config: NetworkConfig) -> dict[str, torch.Size]:
    """Every key of the public checkpoint format with its shape, for a network of this configuration.

    That is more than the network holds: the format has tensors that are never used, and some under two names.
    """
    if config.head_type != "dpt":
        raise OptionError(f"the public checkpoint format has no {config.head_type!r} head")
    with torch.device("meta"):
        state = Network(config).state_dict()
    shapes = {public_name(key): value.shape for key, value in state.items()}
    width = config.dpt_width
    for head in ("dpt_self", "dpt_cross", "dpt_rgb"):
        scratch = f"downstream_head.{head}.scratch"
        for index in range(4):
            shapes[f"{scratch}.layer_rn.{index}.weight"] = shapes[f"{scratch}.layer{index + 1}_rn.weight"]
        for conv in ("conv1", "conv2"):
            shapes[f"{scratch}.refinenet4.resConfUnit1.{conv}.weight"] = torch.Size((width, width, 3, 3))
            shapes[f"{scratch}.refinenet4.resConfUnit1.{conv}.bias"] = torch.Size((width,))
    for token in ("masked_img_token", "masked_ray_map_token"):
        shapes[token] = torch.Size((1, config.encoder_width))
    return shapes


def public_name(key: str) -> str:
    """The public checkpoint's name of one of our tensors."""
    for pattern, replacement in _PUBLIC_NAMES:
        key = re.sub(pattern, replacement, key)
    return key


def network_from_public(tensors: dict[str, Tensor], config: NetworkConfig, origin: str = "checkpoint") -> Network:
    """A network of this configuration with weights under the public names; a `module.` prefix is taken off.

    Raises CheckpointError that lists every missing, unexpected and misshapen tensor.
    """
    prefix = "module."
    if tensors and all(key.startswith(prefix) for key in tensors):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    _require_match(_shapes(tensors), public_shapes(config), origin)
    with torch.device("meta"):
        network = Network(config)
    # Copies, because the tensors may be windows into a file that somebody replaces.
    ours = {key: tensors[public_name(key)].to(torch.float32, copy=True) for key in network.state_dict()}
    network.load_state_dict(ours, assign=True)
    return network


def _read_native(path: Path) -> Network:
    """One of our files."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            network = _described_network(path, metadata)
            # Whatever else is in the file stays there: it may be of any size.
            shapes = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no dict)
            _require_match(shapes, _shapes(network.state_dict()), str(path))
            tensors = {key: file.get_tensor(key).float() for key in shapes}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    network.load_state_dict(tensors, assign=True)
    network.manifest = {key: value for key, value in metadata.items() if key not in ("format", "config")}
    return network


def _described_network(path: Path, metadata: dict[str, str]) -> Network:
    """The network that one of our files says it is, without weights. Raises CheckpointError."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by this package (format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "make one with `raymap3r convert`"
        )
    try:
        config = json.loads(metadata["config"])
        _check_measures(config)
        with torch.device("meta"):
            return Network(NetworkConfig.from_dict(config))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no usable network configuration: {error}") from error


def _check_measures(config: Any) -> None:
    """Raise ValueError where the numbers of a configuration are none, or could not be those of any network."""
    if not isinstance(config, dict):
        raise ValueError("it is no dictionary")
    for name, value in config.items():
        if name in ("head_type", "stem"):
            continue
        values = value if name == "dpt_level_widths" else [value]
        if not isinstance(values, list) or len(values) != (4 if name == "dpt_level_widths" else 1):
            raise ValueError(f"{name} is not a list of 4 numbers")
        kinds = (int, float) if name in ("norm_eps", "rope_base") else (int,)
        highest = MAX_DEPTH if name.endswith("_depth") else MAX_WIDTH
        if not all(type(one) in kinds and 0 < one <= highest for one in values):
            what = "numbers" if float in kinds else "whole numbers"
            raise ValueError(f"{name} is {value!r:.60}; allowed: {what} above 0 and up to {highest}")


def _read_public(path: Path) -> Network:
    """The public checkpoint: a dictionary whose "model" entry has every tensor of the public preset."""
    tensors = read_public_tensors(path)
    return network_from_public(tensors, PRESETS["cut3r_512_dpt"], str(path))


def read_public_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The "model" entry of a file in the public form, read without executing anything in it.

    What stands beside it (configuration objects, optimiser, ...) is taken in as inert placeholders and dropped.
    Raises CheckpointError where the file is unreadable, or asks for anything else to be imported or called.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(path, archive)
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            program = archive.read(names[0]) if names else b""
        with _allowed(_placeholders(program)):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, MemoryError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)|[Bb]locked|`?([\w.]+)`? (?:was not|is not)", str(error))
        raise CheckpointError(
            f"{path} is refused: it asks for more than tensors to be loaded "
            f"({wanted.group(0) if wanted else 'unknown object'}). Nothing in it was executed. "
            "Get the checkpoint from its authors' own page"
        ) from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in model.items()
    ):
        raise CheckpointError(f'{path} has no dictionary of tensors under "model"; it is not a CUT3R checkpoint')
    return dict(model)


def _check_archive(path: str | os.PathLike, archive: zipfile.ZipFile) -> None:
    """Raise CheckpointError where an archive is larger inside than outside, or would keep the reader busy for long."""
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path} is refused: {entry.filename!r:.60} in it is compressed, as torch never does"
            )
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE:
            raise CheckpointError(
                f"{path} is refused: {entry.filename!r:.60} in it is {entry.file_size} bytes long, "
                f"more than {MAX_PICKLE}"
            )


class _Inert(dict):
    """Stands for an object of a checkpoint that is not a tensor: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Drop the state: it may hold anything."""


@contextlib.contextmanager
def _allowed(classes: list[type]) -> Iterator[None]:
    """Let `torch.load` take these classes in; afterwards it is as strict as before."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(classes)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _placeholders(program: bytes) -> list[type]:
    """Inert classes for the harmless configuration objects that a pickle names; the rest stays refused."""
    harmless = re.compile(
        r"omegaconf\.\S+|typing\.\w+|collections\.defaultdict|argparse\.Namespace"
        r"|builtins\.(dict|list|tuple|str|int|float|bool)"
    )
    names = {
        argument.replace(" ", ".").replace("__builtin__.", "builtins.")
        for opcode, argument, _ in pickletools.genops(program)
        if opcode.name == "GLOBAL"
    }
    return [
        type(name.rpartition(".")[2], (_Inert,), {"__module__": name.rpartition(".")[0]})
        for name in sorted(names)
        if harmless.fullmatch(name)
    ]


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def _require_match(shapes: dict[str, torch.Size], expected: dict[str, torch.Size], origin: str) -> None:
    """Raise one CheckpointError with everything that is missing, unexpected or misshapen."""
    missing = sorted(expected.keys() - shapes.keys())
    unexpected = sorted(shapes.keys() - expected.keys())
    misshapen = sorted(
        f"{key} is {tuple(shapes[key])}, expected {tuple(expected[key])}"
        for key in expected.keys() & shapes.keys()
        if shapes[key] != expected[key]
    )
    parts = [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if parts:
        raise CheckpointError(f"{origin} does not hold this network. " + ". ".join(parts))
