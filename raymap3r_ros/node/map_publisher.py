"""The static map and its occupancy grid: the worker integrates frames, a timer publishes."""

from __future__ import annotations

import threading
import traceback

import numpy as np
from builtin_interfaces.msg import Time
from nav_msgs.msg import OccupancyGrid as GridMessage
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from raymap3r_ros.errors import reason_of
from raymap3r_ros.mapping.occupancy import MAX_SIDE, nothing_known, occupancy_grid
from raymap3r_ros.mapping.static_map import PixelOptions, StaticMap
from raymap3r_ros.node import conversions
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.publishers import LATCHED
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.worlds import Worlds
from raymap3r_ros.streaming import StepResult

MAP_TOPICS = {"static_map": (PointCloud2, LATCHED), "occupancy": (GridMessage, LATCHED)}
# Seconds of the images' stamps between two frames that are integrated: frames in between show the same surfaces. A
# little less than a tenth, because the stamps of a 10 Hz camera jitter.
PERIOD = 0.09
LARGE = 100_000  # points above which the period grows with the map, because a frame's time does
NOTHING = np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)  # points and colors of an empty map
VOXEL_TOLERANCE = 0.1  # relative error of the voxel size in metres that is accepted while the metric scale drifts


class MapPublisher:
    """The static map of a configured node, and its publishers."""

    def __init__(self, node: LifecycleNode, options: NodeOptions, reporter: Reporter, group: CallbackGroup) -> None:
        """`group`: callback group of the timer that publishes."""
        self._node = node
        self._options = options
        self._reporter = reporter
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, f"~/{name}", qos)
            for name, (kind, qos) in MAP_TOPICS.items()
            if name == "static_map" or options.occupancy.enabled
        }
        self._lock = threading.Lock()  # for the map and its placement
        self._publishing = threading.Lock()  # held while the timer uses the publishers, or while they are destroyed
        self._map: StaticMap | None = None
        self._placement = np.eye(4)
        self._worlds: Worlds[tuple[StaticMap | None, np.ndarray]] = Worlds()
        self._stamp: Time | None = None  # of the last integrated frame, or of the first image of an empty map
        self._integrated: float | None = None  # the same in seconds
        self._unsent: set[str] = set()  # topics without a message since the last integrated frame
        # Subscribers must get a map even if simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(1 / options.static_map.rate, self._publish, callback_group=group, clock=steady)

    def destroy(self) -> None:
        """Wait for the timer's callback and destroy the publishers."""
        self._node.destroy_timer(self._timer)
        with self._publishing:
            for publisher in self._publishers.values():
                self._node.destroy_lifecycle_publisher(publisher)
            self._publishers = {}

    def __len__(self) -> int:
        """Number of points in the map."""
        static_map = self._map  # read once: the worker removes it in a new world
        return 0 if static_map is None else len(static_map)

    def use(self, options: NodeOptions) -> None:
        """Use these options from now on."""
        self._options = options
        period = round(1e9 / options.static_map.rate)
        if self._timer.timer_period_ns != period:
            self._timer.timer_period_ns = period
            self._timer.reset()  # otherwise the old period ends first

    def add_world(self, number: int, static_map: StaticMap | None, placement: np.ndarray) -> None:
        """Continue with the map of a saved world when the camera is found in it.

        Args:
            number: of the world in the stream.
            static_map: in the stream's metres; None without one.
            placement: as for `integrate`.
        """
        with self._lock:
            self._worlds.add(number, (static_map, placement))

    def enter_world(self, result: StepResult, stamp: Time) -> None:
        """Start a new world with an empty map, or continue with the map of an earlier one.

        It is published to the subscribers of the last map. `stamp`: of the first image in that world.
        """
        with self._lock:
            kept = self._worlds.enter(result, (self._map, self._placement))
            if self._map is not None or kept is not None:
                self._unsent = set(self._publishers)
            self._map, self._placement = kept or (None, np.eye(4))
            self._stamp = stamp
            self._integrated = None

    def subscribed_topics(self) -> set[str]:
        """Names of the topics that have subscribers."""
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def wants(self, stamp: float) -> bool:
        """Whether to integrate a frame with this stamp, in seconds."""
        period = PERIOD * max(1.0, len(self) / LARGE)
        due = self._integrated is None or abs(stamp - self._integrated) >= period
        return due and (self._options.static_map.always or bool(self.subscribed_topics()))

    @property
    def missing(self) -> str:
        """Why there is no map, if there is none."""
        if self._options.static_map.always or self.subscribed_topics():
            return "it begins with the first image whose dynamic mask is known"
        return "it had no subscribers; see static_map.always"

    def integrate(self, result: StepResult, stamp: Time, placement: np.ndarray) -> None:
        """Add a healthy frame to the map.

        Args:
            placement: (4, 4) similarity from the stream's world, in optical axes, to `world_frame`.
        """
        options = self._options
        # The map is stored in the stream's own metres, because the metric scale may still change.
        voxel_size = options.static_map.voxel_size / _scale(placement)
        with self._lock:
            if self._map is None:
                self._map = StaticMap(voxel_size)
            elif voxel_size and abs(voxel_size / self._map.voxel_size - 1) > VOXEL_TOLERANCE:
                self._map.resize(voxel_size)
            self._map.max_points = options.static_map.max_points
            self._map.integrate(
                result.points,
                result.image,
                result.confidence,
                result.dynamic_mask,
                result.intrinsics,
                result.pose,
                PixelOptions(confidence_threshold=options.confidence_threshold),
            )
            self._placement, self._stamp, self._integrated = placement, stamp, conversions.seconds(stamp)
            self._unsent = set(self._publishers)

    @property
    def voxel_size(self) -> float:
        """Of the current map, metres; 0 without a map."""
        with self._lock:
            return 0.0 if self._map is None else self._map.voxel_size * _scale(self._placement)

    def arrays(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Points (n, 3) in `world_frame`, metres, and colors (n, 3) uint8 RGB; None without a map."""
        with self._lock:
            if self._map is None:
                return None
            points, colors = self._map.arrays()
            placement = self._placement
        return _placed(points, placement), colors

    def _publish(self) -> None:
        with self._publishing:
            with self._lock:
                wanted = self._unsent & self.subscribed_topics()
                self._unsent -= wanted
            if not wanted:
                return
            try:
                self._publish_on(wanted)
            except Exception as error:  # in most cases no GPU memory; the timer must survive it
                with self._lock:
                    self._unsent |= wanted
                text = f"static map not published: {reason_of(error)}"
                self._reporter.fail(text, throttle=True, details=f"\n{traceback.format_exc()}")

    def _publish_on(self, wanted: set[str]) -> None:
        with self._lock:
            header = Header(stamp=self._stamp, frame_id=self._options.world_frame)
            static_map, placement, options = self._map, self._placement, self._options.occupancy
            points, colors = NOTHING if static_map is None else static_map.arrays()
            voxel_size = 0.0 if static_map is None else static_map.voxel_size
        if "static_map" in wanted:
            cloud = conversions.map_message(header, _placed(points, placement), colors)
            self._publishers["static_map"].publish(cloud)
            wanted.remove("static_map")  # do not publish it again if the grid fails
        if "occupancy" in wanted:
            # An empty map becomes a grid of one cell, because costmaps refuse a grid without cells.
            if static_map is None:
                grid = nothing_known(options)
            else:
                grid = occupancy_grid(points, voxel_size, placement, options)
            if grid is not None:
                if grid.cropped:
                    self._reporter.warn(
                        f"~/occupancy is cut to {MAX_SIDE} x {MAX_SIDE} cells around its middle: the map is larger; "
                        "choose a larger occupancy.resolution"
                    )
                self._publishers["occupancy"].publish(conversions.grid_message(header, grid))


def _placed(points: np.ndarray, placement: np.ndarray) -> np.ndarray:
    """Points (n, 3) float32, transformed by a similarity (4, 4)."""
    return points @ placement[:3, :3].T.astype(np.float32) + placement[:3, 3].astype(np.float32)


def _scale(placement: np.ndarray) -> float:
    """The factor of a similarity (4, 4)."""
    return float(np.cbrt(np.linalg.det(placement[:3, :3])))
