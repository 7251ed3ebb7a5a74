"""What a node has while it is configured."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from dataclasses import dataclass, field
from functools import partial

import torch
from rclpy.callback_groups import CallbackGroup
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CameraInfo
from tf2_ros import Buffer, TransformListener

from raymap3r_ros.geometry.calibration import CameraCalibration, names_rectified
from raymap3r_ros.mapping.uncertainty import DEFAULT, METADATA_KEY, ErrorModel
from raymap3r_ros.network import Network, choose_device, choose_threads, load_network
from raymap3r_ros.node import parameters
from raymap3r_ros.node.localizer import Localizer
from raymap3r_ros.node.map_publisher import MapPublisher
from raymap3r_ros.node.memory import Memory, load_memory, placement_of
from raymap3r_ros.node.network_pool import NetworkPool
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.pose_source import TfPoses
from raymap3r_ros.node.publishers import Publishers
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.saving import Saved
from raymap3r_ros.node.shared_worlds import SharingCamera
from raymap3r_ros.node.tf_frames import look_up
from raymap3r_ros.stamps import JumpDetector
from raymap3r_ros.streaming import Stream, StreamOptions
from raymap3r_ros.streaming.batching import BatchScheduler, warm_up
from raymap3r_ros.streaming.cover import Cover
from raymap3r_ros.streaming.plausibility import PlausibilityCheck
from raymap3r_ros.streaming.recordings import long_running
from raymap3r_ros.streaming.stream_options import check_known_poses, check_search
from raymap3r_ros.streaming.world_files import SavedWorld
from raymap3r_ros.text import printable


@dataclass(frozen=True)
class Settings:
    """The parameters at one moment."""

    given: NodeOptions  # as the parameters are
    node: NodeOptions  # with the prefix of the frame names
    stream: StreamOptions

    @classmethod
    def read(cls, node: LifecycleNode, frame_prefix: str) -> Settings:
        """Read all parameters of `node`. Raises OptionError if they cannot be used."""
        given = parameters.read(node, NodeOptions)
        options = given
        if frame_prefix:
            # In mode `map`, and if poses are looked up in it, odom_frame is another node's.
            foreign = given.tf_mode == "map" or given.pose_source != "none"
            names = ["world_frame"] if foreign else ["world_frame", "odom_frame"]
            options = dataclasses.replace(given, **{name: f"{frame_prefix}/{getattr(given, name)}" for name in names})
        stream = parameters.read(node, StreamOptions)
        if given.pose_source != "none":
            check_known_poses(stream)
        return cls(given, options, stream)


@dataclass
class Session:
    """Everything that exists from `configure` to `cleanup`."""

    settings: Settings  # the newest; `apply_settings` puts them into effect
    stream: Stream
    scheduler: BatchScheduler | None  # None if the network is not shared
    calibration: CameraCalibration
    localizer: Localizer
    known_poses: TfPoses | None  # None if there is no source of them
    publishers: Publishers
    maps: MapPublisher
    plausibility: PlausibilityCheck
    shared: SharingCamera | None  # None without `shared_world`
    resources: contextlib.ExitStack  # frees everything when it is closed

    # Set by callbacks, read by the worker.
    jump_detector: JumpDetector = field(default_factory=JumpDetector)
    reset_requested: threading.Event = field(default_factory=threading.Event)
    loaded: Memory | None = None  # of ~/load, until the next frame begins in it
    paused: bool = False
    camera_info: CameraInfo | None = None  # the last one received

    # Set by the worker.
    applied: Settings | None = None
    opened_with: Settings = field(init=False)
    cover: Cover = field(default_factory=Cover)
    jumps: int = 0  # of the stamps, up to the last processed frame
    stamp: float = 0.0  # of the last processed frame, seconds
    rule: str = ""  # update rule of the last frame
    intrinsics_source: str = ""  # of the last frame

    def __post_init__(self) -> None:
        self.opened_with = self.settings

    def apply_settings(self, reporter: Reporter) -> NodeOptions:
        """Put changed parameters into effect and return the node's options. Called between two frames."""
        settings = self.settings
        if settings is not self.applied:
            before = self.applied or self.opened_with
            changed = parameters.differences(before.given, settings.given)
            changed += parameters.differences(before.stream, settings.stream)
            if changed:
                reporter.info(f"options changed: {', '.join(changed)}")
            # Locked like all that concerns the network, and chosen when it was loaded.
            execution = self.stream.options.execution
            self.stream.options = dataclasses.replace(settings.stream, execution=execution)
            self.localizer.use(settings.node)
            self.maps.use(settings.node)
            self.applied = settings
        return settings.node

    def share_worlds(self) -> None:
        """Search for the camera in the worlds of the others from the next frame on, if it is time for a search."""
        if self.shared is None or self.in_odom or not self.stream.search_begins:
            return
        for world in self.stream.share(self.shared.worlds_of_others()):
            self.localizer.add_world(world.number, world.place)
            self.maps.add_world(world.number, None, placement_of(world.place))

    @property
    def in_odom(self) -> bool:
        """Whether the stream's world is `odom_frame`, the frame of the known poses."""
        return self.known_poses is not None and self.stream.takes_poses

    def reset_if_due(self, jumps: int, stamp: float, *, posed: bool = False) -> str:
        """Reset the stream if a user has requested it or the camera may be anywhere; returns the reason or "".

        The first known pose starts a new world too, in the frame of the known poses. After a jump of the stamps
        forward, or a long cover, the camera may be found again in an earlier world.

        Args:
            jumps: jumps of the stamps up to the frame that is processed next.
            stamp: of that frame, seconds.
            posed: that frame has a known pose.
        """
        reason = "known poses begin" if posed and not self.stream.takes_poses else ""
        if self.cover.ended:
            reason = "blank images"
        if jumps != self.jumps:
            reason = "time jump"
        if self.reset_requested.is_set():
            reason = "reset"
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            reason = "load"
        if reason:
            self.jumps = jumps
            self.reset_requested.clear()
            if reason == "reset" and self.shared is not None:
                self.shared.end_world()
            self.stream.reset(relocalize=reason in ("time jump", "blank images") and stamp > self.stamp)
        if loaded is not None:
            self.begin_in(loaded)
        self.stamp = stamp
        return reason

    def begin_in(self, memory: Memory) -> None:
        """Search for the camera in a saved world from the next frame on, which must be the first after a reset."""
        number = self.stream.add_world(memory.world)
        self.localizer.add_world(number, memory.world.place)
        self.maps.add_world(number, memory.static_map, placement_of(memory.world.place))

    def current_world(self) -> SavedWorld | None:
        """The current world, to be saved; None without keyframes. May be called from any thread."""
        world, place = self.stream.current_world(), self.localizer.place_of_world
        if world is None or place is None or place[0] != world.number:  # just found again: not placed yet
            return None
        return dataclasses.replace(world, place=dataclasses.replace(place[1], voxel_size=self.maps.voxel_size))

    def content(self, title: str) -> Saved:
        """A copy of what ~/save writes; `title` is the first line of the settings. May be called from any thread."""
        points, colors = self.maps.arrays() or (None, None)
        world, settings = self.current_world(), self.settings
        return Saved(
            self.publishers.trajectories(),
            points,
            colors,
            parameters.yaml_file(title, settings.given, settings.stream),
            self.maps.missing,
            None if world is None else (self.stream.network, world),
        )

    def subscribed_topics(self) -> set[str]:
        """Names of the outputs that have subscribers, including "tf"."""
        return self.publishers.subscribed_topics() | self.maps.subscribed_topics()

    def facts(self) -> dict[str, object]:
        """The state of the session, for diagnostics."""
        stream = self.stream
        facts = {
            "device": stream.device,
            "checkpoint": stream.network.source,
            "update rule": self.rule,
            "intrinsics": self.intrinsics_source,
            "weights fit": self.plausibility.verdict,
            "subscribed outputs": ", ".join(sorted(self.subscribed_topics())),
            **self.localizer.facts(),
        }
        if len(self.maps):
            facts["static map (points)"] = len(self.maps)
        if stream.device.type == "cuda":
            facts["GPU memory (MiB)"] = torch.cuda.memory_allocated(stream.device) // 2**20
            facts["GPU memory, highest (MiB)"] = torch.cuda.max_memory_allocated(stream.device) // 2**20
        return facts

    def warnings(self) -> list[str]:
        """What makes the results meaningless at the moment, for diagnostics."""
        untrained = "" if self.stream.network.trained else "untrained weights: the results are meaningless"
        return [text for text in (untrained, self.plausibility.problem) if text]

    def close(self) -> None:
        """Destroy publishers and services, and unlock the parameters."""
        self.resources.close()


def open_session(
    node: LifecycleNode,
    settings: Settings,
    pool: NetworkPool | None,
    buffer: Buffer,
    reporter: Reporter,
    map_group: CallbackGroup,
) -> Session:
    """Load the network, run it once, and create everything that `node` needs to process images.

    Args:
        pool: shares one network among several nodes; None for a network of the node's own.
        buffer: transforms of the node, cleared here.
        map_group: callback group of the timer that publishes the static map.

    Raises OptionError, and everything that `load_network` raises. Nothing is left over then.
    """
    options = settings.node
    with contextlib.ExitStack() as resources:
        scheduler, owners = None, ()
        if pool is None:
            network = load_network(options.checkpoint, choose_device(options.device), settings.stream.precision)
        else:
            name = node.get_fully_qualified_name()
            pool.claim(name, options)
            resources.callback(pool.give_back, name)
            owners = (partial(pool.other_owner, name),)
            scheduler = pool.get(options.checkpoint, options.device, settings.stream.precision)
            network = scheduler.network
        # With a thread on every core, each DDS message or callback would delay all of them: they wait for each other.
        choose_threads(network, spare=1)
        # Each number of cameras in a batch would be recorded for itself.
        stream_options = long_running(network, settings.stream) if pool is None else settings.stream
        shares = options.shared_world and pool is not None
        stream = Stream(network, stream_options, numbers=pool.worlds.numbers if shares else None)
        if not network.trained:
            node.get_logger().warning(network.source)
        posed = options.pose_source != "none"
        warm_up(stream, scheduler, 1 if pool is None else pool.cameras, poses=posed)
        node.get_logger().info(f"{network.source}; device {stream.device}")
        compressed = options.image_transport == "compressed"
        topic = node.resolve_topic_name("image/compressed" if compressed else "image")
        buffer.clear()
        if options.tf_mode != "camera" or options.scale.source != "fixed" or posed:
            resources.callback(TransformListener(buffer, node).unregister)
        publishers = Publishers(node, _error_model(node, network))
        resources.callback(publishers.destroy)
        maps = MapPublisher(node, options, reporter, map_group)
        resources.callback(maps.destroy)
        session = Session(
            settings,
            stream,
            scheduler,
            CameraCalibration(
                partial(reporter.fail, throttle=True), rectified=options.rectified or names_rectified(topic)
            ),
            Localizer(options, partial(look_up, buffer), reporter, *owners),
            TfPoses(options, partial(look_up, buffer), reporter) if posed else None,
            publishers,
            maps,
            PlausibilityCheck.of(network.manifest, network.source),
            None,
            resources,
        )
        if options.shared_world:
            check_search(settings.stream)
            if shares:
                session.shared = SharingCamera(pool.worlds, network, options.world_frame, session.current_world)
                resources.callback(session.shared.leave)
            else:
                reporter.warn_once("shared_world has no effect with one camera in a process; start several: --cameras")
        if options.memory:
            memory = load_memory(options.memory, network, settings.stream)
            session.begin_in(memory)
            node.get_logger().info(printable(f"searching for the camera in {memory.contents}"))
        session.resources = resources.pop_all()
        return session


def _error_model(node: LifecycleNode, network: Network) -> ErrorModel:
    """The error model of the checkpoint, or the default with a warning. Raises CheckpointError if it is malformed."""
    model = ErrorModel.from_manifest(network.manifest, network.source)
    if model is None and network.trained:
        node.get_logger().warning(
            f"{network.source} has no error model of its own (metadata {METADATA_KEY!r}): the covariances of "
            "~/odometry use the default, see docs/odometry.md"
        )
    return model or DEFAULT
