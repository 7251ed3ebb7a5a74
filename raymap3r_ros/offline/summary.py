"""What `summary.json` contains about a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymap3r_ros.offline.run_worlds import WorldSpan


@dataclass(frozen=True)
class Milliseconds:
    """Statistics of a time measured once per frame."""

    median: float
    p95: float

    @classmethod
    def of(cls, values: list[float]) -> Milliseconds:
        """Return the statistics of at least one value."""
        median, p95 = np.percentile(values, (50, 95))
        return cls(round(float(median), 3), round(float(p95), 3))


@dataclass(frozen=True)
class RunSummary:
    """Settings and results of a run."""

    version: str
    input: str
    input_kind: str  # "video", "images" or "bag"; of a live input "camera" or "stream"
    topic: str  # of a bag
    reading: dict | None  # ReadOptions, to open the recording again; None for a live input
    input_names: dict | None  # number and hash of the names of the images of a folder that were read
    complete: bool  # False: stopped before the end of the recording, or of a live input before `max_frames`
    stopped_by: str  # the signal, "q" (in the window), the error or the damage, if not complete
    checkpoint: str
    trained: bool
    warning: str  # if the weights are untrained
    weights_fit: float | None  # share of the judged frames that the weights fit; None: not calibrated, or none judged
    device: str
    torch: str
    options: dict  # StreamOptions
    cloud_options: dict  # CloudOptions
    stride: int
    frames: int  # written
    frames_skipped: int  # could not be decoded
    frames_dropped: int  # images of a live input that newer ones replaced before they were processed
    frames_missing: int | None  # of the recording, not reached if not complete; None if their number is unknown
    frames_unhealthy: int  # the network's output was not finite; nothing is written for these
    frames_late: int  # stamps that did not rise; processed, but nothing is written for these
    frames_blank: int  # not processed, because they show nothing
    poses: str  # file of known camera poses; "" without one
    frames_with_pose: int  # written frames whose camera pose was known
    memory: str  # file of the saved world in which the camera was searched for; "" without one
    memory_found: int | None  # index of the first written frame in that world; None if the camera was not found there
    worlds: int  # coordinate systems; a jump of the stamps or the first known pose starts one, with files of its own
    returns: int  # how often the camera was found again in an earlier world
    worlds_given: list[int]  # those that are the frame of `poses`; the others start at their first camera
    world_spans: list[WorldSpan]  # which frames belong to which world
    duration: float  # seconds from the first stamp to the last of each span, summed
    input_size: tuple[int, int]  # width, height
    image_size: tuple[int, int]  # width, height of depth maps and masks
    scale: float  # factor from the metres of the last segment, after the last memory reset, to those of its world
    path_length: float  # metres travelled by the camera, without the ways between spans
    motion_frames: int  # for which motion was estimated; 0: moving objects are part of the static scene
    moving_share: float | None  # mean share of pixels under the mask, over these frames; None without any
    resets: int  # number of memory resets
    rules: dict[str, int]  # frames under each update rule
    static_points: int | None  # None: no static scene was built
    voxel_size: float | None  # metres
    engine_rate: float  # frames/s of the stream alone, without the first frames
    whole_rate: float  # frames/s with reading and writing
    step: Milliseconds  # of one step of the stream, without the first frames
    stages: dict[str, Milliseconds]  # of its stages
    files: list[str]  # written
