"""What the nodes of one process share: networks, batches of their frames, worlds, and one tree of TF frames."""

from __future__ import annotations

import threading
import weakref

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import choose_device, load_network
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.shared_worlds import SharedWorlds
from raymap3r_ros.streaming.batching import BatchScheduler


class NetworkPool:
    """Loads every network once. A network is freed when no node holds its scheduler any more."""

    def __init__(self, cameras: int) -> None:
        """`cameras`: largest number of nodes."""
        self.cameras = cameras
        self.worlds = SharedWorlds()
        self._lock = threading.Lock()
        self._parents: dict[str, str] = {}  # by TF frame: the node that publishes its parent
        self._schedulers: weakref.WeakValueDictionary[tuple[str, str, str], BatchScheduler] = (
            weakref.WeakValueDictionary()
        )

    def claim(self, node: str, options: NodeOptions) -> None:
        """Reserve the TF frame whose parent `node` publishes with these options. A frame has one parent (REP 105).

        Raises OptionError if another node of the process publishes a parent of the same frame.
        """
        if options.tf_mode == "camera" or options.invert_tf or not options.publish_tf:
            return
        frame = options.odom_frame if options.tf_mode == "map" else options.base_frame
        if owner := self.other_owner(node, frame):
            raise OptionError(
                f"publish_tf is true, but {owner} publishes the parent of {frame} already; allowed with tf_mode "
                f"{options.tf_mode}: true for one of the cameras"
            )

    def other_owner(self, node: str, frame: str) -> str:
        """Reserve a TF frame whose parent `node` publishes, and return ""; or the name of the node that has it."""
        with self._lock:
            owner = self._parents.setdefault(frame, node)
        return "" if owner == node else owner

    def give_back(self, node: str) -> None:
        """Release the frames that a node has claimed."""
        with self._lock:
            self._parents = {frame: owner for frame, owner in self._parents.items() if owner != node}

    def get(self, checkpoint: str, device: str, precision: str) -> BatchScheduler:
        """The scheduler of the network of these options. Raises what `choose_device` and `load_network` raise."""
        with self._lock:
            key = checkpoint, device, precision
            scheduler = self._schedulers.get(key)
            if scheduler is None:
                scheduler = BatchScheduler(load_network(checkpoint, choose_device(device), precision))
                self._schedulers[key] = scheduler
            return scheduler
