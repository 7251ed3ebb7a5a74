"""Whether the weights fit the images of a run: the warning, and the field of the summary."""

import logging

import numpy as np
import pytest

from raymap3r_ros.io.recording import Frame, Recording
from raymap3r_ros.network import load_network
from raymap3r_ros.offline import RunOutputs, run_recording
from raymap3r_ros.streaming import METHOD, StepResult, StreamOptions
from raymap3r_ros.streaming.plausibility import METADATA_KEY, MIN_FRAMES, PlausibilityLimits
from raymap3r_ros.synthetic import suite_sequence

OUTPUTS = RunOutputs(depth=False, cloud=False, preview=False)
COUNT = METHOD.warmup_frames + MIN_FRAMES + 5
WARNING = "the weights do not fit these images"


def recording(make_images):
    """Frames without intrinsics, as from a camera."""
    frames = lambda _: (Frame(image, index / 10, None) for index, image in enumerate(make_images()))  # noqa: E731
    return Recording(None, "camera", None, 1, COUNT, 10.0, label="camera", frames=frames)


def room():
    return rendered("one_room")


def elsewhere():
    return rendered("varied")


def rendered(world):
    return (frame.image for frame in suite_sequence("light", 5, world=world, size=(48, 64)).frames())


def noise():
    return iter(np.random.default_rng(0).integers(0, 256, (COUNT, 48, 64, 3), np.uint8))


@pytest.mark.parametrize(("images", "share", "warnings"), [(room, 1.0, 0), (elsewhere, 0.0, 1)])
def test_shipped_weights(images, share, warnings, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        summary = run_recording(recording(images), load_network(), tmp_path, outputs=OUTPUTS, progress=False)
    assert (summary.frames, summary.weights_fit) == (COUNT, share)
    assert sum(WARNING in record.message for record in caplog.records) == warnings


@pytest.mark.parametrize("limits", [None, PlausibilityLimits(99.0, 99.0, 0.0)])
def test_they_are_part_of_the_only_copy_of_a_frame_and_only_with_limits(tmp_path, monkeypatch, limits):
    network = load_network("mini")
    network.manifest = {} if limits is None else {METADATA_KEY: limits.to_json()}
    copies, numpy = [], StepResult.numpy
    monkeypatch.setattr(StepResult, "numpy", lambda self, *names: copies.append(names) or numpy(self, *names))
    options = StreamOptions(image_size=64)
    summary = run_recording(recording(noise), network, tmp_path, options, outputs=OUTPUTS, progress=False)
    assert len(copies) == COUNT
    copied = sum("plausibility" in names for names in copies)
    assert (copied, summary.weights_fit) == ((0, None) if limits is None else (COUNT - METHOD.warmup_frames, 0.0))
