"""ROS parameters from the option dataclasses, which define name, default, description and limits."""

from __future__ import annotations

import dataclasses
import difflib
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from raymap3r_ros.errors import OptionError
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.options import Options, build_options, limits_text, option_fields
from raymap3r_ros.streaming.stream_options import STREAM_PRESETS, StreamOptions

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
# The parameter table of docs/ros.md is between these lines.
TABLE_START = "<!-- parameters, written by raymap3r_ros.node.parameters.insert_table -->"
TABLE_END = "<!-- end of parameters -->"


def declare(node: Node, *options: type) -> None:
    """Declare a parameter for every option.

    A bad value from a launch file or the command line does not fail here. `read` raises an error for it, so that the
    user gets one clear message from the transition that needs the value.
    """
    for kind in options:
        for name, item in option_fields(kind):
            # With static typing, `20` for a double, or any wrong type, would raise an exception in the constructor.
            node.declare_parameter(name, item.default, ParameterDescriptor(dynamic_typing=True))
            try:
                node.set_descriptor(name, _descriptor(item))
            except InvalidParameterValueException:
                node.set_descriptor(name, _descriptor(item, with_range=False))
            given = node.get_parameter(name)
            (conforming,) = conform([given], kind)
            if conforming is not given:
                node.set_parameters([conforming])


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
    """Raise OptionError if the parameters cannot be used after `changes` (parameter name -> value).

    If they cannot be used before either, only `changes` are checked: otherwise several wrong values could not be
    corrected one by one.
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


def conform(changes: list[Parameter], *options: type) -> list[Parameter]:
    """The changes with whole numbers as doubles where the option is one, so that a parameter keeps its type."""
    doubles = {name for kind in options for name, item in option_fields(kind) if type(item.default) is float}
    return [
        Parameter(change.name, value=float(change.value))
        if change.name in doubles and type(change.value) is int
        else change
        for change in changes
    ]


def refusal(node: Node, changes: list[Parameter], *options: type) -> str:
    """Why the parameters cannot change now, because the network is loaded; "" if they can."""
    fixed = {name for kind in options for name, item in option_fields(kind) if not item.metadata["live"]}
    locked = [one.name for one in changes if one.name in fixed and node.describe_parameter(one.name).read_only]
    if not locked:
        return ""
    return f"{', '.join(locked)}: read-only from configure to cleanup; request the transition cleanup first"


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The options that differ between two instances of a dataclass of options, as "name old -> new"."""
    found = []
    for item in dataclasses.fields(old):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if not item.metadata:
            found += differences(before, after, f"{prefix}{item.name}.")
        elif before != after:
            found.append(f"{prefix}{item.name} {before} -> {after}")
    return found


def unknown_overrides(node: Node) -> list[str]:
    """A line for each parameter that was given to the node and that it does not have, with the nearest name."""
    known = set(node.list_parameters([], 0).names)
    lines = []
    for name in sorted(set(getattr(node, "_parameter_overrides", {})) - known):  # rclpy has no public access to them
        if name.startswith("qos_overrides."):
            continue
        near = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else "`ros2 param list` names the parameters that it has"
        lines.append(f"the parameter {name!r} is ignored: the node has no such parameter; {hint}")
    return lines


def lock(node: Node, locked: bool, *options: type) -> None:
    """Make every option that cannot change while the network is loaded read-only, or writable again."""
    for kind in options:
        for name, item in option_fields(kind):
            if not item.metadata["live"]:
                # This is the descriptor that the node uses. `set_descriptor` cannot change a read-only parameter.
                node.describe_parameter(name).read_only = locked


def yaml_file(title: str, *options: Any) -> str:
    """The text of a parameter file: every option of the given dataclasses with its value and a comment."""
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


def parameter_table(*options: type) -> str:
    """The Markdown table of all parameters; those that can change while the node runs are marked with an asterisk.

    Args:
        options: dataclasses of options; by default all of the node.
    """
    rows = ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
    for kind in options or (NodeOptions, StreamOptions):
        for name, item in option_fields(kind):
            mark = "\\*" if item.metadata["live"] else ""
            default = item.default if isinstance(item.default, str) and item.default else json.dumps(item.default)
            choices = item.metadata["choices"]
            allowed = ", ".join(f"`{choice}`" for choice in choices) if choices else _constraints(item)
            cells = f"`{name}`{mark}", f"`{default}`", allowed, item.metadata["help"]
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def insert_table(page: str) -> str:
    """The text of docs/ros.md with a new parameter table. Raises ValueError if it has no lines for its place."""
    before, found, rest = page.partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    if not (found and end):
        raise ValueError(f"the page has no table between {TABLE_START!r} and {TABLE_END!r}")
    return f"{before}{TABLE_START}\n\n{parameter_table()}\n{TABLE_END}{after}"


def _descriptor(item: dataclasses.Field, with_range: bool = True) -> ParameterDescriptor:
    meta = item.metadata
    descriptor = ParameterDescriptor(
        description=meta["help"], additional_constraints=_constraints(item), dynamic_typing=True
    )
    if with_range and meta["low"] is not None:
        low, high = 0 if meta["or_zero"] else meta["low"], meta["high"]  # a range has no gap
        if isinstance(item.default, int):
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
        else:
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    return descriptor


def _constraints(item: dataclasses.Field) -> str:
    meta = item.metadata
    if meta["choices"]:
        return "one of: " + ", ".join(meta["choices"])
    return limits_text(item)


def _typed(name: str, value: Any, item: dataclasses.Field) -> Any:
    kind = type(item.default)
    if kind is float and type(value) is int:
        return float(value)
    if value is False and "off" in item.metadata["choices"]:
        return "off"  # YAML reads an unquoted off as false, also after -p on a command line
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
