"""Formats of other programs, one per module. `raymap3r_ros.offline.export` finds them by itself."""
