"""Fixtures of the tests of offline runs."""

import dataclasses
import itertools
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from raymap3r_ros.geometry.cameras import back_project
from raymap3r_ros.io import open_recording
from raymap3r_ros.network import load_network
from raymap3r_ros.offline import CloudOptions, RunOutputs, run, run_recording
from raymap3r_ros.streaming import Stream
from raymap3r_ros.synthetic import suite_sequence
from raymap3r_ros.synthetic.export import export_sequence

COUNT = 8


@pytest.fixture(scope="session")
def network():
    return load_network("mini")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images of a camera that moves sideways."""
    folder = tmp_path_factory.mktemp("images")
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (120, 220, 3), dtype=np.uint8), (0, 0), 4)
    for index in range(COUNT):
        cv2.imwrite(str(folder / f"{index}.png"), noise[:, 4 * index : 4 * index + 160])
    return folder


@pytest.fixture(scope="session")
def exact(tmp_path_factory):
    """Results of a run whose network predicts the truth: a rendered bag, its folder of results, and its frames.

    The images are 128x120, of which the network receives the middle 112 rows without a change of scale.
    """
    folder = tmp_path_factory.mktemp("exact")
    sequence = suite_sequence("heavy", 0, world="one_room", size=(120, 128))
    bag = export_sequence(sequence, folder, "bag", max_frames=6, progress=False) / "bag"
    frames = list(itertools.islice(sequence.frames(), 6))
    rows = slice(4, 116)
    truth = [
        SimpleNamespace(
            image=frame.image[rows], depth=frame.depth[rows], moving=frame.moving[rows],
            pose=np.linalg.inv(frames[0].pose) @ frame.pose, stamp=round((1 + frame.stamp) * 1e9),
            intrinsics=frame.intrinsics - [[0, 0, 0], [0, 0, 4], [0, 0, 0]],
        )
        for frame in frames
    ]  # fmt: skip

    class Exact(Stream):
        def step(self, *args, **kwargs):
            result, frame = super().step(*args, **kwargs), truth[len(steps)]
            steps.append(result)
            assert np.array_equal(result.image, frame.image)
            depth, matrix = torch.from_numpy(frame.depth), torch.from_numpy(frame.intrinsics).float()
            points = back_project(depth[None], matrix[None])[0]
            return dataclasses.replace(
                result, pose=torch.from_numpy(frame.pose), depth=depth, points=points, intrinsics=matrix,
                dynamic_mask=torch.from_numpy(frame.moving), motion=True, confidence=torch.full_like(depth, 9.0),
            )  # fmt: skip

    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Stream", Exact)
        run_recording(
            open_recording(bag, topic="/camera/image_raw"), load_network("one_room"), folder / "results",
            outputs=RunOutputs(preview=False), cloud_options=CloudOptions(voxel_size=1e-4),
        )  # fmt: skip
    assert len(steps) == len(truth)
    return SimpleNamespace(bag=bag, results=folder / "results", frames=truth)
