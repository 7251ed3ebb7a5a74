"""The lines of the doctor's report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.text import printable

OK, WARNING, FAIL = "ok", "warning", "FAIL"
_ORDER = (OK, WARNING, FAIL)


@dataclass(frozen=True)
class Target:
    """The use that the machine is checked for."""

    checkpoint: str
    options: StreamOptions
    device: torch.device


@dataclass(frozen=True)
class Line:
    """One finding."""

    check: str  # the check's module in this room
    name: str
    state: str  # OK, WARNING or FAIL
    found: str
    remedy: str = ""  # what to do, unless the state is OK
    values: Mapping[str, Any] = field(default_factory=dict)  # numbers and names for the JSON report

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return dataclasses.asdict(self)


def worst(lines: Iterable[Line]) -> str:
    """The most serious state of all lines; OK if there is none."""
    return max((line.state for line in lines), key=_ORDER.index, default=OK)


def guarded(check: str, name: str, function: Callable[[], Iterable[Line]]) -> Iterator[Line]:
    """The lines of one part. An exception in it is a FAIL line with its text, and the other parts continue."""
    try:
        yield from function()
    except Exception as error:
        text = printable(f"{type(error).__name__}: {error}", 400)
        remedy = "report this line with the whole output of `raymap3r doctor` (CONTRIBUTING.md)"
        if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
            remedy = "end other programs that use this device, or choose a smaller --size or --precision bfloat16"
        yield Line(check, name, FAIL, text, remedy)
