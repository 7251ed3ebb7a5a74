"""ROS parameters made from the option dataclasses: name, default, description and limits are written once, there."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node

from raymap3r_ros.errors import OptionError
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.options import Options, build_options, option_fields
from raymap3r_ros.streaming.stream_options import STREAM_PRESETS, StreamOptions

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def declare(node: Node, *options: type) -> None:
    """Declare a parameter for every option.

    A bad value from a launch file or the command line does not fail here: `read` refuses it, so that the user gets
    one clear message from the transition that needs the value.
    """
    for kind in options:
        for name, item in option_fields(kind):
            # Static typing would turn `20` for a double, or any wrong type, into an exception of the constructor.
            node.declare_parameter(name, item.default, ParameterDescriptor(dynamic_typing=True))
            try:
                node.set_descriptor(name, _descriptor(item))
            except InvalidParameterValueException:
                node.set_descriptor(name, _descriptor(item, with_range=False))


def read(node: Node, options: type[Options], changes: dict[str, Any] | None = None) -> Options:
    """The parameters' values after `changes` (parameter name -> value).

    rclpy does not distinguish explicit values from defaults, so options of the stream that have their default value
    are replaced by those of the preset. Raises OptionError with the parameter, its value and what is allowed.
    """
    changes = changes or {}

    def raw(name: str) -> Any:
        return changes[name] if name in changes else node.get_parameter(name).value

    # An unknown preset is refused where NodeOptions are read.
    preset = STREAM_PRESETS.get(str(raw("preset")), {}) if options is StreamOptions else {}

    def value_of(name: str, item: dataclasses.Field) -> Any:
        value = _typed(name, raw(name), item)
        return preset.get(name, value) if value == item.default else value

    return build_options(options, value_of)


def check_change(node: Node, options: type[Options], changes: dict[str, Any]) -> None:
    """Raise OptionError where the parameters cannot be used any more after `changes` (parameter name -> value).

    While they cannot be used anyway, `changes` are looked at by themselves: else none of several wrong values could
    be put right before the others.
    """
    try:
        read(node, options, changes)
    except OptionError:
        try:
            read(node, options)
        except OptionError:
            build_options(options, lambda name, item: _typed(name, changes.get(name, item.default), item))
        else:
            raise


def lock(node: Node, locked: bool, *options: type) -> None:
    """Make every option that cannot change while the network is loaded read-only, or free it again."""
    for kind in options:
        for name, item in option_fields(kind):
            if not item.metadata["live"]:
                # The node hands out the descriptor it goes by; `set_descriptor` cannot free a read-only parameter.
                node.describe_parameter(name).read_only = locked


def yaml_file(title: str, *options: Any) -> str:
    """The text of a parameter file: every option of the dataclasses given with its value and one comment."""
    lines = [
        f"# {title}",
        "# ros2 launch raymap3r_ros stream.launch.py params_file:=my_copy_of_this.yaml",
        "/**:",
        "  ros__parameters:",
    ]
    for one in options:
        lines += _yaml_lines(one, "    ")
    return "\n".join(lines) + "\n"


def default_yaml_file() -> str:
    """The text of config/stream.yaml."""
    return yaml_file("Parameters of the stream node, with their defaults.", NodeOptions(), StreamOptions())


def _descriptor(item: dataclasses.Field, with_range: bool = True) -> ParameterDescriptor:
    meta = item.metadata
    descriptor = ParameterDescriptor(
        description=meta["help"], additional_constraints=_constraints(item), dynamic_typing=True
    )
    if with_range and meta["low"] is not None:
        if isinstance(item.default, int):
            descriptor.integer_range = [IntegerRange(from_value=meta["low"], to_value=meta["high"])]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(meta["low"]), to_value=float(meta["high"]))
            ]
    return descriptor


def _constraints(item: dataclasses.Field) -> str:
    meta = item.metadata
    if meta["choices"]:
        return "one of: " + ", ".join(meta["choices"])
    return "" if meta["low"] is None else f"{meta['low']} to {meta['high']}"


def _typed(name: str, value: Any, item: dataclasses.Field) -> Any:
    kind = type(item.default)
    if kind is float and type(value) is int:
        return float(value)
    if value is False and "off" in item.metadata["choices"]:
        return "off"  # what YAML makes of an unquoted off, also after -p on a command line
    if type(value) is not kind:
        raise OptionError(f"{name} is {value!r}; allowed: {TYPE_NAMES[kind]}")
    return value


def _yaml_lines(options: Any, indent: str) -> Iterator[str]:
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if item.metadata:
            constraints = _constraints(item)
            comment = item.metadata["help"] + (f" ({constraints})" if constraints else "")
            yield from textwrap.wrap(comment, 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            yield f"{indent}{item.name}: {json.dumps(value)}"
        else:
            yield f"{indent}{item.name}:"
            yield from _yaml_lines(value, indent + "  ")
