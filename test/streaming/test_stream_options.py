"""Options refuse values that are not allowed, and list the allowed ones."""

import numpy as np
import pytest

from raymap3r_ros.errors import OptionError
from raymap3r_ros.streaming import MaskOptions, StreamOptions
from raymap3r_ros.streaming.stream_options import preset_options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: StreamOptions(update_rule="best"),
            "update_rule is 'best'; allowed values: raymap3r, ttt3r, cut3r, ttsa3r",
        ),
        (lambda: preset_options("paper"), "preset is 'paper'; allowed values: default, published"),
        (lambda: StreamOptions(reset_interval=-1), "reset_interval is -1; allowed range: 0, or 2 to 1000000"),
        (lambda: StreamOptions(reset_interval=1), "reset_interval is 1; allowed range: 0, or 2 to 1000000"),
        (lambda: StreamOptions(ray_interval=0), "ray_interval is 0; allowed range: 1 to 1000"),
        (lambda: MaskOptions(low=7.0, high=6.0), "mask.low is 7.0, above mask.high 6.0"),
        (lambda: MaskOptions(min_width=4), "mask.min_width is 4; allowed: odd numbers"),
        (lambda: StreamOptions(reset_interval="100"), "reset_interval is '100', a str; as a value: 100"),
        (lambda: StreamOptions(reset_interval=True), "reset_interval is True, a bool"),
        (lambda: MaskOptions(high=None), "high is None, a NoneType; as a value: "),
        (lambda: MaskOptions(noise_floor=float("nan")), "noise_floor is nan; allowed range"),
    ],
)
def test_errors_contain_the_value_and_the_allowed_values(make, message: str):
    with pytest.raises(OptionError, match=message):
        make()


def test_whole_numbers_and_numbers_of_numpy_are_accepted():
    assert MaskOptions(high=7) == MaskOptions(high=np.float32(7.0))
    assert StreamOptions(reset_interval=np.int64(50)).reset_interval == 50


def test_given_options_override_presets():
    assert preset_options("default") == StreamOptions()
    published = StreamOptions.published()
    switches = published.router, published.smoothing, published.reset_alignment, published.mask.kind
    assert set(switches) == {"published"} and published.token_pooling == "raster"
    given = {"smoothing": "tied", "mask.high": 5.0, "not an option": 1}
    expected = StreamOptions.published(smoothing="tied", mask=MaskOptions(kind="published", high=5.0))
    assert preset_options("published", given) == expected
