"""sensor_msgs_py.point_cloud2 against clouds packed by hand with struct."""

import array
import struct
import time

import numpy as np
import pytest
from sensor_msgs.msg import PointCloud2, PointField
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header

FIELDS = [
    PointField(name="x", offset=0, datatype=PointField.FLOAT32, count=1),
    PointField(name="y", offset=4, datatype=PointField.FLOAT32, count=1),
    PointField(name="z", offset=8, datatype=PointField.FLOAT32, count=1),
    PointField(name="rgb", offset=16, datatype=PointField.UINT32, count=1),
    PointField(name="dynamic", offset=20, datatype=PointField.UINT8, count=1),
    PointField(name="pair", offset=22, datatype=PointField.INT16, count=2),
]
NAMES = ("x", "y", "z", "rgb", "dynamic", "pair_0", "pair_1")
POINTS = [(1.5, -2.0, 0.25, 0xFF8000, 7, -1, 300), (float("nan"), 0.0, 1e-20, 1, 255, 0, -32768),
          (3.0, 4.0, 5.0, 0, 0, 1, 2)]  # fmt: skip
STEP = 28


def packed(big_endian=False):
    """A cloud of POINTS with gaps between its fields."""
    layout = (">" if big_endian else "<") + "fff4xIBxhh2x"
    data = b"".join(struct.pack(layout, *point) for point in POINTS)
    cloud = PointCloud2(height=1, width=3, fields=FIELDS, point_step=STEP, row_step=3 * STEP, is_bigendian=big_endian)
    cloud.data = array.array("B", data)
    return cloud


@pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])
def test_reads_a_cloud_packed_with_struct(big_endian):
    cloud = packed(big_endian)
    before = bytes(cloud.data)
    points = point_cloud2.read_points(cloud)
    assert points.shape == (3,) and points.dtype.names == NAMES
    for point, expected in zip(points, POINTS, strict=True):
        np.testing.assert_array_equal(np.array(point.tolist()), np.array([*np.float32(expected[:3]), *expected[3:]]))
    assert bytes(cloud.data) == before


def test_reads_a_part():
    cloud = packed()
    assert point_cloud2.read_points(cloud, ["rgb", "x"]).dtype.names == ("rgb", "x")
    assert len(point_cloud2.read_points(cloud, skip_nans=True)) == 2
    assert len(point_cloud2.read_points(cloud, ["y", "z"], skip_nans=True)) == 3
    cloud.is_dense = True
    assert len(point_cloud2.read_points(cloud, skip_nans=True)) == 3
    assert point_cloud2.read_points(cloud, ["z"], uvs=[2, 0])["z"].tolist() == [5.0, 0.25]
    xyz = point_cloud2.read_points_numpy(cloud, ["x", "y", "z"])
    assert xyz.dtype == np.float32 and xyz.shape == (3, 3)
    np.testing.assert_array_equal(xyz[2], [3, 4, 5])


def test_reading_missing_fields_and_points():
    with pytest.raises(ValueError, match=r"no field \['w'\]"):
        point_cloud2.read_points(packed(), ["x", "w"])
    with pytest.raises(ValueError, match="different datatypes"):
        point_cloud2.read_points_numpy(packed(), ["x", "rgb"])
    cloud = packed()
    cloud.data = cloud.data[:-1]
    with pytest.raises(ValueError, match="83 bytes of data; 3 points of 28 bytes"):
        point_cloud2.read_points(cloud)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([PointField(name="x", datatype=9, count=1)], "datatype 9"),
        ([PointField(name="x", datatype=PointField.FLOAT32, count=0)], "count 0"),
        ([PointField(name="x", datatype=PointField.INT8, count=1)] * 2, "same name"),
    ],
)
def test_invalid_fields_are_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        point_cloud2.dtype_from_fields(fields)


def test_dtype_from_fields():
    dtype = point_cloud2.dtype_from_fields(FIELDS, point_step=STEP)
    assert dtype.names == NAMES and dtype.itemsize == STEP
    assert [dtype.fields[name][1] for name in NAMES] == [0, 4, 8, 16, 20, 22, 24]
    assert point_cloud2.dtype_from_fields(FIELDS).itemsize == 26
    unnamed = PointField(name="", datatype=PointField.FLOAT64, count=1)
    assert point_cloud2.dtype_from_fields([unnamed]) == np.dtype([("unnamed_field_0", "f8")])


@pytest.mark.parametrize("form", ["list", "structured"])
def test_writes_a_cloud_that_struct_unpacks(form):
    points = POINTS
    if form == "structured":
        points = np.zeros(3, point_cloud2.dtype_from_fields(FIELDS, STEP))
        points[:] = POINTS
    cloud = point_cloud2.create_cloud(Header(frame_id="camera"), FIELDS, points, STEP)
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (1, 3, STEP, 3 * STEP)
    assert cloud.header.frame_id == "camera" and not cloud.is_bigendian and not cloud.is_dense
    assert isinstance(cloud.data, array.array) and len(cloud.data) == 3 * STEP
    found = list(struct.iter_unpack("<fff4xIBxhh2x", bytes(cloud.data)))
    np.testing.assert_array_equal(np.array(found), np.array([(*np.float32(p[:3]), *p[3:]) for p in POINTS]))
    assert cloud.fields == FIELDS


def test_xyz32():
    points = np.arange(12, dtype=np.float64).reshape(4, 3)
    for given in (points, points[::-1][::-1], points.tolist()):
        cloud = point_cloud2.create_cloud_xyz32(Header(), given)
        assert struct.unpack("<12f", bytes(cloud.data)) == tuple(range(12))
        assert [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields] == [
            ("x", 0, PointField.FLOAT32, 1), ("y", 4, PointField.FLOAT32, 1), ("z", 8, PointField.FLOAT32, 1),
        ]  # fmt: skip
    empty = point_cloud2.create_cloud_xyz32(Header(), np.zeros((0, 3), np.float32))
    assert empty.width == 0 and len(empty.data) == 0 and point_cloud2.read_points(empty).shape == (0,)


def test_organized_round_trip():
    points = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    cloud = point_cloud2.create_cloud_xyz32(Header(), points)
    assert (cloud.width, cloud.height, cloud.row_step) == (5, 4, 60)
    found = point_cloud2.read_points_numpy(cloud, reshape_organized_cloud=True)
    np.testing.assert_array_equal(found, points)


@pytest.mark.parametrize(
    ("points", "why"),
    [
        (np.zeros((4, 2), np.float32), "do not fit the 3 fields"),
        (np.zeros((2, 2, 2, 3), np.float32), "3 dimensions"),
        (np.zeros(4, [("x", "f4"), ("y", "f4"), ("z", "f8")]), "the points' dtype"),
    ],
)
def test_points_that_do_not_fit(points, why):
    with pytest.raises(ValueError, match=why):
        point_cloud2.create_cloud_xyz32(Header(), points)


def test_plain_array_for_mixed_fields():
    with pytest.raises(ValueError, match="pass a structured array"):
        point_cloud2.create_cloud(Header(), FIELDS, np.zeros((4, 7)))


def test_a_large_cloud_is_quick():
    points = np.zeros(200_000, point_cloud2.dtype_from_fields(FIELDS, STEP))
    point_cloud2.create_cloud(Header(), FIELDS, points[:10], STEP)
    start = time.perf_counter()
    point_cloud2.create_cloud(Header(), FIELDS, points, STEP)
    assert time.perf_counter() - start < 0.25  # a loop over bytes takes seconds
