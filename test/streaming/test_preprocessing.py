"""Resize, crop and intrinsics."""

import cv2
import numpy as np
import pytest
import torch

from raymap3r_ros.streaming.preprocessing import (
    apply_framing,
    apply_framing_on_device,
    frame_image,
    frame_intrinsics,
)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(640, 480, (384, 512)), (1920, 1080, (288, 512)), (480, 640, (512, 384)), (512, 512, (384, 512))],
)
def test_sizes_of_the_trained_network(width: int, height: int, expected: tuple[int, int]):
    assert frame_image(width, height, 512, 16).size == expected


@pytest.mark.parametrize(("width", "height"), [(401, 303), (1280, 720), (90, 61), (333, 500)])
def test_a_point_is_projected_correctly_by_the_framed_intrinsics(width: int, height: int):
    """A bright spot drawn at the projection of a 3D point is found at its projection with the framed intrinsics."""
    intrinsics = np.array([[0.9 * width, 0, 0.48 * width], [0, 0.95 * width, 0.53 * height], [0, 0, 1]])
    for direction in ((0.1, -0.05, 1.0), (-0.2, 0.12, 1.0)):
        u, v, _ = intrinsics @ direction
        rows, columns = np.mgrid[:height, :width]
        spot = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * (0.03 * width) ** 2))
        image = np.repeat((255 * spot).astype(np.uint8)[..., None], 3, axis=2)
        framing = frame_image(width, height, 128, 8)
        framed = apply_framing(image, framing).astype(float)[..., 0]
        assert framed.shape == framing.size
        rows, columns = np.mgrid[: framing.size[0], : framing.size[1]]
        found = (framed * columns).sum() / framed.sum(), (framed * rows).sum() / framed.sum()
        expected = frame_intrinsics(intrinsics, width, height, framing) @ direction
        np.testing.assert_allclose(found, expected[:2], atol=0.15)


def test_an_image_of_the_right_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert np.array_equal(apply_framing(image, frame_image(64, 48, 64, 16)), image)


@pytest.mark.parametrize(
    ("width", "height", "edge"), [(640, 480, 512), (1280, 720, 512), (401, 303, 512), (300, 500, 512), (160, 120, 64)]
)
def test_the_filters_on_the_gpu_equal_those_of_pillow(width: int, height: int, edge: int):
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (2, height // 8 + 1, width // 8 + 1, 3), np.uint8)
    images = np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC) for one in coarse])
    images[generator.random((2, height, width)) < 0.05] = 255
    framing = frame_image(width, height, edge, 16)
    ours = apply_framing_on_device(torch.from_numpy(images), framing).numpy()
    assert ours.shape == (2, *framing.size, 3) and ours.dtype == np.uint8
    for image, framed in zip(images, ours, strict=True):
        difference = np.abs(apply_framing(image, framing).astype(int) - framed)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_the_gpu_only_crops_images_of_the_right_scale():
    images = np.random.default_rng(0).integers(0, 256, (1, 90, 128, 3), np.uint8)
    framing = frame_image(128, 90, 128, 16)
    assert np.array_equal(
        apply_framing_on_device(torch.from_numpy(images), framing)[0], apply_framing(images[0], framing)
    )
