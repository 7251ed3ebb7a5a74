import array

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image, PointField
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header

from raymap3r_ros.errors import InputError
from raymap3r_ros.mapping.occupancy import OccupancyGrid
from raymap3r_ros.node import conversions
from raymap3r_ros.node.conversions import ENCODINGS, EncodingError

COLOR = (200, 120, 40)
GREY = round(0.299 * 200 + 0.587 * 120 + 0.114 * 40)
HEADER = Header(frame_id="camera")


def image(encoding, pixels, padding=0, is_bigendian=0):
    """An Image of (h, w, bytes of a pixel) uint8, in nv12 and nv21 (h * 3 / 2, w, 1)."""
    height, width, size = pixels.shape
    rows = np.zeros((height, width * size + padding), np.uint8)
    rows[:, : width * size] = pixels.reshape(height, -1)
    return Image(
        height=height * 2 // 3 if encoding.startswith("nv") else height,
        width=width,
        encoding=encoding,
        step=rows.shape[1],
        is_bigendian=is_bigendian,
        data=array.array("B", rows.tobytes()),
    )


def plain(encoding, width=8, height=6, order="<"):
    """Pixels of a sensor with this encoding, of a wall in COLOR."""
    red, green, blue = COLOR
    solid = {
        "rgb8": (red, green, blue),
        "bgr8": (blue, green, red),
        "rgba8": (red, green, blue, 9),
        "bgra8": (blue, green, red, 9),
        "mono8": (GREY,),
    }
    if encoding in solid:
        return np.tile(np.array(solid[encoding], np.uint8), (height, width, 1))
    if encoding == "mono16":
        return np.full((height, width), GREY * 257, f"{order}u2").view(np.uint8).reshape(height, width, 2)
    if encoding.startswith("bayer"):
        mosaic = np.zeros((height, width), np.uint8)
        for (row, column), letter in zip(((0, 0), (0, 1), (1, 0), (1, 1)), encoding[6:10], strict=True):
            mosaic[row::2, column::2] = COLOR["rgb".index(letter)]
        if encoding.endswith("16"):
            return (mosaic.astype(f"{order}u2") * 257).view(np.uint8).reshape(height, width, 2)
        return mosaic[..., None]
    luma = 16 + 65.738 / 256 * red + 129.057 / 256 * green + 25.064 / 256 * blue
    u = 128 - 37.945 / 256 * red - 74.494 / 256 * green + 112.439 / 256 * blue
    v = 128 + 112.439 / 256 * red - 94.154 / 256 * green - 18.285 / 256 * blue
    if encoding.startswith("nv"):
        chroma = [u, v] if encoding == "nv12" else [v, u]
        planes = np.concatenate([np.full((height, width), luma), np.tile(chroma, (height // 2, width // 2))])
        return planes.round().astype(np.uint8)[..., None]
    pair = [u, luma, v, luma] if encoding in ("yuv422", "uyvy") else [luma, u, luma, v]
    return np.tile(np.array(pair).round().astype(np.uint8), (height, width // 2)).reshape(height, width, 2)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_is_converted_to_rgb(encoding, padding):
    result = conversions.image_array(image(encoding, plain(encoding), padding))
    assert result.shape == (6, 8, 3) and result.dtype == np.uint8
    expected = (GREY,) * 3 if encoding.startswith("mono") else COLOR
    # The border pixels of a mosaic are extrapolated.
    np.testing.assert_allclose(result[2:-2, 2:-2].reshape(-1, 3).astype(int), [expected] * 8, atol=3)


@pytest.mark.parametrize("encoding", ["mono16", "bayer_rggb16", "bayer_rggb8", "yuyv"])
def test_big_endian_pixels(encoding):
    little = conversions.image_array(image(encoding, plain(encoding)))
    big = conversions.image_array(image(encoding, plain(encoding, order=">"), is_bigendian=1))
    np.testing.assert_array_equal(big, little)


def test_pixels_keep_their_positions():
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    np.testing.assert_array_equal(conversions.image_array(image("rgb8", pixels, padding=2)), pixels)
    np.testing.assert_array_equal(conversions.image_array(image("bgr8", pixels)), pixels[..., ::-1])
    np.testing.assert_array_equal(conversions.image_array(image("bgr8", pixels, padding=2)), pixels[..., ::-1])
    wide = np.arange(5 * 7 * 4, dtype=np.uint8).reshape(5, 7, 4)
    np.testing.assert_array_equal(conversions.image_array(image("rgba8", wide, padding=3)), wide[..., :3])
    np.testing.assert_array_equal(conversions.image_array(image("bgra8", wide)), wide[..., 2::-1])


def test_rgb_is_not_copied_and_padded_images_are_contiguous():
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    message = image("rgb8", pixels)
    result = conversions.image_array(message)
    assert np.shares_memory(result, np.frombuffer(message.data, np.uint8))
    assert result.flags.c_contiguous and result.flags.writeable
    assert conversions.image_array(image("rgb8", pixels, padding=2)).flags.c_contiguous


def broken(**changes):
    message = image("rgb8", np.zeros((4, 6, 3), np.uint8))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (broken(encoding="nv24"), "encoding 'nv24' is not supported; supported: rgb8, bgr8,"),
        (broken(encoding="nv12", step=6, height=3), "must be even"),
        (broken(encoding="nv21", step=12, height=6), "data is cut short, 72 bytes where 9 rows of 12 bytes are 108"),
        (broken(encoding=""), "encoding '' is not supported"),
        (broken(width=0), "0x4 image: has no pixels"),
        (broken(height=0), "6x0 image: has no pixels"),
        (broken(width=100_000), "100000x4 image: is larger than any camera's"),
        (broken(encoding="yuyv", width=5), "5x4 image: yuyv holds pixels in pairs, the width must be even"),
        (broken(step=17), "6x4 image: step is 17 bytes, but a row of rgb8 takes 18"),
        (
            broken(data=array.array("B", [0] * 71)),
            "6x4 image: data is cut short, 71 bytes where 4 rows of 18 bytes are 72",
        ),
        (CompressedImage(), "compressed image without data"),
    ],
)
def test_malformed_message_is_refused_before_its_pixels_are_read(message, text):
    with pytest.raises(InputError, match=r".*") as caught:
        conversions.check_image(message)
    assert text in str(caught.value)
    assert isinstance(caught.value, EncodingError) == ("encoding" in text)
    with pytest.raises(InputError):
        conversions.image_array(message)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_compressed_images(suffix):
    pixels = np.tile(np.array(COLOR, np.uint8), (16, 24, 1))
    data = cv2.imencode(suffix, pixels[..., ::-1])[1]
    result = conversions.image_array(CompressedImage(data=array.array("B", data.tobytes())))
    np.testing.assert_allclose(result.astype(int), pixels, atol=3)


def test_a_cut_jpeg_is_refused_and_a_damaged_one_prints_nothing(capfd):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    with pytest.raises(InputError, match="cannot be decoded as jpeg or png: it is cut off"):
        conversions.image_array(CompressedImage(data=array.array("B", data[: len(data) // 2])))
    damaged = data[: len(data) // 2] + data[-40:]
    assert conversions.image_array(CompressedImage(data=array.array("B", damaged))).shape == noise.shape
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("code", [None, cv2.IMWRITE_JPEG_PROGRESSIVE])
def test_compressed_images_have_the_pixels_of_opencv(code):
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8), (9, 9), 0)
    data = cv2.imencode(".jpg", pixels, [] if code is None else [code, 1])[1]
    result = conversions.image_array(CompressedImage(data=array.array("B", data.tobytes())))
    np.testing.assert_array_equal(result, cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def test_compressed_garbage_is_refused():
    with pytest.raises(InputError, match="compressed image of 3 bytes cannot be decoded"):
        conversions.image_array(CompressedImage(data=array.array("B", [1, 2, 3])))


def test_image_messages():
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    message = conversions.image_message(HEADER, depth, "32FC1")
    assert (message.height, message.width, message.step, message.encoding) == (3, 4, 16, "32FC1")
    np.testing.assert_array_equal(np.frombuffer(message.data, np.float32).reshape(3, 4), depth)
    millimetres = (depth * 1000).astype(np.uint16)
    message = conversions.image_message(HEADER, millimetres, "16UC1")
    assert (message.step, message.encoding) == (8, "16UC1")
    np.testing.assert_array_equal(np.frombuffer(message.data, np.uint16).reshape(3, 4), millimetres)
    color = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    # A view that is not contiguous, such as a slice of a batch.
    message = conversions.image_message(HEADER, color[:, ::2], "rgb8")
    assert (message.width, message.step) == (2, 6)
    np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8).reshape(3, 2, 3), color[:, ::2])


def test_camera_info_message():
    matrix = np.array([[50, 0, 31.5], [0, 51, 23.5], [0, 0, 1]], np.float32)
    message = conversions.camera_info_message(HEADER, matrix, 64, 48)
    assert (message.width, message.height, message.distortion_model) == (64, 48, "plumb_bob")
    np.testing.assert_array_equal(message.k, matrix.ravel())
    np.testing.assert_array_equal(message.p.reshape(3, 4), np.column_stack([matrix, np.zeros(3)]))
    np.testing.assert_array_equal(message.r.reshape(3, 3), np.eye(3))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_cloud_equals_that_of_sensor_msgs_py(count):
    random = np.random.default_rng(0)
    colors = random.integers(0, 256, (count, 3), np.uint32)
    points = np.zeros(count, [(name, np.float32) for name in ("x", "y", "z", "rgb", "confidence", "dynamic")])
    for name in ("x", "y", "z", "confidence"):
        points[name] = random.normal(size=count)
    points["dynamic"] = np.arange(count) % 2
    points["rgb"] = (colors[:, 0] << 16 | colors[:, 1] << 8 | colors[:, 2]).view(np.float32)
    fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(points.dtype.names)
    ]
    rows = points.view(np.float32).reshape(count, 6)
    message = conversions.cloud_message(HEADER, rows)
    assert message == point_cloud2.create_cloud(HEADER, fields, points)
    assert (message.width, message.height, message.point_step) == (count, 1, 24)
    np.testing.assert_array_equal(point_cloud2.read_points(message)["rgb"].view(np.uint32) >> 16, colors[:, 0])


def test_map_equals_that_of_sensor_msgs_py():
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    colors = np.arange(15, dtype=np.uint8).reshape(5, 3)
    structured = np.zeros(5, [(name, np.float32) for name in ("x", "y", "z", "rgb")])
    structured["x"], structured["y"], structured["z"] = points.T
    bits = colors.astype(np.uint32)
    structured["rgb"] = (bits[:, 0] << 16 | bits[:, 1] << 8 | bits[:, 2]).view(np.float32)
    fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(structured.dtype.names)
    ]
    expected = point_cloud2.create_cloud(HEADER, fields, structured)
    expected.is_dense = True
    assert conversions.map_message(HEADER, points, colors) == expected


def test_grid():
    cells = np.array([[-1, 0, 100], [0, 0, -1]], np.int8)
    message = conversions.grid_message(HEADER, OccupancyGrid(cells, 0.5, (-1.0, 2.0), -0.3, False))
    info = message.info
    assert (info.width, info.height, round(info.resolution, 6)) == (3, 2, 0.5)
    assert (info.origin.position.x, info.origin.position.y, info.origin.position.z) == (-1.0, 2.0, -0.3)
    assert info.origin.orientation.w == 1
    assert list(message.data) == [-1, 0, 100, 0, 0, -1]


def test_odometry():
    pose, motion = np.eye(4), np.eye(4)
    pose[:3, 3] = 1, 2, 3
    motion[:3, 3] = 0.05, 0.1, 0.15
    covariance, twist_covariance = np.diag(np.arange(1.0, 7.0)), np.diag(np.arange(2.0, 8.0))
    message = conversions.odometry_message(HEADER, "child", pose, covariance, motion, 0.5, twist_covariance)
    assert (message.header.frame_id, message.child_frame_id) == ("camera", "child")
    assert message.pose.pose == conversions.pose_message(pose)
    np.testing.assert_array_equal(message.pose.covariance.reshape(6, 6), covariance)
    linear = message.twist.twist.linear
    np.testing.assert_allclose([linear.x, linear.y, linear.z], [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(message.twist.covariance.reshape(6, 6), twist_covariance)
    first = conversions.odometry_message(HEADER, "child", pose, covariance, None, 0.0, None)
    assert first.twist.twist.linear.x == 0
    assert first.twist.covariance[0] == 1e6


def test_pose_and_transform_agree():
    matrix = np.eye(4)
    matrix[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    matrix[:3, 3] = 1, 2, 3
    pose = conversions.pose_message(matrix)
    assert (pose.position.x, pose.position.y, pose.position.z) == (1, 2, 3)
    turn = pose.orientation
    np.testing.assert_allclose([turn.x, turn.y, turn.z, turn.w], [-0.5, 0.5, -0.5, 0.5])
    transform = conversions.transform_message(HEADER, "child", matrix)
    np.testing.assert_allclose(conversions.pose_matrix(pose), matrix, atol=1e-15)
    stamped = conversions.stamped_pose("map", 1_000_000_007, [1.0, 2.0, 3.0, turn.x, turn.y, turn.z, turn.w])
    assert stamped.pose == pose and (stamped.header.stamp.sec, stamped.header.stamp.nanosec) == (1, 7)
    assert (transform.header.frame_id, transform.child_frame_id) == ("camera", "child")
    origin = transform.transform.translation
    assert (origin.x, origin.y, origin.z) == (1, 2, 3)
    assert transform.transform.rotation == pose.orientation
