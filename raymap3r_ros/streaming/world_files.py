"""Worlds in files: the keyframes of a world, in which a later stream can find its camera again. Ours.

A file is untrusted: the safetensors library reads it, and sizes, shapes and numbers are checked before they are used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.calibration import intrinsics_problem
from raymap3r_ros.geometry.poses import is_plausible
from raymap3r_ros.known_files import known_file
from raymap3r_ros.network import Network
from raymap3r_ros.output_files import kind_of, whole_file
from raymap3r_ros.plain_name import utf8_name
from raymap3r_ros.streaming.keyframes import Keyframes
from raymap3r_ros.text import printable

FORMAT = "raymap3r-world-1"  # in the metadata
MAX_KEYFRAMES = 1000
MAX_SIDE = 4096  # pixels of the preprocessed image
MAX_HEADER = 2**16  # bytes
MAX_FILE = 2**32  # bytes
MAX_NUMBER = 2**53  # of a keyframe
MAX_METRES = 1e6  # coordinates of points
MAX_SCALE = 1e6  # and its inverse
_SAMPLES = 8  # values of each weight tensor that identify a network
# Relative error of weights in bfloat16 against those in float16 or float32, and the absolute one of tiny float16
_ROUNDING, _TINY = 2**-7, 1e-6
_TYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "BOOL": torch.bool}


@dataclass(frozen=True)
class Place:
    """Where a world is, and how long its metre is. Without a node it is the frame of the first camera."""

    world_from_stream: np.ndarray = field(default_factory=lambda: np.eye(4))  # (4, 4) pose, REP 103 axes, metres
    scale: float = 1.0  # metres per metre of the stream
    scale_known: bool = False  # False: `scale` is assumed
    voxel_size: float = 0.0  # metres, of the static map beside the file; 0 without one


@dataclass(frozen=True)
class SavedWorld:
    """The keyframes of a world of one camera, and where it is."""

    keyframes: Keyframes
    size: tuple[int, int]  # H, W of the preprocessed images
    place: Place = field(default_factory=Place)
    number: int = -1  # in the stream that it is part of; -1 from a file


def save_world(path: Path, network: Network, world: SavedWorld) -> int:
    """Write a world, which belongs to the weights of `network`; return the number of its keyframes.

    Raises InputError if it has none, or if `path` is not a file, and OSError.
    """
    keyframes = world.keyframes
    used = (keyframes.number[0] >= 0).nonzero()[:, 0]
    if not len(used):
        raise InputError(f"{path}: not written, the world has no keyframes yet; continue for some frames")
    used = used[keyframes.number[0, used].argsort()]
    chosen = keyframes.at(used[None])
    tensors = {item.name: getattr(chosen, item.name)[0] for item in fields(Keyframes)}
    tensors["overlap"] = keyframes.overlap[0, used][:, used]
    place = world.place
    tensors |= {
        "size": torch.tensor(world.size),
        "world_from_stream": torch.from_numpy(place.world_from_stream.astype(np.float64)),
        "scale": torch.tensor(place.scale, dtype=torch.float64),
        "scale_known": torch.tensor(place.scale_known),
        "voxel_size": torch.tensor(place.voxel_size, dtype=torch.float64),
        "weights": _samples(network),
    }
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {"format": FORMAT, "network": _shape_digest(network)},
    )
    if len(content) > MAX_FILE:
        raise InputError(f"{path}: not written, {len(used)} keyframes take {len(content)} bytes; use fewer of them")
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return len(used)


def load_world(path: Path, network: Network) -> SavedWorld:
    """The world in a file that was saved with the same weights as those of `network`, on its device.

    Raises InputError if the file is missing, damaged, or belongs to other weights.
    """
    with _open_checked(Path(path)) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            found = metadata.get("format", "")
            # Every participant can name a file to the node: the text of another file must not be in the response.
            version = f" of this version ({found})" if re.fullmatch(r"raymap3r-world-\d{1,6}", found) else ""
            raise InputError(f"{path} is no saved world{version}; name a world.safetensors with the format {FORMAT}")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
        types = {name: _TYPES.get(file.get_slice(name).get_dtype()) for name in shapes}
        _check_identity(path, file, metadata, shapes, types, network)
        size = _checked_size(path, file, shapes, types, network)
        _check_shapes(path, shapes, types, size, network)
        # Copies, before they are checked: the file may be changed meanwhile.
        tensors = {name: file.get_tensor(name).clone() for name in shapes}
    place = Place(
        tensors["world_from_stream"].numpy(),
        tensors["scale"].item(),
        tensors["scale_known"].item(),
        tensors["voxel_size"].item(),
    )
    problem = _place_problem(place) or _keyframes_problem(tensors, size)
    if problem:
        raise InputError(f"{path} is damaged: {problem}; save the world again")
    device = network.first_pose_token.device
    keyframes = Keyframes(**{item.name: tensors[item.name][None].to(device) for item in fields(Keyframes)})
    return SavedWorld(keyframes, size, place)


def in_slots(keyframes: Keyframes, slots: int) -> Keyframes:
    """The keyframes in `slots` slots, or in as many as they have if these are more."""
    count = keyframes.number.shape[1]
    if count >= slots:
        return keyframes
    wide = Keyframes.empty(slots, keyframes)
    filled = {}
    for item in fields(Keyframes):
        value, stored = getattr(wide, item.name).clone(), getattr(keyframes, item.name)
        if item.name == "overlap":
            value[:, :count, :count] = stored
        else:
            value[:, :count] = stored
        filled[item.name] = value
    return Keyframes(**filled)


@contextmanager
def _open_checked(path: Path) -> Iterator[safetensors.safe_open]:
    """Open a file whose size and header are bounded. Raises InputError, also for errors of the reader inside."""
    try:
        if not path.is_file():
            what = kind_of(path) or "missing"
            raise InputError(f"{path} is {what}; name a world.safetensors that ~/save or --save-memory has written")
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER or size > MAX_FILE:
            what = known_file(path) or f"no saved world ({size} bytes; the first eight give the header {header} bytes)"
            raise InputError(
                f"{path} is {what}; name a world.safetensors that ~/save or --save-memory has written, of at most "
                f"{MAX_FILE} bytes with a header of at most {MAX_HEADER}"
            )
        with utf8_name(path) as name, safetensors.safe_open(name, framework="pt") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; name a world.safetensors that can be read") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file: {printable(error)}; save it again") from error


def _check_identity(
    path: Path,
    file: safetensors.safe_open,
    metadata: dict[str, str],
    shapes: dict[str, tuple[int, ...]],
    types: dict[str, torch.dtype | None],
    network: Network,
) -> None:
    """Raise InputError if the file belongs to other weights: their tokens mean something else."""
    own = _samples(network)
    same = metadata.get("network") == _shape_digest(network)
    same = same and shapes.get("weights") == tuple(own.shape) and types["weights"] == torch.float32
    if same:
        stored = file.get_tensor("weights")
        limit = _ROUNDING * torch.maximum(stored.abs(), own.abs()) + _TINY
        same = bool(((stored - own).abs() <= limit).all())  # not for NaN
    if not same:
        raise InputError(
            f"{path} was saved with other weights than {printable(network.source, 80)}, which cannot read its "
            "keyframes; load those weights, or save the world again with these"
        )


def _checked_size(
    path: Path,
    file: safetensors.safe_open,
    shapes: dict[str, tuple[int, ...]],
    types: dict[str, torch.dtype | None],
    network: Network,
) -> tuple[int, int]:
    if shapes.get("size") != (2,) or types["size"] != torch.int64:
        raise InputError(f"{path} is damaged: it has no image size; save the world again")
    height, width = file.get_tensor("size").tolist()
    patch = network.config.patch_size
    if not all(0 < side <= MAX_SIDE and side % patch == 0 for side in (height, width)):
        raise InputError(f"{path} is damaged: its images have {width}x{height} pixels; save the world again")
    return height, width


def _check_shapes(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    types: dict[str, torch.dtype | None],
    size: tuple[int, int],
    network: Network,
) -> None:
    """Raise InputError if a tensor is missing, unexpected or misshapen. Nothing of the keyframes has been read yet."""
    patch, width = network.config.patch_size, network.config.encoder_width
    points = (size[0] // patch) * (size[1] // patch)
    count = shapes.get("number", (0,))[0] if len(shapes.get("number", ())) == 1 else 0
    expected = {
        "number": ((count,), torch.int64),
        "tokens": ((count, points, width), torch.float32),
        "intrinsics": ((count, 3, 3), torch.float32),
        "pose": ((count, 4, 4), torch.float32),
        "points": ((count, points, 3), torch.float32),
        "weight": ((count, points), torch.float32),
        "overlap": ((count, count), torch.float32),
        "size": ((2,), torch.int64),
        "world_from_stream": ((4, 4), torch.float64),
        "scale": ((), torch.float64),
        "scale_known": ((), torch.bool),
        "voxel_size": ((), torch.float64),
        "weights": (shapes["weights"], torch.float32),
    }
    if not 1 <= count <= MAX_KEYFRAMES:
        raise InputError(f"{path} has {count} keyframes, expected 1 to {MAX_KEYFRAMES}; save the world again")
    for name in sorted(expected.keys() | shapes.keys()):
        found = shapes.get(name), types.get(name)
        if found != expected.get(name):
            raise InputError(
                f"{path} is damaged: tensor '{printable(name, 60)}' is {found}, expected {expected.get(name)}; save "
                "the world again"
            )


def _keyframes_problem(tensors: dict[str, Tensor], size: tuple[int, int]) -> str:
    """Why the numbers of keyframes cannot be used; "" if they can."""
    number, overlap, pose = tensors["number"], tensors["overlap"], tensors["pose"]
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        return f"{bad[0]} is not finite"
    if number[0] < 0 or number[-1] > MAX_NUMBER or (number.diff() <= 0).any():
        return "the numbers of its keyframes do not rise"
    if (overlap < 0).any() or (overlap > 1 + 1e-4).any():
        return "an overlap of views is not within 0 and 1"
    if (tensors["weight"] < 0).any() or (tensors["points"].abs() > MAX_METRES).any():
        return f"a point has a negative weight, or is farther away than {MAX_METRES:g} m"
    if not all(_is_pose(matrix) for matrix in pose.double().numpy()):
        return "a pose is not a rotation with a translation"
    for matrix in tensors["intrinsics"].double().numpy():
        if problem := intrinsics_problem(matrix, size[::-1], cropped=True):
            return problem
        if matrix[2, 2] != 1:
            return "intrinsics do not end in a row 0, 0, 1"
    return ""


def _place_problem(place: Place) -> str:
    """Why a place cannot be used; "" if it can."""
    if not (np.isfinite(place.world_from_stream).all() and _is_pose(place.world_from_stream)):
        return "its pose in the world is not a rotation with a translation"
    if not 1 / MAX_SCALE <= place.scale <= MAX_SCALE:  # False for NaN
        return f"its scale is {place.scale:g}"
    if place.voxel_size and not 1 / MAX_SCALE <= place.voxel_size <= MAX_METRES:
        return f"the voxel size of its map is {place.voxel_size:g} m"
    return ""


def _is_pose(matrix: np.ndarray) -> bool:
    """Whether a matrix (4, 4) of finite numbers is a rotation with a translation."""
    rotation = matrix[:3, :3]
    rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    return bool(rigid and (matrix[3] == (0, 0, 0, 1)).all() and is_plausible(matrix))


def _shape_digest(network: Network) -> str:
    """A hash of the names and shapes of all weights."""
    lines = (f"{name} {tuple(value.shape)}" for name, value in sorted(network.state_dict().items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _samples(network: Network) -> Tensor:
    """Some values of each weight tensor, float32. Those of half and single precision agree within rounding."""
    values = []
    for _, tensor in sorted(network.state_dict().items()):
        flat = tensor.flatten()
        index = [step * (len(flat) - 1) // (_SAMPLES - 1) for step in range(_SAMPLES)] if len(flat) else []
        values.append(flat[torch.tensor(index, dtype=torch.int64, device=flat.device)].float())
    return torch.cat(values).cpu()
