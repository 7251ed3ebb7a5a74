"""A LeRobot dataset, codebase version 3.0: one episode per world, with the camera's pose as the state.

Layout: meta/info.json, stats.json, tasks.parquet and episodes/, data/ (parquet), and videos/ with one file per camera.
LeRobot requires frames at equal distances: `timestamp` is the index over `fps`, `stamp_ns` has the recorded stamp.

Its videos have 8 bits. The colour video is H.264 with losses. Mask and depth are grey H.264 without losses; depth is
logarithmic, see `depth_levels`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymap3r_ros.geometry.cameras import pose_encoding
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.io.png import mask_image
from raymap3r_ros.offline.export import ExportFormat, NewFile
from raymap3r_ros.offline.results import Results
from raymap3r_ros.output_files import whole_file

log = logging.getLogger(__name__)

NEAR, FAR = 0.1, 100.0  # metres, of the levels 1 and 255 of a depth video; level 0 is unknown depth
FILE = "chunk-000/file-000"
TASK = "camera recording"
STATE, STAMP, IMAGES = "observation.state", "stamp_ns", "observation.images."
STATE_NAMES = ("x", "y", "z", "qx", "qy", "qz", "qw")
_COLOR = {"crf": "18", "g": "2"}  # every second frame is complete, for random access
_LOSSLESS = {"qp": "0", "g": "2"}
_OTHER_SPEED = 0.1  # relative difference of the frame rates that is reported
_INDEX = "__index_level_0__"  # of a pandas table without a name for it; LeRobot reads the tasks as one
_TASKS = {
    "index_columns": [_INDEX],
    "column_indexes": [],
    "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": _INDEX, "pandas_type": "unicode", "numpy_type": "object"},
    ],
}


def depth_levels(depth: np.ndarray) -> np.ndarray:
    """(H, W) uint8 of depth in metres: 1 + 254 log(depth / NEAR) / log(FAR / NEAR), rounded; 0 where unknown."""
    with np.errstate(invalid="ignore"):
        known = np.isfinite(depth) & (depth > 0)
    shares = np.log(np.where(known, depth, NEAR) / NEAR) / np.log(FAR / NEAR)
    return np.where(known, 1 + np.rint(254 * shares.clip(0, 1)), 0).astype(np.uint8)


def _write(results: Results, new_file: NewFile) -> None:
    fps = _rate(results)
    cameras = _cameras(results)
    pixels: dict[str, list[np.ndarray]] = {name: [] for name in cameras}
    with ExitStack() as stack:
        videos = {
            name: stack.enter_context(_Video(new_file(f"videos/{IMAGES}{name}/{FILE}.mp4"), fps, results.size, name))
            for name in cameras
        }
        for world in results.worlds:
            for index, image in results.only(world).images():
                for name, make in cameras.items():
                    picture = make(index, image)
                    videos[name].write(picture)
                    pixels[name].append(_moments(picture))
    columns = _columns(results, fps)
    arrays = {**columns, **{f"{IMAGES}{name}": np.stack(rows) for name, rows in pixels.items()}}
    _write_table(new_file(f"data/{FILE}.parquet"), columns)
    _write_table(new_file(f"meta/episodes/{FILE}.parquet"), _episodes(results, fps, arrays))
    _write_table(new_file("meta/tasks.parquet"), {"task_index": np.array([0]), _INDEX: [TASK]}, _TASKS)
    write_json(new_file("meta/stats.json"), _statistics(arrays, slice(None)))
    write_json(new_file("meta/info.json"), _info(results, fps, list(cameras)))


def _rate(results: Results) -> int:
    """Frames per second, a whole number above 0, as LeRobot requires."""
    steps = np.concatenate([np.diff(world.stamps) for world in results.worlds])
    if not len(steps):
        return 1
    rate = 1e9 / float(np.median(steps))
    fps = max(1, round(rate))
    if abs(fps / rate - 1) > _OTHER_SPEED:
        log.warning(
            "LeRobot's frames per second are a whole number, here %d for a recording with %.3g: videos and "
            "`timestamp` run %.3g times as fast; `stamp_ns` has the recorded stamps", fps, rate, fps / rate,
        )  # fmt: skip
    return fps


def _cameras(results: Results) -> dict[str, Callable[[int, np.ndarray], np.ndarray]]:
    """The videos: by name, the picture of a frame (H, W, 3) or (H, W) uint8, from its index and recorded image."""
    cameras: dict[str, Callable[[int, np.ndarray], np.ndarray]] = {"rgb": lambda _, image: results.crop(image)}
    if results.has_masks:
        cameras["dynamic_mask"] = lambda index, _: mask_image(results.mask(index))
    if results.has_depth:
        cameras["depth"] = lambda index, _: depth_levels(results.depth(index))
    return cameras


class _Video:
    """A video file. Used in a `with` block, at the end of which it is complete."""

    def __init__(self, path: Path, fps: int, size: tuple[int, int], name: str) -> None:
        self._path, self._fps, self._size, self._is_color = path, fps, size, name == "rgb"
        self._count = 0
        self._exit = ExitStack()

    def __enter__(self) -> _Video:
        import av
        from av.video.reformatter import ColorRange

        self._av = av
        self._container = self._exit.enter_context(av.open(self._exit.enter_context(whole_file(self._path)), "w"))
        options = _COLOR if self._is_color else _LOSSLESS
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p" if self._is_color else "gray"
        if not self._is_color:
            self._stream.codec_context.color_range = ColorRange.JPEG  # levels from 0 to 255, not 16 to 235
        return self

    def write(self, picture: np.ndarray) -> None:
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(picture), format="rgb24" if self._is_color else "gray"
        )
        frame.pts, frame.time_base = self._count, Fraction(1, self._fps)
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._container.mux(self._stream.encode())
        self._exit.__exit__(*error)


# ---------------------------------------------------------------------------------------------------------- tables


def _columns(results: Results, fps: int) -> dict[str, np.ndarray]:
    """The columns of the data, by name, with a row per frame."""
    worlds = results.worlds
    lengths = [len(world.frames) for world in worlds]
    in_episode = np.concatenate([np.arange(length) for length in lengths])
    poses = pose_encoding(torch.from_numpy(np.concatenate([world.poses for world in worlds]))).numpy()
    return {
        STATE: poses[:, [0, 1, 2, 4, 5, 6, 3]].astype(np.float32),
        STAMP: np.concatenate([world.stamps for world in worlds]),
        "timestamp": (in_episode / fps).astype(np.float32),
        "frame_index": in_episode,
        "episode_index": np.repeat(np.arange(len(worlds)), lengths),
        "index": np.arange(len(in_episode)),
        "task_index": np.zeros(len(in_episode), np.int64),
    }


def _episodes(results: Results, fps: int, arrays: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    """The columns of the episodes, by name, with a row per world."""
    columns: dict[str, list[Any]] = {}
    first = 0
    for episode, world in enumerate(results.worlds):
        end = first + len(world.frames)
        row: dict[str, Any] = {"episode_index": episode, "tasks": [TASK], "length": end - first}
        row |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": first, "dataset_to_index": end}
        for name in arrays:
            if name.startswith(IMAGES):
                row |= {f"videos/{name}/chunk_index": 0, f"videos/{name}/file_index": 0}
                row |= {f"videos/{name}/from_timestamp": first / fps, f"videos/{name}/to_timestamp": end / fps}
        for name, values in _statistics(arrays, slice(first, end)).items():
            row |= {f"stats/{name}/{statistic}": value for statistic, value in values.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
        first = end
    return columns


def _moments(picture: np.ndarray) -> np.ndarray:
    """(4, 3): mean, mean square, minimum and maximum of the channels of a picture, from 0 to 1."""
    values = np.atleast_3d(picture) / 255
    axes = (0, 1)
    found = values.mean(axes), np.square(values).mean(axes), values.min(axes), values.max(axes)
    return np.broadcast_to(np.stack(found), (4, 3))


def _statistics(arrays: dict[str, np.ndarray], rows: slice) -> dict[str, dict[str, list[Any]]]:
    """By column and name, the statistics of some rows of the data; of videos by channel, from 0 to 1."""
    found = {}
    for name, array in arrays.items():
        values = array[rows]
        if name.startswith(IMAGES):
            mean, square = values[:, 0].mean(axis=0), values[:, 1].mean(axis=0)
            low, high, spread = values[:, 2].min(axis=0), values[:, 3].max(axis=0), (square - mean**2).clip(0) ** 0.5
            shape: tuple[int, ...] = (3, 1, 1)
        else:
            low, high, mean, spread = values.min(axis=0), values.max(axis=0), values.mean(axis=0), values.std(axis=0)
            shape = (-1,)
        numbers = {"min": low, "max": high, "mean": mean, "std": spread}
        found[name] = {key: np.reshape(one, shape).tolist() for key, one in numbers.items()} | {"count": [len(values)]}
    return found


def _info(results: Results, fps: int, cameras: list[str]) -> dict[str, Any]:
    width, height = results.size
    frames, episodes = sum(len(world.frames) for world in results.worlds), len(results.worlds)
    features: dict[str, Any] = {}
    for name in cameras:
        video = {
            "height": height,
            "width": width,
            "codec": "h264",
            "pix_fmt": "yuv420p" if name == "rgb" else "yuvj420p",
        }
        video |= {"is_depth_map": name == "depth", "fps": fps, "channels": 3}
        info = {f"video.{key}": value for key, value in video.items()} | {"has_audio": False}
        if name == "depth":
            info |= {"depth_levels": {"scale": "logarithmic", "metres_of_1": NEAR, "metres_of_255": FAR, "unknown": 0}}
        shape = {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]}
        features[f"{IMAGES}{name}"] = {**shape, "info": info}
    features[STATE] = {"dtype": "float32", "shape": [len(STATE_NAMES)], "names": list(STATE_NAMES)}
    for name in (STAMP, "timestamp", "frame_index", "episode_index", "index", "task_index"):
        kind = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": kind, "shape": [1], "names": None}
    pattern = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    return {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": f"data/{pattern}.parquet",
        "video_path": f"videos/{{video_key}}/{pattern}.mp4",
        "features": features,
    }


def _write_table(path: Path, columns: Mapping[str, Any], pandas: dict[str, Any] | None = None) -> None:
    """Write columns as parquet. `pandas`: the metadata by which pandas finds the index of a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {
        name: pa.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])
        if isinstance(values, np.ndarray) and values.ndim == 2
        else pa.array(values)
        for name, values in columns.items()
    }
    table = pa.table(arrays)
    if pandas is not None:
        table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
    with whole_file(path) as partial:
        pq.write_table(table, partial)


FORMAT = ExportFormat(
    "lerobot", "a LeRobot dataset v3 with colour, mask and depth videos; the pose is the state", _write,
    ("av", "pyarrow"), per_world=False,
)  # fmt: skip
