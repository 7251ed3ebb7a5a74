"""Other nodes with the node's own name."""

from __future__ import annotations

import time

from rclpy.node import Node

from raymap3r_ros.node.reporter import Reporter

REPEAT = 60.0  # seconds between two warnings


class NamesakeWatch:
    """Warns while another node of the graph has the same full name."""

    def __init__(self, node: Node, reporter: Reporter) -> None:
        self._node = node
        self._reporter = reporter
        self._due = 0.0

    def check(self) -> None:
        """Warn if there is such a node; once in REPEAT seconds."""
        if time.monotonic() < self._due:
            return
        own = (self._node.get_name(), self._node.get_namespace())
        count = self._node.get_node_names_and_namespaces().count(own)
        if count > 1:
            self._due = time.monotonic() + REPEAT
            self._reporter.warn(
                f"{count} nodes are named {self._node.get_fully_qualified_name()}: they publish to the same topics, "
                "and services reach only one of them; end all but one, or rename them (-r __node:= or -r __ns:=)"
            )
