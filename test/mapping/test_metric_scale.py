"""The metric scale of a stream: options, required parts of a frame, new worlds, new sources."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from scale_worlds import BEAM, SIZE, as_seen, drive, ride, wall

from raymap3r_ros.errors import OptionError
from raymap3r_ros.mapping.scale import MetricScale, RangeReading, ScaleOptions

NEW_SOURCE = """
import math
from raymap3r_ros.mapping.scale.source import Observation, ScaleSource

class DoorSource(ScaleSource):
    name = "door"
    help = "a door of 2 m"
    uses_maps = False

    def observe(self, stamp, pose, measured, options):
        return [Observation(stamp, math.log(2.0), 0.03)]
"""

USE_OF_IT = """
import numpy as np
from raymap3r_ros.mapping.scale import MetricScale, ScaleOptions

metric = MetricScale(ScaleOptions(source="door"))
for stamp in range(10):
    estimate = metric.update(float(stamp), np.eye(4), None)
print(estimate.known, round(estimate.factor, 6))
"""


def test_missing_options_are_reported():
    assert ScaleOptions(source="height", camera_height=0.3).value == 1.0
    with pytest.raises(OptionError, match=r"scale\.camera_height is 0\.0"):
        ScaleOptions(source="height")
    with pytest.raises(OptionError, match="fixed, height, odometry, range"):
        ScaleOptions(source="gps")


def test_fixed_scale_is_the_option():
    metric = MetricScale(ScaleOptions(value=2.5))
    assert metric.look(as_seen(torch.ones(8, 8, 3)), 1.5) is None
    estimate = metric.update(1.0, np.eye(4), None)
    assert (estimate.factor, estimate.known, estimate.confidence) == (2.5, True, 1.0)
    assert estimate.facts("fixed") == {"scale": "2.5 (fixed)"}


@pytest.mark.parametrize("source", ["range", "height"])
def test_a_measurement_does_not_synchronise_with_the_device(source):
    """On the meta device there are no values: reading one on the host raises."""
    metric = MetricScale(ScaleOptions(source=source, camera_height=1.0))
    metric.add_range(RangeReading(0.1, 1.0, 0.1, 4.0, BEAM))
    assert metric.look(as_seen(torch.empty(*SIZE, 3, device="meta")), 1.5).shape == (2,)


@pytest.mark.parametrize("source", ["range", "height"])
def test_frames_without_a_motion_estimate_are_not_measured(source):
    metric = MetricScale(ScaleOptions(source=source, camera_height=1.0))
    metric.add_range(RangeReading(0.1, 1.0, 0.1, 4.0, BEAM))
    assert metric.look(as_seen(wall(2.0), motion=False), 1.5) is None
    assert metric.look(as_seen(wall(2.0)), 1.5) is not None


def test_the_scale_is_unknown_at_the_start_of_a_new_world():
    metric = MetricScale(ScaleOptions(source="odometry", value=1.5))
    path = drive(np.full(1500, 0.5), np.zeros(1500))
    assert ride(metric, path, path)[-1].known
    metric.reset()
    estimate = metric.update(36.0, np.eye(4), None)
    assert (estimate.factor, estimate.known, estimate.observations) == (1.5, False, 0)


def test_range_has_no_measurement_before_the_first_reading():
    metric = MetricScale(ScaleOptions(source="range"))
    assert metric.look(as_seen(wall(2.0)), 1.5) is None
    assert not metric.update(0.0, np.eye(4), None).known
    metric.add_range(RangeReading(0.1, math.inf, 0.1, 4.0, BEAM))
    assert metric.look(as_seen(wall(2.0)), 1.5).shape == (2,)


def test_a_new_source_is_one_new_file(root, tmp_path):
    """In a copy of the package, as the options are built on import."""
    package = tmp_path / "raymap3r_ros"
    shutil.copytree(root / "raymap3r_ros", package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (package / "mapping" / "scale" / "sources" / "door.py").write_text(NEW_SOURCE)
    done = subprocess.run(
        [sys.executable, "-c", USE_OF_IT], env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True 2.0\n", 0), done.stderr
