"""What a user may choose about the node, beside the options of the stream itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import DEFAULT_CHECKPOINT
from raymap3r_ros.options import check_options, option


@dataclass(frozen=True)
class PointsOptions:
    """The point cloud of one frame."""

    stride: int = option(1, "take every so-many-th row and column of the depth image", low=1, high=64, live=True)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class NodeOptions:
    """What the node takes in, what it puts out, and in which frames."""

    checkpoint: str = option(
        DEFAULT_CHECKPOINT,
        "weights: path of a .safetensors or .pth file, the name of weights that come with the package, or of a preset "
        "(untrained, only to try things out)",
    )
    device: str = option("auto", "where the network runs: auto (a GPU where there is one), cpu, cuda or cuda:N")
    image_transport: str = option(
        "raw", "topic that images are taken from: `image` (raw) or `image/compressed`", choices=("raw", "compressed")
    )
    every_frame: bool = option(
        False, "replay: take every frame in order (reliable, queue of 100) instead of the newest one"
    )
    max_gap: float = option(
        2.0,
        "images stamped further apart than this many seconds, or going back in time, start a new scene",
        low=0.01,
        high=86_400.0,
    )
    world_frame: str = option("map", "frame of all poses: origin at the first camera, x forward, y left, z up")
    child_frame: str = option("", "name of the camera's optical frame; empty: the frame_id of the images")
    publish_tf: bool = option(True, "publish world_frame -> child_frame on /tf", live=True)
    confidence_threshold: float = option(
        1.5,
        "points that the network is less confident of (1 = not at all) are left out of the cloud",
        low=1.0,
        high=1000.0,
        live=True,
    )
    points: PointsOptions = field(default_factory=PointsOptions)

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("world_frame", "child_frame"):
            if getattr(self, name).startswith("/"):
                raise OptionError(f"{name} is {getattr(self, name)!r}; allowed: names without a leading slash")
        if not self.world_frame:
            raise OptionError("world_frame is empty; allowed: any frame name")
        if self.world_frame == self.child_frame:
            raise OptionError(f"child_frame is {self.child_frame!r}, as world_frame; allowed: two different names")
