"""A whole recording through one stream, with everything that comes out written to a folder."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from raymap3r_ros import __version__
from raymap3r_ros.errors import InputError
from raymap3r_ros.io import preview, writers
from raymap3r_ros.io.readers import Recording
from raymap3r_ros.mapping import StaticMap
from raymap3r_ros.network import Network
from raymap3r_ros.offline.cloud import CloudOptions
from raymap3r_ros.offline.rerun_view import RerunView
from raymap3r_ros.rates import rate_text, rounded
from raymap3r_ros.signals import on_stop_signals
from raymap3r_ros.streaming import StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.preprocessing import frame_image

log = logging.getLogger(__name__)

WARM_UP = 5  # steps left out of the rates: caches fill and kernels are chosen during the first ones
SHEET_ROWS = 5
UNTRAINED_WARNING = (
    "these weights are UNTRAINED: poses, depth and masks are meaningless and only show that everything runs; "
    "give trained weights as the checkpoint"
)


@dataclass(frozen=True)
class RunOutputs:
    """The results of a run beside trajectory, intrinsics and summary, which are always written.

    Work that no result needs is not done.
    """

    depth: bool = True
    masks: bool = True  # written only if motion is estimated
    cloud: bool = True
    preview: bool = True
    view: RerunView | None = None
    motion: bool = True  # False: motion is not estimated, and moving objects are part of the static scene

    @property
    def motion_estimated(self) -> bool:
        """Whether dynamic map and mask are computed: they are allowed, and one of the results shows or uses them."""
        return self.motion and (self.masks or self.scene_built)

    @property
    def masks_written(self) -> bool:
        """Whether there is a file for each mask."""
        return self.masks and self.motion_estimated

    @property
    def scene_built(self) -> bool:
        """Whether frames are merged into a static scene: preview.png and the view show it, too."""
        return self.cloud or self.preview or self.view is not None


@dataclass(frozen=True)
class Milliseconds:
    """A time measured once per frame."""

    median: float
    p95: float

    @classmethod
    def of(cls, values: list[float]) -> Milliseconds:
        """Of at least one value."""
        median, p95 = np.percentile(values, (50, 95))
        return cls(round(float(median), 3), round(float(p95), 3))


@dataclass(frozen=True)
class RunSummary:
    """What `summary.json` tells of a run."""

    version: str
    input: str
    input_kind: str  # "video", "images" or "bag"
    topic: str  # of a bag
    complete: bool  # False: stopped before the end of the recording
    stopped_by: str  # the signal or the error, where not complete
    checkpoint: str
    trained: bool
    warning: str  # where the weights are untrained
    device: str
    torch: str
    options: dict  # StreamOptions
    cloud_options: dict  # CloudOptions
    stride: int
    frames: int  # written
    frames_skipped: int  # could not be decoded
    frames_unhealthy: int  # the network gave values that are not finite: nothing is written for these
    duration: float  # seconds from the first stamp to the last
    input_size: tuple[int, int]  # width, height
    image_size: tuple[int, int]  # width, height of depth maps and masks
    path_length: float  # metres that the camera went
    motion_frames: int  # for which motion was estimated; 0: moving objects are part of the static scene
    moving_share: float | None  # mean share of pixels under the mask, over these frames; None without any
    resets: int  # how often the memory was started anew
    rules: dict[str, int]  # frames under each update rule
    static_points: int | None  # None: no static scene was built
    voxel_size: float | None  # metres
    engine_rate: float  # frames/s of the stream alone, without the first frames
    whole_rate: float  # frames/s with reading and writing
    step: Milliseconds  # of one step of the stream, without the first frames
    stages: dict[str, Milliseconds]  # of its stages
    files: list[str]  # written


@dataclass
class _Collected:
    """What is gathered frame by frame until the end."""

    stamps: list[float] = field(default_factory=list)
    poses: list[np.ndarray] = field(default_factory=list)  # (4, 4) c2w
    intrinsics: list[np.ndarray] = field(default_factory=list)  # (3, 3)
    intrinsics_known: list[bool] = field(default_factory=list)
    moving: list[float] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    steps: list[float] = field(default_factory=list)  # milliseconds
    stages: dict[str, list[float]] = field(default_factory=dict)
    unhealthy: int = 0
    resets: int = 0
    input_size: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (0, 0)


def run_recording(
    recording: Recording,
    network: Network,
    folder: str | Path,
    options: StreamOptions | None = None,
    *,
    outputs: RunOutputs | None = None,
    cloud_options: CloudOptions | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> RunSummary:
    """Run `recording` through one stream of `network` and write `outputs` (default: all) to `folder` (see `writers`).

    SIGINT (Ctrl-C) and SIGTERM end the run after the frame at hand, with all files finished for the frames so far. So
    does an error half-way, which is raised again when the files are there. `outputs.view` is opened, gets every frame
    and is closed. `progress`: a bar on a terminal.

    Raises InputError where the recording or the folder cannot be used.
    """
    options, cloud_options = options or StreamOptions(), cloud_options or CloudOptions()
    outputs = outputs or RunOutputs()
    view = outputs.view
    folder = Path(folder)
    subfolders = {writers.DEPTH_FOLDER: outputs.depth, writers.MASK_FOLDER: outputs.masks_written}
    writers.prepare_folder(folder, overwrite, [name for name, written in subfolders.items() if written])
    if not network.trained:
        log.warning(UNTRAINED_WARNING)
    stream = Stream(network, options)
    cloud = None
    if outputs.scene_built:
        cloud = StaticMap(cloud_options.voxel_size, cloud_options.max_points, whole_scene=True)
    collected = _Collected()
    failure: Exception | None = None
    asked_to_stop: list[str] = []  # names of signals

    def stop(name: str) -> None:
        asked_to_stop.append(name)
        # Not by logging: the signal may have come in the middle of a write to the same buffer.
        os.write(2, b"\nstopping after this frame; once more stops at once\n")

    begin = time.perf_counter()
    with ExitStack() as stack:
        pictures = stack.enter_context(_Pictures(folder, recording, stream, outputs)) if outputs.preview else None
        if view is not None:
            stack.enter_context(view)
        stack.enter_context(on_stop_signals(stop))
        bar = stack.enter_context(
            tqdm(total=recording.length, unit=" frames", disable=None if progress else True, dynamic_ncols=True)
        )
        stack.enter_context(logging_redirect_tqdm())
        try:
            for frame in recording:
                start = time.perf_counter()
                result = stream.step(frame.image, frame.stamp, frame.intrinsics, motion=outputs.motion_estimated)
                if stream.device.type == "cuda":
                    torch.cuda.synchronize(stream.device)
                collected.steps.append((time.perf_counter() - start) * 1e3)
                collected.input_size = frame.image.shape[1], frame.image.shape[0]
                if _take(result, folder, outputs, collected, cloud, cloud_options):
                    if pictures is not None:
                        pictures.add(frame.image, result, frame.stamp - collected.stamps[0])
                    if view is not None:
                        view.add(result, cloud)
                bar.update()
                if asked_to_stop:
                    break
        except Exception as error:
            if not collected.stamps:
                raise
            failure = error
            log.warning("stopped after %d frames by an error: finishing the files", len(collected.stamps))
        if view is not None:
            view.add_scene(cloud)
        elapsed = time.perf_counter() - begin
    if not collected.stamps:
        raise InputError(
            f"{recording.path}: the network gave no finite value for any of its {collected.unhealthy} frames"
        )

    stopped_by = asked_to_stop[0] if asked_to_stop else ""
    if failure is not None:
        stopped_by = str(failure) or type(failure).__name__
    summary = _finish(
        folder, recording, stream, outputs, collected, cloud, cloud_options, pictures, elapsed, stopped_by
    )
    if failure is not None:
        raise failure
    return summary


def _take(
    result: StepResult,
    folder: Path,
    outputs: RunOutputs,
    collected: _Collected,
    cloud: StaticMap | None,
    cloud_options: CloudOptions,
) -> bool:
    """Write what belongs to one frame, and remember what is written at the end; False where it is of no use."""
    for stage, spent in result.timings.items():
        collected.stages.setdefault(stage, []).append(spent)
    if not result.healthy.item():
        collected.unhealthy += 1
        log.warning("frame %d: the network's values are not finite; nothing is written for it", result.frame)
        return False
    written = {"depth": outputs.depth, "dynamic_mask": outputs.masks_written}
    maps = result.numpy("pose", "intrinsics", *(name for name, wanted in written.items() if wanted))
    index = len(collected.stamps)  # names of files count as lines of the trajectory do
    if "depth" in maps:
        writers.write_depth(folder, index, maps["depth"])
    if "dynamic_mask" in maps:
        writers.write_mask(folder, index, maps["dynamic_mask"])
    if cloud is not None:
        cloud.integrate(
            result.points, result.image, result.confidence, result.dynamic_mask, result.intrinsics, result.pose,
            cloud_options,
        )  # fmt: skip

    collected.stamps.append(result.stamp)
    # Copies: arrays from a GPU share one buffer with the frame's maps, which must not stay in memory until the end.
    collected.poses.append(maps["pose"].copy())
    collected.intrinsics.append(maps["intrinsics"].copy())
    collected.intrinsics_known.append(result.intrinsics_known.item())
    collected.rules[result.rule] += 1
    collected.resets += result.reset and result.frame > 0
    collected.image_size = result.depth.shape[1], result.depth.shape[0]
    if result.motion:
        collected.moving.append(result.dynamic_mask.float().mean().item())
    return True


def _finish(
    folder: Path,
    recording: Recording,
    stream: Stream,
    outputs: RunOutputs,
    collected: _Collected,
    cloud: StaticMap | None,
    cloud_options: CloudOptions,
    pictures: _Pictures | None,
    elapsed: float,
    stopped_by: str,
) -> RunSummary:
    """Write the files that sum the run up."""
    poses, intrinsics = np.stack(collected.poses), np.stack(collected.intrinsics)
    writers.write_trajectory(folder / writers.TRAJECTORY, collected.stamps, poses)
    writers.write_intrinsics(
        folder / writers.INTRINSICS, collected.stamps, intrinsics, collected.intrinsics_known, collected.image_size
    )
    files = [writers.TRAJECTORY, writers.INTRINSICS, writers.SUMMARY]
    points, colors = (None, None) if cloud is None else cloud.arrays()
    if outputs.cloud:
        writers.write_ply(folder / writers.CLOUD, points, colors)
        files.append(writers.CLOUD)
    if outputs.depth:
        files += [f"{writers.DEPTH_FOLDER}/*.png", f"{writers.DEPTH_FOLDER}/*.npz"]
    if outputs.masks_written:
        files.append(f"{writers.MASK_FOLDER}/*.png")
    if pictures is not None:
        files += [writers.SHEET, pictures.video.path.name]

    steady = collected.steps[WARM_UP:] or collected.steps
    trained = stream.network.trained
    summary = RunSummary(
        version=__version__,
        input=str(recording.path),
        input_kind=recording.kind,
        topic=recording.topic,
        complete=not stopped_by,
        stopped_by=stopped_by,
        checkpoint=stream.network.source,
        trained=trained,
        warning="" if trained else UNTRAINED_WARNING,
        device=torch.cuda.get_device_name(stream.device) if stream.device.type == "cuda" else stream.device.type,
        torch=torch.__version__,
        options=dataclasses.asdict(stream.options),
        cloud_options=dataclasses.asdict(cloud_options),
        stride=recording.stride,
        frames=len(poses),
        frames_skipped=recording.skipped,
        frames_unhealthy=collected.unhealthy,
        duration=collected.stamps[-1] - collected.stamps[0],
        input_size=collected.input_size,
        image_size=collected.image_size,
        path_length=float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum()),
        motion_frames=len(collected.moving),
        moving_share=float(np.mean(collected.moving)) if collected.moving else None,
        resets=collected.resets,
        rules=dict(collected.rules),
        static_points=None if points is None else len(points),
        voxel_size=None if cloud is None else cloud.voxel_size,
        engine_rate=rounded(1e3 / float(np.mean(steady))),
        whole_rate=rounded(len(poses) / elapsed),
        step=Milliseconds.of(steady),
        stages={stage: Milliseconds.of(times[WARM_UP:] or times) for stage, times in collected.stages.items()},
        files=files,
    )
    if pictures is not None:
        pictures.write_sheet(summary, poses[:, :3, 3], points, colors)
    writers.write_json(folder / writers.SUMMARY, dataclasses.asdict(summary))
    return summary


class _Pictures:
    """The preview video and the sheet. Used in a `with` block, at whose end the video is there."""

    def __init__(self, folder: Path, recording: Recording, stream: Stream, outputs: RunOutputs) -> None:
        self._folder = folder
        self._with_motion = outputs.motion_estimated
        self._name = recording.path.name
        self._warning = "" if stream.network.trained else preview.UNTRAINED
        self._long_edge = stream.options.image_size or stream.network.config.image_size
        self._patch = stream.network.config.patch_size
        self._range = preview.DepthRange()
        self._rows = preview.Sample(4 * SHEET_ROWS)
        self.video = preview.VideoFile(folder, writers.VIDEO, recording.rate)

    def __enter__(self) -> _Pictures:
        self.video.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.video.__exit__(*error)

    def add(self, image: np.ndarray, result: StepResult, seconds: float) -> None:
        """Draw one frame. `image`: (h, w, 3) uint8 RGB as recorded, which may be sharper than the network's."""
        caption = f"{self._name}    frame {result.frame}    {seconds:.2f} s    rule {result.rule}"
        if result.reset and result.frame:
            caption += "    memory started anew"
        maps = result.numpy("depth", *(("dynamic_map", "dynamic_mask") if result.motion else ()))
        row = preview.draw_panels(
            self._seen_part(image),
            maps["depth"],
            maps.get("dynamic_map"),
            maps.get("dynamic_mask"),
            caption,
            depth_range=self._range.update(maps["depth"]),
            warning=self._warning,
            with_motion=self._with_motion,
        )
        self.video.write(row)
        if self._rows.wants_next():
            self._rows.keep(row)

    def _seen_part(self, image: np.ndarray) -> np.ndarray:
        """What the network sees of a recorded image, at the recorded resolution."""
        height, width = image.shape[:2]
        framing = frame_image(width, height, self._long_edge, self._patch)
        scale = width / framing.resized[0]
        left, top = (round(offset * scale) for offset in framing.offset)
        seen_height, seen_width = (round(side * scale) for side in framing.size)
        return image[top : top + seen_height, left : left + seen_width]

    def write_sheet(self, summary: RunSummary, positions: np.ndarray, points: np.ndarray, colors: np.ndarray) -> None:
        """The whole run on one page; `positions` (n, 3), `points` (m, 3) metres, world; `colors` (m, 3) uint8."""
        options = summary.options
        moving, scene = "motion not estimated", "whole scene"
        if summary.moving_share is not None:
            moving, scene = f"{100 * summary.moving_share:.1f} % of pixels move", "static scene"
        lines = [
            f"{summary.frames} frames over {summary.duration:.1f} s, {_size(summary.input_size)} seen as "
            f"{_size(summary.image_size)}",
            summary.checkpoint,
            f"rule {options['update_rule']}, router {options['router']}, smoothing {options['smoothing']}, "
            f"{summary.resets} resets",
            f"{rate_text(summary.engine_rate)} on {summary.device}",
            f"{rate_text(summary.whole_rate)} with reading and writing",
            f"{summary.path_length:.2f} m travelled, {moving}",
            f"{summary.static_points:,} points of the {scene}, voxels of {100 * summary.voxel_size:.2g} cm",
        ]
        title = self._name if summary.complete else f"{self._name} (stopped early)"
        # Panels without those of motion are twice as wide, and so twice as high.
        rows = self._rows.spread(SHEET_ROWS if self._with_motion else math.ceil(SHEET_ROWS / 2))
        sheet = preview.draw_sheet(rows, positions, points, colors, title, lines, self._warning)
        writers.write_image(self._folder / writers.SHEET, sheet)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
