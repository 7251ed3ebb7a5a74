"""What an evaluation runs: variants of the method, and how sequences are run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from raymap3r_ros.errors import OptionError
from raymap3r_ros.options import build_options
from raymap3r_ros.streaming import METHOD, RULES, StreamOptions
from raymap3r_ros.streaming.method import Method
from raymap3r_ros.streaming.stream_options import KeyframeOptions, check_known_poses, uses_keyframes

Setup = tuple[StreamOptions, str, Method]  # options, the poses that are given, and the constants


@dataclass(frozen=True)
class Variant:
    """One configuration of the stream: a line of the tables."""

    name: str
    kind: str  # "rule", "ablation" or "poses"
    options: StreamOptions
    baseline: str  # name of the variant to compare with
    poses: str = "none"  # given to the stream: "none", "exact", or "noisy", see `trajectory.drifting`
    method: Method = METHOD

    def setup(self, length: int) -> Setup:
        """What the result over `length` frames depends on: variants with equal setups run once."""
        options, method = in_effect(self.options, length), self.method
        if not uses_keyframes(options):
            method = dataclasses.replace(method, rehearsed_keyframes=METHOD.rehearsed_keyframes)
        return options, self.poses, method

    def settings(self) -> dict[str, Any]:
        """The options, and as `method` the constants that differ from the usual ones."""
        usual = dataclasses.asdict(METHOD)
        changed = {name: value for name, value in dataclasses.asdict(self.method).items() if value != usual[name]}
        return dataclasses.asdict(self.options) | ({"method": changed} if changed else {})


@dataclass(frozen=True)
class EvaluationPlan:
    """How sequences are run, for all variants."""

    frames: int = 0  # maximum per sequence; 0 = all
    batch: int = 8  # maximum number of sequences of one length and image size in a batch
    workers: int = 1  # batches that run concurrently, in threads
    known_intrinsics: bool = True  # pass the true intrinsics to the stream if there are any
    judged_frames: int = 200  # maximum number of evenly spaced frames whose maps are scored
    depth_cap: float | None = None  # metres; larger true depths are ignored
    reconstruction: bool = False  # also score the cloud of static pixels
    cloud_crop: int = 0  # edge of the central square of the image used for clouds, pixels; 0 = the whole image

    def __post_init__(self) -> None:
        for name, least in (("frames", 0), ("batch", 1), ("workers", 1), ("judged_frames", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; allowed: {least} and more")


def rule_variants(options: StreamOptions, rules: Iterable[str] = RULES) -> list[Variant]:
    """One variant per update rule, otherwise as in `options`. Raises OptionError for an unknown rule."""
    return [Variant(rule, "rule", dataclasses.replace(options, update_rule=rule), "cut3r") for rule in rules]


def pose_variants(options: StreamOptions, rules: Iterable[str] = RULES) -> list[Variant]:
    """Two variants per update rule, with exact and with drifting poses given; the network's pose is scored.

    Raises OptionError if poses cannot be given with these options.
    """
    check_known_poses(options)
    return [
        Variant(
            f"{rule}, {poses} poses",
            "poses",
            dataclasses.replace(options, update_rule=rule, published_pose="network"),
            rule,
            poses,
        )
        for rule in rules
        for poses in ("exact", "noisy")
    ]


# Changes of each ablation to the options of the run, and with the prefix `method.` to the constants. The first add the
# parts of the method one by one, as in the published ablation (columns 3 and 4 each on top of the dual branch), and
# then the keyframes; the others replace single parts.
BASE = "base"
_SINGLE = {  # segments are aligned by a single frame
    "update_rule": "raymap3r", "smoothing": "tied", "reset_alignment": "robust", "keyframes.size": 0, "router": "off",
}  # fmt: skip
_FULL = {**_SINGLE, "keyframes.size": KeyframeOptions.size}
ABLATIONS: dict[str, dict[str, Any]] = {
    BASE: {**_SINGLE, "update_rule": "cut3r", "smoothing": "off", "reset_alignment": "off"},
    "dual branch": {**_SINGLE, "smoothing": "off", "reset_alignment": "off"},
    "dual, alignment": {**_SINGLE, "smoothing": "off"},
    "dual, smoothing": {**_SINGLE, "reset_alignment": "off"},
    "all": _FULL,
    "all, no keyframes": _SINGLE,
    "all, 4 rehearsed": {**_FULL, "method.rehearsed_keyframes": 4},
    "all, 16 rehearsed": {**_FULL, "method.rehearsed_keyframes": 16},
    "all, no relocalisation": {**_FULL, "keyframes.relocalize": False},
    "all, published alignment": {**_SINGLE, "reset_alignment": "published"},
    "all, published smoothing": {**_FULL, "smoothing": "published"},
    "all, adaptive router": {**_FULL, "router": "adaptive"},
    "all, published router": {**_FULL, "router": "published"},
    "all, raster pooling": {**_FULL, "token_pooling": "raster"},
    "all, published mask": {**_FULL, "mask.kind": "published"},
    "all, no resets": {**_SINGLE, "reset_interval": 0},
}


def ablation_variants(options: StreamOptions) -> list[Variant]:
    """The variants of ABLATIONS, otherwise as in `options`."""

    def changed(changes: dict[str, Any]) -> StreamOptions:
        return build_options(StreamOptions, lambda name, _: changes.get(name, attrgetter(name)(options)))

    def constants(changes: dict[str, Any]) -> Method:
        prefix = "method."
        return dataclasses.replace(
            METHOD, **{name.removeprefix(prefix): value for name, value in changes.items() if name.startswith(prefix)}
        )

    return [
        Variant(name, "ablation", changed(changes), BASE, method=constants(changes))
        for name, changes in ABLATIONS.items()
    ]


def in_effect(options: StreamOptions, length: int) -> StreamOptions:
    """Equal options for all that differ only in resets after the end of `length` frames, or in unused keyframes.

    Without a jump of the stamps no camera is relocalised.
    """
    options = dataclasses.replace(options, keyframes=dataclasses.replace(options.keyframes, relocalize=True))
    if not 0 < options.reset_interval < length:
        options = dataclasses.replace(options, reset_interval=0, reset_alignment=StreamOptions.reset_alignment)
    return options if uses_keyframes(options) else dataclasses.replace(options, keyframes=KeyframeOptions(size=0))
