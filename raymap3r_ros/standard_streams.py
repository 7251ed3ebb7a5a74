"""Standard output and error that no command depends on: its results are files."""

from __future__ import annotations

import os
from typing import Any, TextIO


class SteadyStream:
    """A text stream that drops everything after it could not be written to, such as a pipe whose reader has ended."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: None if it was closed before the start of the process."""
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        self.error: OSError | None = None  # the first one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = error
        # Python writes what is still buffered at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def reserve_standard_descriptors() -> None:
    """Open closed standard descriptors: otherwise the next opened file gets such a number, and all that is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
