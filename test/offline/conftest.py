"""Fixtures of the tests of offline runs."""

import cv2
import numpy as np
import pytest

from raymap3r_ros.network import load_network

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
