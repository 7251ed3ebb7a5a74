"""NumPy arrays to sensor_msgs/PointCloud2 and back. Names and meaning are those of the public sensor_msgs_py API."""

from __future__ import annotations

import array
import sys
from collections.abc import Iterable

import numpy as np
from numpy.lib.recfunctions import structured_to_unstructured, unstructured_to_structured
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

_DTYPES = {
    PointField.INT8: np.dtype(np.int8),
    PointField.UINT8: np.dtype(np.uint8),
    PointField.INT16: np.dtype(np.int16),
    PointField.UINT16: np.dtype(np.uint16),
    PointField.INT32: np.dtype(np.int32),
    PointField.UINT32: np.dtype(np.uint32),
    PointField.FLOAT32: np.dtype(np.float32),
    PointField.FLOAT64: np.dtype(np.float64),
}


def dtype_from_fields(fields: Iterable[PointField], point_step: int | None = None) -> np.dtype:
    """The structured dtype of one point. A field with count n > 1 becomes n fields `name_0` .. `name_<n-1>`.

    `point_step`: bytes from one point to the next; by default the end of the last field. Raises ValueError on
    a datatype that does not exist, count 0, or two fields of one name.
    """
    names, formats, offsets = [], [], []
    for index, field in enumerate(fields):
        name = field.name or f"unnamed_field_{index}"
        if field.datatype not in _DTYPES:
            raise ValueError(f"field {name!r} has datatype {field.datatype}; allowed: {sorted(_DTYPES)}")
        if field.count < 1:
            raise ValueError(f"field {name!r} has count 0")
        dtype = _DTYPES[field.datatype]
        for item in range(field.count):
            names.append(f"{name}_{item}" if field.count > 1 else name)
            formats.append(dtype)
            offsets.append(field.offset + item * dtype.itemsize)
    if len(set(names)) < len(names):
        raise ValueError(f"two fields have the same name: {names}")
    layout = {"names": names, "formats": formats, "offsets": offsets}
    if point_step is not None:
        layout["itemsize"] = point_step
    return np.dtype(layout)


def create_cloud(
    header: Header, fields: Iterable[PointField], points: Iterable, point_step: int | None = None
) -> PointCloud2:
    """A PointCloud2 message.

    `points`: a structured array with the dtype of `fields` (fast), a plain array (..., number of fields) where all
    fields have one datatype, or any iterable of one sequence of values per point. A two-dimensional array of points
    makes an organized cloud, its first axis the width. Raises ValueError where points and fields do not fit.
    """
    fields = list(fields)
    dtype = dtype_from_fields(fields, point_step)
    if not isinstance(points, np.ndarray):
        points = np.array([tuple(point) for point in points], dtype=dtype)
    elif points.dtype.names is None:
        if len({field.datatype for field in fields}) > 1:
            raise ValueError("the fields have different datatypes: pass a structured array")
        if points.shape[-1] != len(dtype.names):
            raise ValueError(f"points of shape {points.shape} do not fit the {len(dtype.names)} fields {dtype.names}")
        points = unstructured_to_structured(points, dtype=dtype)
    elif points.dtype != dtype:
        raise ValueError(f"the points' dtype is {points.dtype}, the fields' dtype is {dtype}")
    if points.ndim not in (1, 2):
        raise ValueError(f"points have {points.ndim} dimensions; allowed: 1, or 2 for an organized cloud")

    width = points.shape[0]
    height = points.shape[1] if points.ndim == 2 else 1
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(points).reshape(-1).view(np.uint8).data)
    cloud = PointCloud2(
        header=header,
        height=height,
        width=width,
        is_dense=False,
        is_bigendian=sys.byteorder != "little",
        fields=fields,
        point_step=dtype.itemsize,
        row_step=dtype.itemsize * width,
    )
    # Not by the constructor: that checks every single byte.
    cloud.data = data
    return cloud


def create_cloud_xyz32(header: Header, points: Iterable) -> PointCloud2:
    """A PointCloud2 message with float32 fields x, y, z. `points`: (N, 3), metres."""
    fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate("xyz")
    ]
    return create_cloud(header, fields, points)


def read_points(
    cloud: PointCloud2,
    field_names: Iterable[str] | None = None,
    skip_nans: bool = False,
    uvs: Iterable[int] | None = None,
    reshape_organized_cloud: bool = False,
) -> np.ndarray:
    """The points of a cloud as a structured array (N,).

    `field_names`: only these. `skip_nans`: without points that have a NaN, unless the cloud is marked as dense.
    `uvs`: only the points at these indices. `reshape_organized_cloud`: (width, height), as `create_cloud` takes it.
    Shares memory with the message if nothing had to be changed. Raises ValueError on a field that the cloud
    lacks, or on data shorter than its size.
    """
    dtype = dtype_from_fields(cloud.fields, cloud.point_step)
    count = cloud.width * cloud.height
    if len(cloud.data) < count * cloud.point_step:
        raise ValueError(
            f"the cloud has {len(cloud.data)} bytes of data; {count} points of {cloud.point_step} bytes need more"
        )
    if cloud.is_bigendian == (sys.byteorder == "little"):
        points = np.ndarray(count, dtype.newbyteorder(), buffer=cloud.data).astype(dtype)
    else:
        points = np.ndarray(count, dtype, buffer=cloud.data)
    if field_names is not None:
        field_names = list(field_names)
        unknown = [name for name in field_names if name not in points.dtype.names]
        if unknown:
            raise ValueError(f"the cloud has no field {unknown}; it has {points.dtype.names}")
        points = points[field_names]
    if skip_nans and not cloud.is_dense:
        points = points[~np.any([np.isnan(points[name]) for name in points.dtype.names], axis=0)]
    if uvs is not None:
        points = points[uvs if isinstance(uvs, np.ndarray) else np.fromiter(uvs, int)]
    if reshape_organized_cloud and cloud.height > 1:
        points = points.reshape(cloud.width, cloud.height)
    return points


def read_points_numpy(
    cloud: PointCloud2,
    field_names: Iterable[str] | None = None,
    skip_nans: bool = False,
    uvs: Iterable[int] | None = None,
    reshape_organized_cloud: bool = False,
) -> np.ndarray:
    """Like `read_points`, as a plain array (N, fields). Raises ValueError where the fields differ in datatype."""
    field_names = None if field_names is None else list(field_names)
    points = read_points(cloud, field_names, skip_nans, uvs, reshape_organized_cloud)
    if len({points.dtype[name] for name in points.dtype.names}) > 1:
        raise ValueError(f"the fields have different datatypes: {points.dtype}; use read_points")
    return structured_to_unstructured(points)
