"""The clips of the demo: images of real and rendered places, with the ground truth as far as it is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from raymap3r_ros import synthetic
from raymap3r_ros.evaluation.datasets.tum import load_tum_folder
from raymap3r_ros.evaluation.sequences import Frame, with_known_depth
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.tum import read_tum
from raymap3r_ros.network import DEFAULT_CHECKPOINT
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.training.composites import CompositedSequence, find_movers
from raymap3r_ros.training.recording import read_recording

OFFICE = Path(__file__).with_name("office_clip")  # TUM RGB-D layout; NOTICE.md states source and licence
OFFICE_SIZE = (240, 320)  # height, width
OFFICE_WEIGHTS = "one_office"
TRAINED = "trained.txt"  # poses of the images that the weights are trained on
SHORT = 60  # frames of the room, and of a recording
_ABOUT_OFFICE = "a real office, held-out images of TUM RGB-D freiburg1_rpy (30 Hz, CC BY 4.0)"


@dataclass(frozen=True)
class Clip:
    """Images to play into the node."""

    about: str  # content, for the report
    checkpoint: str  # weights for it
    frames: (
        Sequence[Frame] | Iterator[Frame]
    )  # an iterator, without ground truth, reads a recording while it is played
    note: str = ""  # what was changed, for the report and the preview
    intrinsics: np.ndarray | None = None  # (3, 3) pixels of the images; None: not known
    trained: np.ndarray | None = None  # (N, 4, 4) c2w of training images of the same place, in the world of the frames


def office(count: int | None = None) -> Clip:
    """A part of a recording of a real office that the weights are not trained on.

    All pixels count as static. A man who sits in the background of some images turns his head.
    """
    (sequence,) = load_tum_folder(OFFICE)
    still = np.zeros(OFFICE_SIZE, bool)
    frames = (dataclasses.replace(frame, static_depth=frame.depth, moving=still) for frame in sequence.frames())
    return _of_office(frames, count)


def movers(count: int | None = None) -> Clip:
    """The images of `office` with rendered movers, whose masks and depths are exact; all other pixels are static."""
    recording = read_recording(OFFICE, OFFICE_SIZE)
    seed = find_movers(recording, 0, EVALUATION_SEEDS, many=False)
    sequence = CompositedSequence("movers", recording, OFFICE_SIZE, 0, seed)
    frames = map(with_known_depth, sequence.frames())
    return _of_office(frames, count, note="rendered movers were added to the images")


def _of_office(frames: Iterator[Frame], count: int | None, note: str = "") -> Clip:
    chosen = list(islice(frames, count))
    return Clip(_ABOUT_OFFICE, OFFICE_WEIGHTS, chosen, note, chosen[0].intrinsics, read_tum(OFFICE / TRAINED)[1])


def room(count: int | None = None) -> Clip:
    """The rendered room of the weights `one_room`, with moving objects; the sequence is not part of the training."""
    frames = [with_known_depth(frame) for frame in _room_frames(SHORT if count is None else count)]
    return Clip("the rendered room", "one_room", frames, intrinsics=frames[0].intrinsics)


CLIPS: dict[str, Callable[[int | None], Clip]] = {"office": office, "movers": movers, "room": room}
DEFAULT_CLIP = "office"


def recorded_clip(path: Path, count: int | None = None) -> Clip:
    """A video, a folder of images or a bag, without ground truth. Raises InputError."""
    recording = open_recording(path, max_frames=SHORT if count is None else count)
    return Clip(str(path), DEFAULT_CHECKPOINT, (Frame(frame.image, frame.stamp) for frame in recording))


def rendered_room(count: int, size: tuple[int, int] = (120, 160)) -> list[np.ndarray]:
    """`count` images of `size` (height, width) of the room of the clip `room`."""
    return [frame.image for frame in _room_frames(count, size)]


def _room_frames(count: int, size: tuple[int, int] = (120, 160)) -> Iterator[synthetic.Frame]:
    sequence = synthetic.suite_sequence("heavy", 0, world="one_room", size=size)
    return dataclasses.replace(sequence, length=count).frames()
