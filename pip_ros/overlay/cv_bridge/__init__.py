"""The part of cv_bridge that raymap3r_ros uses, for an environment in which no ROS distribution supplies it."""

from cv_bridge.core import CvBridge, CvBridgeError

__all__ = ["CvBridge", "CvBridgeError"]
