"""The static map and the grid made from it: the worker feeds them frame by frame, a timer publishes them."""

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
from raymap3r_ros.streaming import StepResult

MAP_TOPICS = {"static_map": (PointCloud2, LATCHED), "occupancy": (GridMessage, LATCHED)}
# Seconds of the images' stamps between two frames that join the map: those between show the same surfaces. A little
# less than a tenth, for the stamps of a camera of 10 Hz waver. A frame takes time in proportion to the map, so from so
# many points on it is longer in proportion.
PERIOD = 0.09
LARGE = 100_000
NOTHING = np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)  # the points and colours of a map without any
VOXEL_TOLERANCE = 0.1  # by which voxels may be off the size that was asked for, while the metric scale drifts


class MapPublisher:
    """The static map of a configured node, and its publishers."""

    def __init__(self, node: LifecycleNode, options: NodeOptions, notes: Reporter, group: CallbackGroup) -> None:
        self._node = node
        self._options = options
        self._notes = notes
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, f"~/{name}", qos)
            for name, (kind, qos) in MAP_TOPICS.items()
            if name == "static_map" or options.occupancy.enabled
        }
        self._lock = threading.Lock()  # of the map and what belongs to it
        self._publishing = threading.Lock()  # held while the publishers are in use by the timer, or taken back
        self._map: StaticMap | None = None
        self._placement = np.eye(4)
        self._stamp: Time | None = None  # of the last frame that joined
        self._joined: float | None = None  # the same in seconds
        self._unsent: set[str] = set()  # topics whose subscribers do not know of the last frame yet
        # Sim time that stands still must not keep a map from those who subscribe.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(1 / options.static_map.rate, self._publish, callback_group=group, clock=steady)

    def destroy(self) -> None:
        """Take the topics back, once nobody publishes on them any more."""
        self._node.destroy_timer(self._timer)
        with self._publishing:
            for publisher in self._publishers.values():
                self._node.destroy_lifecycle_publisher(publisher)
            self._publishers = {}

    def __len__(self) -> int:
        """Points in the map."""
        known = self._map  # read once: the worker takes it away with the world
        return 0 if known is None else len(known)

    def use(self, options: NodeOptions) -> None:
        """Go by these options from now on."""
        self._options = options
        period = round(1e9 / options.static_map.rate)
        if self._timer.timer_period_ns != period:
            self._timer.timer_period_ns = period
            self._timer.reset()  # or the old period would run out first

    def restart(self) -> None:
        """A new world: nothing of the old one may be joined to it, and who listens is told that it is gone."""
        with self._lock:
            if self._map is not None:
                self._unsent = set(self._publishers)
            self._map = self._joined = None

    def subscribed_topics(self) -> set[str]:
        """Names of the topics that somebody has subscribed to."""
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def wants(self, stamp: float) -> bool:
        """Whether a frame stamped so many seconds is to join the map."""
        period = PERIOD * max(1.0, len(self) / LARGE)
        due = self._joined is None or abs(stamp - self._joined) >= period
        return due and (self._options.static_map.always or bool(self.subscribed_topics()))

    def integrate(self, result: StepResult, stamp: Time, placement: np.ndarray) -> None:
        """Let a healthy frame join the map. `placement`: (4, 4) similarity, the stream's world to `world_frame`."""
        options = self._options
        # The map is kept in the stream's own metres: what is known of their true length may still change.
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
            self._placement, self._stamp, self._joined = placement, stamp, conversions.seconds(stamp)
            self._unsent = set(self._publishers)

    def arrays(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Points (n, 3) in `world_frame`, metres, and colors (n, 3) of the map; None where none was made."""
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
            except Exception as error:  # a GPU without memory above all; the timer's callback must outlive it
                with self._lock:
                    self._unsent |= wanted
                text = f"static map not published: {reason_of(error)}"
                self._notes.fail(text, throttle=True, details=f"\n{traceback.format_exc()}")

    def _publish_on(self, wanted: set[str]) -> None:
        with self._lock:
            header = Header(stamp=self._stamp, frame_id=self._options.world_frame)
            known, placement, options = self._map, self._placement, self._options.occupancy
            points, colors = NOTHING if known is None else known.arrays()
            voxel_size = 0.0 if known is None else known.voxel_size
        if "static_map" in wanted:
            cloud = conversions.map_message(header, _placed(points, placement), colors)
            self._publishers["static_map"].publish(cloud)
            wanted.remove("static_map")  # not once more, should the grid fail
        if "occupancy" in wanted:
            # Of a map without any points a cell nevertheless: no costmap takes a grid of none.
            grid = nothing_known(options) if known is None else occupancy_grid(points, voxel_size, placement, options)
            if grid is not None:
                if grid.cropped:
                    self._notes.warn(
                        f"~/occupancy is cut to {MAX_SIDE} x {MAX_SIDE} cells about its middle: the map is larger; "
                        "choose a larger occupancy.resolution"
                    )
                self._publishers["occupancy"].publish(conversions.grid_message(header, grid))


def _placed(points: np.ndarray, placement: np.ndarray) -> np.ndarray:
    """Points (n, 3) float32 after a similarity (4, 4)."""
    return points @ placement[:3, :3].T.astype(np.float32) + placement[:3, 3].astype(np.float32)


def _scale(placement: np.ndarray) -> float:
    """The factor of a similarity (4, 4)."""
    return float(np.cbrt(np.linalg.det(placement[:3, :3])))
