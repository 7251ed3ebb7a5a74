"""What the nodes of one process share: networks, the batches in which frames run together, one tree of frames."""

from __future__ import annotations

import threading
import weakref

from raymap3r_ros.network import choose_device, load_network
from raymap3r_ros.streaming.batching import BatchScheduler


class NetworkPool:
    """Loads every network once. It lives as long as a node holds what `get` gave it."""

    def __init__(self, cameras: int) -> None:
        """`cameras`: how many nodes there are, at most."""
        self.cameras = cameras
        self._lock = threading.Lock()
        self._publishers: dict[str, str] = {}  # by frame: the node that publishes its parent
        self._loaded: weakref.WeakValueDictionary[tuple[str, str, str], BatchScheduler] = weakref.WeakValueDictionary()

    def claim(self, frame: str, node: str) -> str:
        """The node that publishes the parent of `frame`, of which there may be one: this, or one that came before."""
        with self._lock:
            return self._publishers.setdefault(frame, node)

    def give_back(self, node: str) -> None:
        """Let others have what a node has claimed."""
        with self._lock:
            self._publishers = {frame: owner for frame, owner in self._publishers.items() if owner != node}

    def get(self, checkpoint: str, device: str, precision: str) -> BatchScheduler:
        """The network of these options. Raises what `choose_device` and `load_network` raise."""
        with self._lock:
            key = checkpoint, device, precision
            together = self._loaded.get(key)
            if together is None:
                together = BatchScheduler(load_network(checkpoint, choose_device(device), precision))
                self._loaded[key] = together
            return together
