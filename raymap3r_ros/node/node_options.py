"""Options of the node. Those of the stream are in `streaming.stream_options`."""

from __future__ import annotations

from dataclasses import dataclass, field

from raymap3r_ros.errors import OptionError
from raymap3r_ros.mapping.occupancy import OccupancyOptions
from raymap3r_ros.mapping.scale import ScaleOptions
from raymap3r_ros.mapping.static_map import StaticMapOptions
from raymap3r_ros.network import DEFAULT_CHECKPOINT
from raymap3r_ros.node.pose_source import POSE_SOURCES, check_pose_source
from raymap3r_ros.node.saving import DEFAULT_FOLDER
from raymap3r_ros.node.tf_frames import TF_MODES, check_frames
from raymap3r_ros.options import check_options, option
from raymap3r_ros.stamps import MAX_GAP
from raymap3r_ros.streaming.stream_options import preset_option


@dataclass(frozen=True)
class PointsOptions:
    """The point cloud of one frame."""

    stride: int = option(1, "use every N-th row and column of the depth image", low=1, high=64, live=True)
    static_only: bool = option(
        False, "leave out moving points, for mappers that do not support the field `dynamic`", live=True
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class NodeOptions:
    """Inputs, outputs and TF frames of the node."""

    checkpoint: str = option(
        DEFAULT_CHECKPOINT,
        "weights: path of a .safetensors or .pth file, the name of weights in the package or the cache (`raymap3r "
        "weights list`), or of a preset (untrained, for tests only)",
    )
    device: str = option("auto", "where the network runs: auto (a GPU if there is one), cpu, cuda or cuda:N")
    preset: str = preset_option(
        "a parameter that has its default value takes the preset's value, all others keep their own"
    )
    image_transport: str = option(
        "raw", "topic of the images: `image` (raw) or `image/compressed`", choices=("raw", "compressed")
    )
    rectified: bool = option(False, "the images are rectified: use P of camera_info and ignore its distortion")
    every_frame: bool = option(
        False, "for replay: process all images in order (reliable, queue of 100) instead of the newest one"
    )
    max_gap: float = option(
        MAX_GAP,
        "longest step between the stamps of two images, seconds; a longer one, or one back by more than 0.1, starts a "
        "new world (an image that is back by less is only late)",
        low=0.01,
        high=86_400.0,
    )
    world_frame: str = option("map", "frame of all poses: origin at the first camera, x forward, y left, z up")
    odom_frame: str = option(
        "odom", "in modes odom and map, and for pose_source tf: frame in which the robot moves without jumps"
    )
    base_frame: str = option(
        "base_link", "frame of the robot's base, in all modes but camera and for a scale from odometry or height"
    )
    child_frame: str = option("", "optical frame of the camera; empty: the frame_id of the images")
    tf_mode: str = option(
        "camera",
        "transforms that are published: `camera`, world_frame -> child_frame; `base`, world_frame -> base_frame; "
        "`odom`, odom_frame -> base_frame without jumps and world_frame -> odom_frame with all corrections; `map`, "
        "world_frame -> odom_frame, while another node publishes odom_frame -> base_frame",
        choices=TF_MODES,
    )
    invert_tf: bool = option(False, "publish the inverse of each transform, for TF trees with the camera at the root")
    publish_tf: bool = option(True, "publish transforms on /tf", live=True)
    pose_source: str = option(
        "none",
        "known poses of the camera, as input of the network: `none`, or `tf`, the transform odom_frame -> camera at "
        "the image's stamp, from another node (wheel odometry, visual-inertial odometry, motion capture); it needs "
        "tf_mode map or publish_tf false",
        choices=POSE_SOURCES,
    )
    output_dir: str = option(
        DEFAULT_FOLDER,
        "folder in which ~/save creates a new folder with trajectories, static map, keyframes and settings",
    )
    memory: str = option(
        "",
        "world.safetensors of a saved world, in which the camera is searched for and which then continues; read by "
        "`configure` and by ~/load; empty: none",
        live=True,
    )
    shared_world: bool = option(
        False,
        "several cameras in one process: a camera that is found among the keyframes of another one continues in its "
        "world",
    )
    depth_encoding: str = option(
        "32FC1",
        "of ~/depth and ~/depth_static: metres, NaN if unknown (32FC1), or millimetres, 0 if unknown (16UC1)",
        choices=("32FC1", "16UC1"),
        live=True,
    )
    confidence_threshold: float = option(
        1.5,
        "pixels with a lower confidence (1 is the lowest) are not used for ~/points, the static map and the metric "
        "scale",
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
        check_pose_source(self.pose_source, self.tf_mode, self.publish_tf, self.scale)
        if self.shared_world and self.invert_tf:
            raise OptionError(
                "shared_world is true, but each camera is the root of a TF tree with invert_tf; allowed with it: false"
            )
