"""The types of messages that are read from bags, in the definitions of all ROS distributions.

A bag contains the definitions of its messages, which may be anything. Those of types that this package reads are
compared with the real ones, which are then used.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.bag_child import IMAGE_TYPES

CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
ODOMETRY_TYPE, RANGE_TYPE = "nav_msgs/msg/Odometry", "sensor_msgs/msg/Range"
# By version of ROS: `replay`, which alone reads the others, plays no ROS 1 bags.
_READ = {1: (*IMAGE_TYPES, CAMERA_INFO_TYPE)}
_READ[2] = (*_READ[1], RANGE_TYPE, ODOMETRY_TYPE, "tf2_msgs/msg/TFMessage")
# The first distribution with the same definition as the bag is used; the first of all if the bag has none.
_STORES = {
    1: ("ros1_noetic",),
    2: (
        "ros2_humble", "ros2_iron", "ros2_jazzy", "ros2_kilted", "ros2_lyrical", "ros2_galactic", "ros2_foxy",
        "ros2_eloquent", "ros2_dashing",
    ),
}  # fmt: skip


@functools.cache
def part_names() -> list[str]:
    """Return the names of the types that are read, and of all types in them."""
    return sorted({part for name in _READ[2] for part in _parts(_STORES[2][0], name)})


def matching_stores(path: Path, version: int, defined: dict[str, Any], twice: list[str]) -> dict[str, str]:
    """Return for each type that is read the distribution with the same definition as the bag.

    Args:
        path: of the bag, for errors.
        version: 1 or 2, of ROS.
        defined: fields of the types of `part_names` that the bag defines, by name.
        twice: those with two different definitions.

    Raises InputError if no distribution has a definition of the bag, or if there are two.
    """
    stores = {}
    for name in _READ[version]:
        for store in _STORES[version]:
            parts = _parts(store, name)
            if conflict := sorted(parts.keys() & twice):
                raise InputError(
                    f"{path}: contains two different definitions of {conflict[0]}; record it again with one version "
                    "of the message"
                )
            if all(defined.get(part, fields) == fields for part, fields in parts.items()):
                stores[name] = store
                break
        else:
            raise InputError(
                f"{path}: {name} is defined with other fields than in ROS {version}; rename the type, or convert its "
                f"messages to those of ROS {version}"
            )
    return stores


def deserialize(store: str, name: str, data: bytes) -> Any:
    """Return the message of a type in one of the distributions of `matching_stores`. Raises many kinds of errors."""
    known = _store(store)
    return known.deserialize_ros1(data, name) if store in _STORES[1] else known.deserialize_cdr(data, name)


@functools.cache
def _store(name: str) -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores(name))


@functools.cache
def _parts(store: str, name: str) -> dict[str, Any]:
    """Return the fields of a type and of all types in it, by name, as JSON represents them."""
    known, found, pending = _store(store).fielddefs, {}, [name]
    while pending:
        if (one := pending.pop()) not in found:
            found[one] = known[one][1]
            pending += [part for part in _strings(known[one][1]) if part in known]
    return json.loads(json.dumps(found))


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, list | tuple):
        for part in node:
            yield from _strings(part)
