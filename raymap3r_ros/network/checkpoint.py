"""Weights from files, safely: nothing in a file is executed, and names and shapes must match exactly."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from raymap3r_ros.errors import CheckpointError, OptionError
from raymap3r_ros.known_files import unlike_weights
from raymap3r_ros.network.catalog import named_weights, shipped_weights
from raymap3r_ros.network.config import PRESETS, NetworkConfig
from raymap3r_ros.network.metadata import header_bytes, missing_bytes, whole_weights
from raymap3r_ros.network.model import Network, initialise
from raymap3r_ros.network.pickle_machine import Skipped, TensorRecord
from raymap3r_ros.network.torch_file import TorchFile, open_torch_file
from raymap3r_ros.output_files import kind_of
from raymap3r_ros.plain_name import utf8_name
from raymap3r_ros.text import listing, printable

log = logging.getLogger(__name__)

FORMAT = "raymap3r-1"  # in the metadata of this package's files
DEFAULT_CHECKPOINT = "one_room"  # comes with the package
_UNTRAINED_SEED = 0

MAX_NAMED = 10  # tensors of one kind in an error
STORED_DTYPES = ("float32", "mixed", "float16")  # types of the numbers in a file
# Stored in float32 by `mixed`, beside norms and biases: little of the size, most of the error (docs/weights.md).
_MIXED_FLOAT32 = (
    "self_head.", "pose_head.", "image_encoder.patch_embed.", "ray_encoder.patch_embed.", "decoder.image_embed.",
    "decoder.state_embed.", "pose_memory.embed.",
)  # fmt: skip
_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.float16: "F16"}

# This package's names -> the public checkpoint's. Applied in order to each key.
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
    """A network ready to run, in evaluation mode on `device`, with weights for the `precision` that it will run in.

    `checkpoint` is a file of this package (.safetensors), the public CUT3R file (.pth), the name of weights of the
    package or the cache, or the name of a preset, for untrained weights from a fixed seed. Raises CheckpointError.
    """
    name = str(checkpoint)
    if name in PRESETS:
        network = untrained_network(PRESETS[name])
        network.source = f"preset {name}: untrained weights, its geometry means nothing"
    else:
        named = named_weights(name)
        path = named or checkpoint_path(name)
        network = _read_network(path)
        network.trained = True
        about = network.manifest.get("about", "no description")
        network.source = printable(f"{name}: {about}" if named else path.name, 200)
    if precision != "float32":
        network.lower_precision(precision)
    # Tokens are rows of channels, so feature maps from them are channels last, as images are.
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def checkpoint_path(checkpoint: str | os.PathLike) -> Path:
    """The file of weights of the package or the cache, or the path with `~` replaced.

    Raises CheckpointError if that user does not exist, and for public weights that are not in the cache.
    """
    try:
        return named_weights(str(checkpoint)) or Path(checkpoint).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {checkpoint}: {error} Give the path without ~") from error


def checkpoint_config(checkpoint: str | os.PathLike) -> NetworkConfig:
    """The shape of the network that `load_network` would load, without reading its weights. Raises CheckpointError."""
    if str(checkpoint) in PRESETS:
        return PRESETS[str(checkpoint)]
    with _open_weights(checkpoint_path(checkpoint)) as weights:
        return weights.config


def untrained_network(config: NetworkConfig, seed: int = _UNTRAINED_SEED) -> Network:
    """A network of this shape with untrained weights from a seed."""
    network = Network(config)
    initialise(network, seed)
    return network


@dataclass(frozen=True)
class Conversion:
    """The outcome of `convert_checkpoint`."""

    parameters: int
    bytes: int  # of the file
    rounding: dict[str, float]  # of each part of the network, see `_Rounding`


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    dtype: str = "float32",
    *,
    progress: bool = False,
    manifest: dict[str, str] | None = None,
) -> Conversion:
    """Convert the public checkpoint, or a file of this package, to this package's format.

    That is safetensors with the configuration in the metadata. `dtype` is one of STORED_DTYPES. Tensors are read and
    written one by one, so that memory does not grow with the file. `progress` shows a bar on a terminal. `manifest` is
    added to the metadata. Raises CheckpointError; an existing `target` is unchanged then.
    """
    if str(source) in PRESETS:
        raise CheckpointError(f"{source!s} is a preset without weights; give the path of a .pth or .safetensors file")
    path = checkpoint_path(source)
    with _open_weights(path) as weights:
        weights.manifest.update(manifest or {})
        dtypes = {key: stored_dtype(key, shape, dtype) for key, shape in weights.shapes.items()}
        rounding = _Rounding()
        total = sum(4 * shape.numel() for shape in weights.shapes.values())
        bar = tqdm(total=total, unit="B", unit_scale=True, disable=None if progress else True, dynamic_ncols=True)

        def read(key: str) -> Tensor:
            tensor = weights.read(key)
            rounding.add(key, tensor, dtypes[key])
            bar.update(4 * tensor.numel())
            return tensor

        with bar:
            _write_weights(Path(target), weights, dtypes, read)
    return Conversion(total // 4, Path(target).stat().st_size, rounding.relative())


def stored_dtype(key: str, shape: torch.Size, dtype: str) -> torch.dtype:
    """The type of one tensor in a file of this `dtype` (one of STORED_DTYPES)."""
    if dtype not in STORED_DTYPES:
        raise OptionError(f"dtype is {dtype!r}; allowed: {', '.join(STORED_DTYPES)}")
    if dtype == "float32" or (dtype == "mixed" and (len(shape) < 2 or key.startswith(_MIXED_FLOAT32))):
        return torch.float32
    return torch.float16


def save_network(
    network: Network,
    target: str | os.PathLike,
    dtype: torch.dtype = torch.float32,
    manifest: dict[str, str] | None = None,
) -> None:
    """Write a network as safetensors, with the configuration and `manifest` in the metadata.

    The file appears under its name only when it is complete. Raises CheckpointError if it cannot be written or a
    weight does not fit into `dtype`.
    """
    state = network.state_dict()
    weights = _Weights(network.config, manifest or {}, _shapes(state), lambda key: state[key].detach().cpu())
    _write_weights(Path(target), weights, dict.fromkeys(state, dtype), weights.read)


def public_shapes(config: NetworkConfig) -> dict[str, torch.Size]:
    """Every key of the public checkpoint format with its shape, for a network of this configuration.

    These are more than the network has: the format contains unused tensors, and some under two names.
    """
    if config.head_type != "dpt":
        raise OptionError(f"the public checkpoint format has no {config.head_type!r} head")
    state = _empty_network(config).state_dict()
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
    """The name of one of the network's tensors in the public checkpoint."""
    for pattern, replacement in _PUBLIC_NAMES:
        key = re.sub(pattern, replacement, key)
    return key


def network_from_public(tensors: dict[str, Tensor], config: NetworkConfig, origin: str = "checkpoint") -> Network:
    """A network of this configuration from weights with public names; a `module.` prefix is removed.

    Raises CheckpointError if tensors are misshapen, unexpected or missing.
    """
    tensors = _without_prefix(tensors)
    _require_match(_shapes(tensors), public_shapes(config), origin)
    network = _empty_network(config)
    ours = {key: tensors[public_name(key)].to(torch.float32, copy=True) for key in network.state_dict()}
    network.load_state_dict(ours, assign=True)
    return network


def _without_prefix(tensors: dict[str, Any]) -> dict[str, Any]:
    """Public names without the prefix from training on several GPUs."""
    prefix = "module."
    if all(key.startswith(prefix) for key in tensors):
        return {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _empty_network(config: NetworkConfig) -> Network:
    """A network whose tensors have shapes but no values."""
    with torch.device("meta"):
        return Network(config)


@dataclass(frozen=True)
class _Weights:
    """The weights of a network, not yet read, by the names of `Network`."""

    config: NetworkConfig
    manifest: dict[str, str]
    shapes: dict[str, torch.Size]
    read: Callable[[str], Tensor]  # one tensor, in float32, that shares no memory


def _read_network(path: Path) -> Network:
    """The network in a file. Raises CheckpointError."""
    with _open_weights(path) as weights:
        network = _empty_network(weights.config)
        network.load_state_dict({key: weights.read(key) for key in weights.shapes}, assign=True)
        network.manifest = weights.manifest
    return network


@contextlib.contextmanager
def _open_weights(path: Path) -> Iterator[_Weights]:
    """Open a file of this package (.safetensors) or a public one. Raises CheckpointError."""
    if not path.is_file():
        what = kind_of(path) or (
            f"not a file, nor weights that come with the package ({', '.join(shipped_weights()) or 'none'}) or are in "
            f"the cache (`raymap3r weights list`), nor one of the untrained presets {', '.join(PRESETS)}"
        )
        raise CheckpointError(f"checkpoint {str(path)!r} is {what}; give the path of a .safetensors or .pth file")
    if what := unlike_weights(path):
        raise CheckpointError(f"{path} is {what}")
    with contextlib.ExitStack() as stack:
        if path.suffix == ".safetensors":
            yield stack.enter_context(_open_native(path))
        else:
            file = stack.enter_context(open_torch_file(path))
            yield _public_weights(file)


@contextlib.contextmanager
def _open_native(path: Path) -> Iterator[_Weights]:
    """The weights in a file of this package."""
    try:
        with utf8_name(path) as name, safetensors.safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            network = _described_network(path, metadata)
            # Tensors with other names are not read: they may have any size.
            shapes = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no dict)
            expected = _shapes(network.state_dict())
            _require_match(shapes, expected, str(path))
            manifest = {key: value for key, value in metadata.items() if key not in ("format", "config")}
            yield _Weights(network.config, manifest, expected, lambda key: file.get_tensor(key).float())
    except (OSError, safetensors.SafetensorError) as error:
        short = missing_bytes(path)
        cure = f"; {short} bytes are missing at its end: download or copy it again" if short else ""
        raise CheckpointError(f"{path} is not a readable safetensors file: {printable(error)}{cure}") from error


def _public_weights(file: TorchFile) -> _Weights:
    """The weights in a public checkpoint: a dictionary with every tensor of the public preset under "model"."""
    config = PRESETS["cut3r_512_dpt"]
    if file.skipped:
        log.warning(
            "%s: skipped objects that are not tensors (%s); nothing in the file was executed",
            file.path, listing(file.skipped, MAX_NAMED),
        )  # fmt: skip
    records = _without_prefix(public_records(file))
    shapes = {key: torch.Size(record.shape) for key, record in records.items()}
    _require_match(shapes, public_shapes(config), str(file.path))
    integers = [key for key, record in records.items() if not record.storage.dtype.is_floating_point]
    if integers:
        found = records[integers[0]].storage.dtype
        raise CheckpointError(f"{file.path}: {integers[0]} contains {found}, expected floating-point numbers")
    ours = {key: shapes[public_name(key)] for key in _empty_network(config).state_dict()}
    # Copies, because several tensors may share a storage.
    return _Weights(config, {}, ours, lambda key: file.read(records[public_name(key)]).to(torch.float32, copy=True))


def public_records(file: TorchFile) -> dict[str, TensorRecord]:
    """The tensors of a public checkpoint: those under "model", or the whole content. Raises CheckpointError."""
    content = file.content
    model = content.get("model", content) if isinstance(content, dict) else None
    if _is_state_dict(model):
        return model
    found = f"a {printable(model.name, 120)} object" if isinstance(model, Skipped) else "no dictionary of tensors"
    keys = f" (it contains {listing(content, MAX_NAMED)})" if isinstance(content, dict) and content else ""
    raise CheckpointError(
        f'{file.path} has {found} under "model"{keys}; it is not a CUT3R checkpoint. If it contains one, load it '
        'where it was made and save its tensors: torch.save({"model": state_dict}, "weights.pth")'
    )


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(item, TensorRecord) for key, item in value.items()
    )


class _Rounding:
    """Root mean square rounding error of the stored weights of each part of a network, relative to the weights."""

    def __init__(self) -> None:
        self._error: dict[str, float] = {}
        self._size: dict[str, float] = {}

    def add(self, key: str, tensor: Tensor, dtype: torch.dtype) -> None:
        """Add one float32 tensor that is stored in `dtype`."""
        part = key.partition(".")[0]
        error = 0.0 if dtype == tensor.dtype else float((tensor.to(dtype).float() - tensor).square().sum())
        self._error[part] = self._error.get(part, 0.0) + error
        self._size[part] = self._size.get(part, 0.0) + float(tensor.square().sum())

    def relative(self) -> dict[str, float]:
        """Relative error of each part."""
        return {part: (error / max(self._size[part], 1e-30)) ** 0.5 for part, error in self._error.items()}


def _write_weights(
    target: Path, weights: _Weights, dtypes: dict[str, torch.dtype], read: Callable[[str], Tensor]
) -> None:
    """Write a file of this package, tensor by tensor, which the safetensors library cannot do.

    The file appears under its name only when it is complete. Raises CheckpointError if it cannot be written or a
    weight does not fit into its type.
    """
    # Wide number types first, so that all are aligned.
    order = sorted(weights.shapes, key=lambda key: -dtypes[key].itemsize)
    header: dict[str, Any] = {
        "__metadata__": {
            **weights.manifest,
            "format": FORMAT,
            "config": json.dumps(weights.config.to_dict()),
        }
    }
    end = 0
    for key in order:
        start, end = end, end + weights.shapes[key].numel() * dtypes[key].itemsize
        shape, kind = list(weights.shapes[key]), _SAFETENSORS_DTYPES[dtypes[key]]
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    with whole_weights(target) as file:
        file.write(header_bytes(header))
        for key in order:
            stored = read(key).to(dtypes[key]).contiguous()
            if not torch.isfinite(stored).all():
                raise CheckpointError(f"weights do not fit into {dtypes[key]}, or are not finite: {key}")
            file.write(stored.numpy().data)


def _described_network(path: Path, metadata: dict[str, str]) -> Network:
    """The network that the metadata of a file describe, without weights. Raises CheckpointError."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by this package (format {printable(metadata.get('format'), 60)}, "
            f"expected {FORMAT}); make one with `raymap3r convert`"
        )
    try:
        return _empty_network(NetworkConfig.from_dict(json.loads(metadata["config"])))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no usable network configuration: {printable(error)}") from error


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def _require_match(shapes: dict[str, torch.Size], expected: dict[str, torch.Size], origin: str) -> None:
    """Raise one CheckpointError with the first tensors that are misshapen, unexpected or missing, and their number."""
    missing = sorted(expected.keys() - shapes.keys())
    unexpected = sorted(shapes.keys() - expected.keys())
    misshapen = sorted(
        f"{key} is {tuple(shapes[key])}, expected {tuple(expected[key])}"
        for key in expected.keys() & shapes.keys()
        if shapes[key] != expected[key]
    )
    parts = [
        f"{len(names)} {what}: {listing(names, MAX_NAMED)}"
        for what, names in (("misshapen", misshapen), ("unexpected", unexpected), ("missing", missing))
        if names
    ]
    if parts:
        raise CheckpointError(f"{origin} does not hold this network. " + ". ".join(parts))
