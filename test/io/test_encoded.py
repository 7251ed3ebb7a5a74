"""Encoded images are checked before they are decoded, and decode to the same pixels as before."""

import io
import sys
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.encoded import checked_image

sys.path.insert(0, str(Path(__file__).parent))
from encoded_images import BOMBS, chunk, jpeg, png

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_image_that_announces_more_than_it_contains_is_refused(bomb):
    with pytest.raises(InputError, match=r"larger than any camera's|cannot be decoded"):
        checked_image(BOMBS[bomb])


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_folder_of_such_images_has_no_readable_frame(tmp_path, bomb):
    for name in ("a", "b"):
        (tmp_path / f"{name}.{bomb[:4].strip()}").write_bytes(BOMBS[bomb])
    tracemalloc.start()
    with pytest.raises(InputError, match=r"no frame could be read \(2 could not be decoded"):
        list(open_recording(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def other(mode, **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (40, 56, 4), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        jpeg(37), jpeg(64, PROGRESSIVE=1), jpeg(64, RST_INTERVAL=2), jpeg(8, QUALITY=100),
        png(37), other("RGBA", format="PNG"), other("P", format="PNG"), other("1", format="PNG"),
        other("L", format="PNG"), other("I;16", format="PNG"), other("LA", format="PNG"),
        other("L", format="JPEG"), other("CMYK", format="JPEG"), other("RGB", format="JPEG", keep_rgb=True),
        other("RGB", format="JPEG", comment=b"c" * 60_000),
        other("RGB", format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
        jpeg(37) + bytes(100),
        cv2.imencode(".jpg", np.zeros((2048, 2048, 3), np.uint8))[1].tobytes(),
        cv2.imencode(".png", np.zeros((2048, 2048, 3), np.uint8))[1].tobytes(),
    ],
)  # fmt: skip
def test_valid_images_have_the_same_pixels(data):
    def decoded(data):
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)

    assert (decoded(checked_image(data)) == decoded(data)).all()


def test_metadata_does_not_reach_the_decoder():
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**7)))
    data = png()[:33] + profile + chunk(b"acTL", bytes(8)) + png()[33:]
    assert checked_image(data) == checked_image(png())
    assert len(checked_image(jpeg()[:2] + b"\xff\xe2\x00\x04xy" + jpeg()[2:])) == len(checked_image(jpeg()))


@pytest.mark.parametrize(
    "sound",
    [jpeg(64), jpeg(64, PROGRESSIVE=1), jpeg(64, RST_INTERVAL=2), png(40)],
    ids=["plain", "progressive", "restarts", "png"],
)
def test_a_part_of_an_image_is_refused(sound):
    """Wherever it is cut, bytes after the cut included: the decoders would fill the rest with grey."""
    for end in range(8, len(sound) - 2, 7):
        for padding in (b"", bytes(50)):
            with pytest.raises(InputError, match="cannot be decoded"):
                checked_image(sound[:end] + padding)


def test_damage_anywhere_gives_pixels_or_one_kind_of_error():
    rng = np.random.default_rng(0)
    for sound in (jpeg(40), jpeg(40, PROGRESSIVE=1), png(40)):
        for _ in range(500):
            data = bytearray(sound)
            for position in rng.integers(0, len(data), 1 + rng.integers(6)):
                data[position] = rng.integers(256)
            try:
                checked = checked_image(bytes(data[: rng.integers(8, len(data) + 1)]))
            except InputError:
                continue
            assert len(checked) <= len(data) + 2


def test_the_orientation_of_a_png_counts_when_sizes_are_compared(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = Image.fromarray(np.zeros((40, 56, 3), np.uint8))
    pixels.save(tmp_path / "a.png", exif=turned)
    pixels.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "b.png")
    assert [frame.image.shape for frame in open_recording(tmp_path)] == [(56, 40, 3)] * 2
