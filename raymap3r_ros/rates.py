"""Rates with significant digits: a fixed number of decimals shows a slow machine's rate as 0.0."""

from __future__ import annotations


def significant(value: float) -> str:
    """`value` with three significant digits, without an exponent and with all digits before the point: "0.0811"."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def rate_text(rate: float) -> str:
    """A rate in frames per second to print: "23.1 frames/s", or "0.0811 frames/s (12.3 s a frame)" below one."""
    text = f"{significant(rate)} frames/s"
    return f"{text} ({significant(1 / rate)} s a frame)" if 0 < rate < 1 else text


def rounded(value: float) -> float:
    """`value` rounded to five significant digits, for JSON files."""
    return float(f"{value:.5g}")
