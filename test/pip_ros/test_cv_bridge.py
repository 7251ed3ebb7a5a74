"""cv_bridge against OpenCV's conversions and values computed by hand."""

import array

import cv2
import numpy as np
import pytest
from cv_bridge import CvBridge, CvBridgeError
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

BRIDGE = CvBridge()
RANDOM = np.random.default_rng(0)
BGR = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def image(encoding, pixels, pad=0, big_endian=False):
    """An Image message of `pixels`, each row followed by `pad` random bytes."""
    pixels = pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<"))
    rows = [row.tobytes() + b"\xaa" * pad for row in pixels]
    msg = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=len(rows[0]))
    msg.is_bigendian = int(big_endian)
    msg.data = array.array("B", b"".join(rows))
    return msg


def sample(dtype, channels):
    shape = (6, 8) if channels == 1 else (6, 8, channels)
    if np.dtype(dtype).kind == "f":
        return RANDOM.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


CHANNELS = {"mono": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, **{f"bayer_{p}": 1 for p in ("rggb", "gbrg")}}
TYPES = [
    *[(f"{name}{bits}", f"uint{bits}", count) for name, count in CHANNELS.items() for bits in (8, 16)],
    ("yuv422", "uint8", 2), ("yuv422_yuy2", "uint8", 2), ("uyvy", "uint8", 2), ("yuyv", "uint8", 2),
    ("8UC1", "uint8", 1), ("8UC3", "uint8", 3), ("8SC2", "int8", 2), ("16UC1", "uint16", 1), ("16SC4", "int16", 4),
    ("32SC1", "int32", 1), ("32FC1", "float32", 1), ("32FC3", "float32", 3), ("64FC1", "float64", 1),
    ("32FC10", "float32", 10),
]  # fmt: skip


@pytest.mark.parametrize(("encoding", "dtype", "channels"), TYPES, ids=[name for name, _, _ in TYPES])
@pytest.mark.parametrize("pad", [0, 5, 64])
@pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])
def test_passthrough_reads_written_images(encoding, dtype, channels, pad, big_endian):
    pixels = sample(dtype, channels)
    found = BRIDGE.imgmsg_to_cv2(image(encoding, pixels, pad, big_endian))
    assert found.dtype == np.dtype(dtype) and found.dtype.isnative and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize(("encoding", "dtype", "channels"), TYPES, ids=[name for name, _, _ in TYPES])
def test_written_messages(encoding, dtype, channels):
    pixels = sample(dtype, channels)
    header = Header(frame_id="camera")
    msg = BRIDGE.cv2_to_imgmsg(pixels, encoding, header)
    assert (msg.height, msg.width, msg.encoding, msg.is_bigendian) == (6, 8, encoding, 0)
    assert msg.step == 8 * channels * np.dtype(dtype).itemsize
    assert bytes(msg.data) == pixels.tobytes()
    assert isinstance(msg.data, array.array) and msg.header.frame_id == "camera"


def test_written_passthrough_names_the_opencv_type():
    assert BRIDGE.cv2_to_imgmsg(BGR).encoding == "8UC3"
    assert BRIDGE.cv2_to_imgmsg(np.zeros((2, 3), np.float32)).encoding == "32FC1"
    swapped = BRIDGE.cv2_to_imgmsg(np.array([[1, 256]], ">u2"))
    assert swapped.is_bigendian and bytes(swapped.data) == b"\0\1\1\0"
    strided = BRIDGE.cv2_to_imgmsg(BGR[::2, ::-1], "bgr8")
    assert bytes(strided.data) == BGR[::2, ::-1].tobytes()


COLORS = {
    "bgr8": BGR,
    "rgb8": cv2.cvtColor(BGR, cv2.COLOR_BGR2RGB),
    "bgra8": cv2.cvtColor(BGR, cv2.COLOR_BGR2BGRA),
    "rgba8": cv2.cvtColor(BGR, cv2.COLOR_BGR2RGBA),
}


@pytest.mark.parametrize("source", COLORS)
@pytest.mark.parametrize("target", COLORS)
def test_colors(source, target):
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image(source, COLORS[source], 3), target), COLORS[target])


@pytest.mark.parametrize("source", COLORS)
def test_grey_is_the_same_from_every_color(source):
    expected = BGR.astype(float) @ (0.114, 0.587, 0.299)
    found = BRIDGE.imgmsg_to_cv2(image(source, COLORS[source]), "mono8")
    np.testing.assert_allclose(found, expected, atol=0.6)
    wide = BRIDGE.imgmsg_to_cv2(image(source, COLORS[source]), "mono16")
    np.testing.assert_array_equal(wide, found.astype(np.uint16) * 257)


def test_grey_to_color_repeats_the_channel():
    grey = sample("uint8", 1)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("mono8", grey), "rgb8"), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("mono8", grey), "bgra8")[..., 3], 255)


def test_depths_are_scaled_only_between_8_and_16_bits():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    exact = np.floor(every / 257 + 0.5)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("mono16", every), "mono16"), every)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("mono16", every), "mono8"), exact)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("mono16", every), "rgb8")[..., 1], exact)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("16UC1", every), "8UC1"), exact)
    small = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("mono8", small), "mono16"), small * np.uint16(257))
    # Depth in millimetres keeps its values in another type.
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("16UC1", every), "32FC1"), every.astype(np.float32))
    metres = np.array([[-1.0, 0.4, 0.5, 1.5, 1e9, np.nan]], np.float32)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(image("32FC1", metres), "16UC1"), [[0, 0, 0, 2, 65535, 0]])


@pytest.mark.parametrize(("encoding", "order"), [("yuv422", "UYVY"), ("uyvy", "UYVY"), ("yuv422_yuy2", "YUYV"),
                                                 ("yuyv", "YUYV")])  # fmt: skip
def test_yuv422(encoding, order):
    # Limited-range BT.601 by its definition: white, black, mid grey and pure red, two pixels of each.
    colors = {(235, 128, 128): (255, 255, 255), (16, 128, 128): (0, 0, 0), (126, 128, 128): (128, 128, 128),
              (81, 90, 240): (255, 0, 0)}  # fmt: skip
    row, expected = b"", []
    for (y, u, v), rgb in colors.items():
        row += bytes({"Y": y, "U": u, "V": v}[letter] for letter in order)
        expected += [rgb, rgb]
    pixels = np.frombuffer(row * 2, np.uint8).reshape(2, 8, 2)
    for target, flip in (("rgb8", 1), ("bgr8", -1)):
        found = BRIDGE.imgmsg_to_cv2(image(encoding, pixels, 4), target)
        np.testing.assert_allclose(found, np.array([expected] * 2)[..., ::flip], atol=2)
    grey = BRIDGE.imgmsg_to_cv2(image(encoding, pixels), "mono8")
    np.testing.assert_array_equal(grey[0], np.repeat([y for y, _, _ in colors], 2))
    assert BRIDGE.imgmsg_to_cv2(image(encoding, pixels), "bgra8").shape == (2, 8, 4)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer(pattern, bits):
    # A uniform colour behind the filter must be recovered everywhere except at the border.
    scale = 1 if bits == 8 else 257
    rgb = {"r": 200 * scale, "g": 120 * scale, "b": 40 * scale}
    tile = np.array([rgb[letter] for letter in pattern], f"uint{bits}").reshape(2, 2)
    msg = image(f"bayer_{pattern}{bits}", np.tile(tile, (4, 4)), 2)
    for target, order in (("rgb8", "rgb"), ("bgr8", "bgr")):
        expected = np.broadcast_to([rgb[letter] / scale for letter in order], (4, 4, 3))
        np.testing.assert_allclose(BRIDGE.imgmsg_to_cv2(msg, target)[2:6, 2:6], expected, atol=1)
    assert BRIDGE.imgmsg_to_cv2(msg, "mono8").shape == (8, 8)


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("32FC1", "rgb8", "not a color format"),
        ("16UC1", "mono8", "not a color format"),
        ("8UC3", "bgr8", "not a color format"),
        ("bgr8", "8UC1", "number of channel"),
        ("32FC1", "32FC3", "number of channel"),
        ("rgb8", "bayer_rggb8", "Unsupported conversion"),
        ("mono8", "yuv422", "Unsupported conversion"),
        ("bayer_rggb8", "rgba8", "Unsupported conversion"),
        ("yuv422", "yuv422_yuy2", "Unsupported conversion"),
        ("bgr8", "rainbow", "Unrecognized image encoding"),
        ("nv21", "passthrough", "Unrecognized image encoding"),
        ("", "passthrough", "Unrecognized image encoding"),
        ("32FC0", "passthrough", "Unrecognized image encoding"),
    ],
)
def test_invalid_conversions_are_refused(source, target, why):
    msg = Image(height=4, width=4, encoding=source, step=16 * 4, data=array.array("B", bytes(16 * 16)))
    with pytest.raises(CvBridgeError, match=why):
        BRIDGE.imgmsg_to_cv2(msg, target)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"step": 23}, "step 23 is less than the 24 bytes"),
        ({"step": 0}, "step 0 is less"),
        ({"height": 7}, "height \\* step is 168"),
        ({"data": array.array("B", bytes(6 * 24 - 1))}, "it has 143 bytes"),
        ({"data": array.array("B")}, "it has 0 bytes"),
        ({"height": 0}, "no pixels"),
        ({"width": 0}, "no pixels"),
        ({"height": 2**32 - 1, "step": 2**32 - 1, "width": 2**30}, "it has 144 bytes"),
    ],
)
def test_malformed_messages_are_refused(change, why):
    msg = image("bgr8", BGR)
    for name, value in change.items():
        setattr(msg, name, value)
    for target in ("passthrough", "rgb8"):
        with pytest.raises(CvBridgeError, match=why):
            BRIDGE.imgmsg_to_cv2(msg, target)


@pytest.mark.parametrize("target", ["bgr8", "rgb8", "8UC3"])
def test_a_conversion_is_a_copy(target):
    msg = image("bgr8", BGR)
    found = BRIDGE.imgmsg_to_cv2(msg, target)
    found[:] = 0
    assert bytes(msg.data) == BGR.tobytes()


def test_arrays_that_are_not_images():
    with pytest.raises(TypeError, match="numpy array"):
        BRIDGE.cv2_to_imgmsg([[1, 2]])
    for shape, dtype in ((3, "u1"), ((2, 2), bool), ((2, 2), "i8"), ((0, 2), "u1"), ((2, 2, 2, 2), "u1")):
        with pytest.raises(CvBridgeError, match="no image"):
            BRIDGE.cv2_to_imgmsg(np.zeros(shape, dtype))
    with pytest.raises(CvBridgeError, match="incompatible type 8UC3"):
        BRIDGE.cv2_to_imgmsg(BGR, "mono8")
    with pytest.raises(CvBridgeError, match="incompatible type 32FC1"):
        BRIDGE.cv2_to_imgmsg(np.zeros((2, 2), np.float32), "16UC1")


def compressed(data, name="png"):
    return CompressedImage(format=name, data=array.array("B", data))


@pytest.mark.parametrize(
    "pixels", [BGR, COLORS["bgra8"], sample("uint8", 1), sample("uint16", 1)], ids=["bgr", "bgra", "grey", "grey 16"]
)
def test_compressed_passthrough(pixels):
    msg = BRIDGE.cv2_to_compressed_imgmsg(pixels, "png")
    assert msg.format == "png" and bytes(msg.data[:4]) == b"\x89PNG"
    np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(msg), pixels)


def test_compressed_color():
    png = compressed(cv2.imencode(".png", BGR)[1].tobytes())
    np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(png, "rgb8"), COLORS["rgb8"])
    np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(png, "bgr8"), BGR)
    smooth = np.full((16, 16, 3), (30, 90, 200), np.uint8)
    jpg = BRIDGE.cv2_to_compressed_imgmsg(smooth)
    assert jpg.format == "jpg"
    np.testing.assert_allclose(BRIDGE.compressed_imgmsg_to_cv2(jpg, "rgb8"), smooth[..., ::-1], atol=4)


def test_unusable_compressed_images():
    grey = compressed(cv2.imencode(".png", sample("uint8", 1))[1].tobytes())
    with pytest.raises(CvBridgeError, match="passthrough"):
        BRIDGE.compressed_imgmsg_to_cv2(grey, "rgb8")
    for data in (b"", b"not an image", cv2.imencode(".png", BGR)[1].tobytes()[:20]):
        with pytest.raises(CvBridgeError, match="bytes of"):
            BRIDGE.compressed_imgmsg_to_cv2(compressed(data))
    with pytest.raises(CvBridgeError, match="cannot write"):
        BRIDGE.cv2_to_compressed_imgmsg(BGR, "nothing")
    with pytest.raises(TypeError, match="numpy array"):
        BRIDGE.cv2_to_compressed_imgmsg("picture")
