"""Options that know their meaning.

An option is a dataclass field made by `option`: it carries help, allowed values and limits as metadata. ROS
parameters and command-line arguments are made from it, so nothing is written twice. A field that is a dataclass of
options itself is a group: field `stride` of field `points` is called `points.stride`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from raymap3r_ros.errors import OptionError

Options = TypeVar("Options")


def option(
    default: Any,
    help: str,
    *,
    choices: Collection[str] = (),
    low: float | None = None,
    high: float | None = None,
    live: bool = False,
) -> Any:
    """A dataclass field that knows its meaning, its `choices` or limits, and whether it may change while running."""
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "live": live}
    return dataclasses.field(default=default, metadata=metadata)


def check_options(options: Any) -> None:
    """Raise OptionError, naming the allowed values, where a field made by `option` breaks its own limits."""
    for item in dataclasses.fields(options):
        value, meta = getattr(options, item.name), item.metadata
        if not meta:
            continue
        if meta["choices"] and value not in meta["choices"]:
            allowed = ", ".join(str(choice) for choice in meta["choices"])
            raise OptionError(f"{item.name} is {value!r}; allowed values: {allowed}")
        if (meta["low"] is not None or meta["high"] is not None) and not (
            (meta["low"] is None or value >= meta["low"]) and (meta["high"] is None or value <= meta["high"])
        ):
            raise OptionError(f"{item.name} is {value!r}; allowed range: {meta['low']} to {meta['high']}")


def option_fields(options: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Name and field of every option of a dataclass, groups unfolded."""
    for item in dataclasses.fields(options):
        if item.metadata:
            yield prefix + item.name, item
        else:
            yield from option_fields(item.default_factory, f"{prefix}{item.name}.")


def build_options(
    options: type[Options], value_of: Callable[[str, dataclasses.Field], Any], prefix: str = ""
) -> Options:
    """A dataclass of options from the value of each, by name and field. Raises OptionError with the full name."""
    values = {
        item.name: value_of(prefix + item.name, item)
        if item.metadata
        else build_options(item.default_factory, value_of, f"{prefix}{item.name}.")
        for item in dataclasses.fields(options)
    }
    try:
        return options(**values)
    except OptionError as error:
        # A dataclass knows its fields' names, not the group that it is in.
        raise OptionError(str(error) if str(error).startswith(prefix) else f"{prefix}{error}") from None
