"""Foreign text, such as names in messages and files, in logs, errors and terminals: escaped, cut and throttled."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable

LONGEST_TEXT = 1000  # characters of a log line
LONGEST_ERROR = 100_000  # characters of an error on a terminal: a foreign checkpoint has an error in every tensor
MAX_LISTED = 2000  # names in one error
THROTTLE = 5.0  # seconds between two lines about the same problem
MAX_PROBLEMS = 100  # kinds of problems that are remembered: foreign text can cause new ones without end
MAX_LINES = 20  # about all problems together, in THROTTLE seconds

_NUMBER = re.compile(r"[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|\b(?:nan|inf)\b)")
# A line break that starts an indented line, as in the lists of our own errors: no such line passes for another error.
_INDENTED = re.compile(r"\n(?=  )")


def printable(text: object, longest: int = LONGEST_TEXT, *, lines: bool = False) -> str:
    r"""`text` with control, direction and other invisible characters escaped (\x1b, \u202e), at most `longest` long.

    The middle of a longer text is left out: the end of a message is what to do. With `lines`, line breaks before
    indented lines are kept.
    """
    text = _shortened(str(text), longest)
    if text.isprintable():
        return text
    parts = _INDENTED.split(text) if lines else [text]
    return _shortened("\n".join(map(_escaped, parts)), longest)


def _escaped(text: str) -> str:
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    gap = f" ... ({len(text)} characters) ... "
    end = max(longest - len(gap), 2) // 3
    return f"{text[: 2 * end]}{gap}{text[-end:]}"


def listing(names: Iterable[object], most: int = MAX_LISTED) -> str:
    """The first names in a row and the number of the others, for an error about all of them."""
    names = list(names)
    shown = ", ".join(printable(name, 200) for name in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return printable(shown, LONGEST_ERROR // 2) + more


def with_details(text: object, details: str) -> str:
    """A log message with a traceback, whose lines are indented so that none of them passes for another message."""
    indented = "\n" + details.strip("\n")
    return printable(text) + printable(indented.replace("\n", "\n  "), 10 * LONGEST_TEXT, lines=True)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 frame", "2 frames"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size_text(count: float) -> str:
    """A number of bytes, in decimal units: 1.50 GB, 12.0 MB, 67.0 kB."""
    size, unit = next(
        (size, unit) for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= size or unit == "kB"
    )
    return f"{count / size:.{2 if unit == 'GB' else 1}f} {unit}"


class Throttle:
    """Decides which of several lines about the same problem are written. Safe to use from several threads."""

    def __init__(self) -> None:
        self._last: dict[str, list[float]] = {}
        self._lines: list[float] = []  # times of the last lines
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of kinds of problems that are remembered."""
        return len(self._last)

    def permits(self, problem: str, interval: float = THROTTLE, burst: int = 1) -> bool:
        """Whether a line is to be written: `burst` lines of a problem in `interval` seconds, and MAX_LINES of all.

        Texts that differ only in numbers are the same problem.
        """
        problem, now = _NUMBER.sub("#", problem), time.monotonic()
        with self._lock:
            self._lines = [one for one in self._lines if now - one < interval]
            last = [one for one in self._last.get(problem, ()) if now - one < interval]
            if len(last) >= burst or len(self._lines) >= MAX_LINES:
                return False
            if len(self._last) >= MAX_PROBLEMS:
                self._last.clear()
            self._last[problem] = [*last, now]
            self._lines.append(now)
            return True


class PrintableFormatter(logging.Formatter):
    """Formats log records for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without control characters."""
        return printable(super().format(record), lines=True)


class RepeatFilter(logging.Filter):
    """Drops records that repeat a message with other arguments more than 20 times in THROTTLE seconds.

    The first that is dropped is replaced by a note.
    """

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle()
        self._noted: set[str] = set()  # problems whose last record was dropped

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        problem = f"{record.name}: {record.msg}"
        if self._throttle.permits(problem, burst=MAX_LINES):
            self._noted.discard(problem)
            return True
        if problem in self._noted or len(self._noted) >= MAX_PROBLEMS:
            return False
        self._noted.add(problem)
        record.msg, record.args = f"more messages like the last ones are not shown for up to {THROTTLE:.0f} s", ()
        return True
