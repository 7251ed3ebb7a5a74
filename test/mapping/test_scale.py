"""Metric scale: worlds whose metre is hidden, sensors that slip, drop out and lie."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.mapping import scale
from raymap3r_ros.mapping.scale import (
    MetricScale,
    Observation,
    OdometryMatcher,
    RangeMatcher,
    RangeReading,
    ScaleEstimator,
    ScaleOptions,
    distance_ahead,
    height_above_floor,
    robust_centre,
)
from raymap3r_ros.synthetic import Recipe, random_scenes, render

SIZE = (60, 80)
FRAMES, PERIOD = 32, 0.5  # seconds
HIDDEN = 0.4  # the network's metre in true ones
BEAM = 0.35  # radians, of an ultrasonic sensor


def point_map(depth, intrinsics):
    rows, columns = torch.meshgrid(torch.arange(depth.shape[0]), torch.arange(depth.shape[1]), indexing="ij")
    x = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    return torch.stack((x, y, torch.ones_like(x)), dim=-1) * depth[..., None]


def as_seen(points, moving=None, motion=True):
    """The maps of a result that believes in all of these points (H, W, 3). `motion`: it knows what moves."""
    moving = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device) if moving is None else moving
    confidence = torch.full(points.shape[:2], 5.0, device=points.device)
    return SimpleNamespace(points=points, confidence=confidence, dynamic_mask=moving, motion=motion)


def depth_noise(generator, frames, correlated=0.07, single=0.02):
    """Factors (F, H, W) on depth: an error that a region shares, and one of each pixel."""
    coarse = torch.randn(frames, 1, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic", align_corners=True)[:, 0]
    return torch.exp(correlated * smooth + single * torch.randn(frames, *SIZE, generator=generator))


@pytest.fixture(scope="module")
def worlds():
    """Six rooms and grounds with furniture and movers, looked at for 16 s from 0.5 to 1.9 m above the floor."""
    generator = torch.Generator().manual_seed(11)
    scenes = random_scenes(generator, 6, Recipe(presence=0.3))
    seen = render(scenes, (torch.arange(FRAMES) * PERIOD).expand(6, -1), SIZE, generator, with_images=False)
    return scenes, seen


# -------------------------------------------------------------------------------------------------------- estimator


def test_options_say_what_is_missing():
    assert ScaleOptions(source="height", camera_height=0.3).value == 1.0
    with pytest.raises(OptionError, match=r"scale\.camera_height is 0\.0"):
        ScaleOptions(source="height")
    with pytest.raises(OptionError, match="fixed, range, odometry, height"):
        ScaleOptions(source="gps")


def test_fixed_scale_is_what_the_user_says():
    metric = MetricScale(ScaleOptions(value=2.5))
    assert metric.look(as_seen(torch.ones(8, 8, 3)), 1.5) is None
    estimate = metric.update(1.0, np.eye(4), None)
    assert (estimate.factor, estimate.known, estimate.confidence) == (2.5, True, 1.0)
    assert estimate.facts("fixed") == {"scale": "2.5 (fixed)"}


def test_centre_is_the_majoritys():
    """Three tenths of the values on one side drag the mean and even the median, not the centre."""
    generator = np.random.default_rng(0)
    values = generator.normal(0.3, 0.05, 400)
    values[:120] -= generator.uniform(0.2, 1.5, 120)
    centre, spread = robust_centre(values, np.ones(400))
    assert abs(centre - 0.3) < 0.012 < abs(np.median(values) - 0.3) < abs(values.mean() - 0.3)
    assert 0.04 < spread < 0.1
    # A weight is a number of copies.
    weights = generator.integers(1, 4, 400)
    assert robust_centre(values, weights) == pytest.approx(
        robust_centre(values.repeat(weights), np.ones(weights.sum()))
    )
    assert robust_centre(np.full(5, 0.7), np.ones(5)) == (0.7, 0.0)


def test_unknown_before_enough_evidence():
    estimator = ScaleEstimator()
    estimate = estimator.estimate(0.0, 1.3)
    assert (estimate.factor, estimate.known, estimate.confidence, estimate.observations) == (1.3, False, 0.0, 0)
    # Thirty looks in one second share one error, and are not evidence enough; a few seconds of them are.
    known = []
    for stamp in np.arange(0, 10, 1 / 30):
        estimator.add(Observation(stamp, math.log(2.0), 0.03))
        known.append((stamp, estimator.estimate(stamp, 1.3)))
    first = next(stamp for stamp, estimate in known if estimate.known)
    assert 3.0 < first < 6.0
    assert known[5][1].facts("range")["scale"] == "1.3 (assumed until range tells it)"
    assert known[-1][1].facts("range")["scale"] == "2 (from range)"
    assert all(estimate.factor == 1.3 for stamp, estimate in known if stamp < first)
    assert all(estimate.factor == pytest.approx(2.0) for stamp, estimate in known if stamp >= first)
    estimator.reset()
    assert not estimator.estimate(10.0).known


def test_observations_that_disagree_are_no_evidence():
    generator = np.random.default_rng(1)
    estimator = ScaleEstimator()
    for stamp in np.arange(0, 60, 0.1):
        estimator.add(Observation(stamp, generator.uniform(-1.5, 1.5), 0.03))
        estimate = estimator.estimate(stamp)
    assert not estimate.known
    assert estimate.confidence < 0.5


def test_confidence_is_the_chance_to_be_right():
    """Over 300 runs with errors that are correlated over a second: what share is within 5 % where it says so."""
    generator = np.random.default_rng(2)
    confidences, hits = [], []
    for spread in np.linspace(0.05, 0.3, 300):
        estimator = ScaleEstimator()
        error, values = generator.normal(), []
        for stamp in np.arange(0, generator.uniform(2, 20), 0.2):
            error = math.exp(-0.4) * error + math.sqrt(1 - math.exp(-0.8)) * generator.normal()
            estimator.add(Observation(stamp, spread * error, 0.03))
            values.append(spread * error)
        confidences.append(estimator.estimate(stamp).confidence)
        hits.append(abs(robust_centre(np.array(values), np.ones(len(values)))[0]) < math.log(1.05))
    confidences, hits = np.array(confidences), np.array(hits)
    order = confidences.argsort()
    for third in np.array_split(order, 3):
        assert hits[third].mean() == pytest.approx(confidences[third].mean(), abs=0.15)
    assert confidences[order[:100]].mean() < 0.5 < 0.7 < confidences[order[200:]].mean()


def test_confidence_fades_while_nothing_comes():
    estimator = ScaleEstimator()
    for stamp in np.arange(0, 30, 0.2):
        estimator.add(Observation(stamp, 0.5 + 0.1 * math.sin(7 * stamp), 0.03))
        fresh = estimator.estimate(stamp)
    old = [estimator.estimate(30 + wait).confidence for wait in (30, 90, 300)]
    assert fresh.known and fresh.confidence > 0.9
    assert fresh.confidence > old[0] > old[1] > old[2] and old[2] < 0.1
    later = estimator.estimate(1e5)
    assert later.known and later.factor == pytest.approx(math.exp(0.5), rel=0.02)


def test_drift_is_followed_without_jumps():
    """The network's metre grows by 20 % in 200 s; a fifth of the observations is wrong by more."""
    generator = np.random.default_rng(3)
    estimator = ScaleEstimator()
    before = None
    for stamp in np.arange(0, 260, 0.5):
        true = 0.2 * min(stamp / 200, 1.0)
        outlier = generator.uniform(-1, 0.3) if generator.random() < 0.2 else 0.0
        estimator.add(Observation(stamp, true + outlier + generator.normal(0, 0.05), 0.03))
        estimate = estimator.estimate(stamp)
        if estimate.known:
            assert abs(math.log(estimate.factor) - true) < 0.05
            if before is not None:
                assert abs(math.log(estimate.factor / before)) <= scale.MAX_RATE * 0.5 + 1e-9
            before = estimate.factor
    assert math.log(estimate.factor) == pytest.approx(0.2, abs=0.015)


def test_no_jump_after_a_pause():
    estimator = ScaleEstimator()
    for index in range(20):
        estimator.add(Observation(float(index), 0.0, 0.03))
    assert estimator.estimate(20.0).factor == 1.0
    for index in range(60):
        estimator.add(Observation(1000.0 + index, math.log(2), 0.03))
    before = 1.0
    for stamp in (1060.0, 2000.0, 2000.5):
        after = estimator.estimate(stamp).factor
        assert before < after < before * 1.011, "what hangs on the factor jumps"
        before = after


def test_a_lasting_change_wins_a_passing_one_does_not():
    estimator = ScaleEstimator()

    def feed(start, seconds, value):
        for stamp in np.arange(start, start + seconds, 0.5):
            estimator.add(Observation(stamp, value + 0.03 * math.sin(5 * stamp), 0.03))
            estimate = estimator.estimate(stamp)
        return math.log(estimate.factor)

    assert feed(0, 30, 0.0) == pytest.approx(0.0, abs=0.01)
    assert feed(30, 6, -0.5) == pytest.approx(0.0, abs=0.03)  # someone stands before the sensor
    assert feed(36, 20, 0.0) == pytest.approx(0.0, abs=0.02)
    assert feed(56, 100, 0.3) == pytest.approx(0.3, abs=0.02)


# ------------------------------------------------------------------------------------------------------------ range


def wall(distance, size=SIZE, focal=66.0):
    intrinsics = torch.tensor(((focal, 0, size[1] / 2), (0, focal, size[0] / 2), (0, 0, 1)))
    return point_map(torch.full(size, distance), intrinsics)


def ahead(points, beam=BEAM, confidence=None, moving=None):
    seen = as_seen(points, moving)
    return distance_ahead(points, seen.confidence if confidence is None else confidence, seen.dynamic_mask, beam, 1.5)


@pytest.mark.parametrize("size", [SIZE, (288, 512), (512, 384), (37, 53)])
@pytest.mark.parametrize("beam", [0.0, BEAM, 1.2])
def test_distance_to_a_wall(size, beam):
    """The nearest ray is the axis; the median ray in the cone is longer, by less than 1 / cos of half the beam."""
    distance, uncertainty = ahead(wall(2.0, size, focal=0.8 * max(size)), beam).tolist()
    assert distance == pytest.approx(2.0, rel=0.01)
    assert 0 <= uncertainty <= 1 / math.cos(max(beam, scale.MIN_BEAM) / 2) - 1


def test_the_nearest_surface_of_the_beam_counts():
    pole, behind = wall(1.0), wall(3.0)
    points = behind.clone()
    points[:, 38:43] = pole[:, 38:43]
    assert ahead(points)[0] == pytest.approx(1.0, abs=0.03)
    points[:, 38:43] = behind[:, 38:43]
    points[:, 60:] = pole[:, 60:]  # out of the beam
    assert ahead(points)[0] == pytest.approx(3.0, abs=0.05)


def test_no_distance_where_the_beam_is_moving_or_unknown():
    points = wall(2.0)
    moving = torch.zeros(SIZE, dtype=torch.bool)
    moving[:, 37:43] = True
    assert ahead(points, moving=moving).isnan().all()
    moving[:, 37:43], moving[:, 66:] = False, True
    assert ahead(points, moving=moving).isfinite().all()
    assert ahead(points, confidence=torch.ones(SIZE)).isnan().all()
    assert ahead(torch.full_like(points, torch.nan)).isnan().all()


@pytest.mark.parametrize("distance", [math.inf, -math.inf, math.nan, 0.1, 4.0, -1.0])
def test_readings_that_measured_nothing_are_left_out(distance):
    matcher = RangeMatcher()
    matcher.add(RangeReading(1.0, distance, 0.1, 4.0, BEAM))
    assert matcher.match(1.0, np.array((2.0, 0.01))) == []


def test_readings_are_those_of_the_images_time():
    matcher = RangeMatcher()
    matcher.add(RangeReading(1.0, 2.0, 0.1, 4.0, BEAM))
    assert matcher.match(1.04, np.array((1.0, 0.01))) == []  # the next reading may be nearer in time
    matcher.add(RangeReading(1.05, 3.0, 0.1, 4.0, BEAM))
    (found,) = matcher.match(1.5, np.array((1.0, 0.01)))
    assert (found.stamp, found.log_scale) == (1.04, pytest.approx(math.log(3.0)))
    matcher.add(RangeReading(2.0, 2.0, 0.1, 4.0, BEAM))
    assert matcher.match(2.0, np.array((1.0, 0.01)))[0].stamp == 2.0  # nothing was measured near 1.5


def ranger(z, degrees=0.0):
    """Pose of a sensor in the camera's optical frame: `z` metres ahead, looking so far to the right."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix() @ OPTICAL.T
    pose[:3, 3] = 0.1, 0.05, z
    return pose


def test_range_sensor_that_sits_elsewhere():
    """A wall 4 m from the camera, 2 of the network's metres; closed form."""
    for z in (-0.5, 0.0, 1.0):
        metric = MetricScale(ScaleOptions(source="range"))
        metric.mount_ranger(ranger(z))
        for second in range(20):
            metric.add_range(RangeReading(float(second), 4.0 - z, 0.1, 10.0, 0.05))
            seen = metric.look(as_seen(wall(2.0, SIZE, 60.0)), 1.5).numpy()
            estimate = metric.update(float(second), np.eye(4), seen)
        assert estimate.known and estimate.factor == pytest.approx(2.0, rel=1e-3)


def test_range_sensor_that_looks_elsewhere():
    metric = MetricScale(ScaleOptions(source="range"))
    metric.add_range(RangeReading(0.0, 4.0, 0.1, 10.0, 0.05))
    seen = as_seen(wall(2.0, SIZE, 60.0))
    with pytest.raises(InputError, match=r"looks 90 degrees away .*; allowed: up to 10"):
        metric.mount_ranger(ranger(0.0, 90.0))
    assert metric.look(seen, 1.5) is None
    metric.mount_ranger(ranger(0.0, -9.0))
    assert metric.look(seen, 1.5) is not None
    with pytest.raises(InputError, match=r"no \(4, 4\) pose"):
        metric.mount_ranger(np.full((4, 4), np.nan))


def true_range(depth, intrinsics, beam):
    """The shortest of all rays in the beam, from exact depths."""
    points = point_map(depth, intrinsics).double().numpy().reshape(-1, 3)
    length = np.linalg.norm(points, axis=1)
    return length[points[:, 2] > math.cos(beam / 2) * length].min()


@pytest.mark.parametrize(("beam", "tolerance"), [(BEAM, 0.08), (0.06, 0.06)])
def test_range_sensor_finds_the_scale(worlds, beam, tolerance):
    """In all worlds: dropouts, readings of nothing, three tenths of the others wrong."""
    _, seen = worlds
    generator = np.random.default_rng(4)
    errors = []
    for world in range(6):
        noise = depth_noise(torch.Generator().manual_seed(world), FRAMES)
        metric = MetricScale(ScaleOptions(source="range"))
        for frame in range(FRAMES):
            stamp, depth = 100 + PERIOD * frame, seen.depth[world, frame]
            reading = true_range(depth, seen.intrinsics[world], beam) * generator.normal(1, 0.01)
            if generator.random() < 0.3:
                reading *= generator.uniform(0.2, 1.2)
            if generator.random() < 0.2:
                reading = math.inf
            metric.add_range(RangeReading(stamp + 0.02, reading, 0.02, 20.0, beam))
            points = point_map(depth * noise[frame], seen.intrinsics[world]) / HIDDEN
            numbers = metric.look(as_seen(points, seen.moving[world, frame]), 1.5)
            estimate = metric.update(stamp, np.eye(4), numbers.numpy())
        errors.append(estimate.factor / HIDDEN - 1 if estimate.known else math.nan)
    errors = np.array(errors)
    print(f"\nrange, beam of {beam} rad: errors {np.round(errors, 3)}")
    assert np.isfinite(errors).sum() >= 4
    assert np.nanmax(np.abs(errors)) < tolerance


# --------------------------------------------------------------------------------------------------------- odometry

LEVER = np.array([0.3, 0.1, 0.5])  # of the camera from the base, metres
OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # camera axes in the base frame
BASE_FROM_CAMERA = np.block([[OPTICAL, LEVER[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])


def drive(speed, turn, rate=50.0):
    """Base poses (T, 4, 4) at `rate` from speeds (T,) m/s and rates of turn (T,) rad/s."""
    yaw = np.cumsum(turn) / rate
    poses = np.tile(np.eye(4), (len(yaw), 1, 1))
    poses[:, 0, 0] = poses[:, 1, 1] = np.cos(yaw)
    poses[:, 1, 0] = np.sin(yaw)
    poses[:, 0, 1] = -np.sin(yaw)
    poses[:, 0, 3], poses[:, 1, 3] = np.cumsum(speed * np.cos(yaw)) / rate, np.cumsum(speed * np.sin(yaw)) / rate
    return poses


def ride(metric, truth, odometry, mount=None, jitter=0.005, seed=0):
    """Estimates at 10 Hz, from odometry at 50 Hz that comes after the images."""
    generator = np.random.default_rng(seed)
    cameras = truth @ BASE_FROM_CAMERA
    start = np.linalg.inv(cameras[0])
    estimates = []
    for index, pose in enumerate(odometry):
        stamp = 5.0 + index / 50
        if index % 5 == 0:
            seen = start @ cameras[index]
            seen[:3, 3] = seen[:3, 3] / HIDDEN + generator.normal(0, jitter / HIDDEN, 3)
            if mount is not None:
                metric.mount_camera(mount)  # told again and again, as by who asks tf2 with every image
            estimates.append(metric.update(stamp, seen, None))
        metric.add_odometry(stamp, pose)
    return estimates


def test_odometry_finds_the_scale_in_spite_of_slip():
    seconds = np.arange(0, 60, 0.02)
    speed, turn = 0.5 + 0.2 * np.sin(0.3 * seconds), 0.5 * np.sin(0.4 * seconds)
    truth = drive(speed, turn)
    # Wheels spin for a second in every five, and always slip by a little.
    slips = 1.01 + 0.8 * (seconds % 5 < 1)
    odometry = drive(speed * slips, 0.9 * turn)
    metric = MetricScale(ScaleOptions(source="odometry"))
    estimates = ride(metric, truth, odometry, BASE_FROM_CAMERA)
    error = estimates[-1].factor / HIDDEN - 1
    print(f"\nodometry with slip: error {error:.3f}")
    assert estimates[-1].known and estimates[-1].confidence > 0.8
    assert abs(error) < 0.04
    assert not estimates[20].known and estimates[20].factor == 1.0


def test_a_turning_camera_does_not_fool_the_odometry():
    """Curves of half a metre radius: the camera, in front, travels a fifth farther than the base."""
    seconds = np.arange(0, 60, 0.02)
    speed, turn = np.full(len(seconds), 0.4), 0.8 * np.sign(np.sin(0.5 * seconds))
    path = drive(speed, turn)
    naive = [np.linalg.norm(np.diff(p[:, :3, 3], axis=0), axis=1).sum() for p in (path, path @ BASE_FROM_CAMERA)]
    assert naive[1] / naive[0] > 1.15

    metric = MetricScale(ScaleOptions(source="odometry"))
    metric.mount_camera(BASE_FROM_CAMERA)
    assert ride(metric, path, path, jitter=0.0)[-1].factor == pytest.approx(HIDDEN, rel=0.005)

    # Nobody knows where the camera is: nothing is concluded from curves ...
    metric = MetricScale(ScaleOptions(source="odometry"))
    estimate = ride(metric, path, path)[-1]
    assert (estimate.known, estimate.observations, estimate.confidence) == (False, 0, 0.0)
    # ... but from the straight parts of a way.
    turn = np.where(seconds % 10 < 2, 0.8, 0.0)
    path = drive(speed, turn)
    metric = MetricScale(ScaleOptions(source="odometry"))
    estimate = ride(metric, path, path)[-1]
    assert estimate.known
    assert estimate.factor == pytest.approx(HIDDEN, rel=0.03)


@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_standing_still_says_nothing(turn):
    path = drive(np.zeros(2000), np.full(2000, turn))
    metric = MetricScale(ScaleOptions(source="odometry"))
    metric.mount_camera(np.block([[OPTICAL, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]))
    estimate = ride(metric, path, path, jitter=0.02)[-1]
    assert (estimate.known, estimate.observations, estimate.confidence) == (False, 0, 0.0)


def test_odometry_that_stops_coming_or_starts_anew():
    matcher = OdometryMatcher()

    def at(x):
        pose = np.eye(4)
        pose[0, 3] = x
        return pose

    def pass_by(stamps, offset=0.0, step=0.02):
        found = []
        for stamp in stamps:
            matcher.add(stamp + step / 2, at(stamp - offset))
            found += matcher.match(stamp, at(2 * stamp))
        return found

    # 1 m/s, and the network sees 2: half a metre is through every half second.
    found = pass_by(np.arange(0, 3, 0.02))
    assert len(found) == 5
    assert [o.log_scale for o in found] == pytest.approx([math.log(0.5)] * 5, rel=0.05)
    # A second without odometry is not bridged; then its stamps are set back, as by a bag that starts over.
    found = pass_by(np.arange(4, 4.45, 0.02))
    assert found == []
    matcher.reset()
    assert len(pass_by(np.arange(0, 1.3, 0.02))) == 2


def test_a_pose_that_is_none_is_refused():
    with pytest.raises(InputError, match="pose"):
        MetricScale(ScaleOptions()).mount_camera(np.ones((4, 4)))


# ----------------------------------------------------------------------------------------------------------- height


def floor_height(points, up=None, confidence=None):
    seen = as_seen(points)
    return height_above_floor(
        points, seen.confidence if confidence is None else confidence, seen.dynamic_mask, 1.5, up
    )


@pytest.mark.parametrize("pitch", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("roll", [0.0, 0.15])
@pytest.mark.parametrize("tells_up", [True, False])
def test_height_above_a_bare_floor(pitch, roll, tells_up):
    """Closed form: depth of the floor, or of a wall 4 m ahead, for a tilted camera 0.7 m up."""
    rays = wall(1.0)
    turn_x = torch.tensor(((1, 0, 0), (0, math.cos(pitch), -math.sin(pitch)), (0, math.sin(pitch), math.cos(pitch))))
    turn_z = torch.tensor(((math.cos(roll), -math.sin(roll), 0), (math.sin(roll), math.cos(roll), 0), (0, 0, 1)))
    level = rays @ (turn_x.mT @ turn_z).mT  # x right, y down along gravity, z ahead
    depth = torch.minimum(
        torch.where(level[..., 1] > 0, 0.7 / level[..., 1], torch.inf),
        torch.where(level[..., 2] > 0, 4.0 / level[..., 2], torch.inf),
    )
    up = tuple((turn_z.mT @ turn_x @ torch.tensor((0.0, -1.0, 0.0))).tolist())
    height, roughness = floor_height(rays * depth[..., None] / HIDDEN, up if tells_up else None).tolist()
    assert height * HIDDEN == pytest.approx(0.7, rel=0.025)  # the wall's lowest rows lie in the floor's band
    assert roughness < 0.02


def test_no_floor_no_height():
    assert floor_height(wall(2.0)).isnan().all()  # nothing but a wall
    assert floor_height(wall(2.0), up=(0.0, -1.0, 0.0)).isnan().all()
    assert floor_height(torch.full((*SIZE, 3), torch.nan)).isnan().all()
    assert floor_height(torch.zeros(*SIZE, 3)).isnan().all()
    rays = wall(1.0)
    ceiling = rays * (1.5 / (-rays[..., 1:2]).clamp_min(1e-2))
    assert floor_height(ceiling).isnan().all()
    ground = rays * (1.5 / rays[..., 1:2].clamp_min(1e-2))
    assert floor_height(ground).isfinite().all()
    assert floor_height(ground, confidence=torch.ones(SIZE)).isnan().all()


def test_a_table_is_not_taken_for_the_floor_around_it():
    rays = wall(1.0)
    y = rays[..., 1:2].clamp_min(1e-3)
    floor, table = 1.2 / y, 0.5 / y
    standing = (table * rays[..., 2:] < 3.0) & (rays[..., :1] < 0.2)
    assert (standing & (rays[..., 1:2] > 0)).sum() > (~standing & (rays[..., 1:2] > 0.2)).sum()
    points = rays * torch.where(standing, table, floor)
    assert floor_height(points)[0] == pytest.approx(1.2, rel=0.02)


@pytest.mark.parametrize(("tells_up", "tolerance"), [(True, 0.04), (False, 0.1)])
def test_height_finds_the_scale(worlds, tells_up, tolerance):
    """In all worlds: furniture, movers, noise, and an upward direction that is off by a degree or not known."""
    _, seen = worlds
    errors = []
    for world in range(6):
        generator = torch.Generator().manual_seed(world)
        noise = depth_noise(generator, FRAMES)
        tilt = 0.02 * torch.randn(FRAMES, 3, generator=generator)
        metric = MetricScale(ScaleOptions(source="height", camera_height=1.0))
        for frame in range(0, FRAMES, 2):
            pose = seen.pose[world, frame].double()
            # The cameras of these worlds rise and sink: their unit of length is made the height of the moment.
            unit = HIDDEN * pose[2, 3].item()
            if tells_up:
                metric.up = tuple((pose[2, :3] + tilt[frame]).tolist())
            points = point_map(seen.depth[world, frame] * noise[frame], seen.intrinsics[world]) / unit
            numbers = metric.look(as_seen(points, seen.moving[world, frame]), 1.5)
            estimate = metric.update(PERIOD * frame, np.eye(4), numbers.numpy())
        errors.append(estimate.factor / HIDDEN - 1 if estimate.known else math.nan)
    errors = np.array(errors)
    print(f"\nheight, up {'known' if tells_up else 'assumed'}: errors {np.round(errors, 3)}")
    assert np.isfinite(errors).sum() >= 3
    assert np.nanmax(np.abs(errors)) < tolerance


def test_no_floor_in_view_leaves_the_scale_unknown():
    metric = MetricScale(ScaleOptions(source="height", camera_height=1.0, value=0.9))
    for frame in range(50):
        points = wall(2.0) * depth_noise(torch.Generator().manual_seed(frame), 1)[0][..., None]
        estimate = metric.update(0.2 * frame, np.eye(4), metric.look(as_seen(points), 1.5).numpy())
    assert (estimate.known, estimate.factor) == (False, 0.9)
    assert estimate.confidence < 0.2


# ------------------------------------------------------------------------------------------------------ all together


@pytest.mark.parametrize("source", ["range", "height"])
def test_a_look_waits_for_nothing_of_the_device(source):
    """On the meta device there are no values: whatever the host asks for raises."""
    metric = MetricScale(ScaleOptions(source=source, camera_height=1.0))
    metric.add_range(RangeReading(0.1, 1.0, 0.1, 4.0, BEAM))
    assert metric.look(as_seen(torch.empty(*SIZE, 3, device="meta")), 1.5).shape == (2,)


@pytest.mark.parametrize("source", ["range", "height"])
def test_frames_of_which_nobody_knows_what_moves_say_nothing(source):
    metric = MetricScale(ScaleOptions(source=source, camera_height=1.0))
    metric.add_range(RangeReading(0.1, 1.0, 0.1, 4.0, BEAM))
    assert metric.look(as_seen(wall(2.0), motion=False), 1.5) is None
    assert metric.look(as_seen(wall(2.0)), 1.5) is not None


def test_a_new_world_begins_unknown():
    metric = MetricScale(ScaleOptions(source="odometry", value=1.5))
    path = drive(np.full(1500, 0.5), np.zeros(1500))
    assert ride(metric, path, path)[-1].known
    metric.reset()
    estimate = metric.update(36.0, np.eye(4), None)
    assert (estimate.factor, estimate.known, estimate.observations) == (1.5, False, 0)


def test_range_asks_nothing_of_the_network_before_a_sensor_speaks():
    metric = MetricScale(ScaleOptions(source="range"))
    assert metric.look(as_seen(wall(2.0)), 1.5) is None
    assert not metric.update(0.0, np.eye(4), None).known
    metric.add_range(RangeReading(0.1, math.inf, 0.1, 4.0, BEAM))
    assert metric.look(as_seen(wall(2.0)), 1.5).shape == (2,)
