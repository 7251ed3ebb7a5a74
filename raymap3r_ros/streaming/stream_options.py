"""What a user may choose about a stream. The constants of the method are in `method`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymap3r_ros.errors import OptionError
from raymap3r_ros.options import build_options, check_options, option
from raymap3r_ros.streaming.gates import RULES


@dataclass(frozen=True)
class MaskOptions:
    """How the dynamic mask is computed (see `streaming.mask`)."""

    kind: str = option(
        "absolute",
        "`absolute`: pixels that are nearer than the static scene by more than the noise, see the options below; "
        "`published`: pixels with a staticness below one half, about half of every image",
        choices=("absolute", "published"),
        live=True,
    )
    high: float = option(
        4.25,
        "a region is surely dynamic if its mean is this many noise units nearer than the static scene",
        low=0.0,
        high=1000.0,
        live=True,
    )
    low: float = option(
        1.5,
        "a pixel above this many noise units is dynamic if it touches a surely dynamic region",
        low=0.0,
        high=1000.0,
        live=True,
    )
    # Chosen with the shipped weights on suite `tune`: at the edges of static objects the two branches differ by more
    # than noise.
    min_ratio: float = option(
        0.3, "smallest relative depth difference that counts as motion", low=0.0, high=10.0, live=True
    )
    noise_floor: float = option(
        0.02,
        "smallest noise unit, as a relative depth difference",
        low=1e-4,
        high=1.0,
        live=True,
    )
    reach: int = option(
        12,
        "how far a surely dynamic region may grow through weaker pixels, in steps of 1/64 of the image's long edge",
        low=0,
        high=200,
        live=True,
    )
    min_width: int = option(
        3,
        "specks and holes narrower than this are removed, in 1/128 of the image's long edge (odd; 1 = keep all)",
        low=1,
        high=31,
        live=True,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.low > self.high:
            raise OptionError(f"mask.low is {self.low}, above mask.high {self.high}; allowed: low <= high")
        if self.min_width % 2 == 0:
            raise OptionError(f"mask.min_width is {self.min_width}; allowed: odd numbers")


@dataclass(frozen=True)
class KeyframeOptions:
    """Stored frames that a new memory sees again at each reset (see `streaming.keyframes`)."""

    size: int = option(
        32,
        "number of stored frames that tie the segments together, in a stream with resets and reset_alignment robust; "
        "0 = none: each segment is tied to the last one by a single frame",
        low=0,
        high=1000,
    )
    relocalize: bool = option(
        True,
        "after a jump of the stamps, search for the camera among the keyframes of earlier worlds, and continue there",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class StreamOptions:
    """How one stream is run. The defaults are for a live robot; `published` gives the switches of the paper's code."""

    image_size: int = option(
        0, "long edge of the preprocessed image, pixels; 0 = the size the network was trained on", low=0, high=4096
    )
    precision: str = option(
        "float32",
        "arithmetic of encoders and decoder (heads are always float32)",
        choices=("float32", "bfloat16", "float16"),
    )
    execution: str = option(
        "auto",
        "how a frame runs: on a GPU `graph`, one recorded CUDA graph, or `compile`, the same with kernels compiled "
        "for this network at the start, which takes minutes (on a CPU too, without any gain); on a CPU `onnx`, one "
        "graph for ONNX Runtime (needs the packages onnx and onnxruntime), or `trace`, one TorchScript graph, which "
        "take seconds to record and pay for small networks in float32; `plain`, operation by operation; `auto`: graph "
        "on a GPU, plain on a CPU, and in a node of one camera onnx if installed, else trace, for small networks",
        choices=("auto", "graph", "compile", "onnx", "trace", "plain"),
    )
    update_rule: str = option("raymap3r", "how much of a frame each state token takes in", choices=RULES)
    router: str = option(
        "off",
        "disable gate and smoothing while the camera rotates fast: `adaptive` decides from the last frames, "
        "`published` decides once at frame 20 as the paper's code does",
        choices=("off", "adaptive", "published"),
    )
    smoothing: str = option(
        "tied",
        "smoothing of the position: `tied` to the predicted one, or `published` (state-aware, integrates steps)",
        choices=("off", "tied", "published"),
    )
    reset_interval: int = option(
        100, "frames between two resets of state and pose memory; 0 = never", low=2, high=1_000_000, or_zero=True
    )
    reset_alignment: str = option(
        "robust",
        "how the new segment is aligned at a reset: `robust`, by the camera's poses and a robust scale; `published`, "
        "by fitting the point clouds to each other; `off`, not at all: the camera starts again at the origin",
        choices=("robust", "published", "off"),
    )
    published_pose: str = option(
        "given",
        "pose of a frame whose camera pose is known: the `given` one, and in frames without one the last given pose "
        "continued by the predicted motion; or the one that the `network` predicts",
        choices=("given", "network"),
    )
    ray_interval: int = option(
        1,
        "run the ray branch in every n-th frame: the frames in between take less time, have no dynamic mask, and are "
        "gated by the last known staticness",
        low=1,
        high=1000,
    )
    token_pooling: str = option(
        "patch",
        "pixels that an image token's discrepancy is averaged over: its own `patch`, or the published `raster` run",
        choices=("patch", "raster"),
    )
    keyframes: KeyframeOptions = field(default_factory=KeyframeOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def published(cls, **changes: Any) -> StreamOptions:
        """The switches of the published code (arXiv 2603.20588) with `changes` by field name."""
        return dataclasses.replace(preset_options("published"), **changes)


# Options by their full names that differ from the defaults.
STREAM_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": {
        "router": "published",
        "smoothing": "published",
        "reset_alignment": "published",
        "keyframes.size": 0,
        "token_pooling": "raster",
        "mask.kind": "published",
    },
}


def check_known_poses(options: StreamOptions) -> None:
    """Raise OptionError if camera poses cannot be given to a stream with these options."""
    if options.reset_alignment == "off" and options.reset_interval:
        raise OptionError(
            "reset_alignment is off, so each reset starts a new world, and given poses have no fixed place in it; "
            "allowed with given poses: robust, published, or reset_interval 0"
        )


def preset_option(note: str) -> Any:
    """A field for the name of a preset; `note` explains how it combines with single options."""
    changes = ", ".join(f"{name} {value}" for name, value in STREAM_PRESETS["published"].items())
    return option(
        "default", f"`published`: the switches of the published code ({changes}); {note}", choices=STREAM_PRESETS
    )


def preset_options(preset: str, given: Mapping[str, Any] | None = None) -> StreamOptions:
    """The options of a preset, except those `given` by full name (`mask.kind`); other names in `given` are ignored.

    Raises OptionError for an unknown preset and for values that are not allowed.
    """
    if preset not in STREAM_PRESETS:
        raise OptionError(f"preset is {preset!r}; allowed values: {', '.join(STREAM_PRESETS)}")
    values = {**STREAM_PRESETS[preset], **(given or {})}
    return build_options(StreamOptions, lambda name, item: values.get(name, item.default))


def uses_keyframes(options: StreamOptions) -> bool:
    """Whether a stream with these options stores keyframes."""
    return options.keyframes.size > 0 and options.reset_interval > 0 and options.reset_alignment == "robust"


def check_keyframes(options: StreamOptions) -> None:
    """Raise OptionError if a stream with these options has no keyframes, so that its world cannot be saved."""
    if not uses_keyframes(options):
        raise OptionError(
            f"keyframes.size is {options.keyframes.size}, reset_interval {options.reset_interval}, reset_alignment "
            f"{options.reset_alignment}, but a saved world consists of keyframes; allowed: sizes and intervals above "
            "0, and robust"
        )


def searches(options: StreamOptions) -> bool:
    """Whether a stream with these options searches for its camera in other worlds."""
    return uses_keyframes(options) and options.keyframes.relocalize


def check_search(options: StreamOptions) -> None:
    """Raise OptionError if a stream with these options cannot search for its camera in a saved world."""
    check_keyframes(options)
    if not options.keyframes.relocalize:
        raise OptionError(
            "keyframes.relocalize is false, but the camera is to be searched for in another world; allowed with one: "
            "true"
        )
