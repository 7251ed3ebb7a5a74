"""Options as dataclass fields that carry their own help text, allowed values and limits.

ROS parameters, command-line arguments and config/stream.yaml are generated from these fields. A field whose type is
itself a dataclass of options is a group: the field `stride` of the field `points` has the name `points.stride`.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import numpy as np

from raymap3r_ros.errors import OptionError

Options = TypeVar("Options")


def option(
    default: Any,
    help: str,
    *,
    choices: Collection[str] = (),
    low: float | None = None,
    high: float | None = None,
    or_zero: bool = False,
    live: bool = False,
) -> Any:
    """Return a dataclass field with a help text and its `choices` or its limits `low` and `high`.

    `or_zero`: 0 is allowed too, with a meaning of its own. `live`: the value may change while the node is configured.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "or_zero": or_zero, "live": live}
    return dataclasses.field(default=default, metadata=metadata)


def check_options(options: Any) -> None:
    """Raise OptionError with the allowed values if a field made by `option` is outside its limits."""
    for item in dataclasses.fields(options):
        value, meta = getattr(options, item.name), item.metadata
        if not meta:
            continue
        if not _has_type_of(item.default, value):
            raise OptionError(f"{item.name} is {value!r}, a {type(value).__name__}; as a value: {item.default!r}")
        if meta["choices"] and value not in meta["choices"]:
            allowed = ", ".join(str(choice) for choice in meta["choices"])
            raise OptionError(f"{item.name} is {value!r}; allowed values: {allowed}")
        if meta["low"] is not None and not (meta["low"] <= value <= meta["high"] or (meta["or_zero"] and value == 0)):
            raise OptionError(f"{item.name} is {value!r}; allowed range: {limits_text(item)}")


def _has_type_of(default: Any, value: Any) -> bool:
    """Whether a value is of the type of the default: a whole number also instead of a float, NumPy's types too."""
    kinds = {bool: (bool, np.bool_), int: numbers.Integral, float: numbers.Real, str: str}
    kind = kinds.get(type(default), object)
    return isinstance(value, kind) and (type(default) is bool or not isinstance(value, bool))


def limits_text(item: dataclasses.Field) -> str:
    """Return the allowed numbers of an option, as "0 to 1"; "" if it has no limits."""
    meta = item.metadata
    if meta["low"] is None:
        return ""
    return f"{f'{item.default * 0}, or ' if meta['or_zero'] else ''}{meta['low']} to {meta['high']}"


def option_fields(options: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Yield the full name and the field of every option of a dataclass, including those in groups."""
    for item in dataclasses.fields(options):
        if item.metadata:
            yield prefix + item.name, item
        else:
            yield from option_fields(item.default_factory, f"{prefix}{item.name}.")


def build_options(
    options: type[Options], value_of: Callable[[str, dataclasses.Field], Any], prefix: str = ""
) -> Options:
    """Return an `options` instance; `value_of(full name, field)` supplies each value.

    Raises OptionError with the full name of the option.
    """
    values = {
        item.name: value_of(prefix + item.name, item)
        if item.metadata
        else build_options(item.default_factory, value_of, f"{prefix}{item.name}.")
        for item in dataclasses.fields(options)
    }
    try:
        return options(**values)
    except OptionError as error:
        # The dataclass itself cannot add the name of its group.
        raise OptionError(str(error) if str(error).startswith(prefix) else f"{prefix}{error}") from None
