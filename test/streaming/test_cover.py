"""Black images."""

import numpy as np
import pytest

from raymap3r_ros.streaming.cover import Cover


def noisy(mean: float, noise: float) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(mean, noise, (96, 128, 3)).clip(0, 255).astype(np.uint8)


def window() -> np.ndarray:
    """A dark room with a bright window, one tenth of the image."""
    image = noisy(3, 2)
    image[20:50, 30:70] = 200
    return image


@pytest.mark.parametrize(
    ("image", "black"),
    [
        (np.zeros((48, 64, 3), np.uint8), True),
        (noisy(4, 2), True),  # a sensor behind its cap
        (noisy(20, 10), False),
        (np.full((48, 64, 3), 120, np.uint8), False),  # a wall
        (window(), False),
    ],
    ids=["zeros", "noise", "night", "grey", "window"],
)
def test_only_dark_images_without_content_are_black(image: np.ndarray, black: bool):
    cover = Cover()
    assert cover.add(image) == black and cover.frames == black


@pytest.mark.parametrize(("row", "ended"), [(0, False), (4, False), (5, True), (50, True)])
def test_a_long_cover_ends_with_the_first_image_that_is_not_black(row: int, ended: bool):
    cover, light = Cover(), noisy(100, 30)
    assert not cover.add(light)
    for _ in range(row):
        assert cover.add(np.zeros_like(light)) and not cover.ended
    assert not cover.add(light) and cover.ended == ended
    assert not cover.add(light) and not cover.ended and cover.frames == row
