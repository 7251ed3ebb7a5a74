"""What a user may choose about the node, beside the options of the stream itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from raymap3r_ros.mapping.occupancy import OccupancyOptions
from raymap3r_ros.mapping.scale import ScaleOptions
from raymap3r_ros.mapping.static_map import StaticMapOptions
from raymap3r_ros.network import DEFAULT_CHECKPOINT
from raymap3r_ros.node.saving import DEFAULT_FOLDER
from raymap3r_ros.node.tf_frames import TF_MODES, check_frames
from raymap3r_ros.options import check_options, option
from raymap3r_ros.streaming.stream_options import preset_option


@dataclass(frozen=True)
class PointsOptions:
    """The point cloud of one frame."""

    stride: int = option(1, "take every so-many-th row and column of the depth image", low=1, high=64, live=True)
    static_only: bool = option(False, "leave out what moves, for mappers that know nothing of `dynamic`", live=True)

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
    preset: str = preset_option("a parameter that has its default value takes the preset's value, others keep theirs")
    image_transport: str = option(
        "raw", "topic that images are taken from: `image` (raw) or `image/compressed`", choices=("raw", "compressed")
    )
    rectified: bool = option(
        False, "the images are rectified already: take P of camera_info and leave its distortion aside"
    )
    every_frame: bool = option(
        False, "replay: take every frame in order (reliable, queue of 100) instead of the newest one"
    )
    max_gap: float = option(
        2.0,
        "images stamped further apart than this many seconds, or back in time by more than 0.1, start a new scene",
        low=0.01,
        high=86_400.0,
    )
    world_frame: str = option("map", "frame of all poses: origin at the first camera, x forward, y left, z up")
    odom_frame: str = option("odom", "in modes odom and map: frame in which the robot moves without jumps")
    base_frame: str = option("base_link", "in modes base, odom and map: frame of the robot")
    child_frame: str = option("", "name of the camera's optical frame; empty: the frame_id of the images")
    tf_mode: str = option(
        "camera",
        "transforms that are published: `camera`, world_frame -> child_frame; `base`, world_frame -> base_frame; "
        "`odom`, odom_frame -> base_frame without jumps and world_frame -> odom_frame with all corrections; `map`, "
        "world_frame -> odom_frame, where somebody else publishes odom_frame -> base_frame",
        choices=TF_MODES,
    )
    invert_tf: bool = option(False, "publish the transforms the other way round, for trees that hang upside down")
    publish_tf: bool = option(True, "publish transforms on /tf", live=True)
    output_dir: str = option(
        DEFAULT_FOLDER, "folder in which ~/save makes a new one with trajectory, static map and settings"
    )
    depth_encoding: str = option(
        "32FC1",
        "of ~/depth and ~/depth_static: metres, NaN where unknown (32FC1), or millimetres, 0 where unknown (16UC1)",
        choices=("32FC1", "16UC1"),
        live=True,
    )
    confidence_threshold: float = option(
        1.5,
        "pixels that the network is less confident of (1 = not at all) become no points of ~/points and of the map, "
        "and tell nothing of the scale",
        low=1.0,
        high=1000.0,
        live=True,
    )
    points: PointsOptions = field(default_factory=PointsOptions)
    static_map: StaticMapOptions = field(default_factory=StaticMapOptions)
    occupancy: OccupancyOptions = field(default_factory=OccupancyOptions)
    scale: ScaleOptions = field(default_factory=ScaleOptions)

    def __post_init__(self) -> None:
        check_options(self)
        check_frames(self.tf_mode, self.world_frame, self.odom_frame, self.base_frame, self.child_frame)
