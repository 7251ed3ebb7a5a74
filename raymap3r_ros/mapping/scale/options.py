"""Options of the metric scale."""

from __future__ import annotations

from dataclasses import dataclass

from raymap3r_ros.mapping.scale.method import MAX_FACTOR
from raymap3r_ros.mapping.scale.source import find_sources
from raymap3r_ros.options import check_options, option

FIXED = "fixed"
SOURCES = find_sources()


@dataclass(frozen=True)
class ScaleOptions:
    """How the network's unit of length is converted to metres."""

    source: str = option(
        FIXED,
        f"where the metric scale comes from: {FIXED} (scale.value), "
        + ", ".join(f"{name} ({source.help})" for name, source in SOURCES.items()),
        choices=(FIXED, *SOURCES),
    )
    value: float = option(
        1.0,
        f"factor from the network's unit of length to metres; with a source other than {FIXED}, used until that "
        "source has determined the factor",
        low=1 / MAX_FACTOR,
        high=MAX_FACTOR,
        live=True,
    )
    camera_height: float = option(
        0.0,
        "height of the camera above the floor, metres; required for source height",
        low=0.0,
        high=1000.0,
        live=True,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.source in SOURCES:
            SOURCES[self.source].check(self)
