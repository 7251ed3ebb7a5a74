"""Blank images: black ones, and those without texture."""

import cv2
import numpy as np
import pytest

from raymap3r_ros.io import open_recording
from raymap3r_ros.streaming.cover import Cover, is_blank, why_blank
from raymap3r_ros.synthetic import suite_sequence


def noisy(mean, noise: float, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(mean, noise, (*size, 3)).clip(0, 255).astype(np.uint8)


def window() -> np.ndarray:
    """A dark room with a bright window, one tenth of the image."""
    image = noisy(3, 2)
    image[20:50, 30:70] = 200
    return image


def finger(size: tuple[int, int]) -> np.ndarray:
    """A finger on the lens: red light that falls off, and the noise of a sensor."""
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    red = 120 * np.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2) / 0.8)
    return noisy(np.stack((red, 30 + 5 * y, 20 + 10 * x), axis=-1), 4, size)


def asphalt(size: tuple[int, int]) -> np.ndarray:
    """Grey grains of a few pixels, without anything larger."""
    grains = cv2.GaussianBlur(np.random.default_rng(0).standard_normal(size), (0, 0), 2)
    return np.repeat((120 + 12 * grains / grains.std())[..., None], 3, axis=2).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "blank"),
    [
        (np.zeros((48, 64, 3), np.uint8), True),
        (noisy(4, 2), True),  # a sensor behind its cap
        (np.full((48, 64, 3), 120, np.uint8), True),
        (finger((240, 320)), True),
        (finger((1080, 1920)), True),
        (noisy(20, 10), False),
        (window(), False),
        (asphalt((240, 320)), False),
        (asphalt((1080, 1920)), False),
        (np.roll(finger((240, 320)), 160, axis=1), False),
    ],
    ids=["zeros", "noise", "grey", "finger", "large finger", "night", "window", "asphalt", "large asphalt", "edge"],
)
def test_only_images_without_content_are_blank(image: np.ndarray, blank: bool):
    cover = Cover()
    assert cover.add(image, 0.0, 2.0) == blank and cover.frames == blank


def test_dark_images_of_16_bits_are_named():
    twelve_bits = np.resize(np.linspace(0, 4095, 64), (48, 64)) + 200 * np.sin(np.arange(48))[:, None]
    image = np.repeat((twelve_bits.clip(0, 4095) // 256).astype(np.uint8)[..., None], 3, axis=2)
    assert is_blank(image) and "its highest value is 15 of 255: values of 10 to 14 bits" in why_blank(image)
    for other in (np.zeros((48, 64, 3), np.uint8), np.full((48, 64, 3), 120, np.uint8)):
        assert is_blank(other) and why_blank(other) == "black, or without texture"


@pytest.mark.parametrize("world", ["one_room", "varied"])
def test_no_image_of_the_rendered_worlds_is_blank(world: str):
    for index in range(4):
        for size in ((48, 64), (120, 160)):
            frames = list(suite_sequence("heavy", index, world=world, size=size).frames())[::10]
            assert not any(is_blank(frame.image) for frame in frames)


def test_no_image_of_real_videos_is_blank(shared):
    for name in ("lady-running.mp4", "walking-indoors.mp4"):
        assert not any(is_blank(frame.image) for frame in open_recording(shared / "clips" / name))


@pytest.mark.parametrize("covering", [np.zeros((96, 128, 3), np.uint8), finger((240, 320))], ids=["cap", "finger"])
@pytest.mark.parametrize(("row", "ended"), [(0, False), (9, False), (10, True), (100, True)])
def test_a_cover_that_is_longer_than_a_gap_may_be_ended_anywhere(row: int, ended: bool, covering: np.ndarray):
    cover, light, stamps = Cover(), noisy(100, 30), iter(np.arange(200) / 10)

    def add(image: np.ndarray) -> bool:
        return cover.add(image, float(next(stamps)), max_gap=1.05)

    assert add(covering) and not cover.ended
    assert not add(light) and not cover.ended  # nothing was seen before
    for _ in range(row):
        assert add(covering) and not cover.ended
    assert not add(light) and cover.ended == ended
    assert not add(light) and not cover.ended and cover.frames == row + 1


def test_a_pause_without_a_cover_and_stamps_that_fall_are_no_cover():
    cover, light = Cover(), noisy(100, 30)
    for image, stamp in ((light, 0.0), (light, 10.0), (0 * light, 10.1), (light, 1.0), (0 * light, 2.0), (light, 2.5)):
        cover.add(image, stamp, max_gap=2.0)
        assert not cover.ended
