"""The names of several cameras, for the executable and the launch file."""

from __future__ import annotations

import re

from raymap3r_ros.errors import OptionError

# Valid as a namespace of ROS and as the prefix of frame names. `namespace:=robot` makes robot/front of front.
_NAME = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)


def camera_names(text: str) -> list[str]:
    """The names in "front,rear". Raises OptionError if they are no valid namespaces, or one is repeated."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not _NAME.fullmatch(name) or names.count(name) > 1:
            raise OptionError(
                f"{name!r} in {text!r}; allowed: different names of ASCII letters, digits and _, no digit first, with "
                "/ between the parts of a namespace (front,rear or robot/front,robot/rear)"
            )
    return names
