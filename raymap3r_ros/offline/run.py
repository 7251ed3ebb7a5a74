"""Runs a recording through one stream and writes the results to a folder."""

from __future__ import annotations

import dataclasses
import logging
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
from raymap3r_ros.errors import InputError, Raymap3rError, lacking_memory, reason_of
from raymap3r_ros.io.intrinsics import write_intrinsics
from raymap3r_ros.io.output_folder import locked_folder
from raymap3r_ros.io.recording import Frame, Recording
from raymap3r_ros.io.tum import TOLERANCE, KnownTrajectory, unit_hint, write_trajectory
from raymap3r_ros.network import Network
from raymap3r_ros.offline.cloud import CloudOptions
from raymap3r_ros.offline.estimate import time_estimate
from raymap3r_ros.offline.final_files import FinalFiles, missing_files
from raymap3r_ros.offline.result_folder import (
    CLOUD,
    DEPTH_FOLDER,
    INTRINSICS,
    MASK_FOLDER,
    SUMMARY,
    TRAJECTORY,
    WORLD,
    discard_folder,
    discard_frame,
    prepare_folder,
    write_depth_files,
    write_mask_file,
)
from raymap3r_ros.offline.run_clouds import RunClouds
from raymap3r_ros.offline.run_memory import begin_with, write_memory
from raymap3r_ros.offline.run_outputs import RunOutputs
from raymap3r_ros.offline.run_preview import RowPainter, RunPreview
from raymap3r_ros.offline.run_worlds import RunWorlds
from raymap3r_ros.offline.summary import Milliseconds, RunSummary
from raymap3r_ros.rates import rounded
from raymap3r_ros.signals import on_stop_signals, print_now, stop_signals_held
from raymap3r_ros.streaming import RULES, StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.cover import Cover, why_blank
from raymap3r_ros.streaming.plausibility import PlausibilityCheck
from raymap3r_ros.streaming.recordings import long_running
from raymap3r_ros.streaming.stream_options import check_keyframes, check_known_poses
from raymap3r_ros.streaming.world_files import SavedWorld
from raymap3r_ros.text import counted, printable

log = logging.getLogger(__name__)

QUIT = "q"  # `stopped_by` after the key q in the window
TIMED_FRAMES = 2  # of these, the second is timed
WARM_UP = 5  # steps excluded from the rates: caches fill and kernels are selected during the first ones
UNTRAINED_WARNING = (
    "these weights are UNTRAINED: poses, depth and masks are meaningless and only show that everything runs; "
    "give trained weights as the checkpoint"
)


def run_recording(
    recording: Recording,
    network: Network,
    folder: str | Path,
    options: StreamOptions | None = None,
    *,
    outputs: RunOutputs | None = None,
    cloud_options: CloudOptions | None = None,
    poses: KnownTrajectory | None = None,
    memory: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> RunSummary:
    """Run `recording` through one stream of `network`; write `outputs` (default: all) to `folder`, return the summary.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP, or the key q in `outputs.window`, end the run after the current frame; all
    files are then completed for the frames so far. A recording that is damaged or cut off ends there, and so do a
    live input that ends and a run that lacks disk space or memory: the summary contains the reason. Any
    other error is raised again when the files are complete.

    `outputs.view` and `outputs.window` are opened, get every frame and are closed. `progress`: show a bar on a
    terminal. `poses`: of the camera, where they are known, at the recording's stamps; their frame is then the world.
    `memory`: file of a saved world in which the camera is searched for; if it is found, that world continues.

    Raises InputError if the recording, the saved world or the folder cannot be used, OptionError if the stream with
    these options cannot use poses or keyframes, and any error before the first result.
    """
    options, outputs = options or StreamOptions(), outputs or RunOutputs()
    if poses is not None:
        check_known_poses(options)
    if outputs.memory:
        check_keyframes(options)
    folder = Path(folder)
    if recording.live:
        options = long_running(network, options)
    stream = Stream(network, options)
    saved = begin_with(stream, memory)
    with locked_folder(folder):
        inputs = [] if recording.live else [recording.path]
        inputs += [path for path in (poses and poses.path, memory) if path is not None]
        prepare_folder(folder, overwrite, outputs.subfolders, inputs)
        if not network.trained:
            log.warning(UNTRAINED_WARNING)
        clouds = RunClouds(folder, cloud_options or CloudOptions(), RunWorlds(), written=outputs.cloud)
        run = _Run(folder, recording, stream, outputs, clouds, poses)
        if saved is not None:
            run.memory, run.saved, run.worlds.saved = str(memory), saved, saved.number
        try:
            if recording.size is not None:
                recording.check_intrinsics(recording.size)
                if run.stream.records:
                    _prepare(run)
            return _process(run, progress)
        except BaseException:
            if not run.stamps:
                with stop_signals_held():
                    discard_folder(folder)
            raise


def _prepare(run: _Run) -> None:
    """Record all kinds of frames before the first one of a live input, which drops images meanwhile."""
    width, height = run.recording.size
    log.warning("preparing the network for images of %dx%d; the run starts after that", width, height)
    image = np.full((height, width, 3), 128, np.uint8)
    stream, motion = run.stream, run.outputs.motion_estimated
    begin = stream.snapshot()
    for _ in range(stream.method.router_last_frame + 1 + stream.options.ray_interval):
        stream.step(image, intrinsics=run.recording.given_intrinsics, motion=motion)
    stream.restore(begin)


def _process(run: _Run, progress: bool) -> RunSummary:
    """Process all frames and write the final files; see `run_recording`."""
    signals: list[str] = []  # names of those received
    over: list[str] = []  # why the frames ended

    def stop(name: str) -> None:
        signals.append(name)
        print_now(f"\n{'completing the files' if over else 'stopping after this frame'}; repeat to stop at once\n")

    begin = time.perf_counter()
    with on_stop_signals(stop):
        try:
            failure = _process_frames(run, signals, over, progress)
            summary = run.finish(time.perf_counter() - begin, over[0])
        except KeyboardInterrupt:
            if run.stamps:
                missing = ", ".join(missing_files(run.folder, run.files()))
                print_now(f"\nstopped at once; not written: {printable(missing or 'nothing')}\n")
            raise
    if failure is not None and not isinstance(failure, (OSError, Raymap3rError)) and not lacking_memory(failure):
        raise failure
    return summary


def _process_frames(run: _Run, signals: list[str], over: list[str], progress: bool) -> Exception | None:
    """Process all frames, until a stop signal; append the reason for an early end, or "", to `over`.

    Returns the error that ended them, if any. Raises an error of the first frame, and KeyboardInterrupt if a signal
    arrived before it.
    """
    failure: Exception | None = None
    with ExitStack() as stack:
        run.open(stack)
        bar = stack.enter_context(
            tqdm(total=run.recording.length, unit=" frames", disable=None if progress else True, dynamic_ncols=True)
        )
        stack.enter_context(logging_redirect_tqdm())
        try:
            for frame in run.recording:
                run.process(frame)
                bar.update()
                if signals or run.quit:
                    break
                run.estimate_time()
        except Exception as error:
            if not run.stamps and not signals:
                raise
            failure = error
        if signals and not run.stamps:
            raise KeyboardInterrupt from failure
        stopped_by = signals[0] if signals else QUIT if run.quit else run.recording.ended
        if failure is not None:
            stopped_by = lacking_memory(failure) or reason_of(failure)
            done = counted(len(run.stamps), "frame")
            log.warning("stopped after %s by an error: completing the files: %s", done, stopped_by)
        over.append(stopped_by)
        run.show_scene()
    return failure


@dataclass
class _Run:
    """One run: its inputs and outputs, and what is collected frame by frame for the files written at the end."""

    folder: Path
    recording: Recording
    stream: Stream
    outputs: RunOutputs
    clouds: RunClouds
    known: KnownTrajectory | None
    memory: str = ""  # file of the saved world
    saved: SavedWorld | None = None  # in which the camera is searched for
    preview: RunPreview | None = None
    painter: RowPainter | None = None  # for preview and window
    stamps: list[float] = field(default_factory=list)  # seconds, of healthy frames
    nanoseconds: list[int] = field(default_factory=list)  # the same
    poses: list[np.ndarray] = field(default_factory=list)  # (4, 4) camera to world
    intrinsics: list[np.ndarray] = field(default_factory=list)  # (3, 3)
    intrinsics_known: list[bool] = field(default_factory=list)
    moving: list[float] = field(default_factory=list)  # share of pixels
    rules: Counter[str] = field(default_factory=Counter)
    steps: list[float] = field(default_factory=list)  # milliseconds
    stages: dict[str, list[float]] = field(default_factory=dict)  # milliseconds
    unhealthy: int = 0
    resets: int = 0
    scale: float = 1.0  # of the last written frame
    jumps: int = 0  # of the stamps so far
    posed: int = 0  # written frames whose camera pose was known
    cover: Cover = field(default_factory=Cover)
    late: int = 0  # frames whose stamp was not above the last written one
    input_size: tuple[int, int] = (0, 0)  # width, height
    image_size: tuple[int, int] = (0, 0)
    plausibility: PlausibilityCheck = field(init=False)

    def __post_init__(self) -> None:
        network = self.stream.network
        self.plausibility = PlausibilityCheck.of(network.manifest, network.source)

    @property
    def worlds(self) -> RunWorlds:
        """Of the frames in the lists above."""
        return self.clouds.worlds

    def open(self, stack: ExitStack) -> None:
        """Open the outputs that receive every frame; `stack` closes them."""
        if self.outputs.preview or self.outputs.window is not None:
            self.painter = RowPainter(self.recording, self.stream, self.outputs.motion_estimated)
        if self.outputs.preview:
            self.preview = stack.enter_context(RunPreview(self.folder, self.recording.rate, self.painter))
        for shown in (self.outputs.view, self.outputs.window):
            if shown is not None:
                stack.enter_context(shown)

    def process(self, frame: Frame) -> None:
        """Run one frame through the stream and write its results."""
        if not self.steps and self.recording.size is None:
            self.recording.check_intrinsics((frame.image.shape[1], frame.image.shape[0]))
        if self.cover.add(frame.image, frame.stamp, self.recording.max_gap):
            if self.cover.frames == 1:
                log.warning(
                    "the image at %.3f s is blank (%s): nothing is written for such images",
                    frame.stamp, why_blank(frame.image),
                )  # fmt: skip
            return
        pose = None if self.known is None else self.known.pose_at(frame.stamp)
        if self.cover.ended or frame.jumps != self.jumps:
            cause = "the stamps jump to %.3f s (for a time lapse, see --max-gap)"
            if frame.jumps == self.jumps:
                cause = (
                    f"the images before %.3f s are blank for more than {self.recording.max_gap:g} s (see --max-gap)"
                )
            log.warning(f"{cause}: a new world starts", frame.stamp)
            # After a jump back, as of a loop, the stamps in an earlier world's file would not rise.
            self.stream.reset(relocalize=not self.nanoseconds or frame.nanoseconds > self.nanoseconds[-1])
            self.jumps = frame.jumps
        elif pose is not None and not self.stream.takes_poses:
            log.warning("the known poses begin at %.3f s: a new world starts", frame.stamp)
            self.stream.reset()
        start = time.perf_counter()
        result = self.stream.step(
            frame.image, frame.stamp, frame.intrinsics, pose=pose, motion=self.outputs.motion_estimated
        )
        if self.stream.device.type == "cuda":
            torch.cuda.synchronize(self.stream.device)
        self.steps.append((time.perf_counter() - start) * 1e3)
        for stage, spent in result.timings.items():
            self.stages.setdefault(stage, []).append(spent)
        self.input_size = frame.image.shape[1], frame.image.shape[0]
        if not result.healthy.item():
            self.unhealthy += 1
            log.warning("frame %d: the network's output is not finite; nothing is written for it", result.frame)
            return
        if self.worlds.is_late(result, frame.nanoseconds):
            self.late += 1
            if self.late == 1:
                log.warning("the stamp %.6f s does not rise: nothing is written for such images", frame.stamp)
            return
        self._write_maps(result, frame.nanoseconds)
        if self.outputs.scene_built:
            self.clouds.add(result)
        if self.painter is not None:
            self._draw(frame, result)
        if self.outputs.view is not None:
            self.outputs.view.add(result, self.clouds.last)

    def _draw(self, frame: Frame, result: StepResult) -> None:
        """Draw the row of a frame, for preview and window."""
        seconds = frame.stamp - self.stamps[0]
        row = self.painter.draw(frame.image, result, seconds)
        if self.preview is not None:
            self.preview.add(row, seconds)
        if self.outputs.window is not None:
            self.outputs.window.show(row)

    @property
    def quit(self) -> bool:
        """Whether the user has closed the window."""
        return self.outputs.window is not None and self.outputs.window.quit

    def estimate_time(self) -> None:
        """Log how long the run will take, once the second frame is timed."""
        if len(self.steps) != TIMED_FRAMES or self.recording.length is None:
            return
        rays = self.outputs.motion_estimated or RULES[self.stream.options.update_rule].needs_motion
        text = time_estimate(
            self.stream.network, self.stream.options, self.input_size, self.recording.length - TIMED_FRAMES, rays,
            self.steps[-1] / 1e3,
        )  # fmt: skip
        if text:
            log.warning(text)

    def _write_maps(self, result: StepResult, nanoseconds: int) -> None:
        """Write the maps of a healthy frame with this stamp, and collect the rest of it."""
        written = {"depth": self.outputs.depth, "dynamic_mask": self.outputs.masks_written}
        written["plausibility"] = self.plausibility.limits is not None and result.plausibility is not None
        maps = result.numpy("pose", "intrinsics", *(name for name, wanted in written.items() if wanted))
        if self.plausibility.add(maps.get("plausibility")):
            log.warning(self.plausibility.problem)
        index = len(self.stamps)  # file names count like the lines of the trajectory
        try:
            if "depth" in maps:
                write_depth_files(self.folder, index, maps["depth"])
            if "dynamic_mask" in maps:
                write_mask_file(self.folder, index, maps["dynamic_mask"])
        except (OSError, KeyboardInterrupt):
            discard_frame(self.folder, index)
            raise
        self.stamps.append(result.stamp)
        self.nanoseconds.append(nanoseconds)
        if self.worlds.add(result, nanoseconds):
            number = self.worlds.of_frames[-1]
            log.warning("the camera is found again in world %d at frame %d (%.3f s)", number, index, result.stamp)
        # Copies: arrays from a GPU share one buffer with the frame's maps, which must be freed before the end.
        self.poses.append(maps["pose"].copy())
        self.intrinsics.append(maps["intrinsics"].copy())
        self.intrinsics_known.append(result.intrinsics_known.item())
        self.rules[result.rule] += 1
        self.resets += result.reset and result.frame > 0
        self.posed += result.pose_given
        self.scale = result.scale.item()
        self.image_size = result.depth.shape[1], result.depth.shape[0]
        if result.motion:
            self.moving.append(result.dynamic_mask.float().mean().item())

    def show_scene(self) -> None:
        """Update the static scene in the view, after the last frame."""
        if self.outputs.view is not None and self.clouds.last is not None:
            self.outputs.view.add_scene(self.clouds.last)

    def finish(self, elapsed: float, stopped_by: str) -> RunSummary:
        """Write the files that cover the whole run; return its summary.

        `elapsed`: seconds of the run; `stopped_by`: see RunSummary. Raises InputError if no frame was healthy.
        """
        if not self.stamps and not self.steps:
            raise InputError(f"{self.recording.name}: all {self.cover.frames} images are blank")
        if not self.stamps:
            raise InputError(
                f"{self.recording.name}: the network gave no finite value for any of its {self.unhealthy} frames"
            )
        if self.known is not None and not self.posed:
            cause = unit_hint(self.known.stamps) or "both must come from one clock"
            log.warning(
                "no image has a pose: the stamps of the images go from %.6f to %.6f s, those of %s from %.6f to %.6f; "
                "%s, with a pose within %g s of an image",
                self.stamps[0], self.stamps[-1], self.known.path, *self.known.stamps[[0, -1]], cause, TOLERANCE,
            )  # fmt: skip
        poses, intrinsics = np.stack(self.poses), np.stack(self.intrinsics)
        files = FinalFiles(self.folder, self.preview)
        for number, name in enumerate(self.worlds.names(TRAJECTORY), 1):
            frames = self.worlds.frames_of(number)
            files.write(name, write_trajectory, [self.nanoseconds[frame] for frame in frames], poses[frames])
        files.write(INTRINSICS, write_intrinsics, self.nanoseconds, intrinsics, self.intrinsics_known, self.image_size)
        cloud = self.clouds.last
        points, colors = (None, None) if cloud is None else cloud.arrays()
        self.clouds.write_rest(files)
        if self.outputs.memory:
            write_memory(files, self.stream, self.saved)
        summary = self._summarise(poses, None if points is None else len(points), elapsed, stopped_by)
        if self.preview is not None:
            with files.keeping_errors():
                self.preview.write_sheet(summary, poses[:, :3, 3], points, colors)
        return files.write_summary(summary)

    def _summarise(self, poses: np.ndarray, static_points: int | None, elapsed: float, stopped_by: str) -> RunSummary:
        steady = self.steps[WARM_UP:] or self.steps
        stream, recording = self.stream, self.recording
        trained, spans = stream.network.trained, self.worlds.spans
        return RunSummary(
            version=__version__,
            input=recording.name,
            input_kind=recording.kind,
            topic=recording.topic,
            reading=None if recording.options is None else recording.options.as_json(),
            input_names={"count": recording.read, "sha256": recording.names_hash(recording.read)}
            if recording.names
            else None,
            complete=not stopped_by,
            stopped_by=stopped_by,
            checkpoint=stream.network.source,
            trained=trained,
            warning="" if trained else UNTRAINED_WARNING,
            weights_fit=self.plausibility.share,
            device=torch.cuda.get_device_name(stream.device) if stream.device.type == "cuda" else stream.device.type,
            torch=torch.__version__,
            options=dataclasses.asdict(stream.options),
            cloud_options=dataclasses.asdict(self.clouds.options),
            stride=recording.stride,
            frames=len(poses),
            frames_skipped=recording.skipped,
            frames_dropped=recording.dropped,
            frames_missing=self._missing(stopped_by),
            frames_unhealthy=self.unhealthy,
            frames_late=self.late,
            frames_blank=self.cover.frames,
            poses="" if self.known is None else str(self.known.path),
            frames_with_pose=self.posed,
            memory=self.memory,
            memory_found=self.worlds.found,
            worlds=self.worlds.count,
            returns=self.worlds.returns,
            worlds_given=self.worlds.given,
            world_spans=spans,
            duration=sum(self.stamps[span.first + span.frames - 1] - self.stamps[span.first] for span in spans),
            input_size=self.input_size,
            image_size=self.image_size,
            path_length=sum(
                float(np.linalg.norm(np.diff(poses[span.first :][: span.frames, :3, 3], axis=0), axis=1).sum())
                for span in spans
            ),
            scale=self.scale,
            motion_frames=len(self.moving),
            moving_share=float(np.mean(self.moving)) if self.moving else None,
            resets=self.resets,
            rules=dict(self.rules),
            static_points=static_points,
            voxel_size=None if self.clouds.last is None else self.clouds.last.voxel_size,
            engine_rate=rounded(1e3 / float(np.mean(steady))),
            whole_rate=rounded(len(poses) / elapsed),
            step=Milliseconds.of(steady),
            stages={stage: Milliseconds.of(times[WARM_UP:] or times) for stage, times in self.stages.items()},
            files=self.files(),
        )

    def _missing(self, stopped_by: str) -> int | None:
        if not stopped_by:
            return 0
        if self.recording.length is None:
            return None
        read = len(self.stamps) + self.unhealthy + self.late + self.cover.frames + self.recording.skipped
        return max(0, self.recording.length - read)

    def files(self) -> list[str]:
        """Return the names of the files written, as patterns where there is one per frame."""
        files = [*self.worlds.names(TRAJECTORY), INTRINSICS, SUMMARY]
        if self.outputs.cloud:
            files += self.worlds.names(CLOUD)
        if self.outputs.memory:
            files.append(WORLD)
        if self.outputs.depth:
            files += [f"{DEPTH_FOLDER}/*.png", f"{DEPTH_FOLDER}/*.npz"]
        if self.outputs.masks_written:
            files.append(f"{MASK_FOLDER}/*.png")
        return files if self.preview is None else files + self.preview.files
