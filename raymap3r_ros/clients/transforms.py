"""Which transforms of a bag a replay plays: those that fit into one tree with the node's."""

from __future__ import annotations

from typing import Any

from raymap3r_ros.clients.bag import without_slash
from raymap3r_ros.clients.ground_truth import ancestry

# Frames whose parent the node publishes, by tf_mode: with invert_tf false and true.
NODE_FRAMES = {
    "camera": (("child_frame",), ("world_frame",)),
    "base": (("base_frame",), ("world_frame",)),
    "odom": (("base_frame", "odom_frame"), ("odom_frame", "world_frame")),
    "map": (("odom_frame",), ("world_frame",)),
}


class PlayedTransforms:
    """Leaves out the transforms that the node publishes itself, in either direction."""

    def __init__(self) -> None:
        """For a node that publishes none, until `use`."""
        self._children: set[str] = set()  # of the node's transforms
        self._root = ""  # of the node's tree
        self._parents: dict[str, str] = {}  # of the bag's transforms that were played

    def use(self, parameters: dict[str, Any]) -> None:
        """Take the frames of the node's parameters, if it publishes transforms. An empty `child_frame` must be set."""
        if parameters["publish_tf"]:
            forward, inverse = ({parameters[name] for name in names} for names in NODE_FRAMES[parameters["tf_mode"]])
            self._children, others = (inverse, forward) if parameters["invert_tf"] else (forward, inverse)
            (self._root,) = others - self._children

    def of(self, message: Any) -> list[Any]:
        """The transforms of a message to play. A frame has one parent, and the node's root is not below its frames."""
        played = []
        for one in message.transforms:
            parent, child = without_slash(one.header.frame_id), without_slash(one.child_frame_id)
            below = child == self._root and not self._children.isdisjoint(ancestry(self._parents, parent))
            if child not in self._children and not below:
                self._parents[child] = parent
                played.append(one)
        return played
