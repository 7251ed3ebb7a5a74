"""Tables as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return lines of cells in aligned columns, for a terminal. An empty line stays empty.

    `right`: indices of columns that are aligned to the right.
    """
    widths = _widths(lines)
    return "\n".join("  ".join(_aligned(line, widths, right)).rstrip() for line in lines)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a Markdown table; the first line is the header."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    widths = _widths(lines)
    return "\n".join("| " + " | ".join(_aligned(line, widths)) + " |" for line in lines)


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    columns = max(len(line) for line in lines)
    return [max(len(line[column]) for line in lines if column < len(line)) for column in range(columns)]


def _aligned(line: Sequence[str], widths: Sequence[int], right: Collection[int] = ()) -> list[str]:
    return [
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=False))
    ]
