"""Options of the static scene of a recording."""

import pytest

from raymap3r_ros.errors import OptionError
from raymap3r_ros.mapping import PixelOptions
from raymap3r_ros.offline import CloudOptions
from raymap3r_ros.options import option_fields


def test_a_recording_selects_pixels_as_other_maps():
    names = [name for name, _ in option_fields(CloudOptions)]
    assert {name for name, _ in option_fields(PixelOptions)} | {"voxel_size", "max_points"} == set(names)
    assert CloudOptions().confidence_threshold == PixelOptions().confidence_threshold


@pytest.mark.parametrize("name", ["max_points", "voxel_size", "confidence_threshold", "mask_margin"])
def test_options_out_of_range(name):
    with pytest.raises(OptionError, match=f"{name} is -1; allowed range: "):
        CloudOptions(**{name: -1})
