"""Metric scale: the factor that turns the network's metres into true ones, from one thing that is known.

The known thing is the distance straight ahead (a range sensor), the way travelled (wheel odometry) or the camera's
height above the floor. Each says, now and then, what the factor's logarithm is (an `Observation`); `ScaleEstimator`
makes a running estimate of what most of them agree on. What is needed of the images is found on the network's device
and comes over as two numbers a frame. Camera frames are optical (x right, y down, z forward), poses camera to world.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.options import check_options, option
from raymap3r_ros.streaming import StepResult

SOURCES = ("fixed", "range", "odometry", "height")

# The estimator.
TOLERANCE = math.log(1.05)  # confidence is the chance that the factor is right to 5 %
MEMORY = 30.0  # seconds in which an observation's weight falls to 1/e: short enough to follow a drift
CORRELATION = 1.0  # seconds: errors of a network's depth that lie closer are one error, not two
MAX_OBSERVATIONS = 512  # kept; more than MEMORY at ten a second
KNOWN_VOTES = 5.0  # independent observations, and ...
KNOWN_CONFIDENCE = 0.8  # ... confidence, from which on the factor is used
MAX_RATE = 0.01  # change of the factor's logarithm per second once it is in use: what hangs on it must not jump, ...
MAX_PAUSE = 1.0  # ... nor after seconds without an image: no more than these count
CUTOFF = 2.5  # spreads from the centre at which an observation counts for nothing
# Standard deviation of an observation's logarithm at best, by what networks and sensors are known to do.
DEVIATION = 0.03

# Samples of a sensor.
LATE = 1.0  # seconds by which a sample may be older than the last and is only late; further back, time was set back
MAX_SAMPLES = 2000  # waiting for a frame
MAX_FRAMES = 100  # waiting for a sample

# Range.
MAX_AGE = 0.1  # seconds between a reading and the image it is compared with
MIN_BEAM = 0.05  # radians: a beam that is narrower, as a laser's, would meet no pixel or one
SPOT = 0.1  # radians: a beam up to this wide meets a spot, not several surfaces
NEAR_SHARE = 0.03  # of the beam that a surface must fill to be what the sensor sees; less are stray pixels
NEAR_DEPTH = 1.25  # farther than the nearest by this factor is another surface
MAX_MOVING = 0.03  # share of the beam that may move ...
MIN_USABLE = 0.5  # ... and that must be known
MAX_SQUINT = math.radians(10)  # between the sensor's direction and the camera's
LONGEST_LENS = 2.0  # focal length over the image's long edge, up to which the whole beam is looked at
SAMPLES_ACROSS = 64  # rows and columns looked at

# Odometry.
MIN_TRAVEL = 0.5  # metres, straight, of a stretch whose length is compared
MAX_TIME = 20.0  # seconds for that; after it, the stretch begins anew, for the network's path may have drifted
MAX_TURN = math.radians(5)  # in a stretch, where nobody knows how far the camera is from the turning point
MAX_GAP = 0.5  # seconds between two odometry messages between which the robot's place is guessed

# Height.
FLOOR_POINTS = 32  # looked at along the image's long edge
KNOWN_TILT, ASSUMED_TILT = math.radians(10), math.radians(45)  # the floor's normal is sought so far from `up`
STIFFNESS = 0.5  # of a known `up`: a tilt of 3 degrees costs as much as points that are off by 4 %
TILTS = 13  # tried about each of two axes
HEIGHTS = (1e-2, 1e3)  # network metres
HEIGHT_STEP = 0.05  # of its logarithm
FLOOR_BAND = (
    0.2,
    0.15,
    0.1,
    0.07,
    0.05,
    0.05,
)  # relative distance from the floor within which points belong to it, step by step
MIN_FLOOR = 0.1  # share of the image
# Within this relative distance of a floor there are so many times more points than in the band above: a wall goes on.
CONTRAST_BAND, CONTRAST = 0.1, 3.0


@dataclass(frozen=True)
class ScaleOptions:
    """How the network's metres become true ones."""

    source: str = option(
        "fixed",
        "what tells the metric scale: fixed (the value below), range (a range sensor that looks straight ahead), "
        "odometry (of the wheels) or height (of the camera above the floor)",
        choices=SOURCES,
    )
    value: float = option(
        1.0,
        "factor by which the network's metres are multiplied; with other sources than fixed, until it is known",
        low=1e-3,
        high=1e3,
        live=True,
    )
    camera_height: float = option(
        0.0, "height of the camera above the floor, metres; needed for source height", low=0.0, high=1000.0, live=True
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.source == "height" and self.camera_height == 0:
            raise OptionError(
                "scale.camera_height is 0.0; allowed with scale.source height: the camera's height above the floor, "
                "metres, above 0"
            )


@dataclass(frozen=True)
class Observation:
    """What one look at a source says."""

    stamp: float  # seconds
    log_scale: float  # of the factor
    deviation: float  # standard deviation of it, as the source believes


@dataclass(frozen=True)
class ScaleEstimate:
    """The factor to use at a time, and what it is worth.

    `confidence` is the chance that the factor found is right to 5 %, as far as the spread of the observations tells:
    errors that all of them share (a range sensor's own, wheels of another size) cannot be seen. It fades while
    nothing new comes. `known` is true from the moment at which there was enough evidence, until a reset.
    """

    factor: float  # the network's metres times this are metres
    known: bool  # False: `factor` is the option's value
    confidence: float  # 0..1
    observations: int  # that are remembered
    spread: float  # robust standard deviation of a single observation's logarithm; NaN without any

    def facts(self, source: str) -> dict[str, object]:
        """What diagnostics say of it."""
        if source == "fixed":
            return {"scale": f"{self.factor:.4g} (fixed)"}
        return {
            "scale": f"{self.factor:.4g} ({f'from {source}' if self.known else f'assumed until {source} tells it'})",
            "scale confidence": round(self.confidence, 3),
            "scale observations": self.observations,
            "scale spread of one": round(self.spread, 3),
        }


# -------------------------------------------------------------------------------------------------------- estimator


class ScaleEstimator:
    """A running estimate from observations most of which are right, all from one source and of one world."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new world, whose metre may be another: forget everything."""
        # Stamp, logarithm, deviation, and how many independent observations it is worth.
        self._observations: deque[tuple[float, float, float, float]] = deque(maxlen=MAX_OBSERVATIONS)
        self._log_factor: float | None = None
        self._stamp = -math.inf

    def add(self, observation: Observation) -> None:
        """Take in an observation not older than those before it."""
        last = self._observations[-1][0] if self._observations else -math.inf
        votes = min(1.0, max(0.0, observation.stamp - last) / CORRELATION)
        self._observations.append((observation.stamp, observation.log_scale, observation.deviation, votes))

    def estimate(self, stamp: float, otherwise: float = 1.0) -> ScaleEstimate:
        """The estimate at `stamp` seconds; its factor is `otherwise` until the factor is known."""
        if not self._observations:
            return ScaleEstimate(otherwise, False, 0.0, 0, math.nan)
        stamps, values, deviations, shares = np.array(self._observations).T
        age = np.maximum(stamp - stamps, 0)
        freshness = np.exp(-(age - age.min()) / MEMORY)  # from the newest on: however old, they do not all vanish
        centre, spread = robust_centre(values, freshness / deviations**2)
        spread = max(spread, float(np.median(deviations)))
        votes = float((np.exp(-age / MEMORY) * shares).sum())
        error = spread / math.sqrt(votes) if votes > 0 else math.inf
        confidence = math.erf(TOLERANCE / (error * math.sqrt(2)))

        if self._log_factor is not None:
            step = MAX_RATE * min(max(stamp - self._stamp, 0.0), MAX_PAUSE)
            self._log_factor += min(max(centre - self._log_factor, -step), step)
        elif votes >= KNOWN_VOTES and confidence >= KNOWN_CONFIDENCE:
            self._log_factor = centre
        self._stamp = stamp
        known = self._log_factor is not None
        factor = math.exp(self._log_factor) if known else otherwise
        return ScaleEstimate(factor, known, confidence, len(values), spread)


def robust_centre(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Centre and robust standard deviation of values (N,) with weights (N,) above 0.

    The weighted median and the median distance from it, then Tukey's biweight (Mosteller and Tukey 1977) from there:
    a median is drawn towards outliers that are all on one side, the biweight forgets them.
    """
    centre = _weighted_median(values, weights)
    for _ in range(5):
        spread = 1.4826 * _weighted_median(np.abs(values - centre), weights)
        if spread == 0:
            break
        share = weights * np.maximum(1 - ((values - centre) / (CUTOFF * spread)) ** 2, 0) ** 2
        centre = float(share @ values / share.sum())
    return centre, spread


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = values.argsort()
    share = weights[order].cumsum()
    return float(values[order][share.searchsorted(share[-1] / 2)])


# ---------------------------------------------------------------------------------------------------------- samples


class _Samples:
    """Samples of a sensor with rising stamps, read around the stamps of frames, which rise too."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Any]] = deque(maxlen=MAX_SAMPLES)

    def add(self, stamp: float, value: Any) -> None:
        if self._samples and stamp <= self._samples[-1][0]:
            if stamp > self._samples[-1][0] - LATE:
                return
            self._samples.clear()
        self._samples.append((stamp, value))

    def reach(self, stamp: float) -> bool:
        """Whether there is a sample at `stamp` or after it."""
        return bool(self._samples) and self._samples[-1][0] >= stamp

    def around(self, stamp: float) -> tuple[tuple[float, Any], tuple[float, Any]] | None:
        """The last sample up to `stamp` and the first one from it on; None where one is missing.

        What is older than these is forgotten.
        """
        while len(self._samples) > 1 and self._samples[1][0] <= stamp:
            self._samples.popleft()
        if not self._samples or self._samples[0][0] > stamp:
            return None
        first = self._samples[0]
        if first[0] == stamp:
            return first, first
        return (first, self._samples[1]) if len(self._samples) > 1 else None


class _Matcher:
    """Frames that wait until the samples of a sensor have reached them."""

    def __init__(self) -> None:
        self._samples = _Samples()
        self._frames: deque[tuple[float, Any]] = deque(maxlen=MAX_FRAMES)

    def reset(self) -> None:
        self._frames.clear()

    def match(self, stamp: float, frame: Any) -> list[Observation]:
        """Take in a frame; what can now be said of it and of those before."""
        self._frames.append((stamp, frame))
        found = []
        while self._frames and self._samples.reach(self._frames[0][0]):
            observation = self._compare(*self._frames.popleft())
            if observation is not None:
                found.append(observation)
        return found

    def _compare(self, stamp: float, frame: Any) -> Observation | None:
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------------------ range


@dataclass(frozen=True)
class RangeReading:
    """A sensor_msgs/Range of a sensor that looks along the camera's optical axis. Metres and radians."""

    stamp: float  # seconds
    distance: float  # to the nearest surface in the beam; inf: none, -inf: too near (REP 117), NaN: nothing known
    low: float  # limits of the sensor
    high: float
    field_of_view: float  # full angle of the beam

    @property
    def valid(self) -> bool:
        """Whether something was measured: many sensors give their upper limit where there is nothing."""
        return math.isfinite(self.distance) and max(self.low, 0.0) < self.distance < self.high


class RangeMatcher(_Matcher):
    """Observations from a range sensor's readings and `distance_ahead` of the frames."""

    ahead = 0.0  # metres from the camera's centre to where the sensor's distances begin, along the optical axis

    def add(self, reading: RangeReading) -> None:
        """Take in a reading; one that measured nothing is left out."""
        if reading.valid:
            self._samples.add(reading.stamp, reading)

    def _compare(self, stamp: float, frame: np.ndarray) -> Observation | None:
        pair = self._samples.around(stamp)
        if pair is None:
            return None
        nearest, reading = min(pair, key=lambda sample: abs(sample[0] - stamp))
        distance, uncertainty = (float(number) for number in frame)
        if abs(nearest - stamp) > MAX_AGE or not distance > 0 or not reading.distance + self.ahead > 0:
            return None
        log_scale = math.log((reading.distance + self.ahead) / distance)
        return Observation(stamp, log_scale, math.hypot(DEVIATION, uncertainty))


@torch.no_grad()
def distance_ahead(
    points: Tensor, confidence: Tensor, moving: Tensor, field_of_view: float, min_confidence: float
) -> Tensor:
    """Distance along the ray to what is nearest in a beam about the optical axis, and how uncertain that is: (2,).

    `points` (H, W, 3) camera frame, `confidence` (H, W), `moving` (H, W) bool, `field_of_view` the beam's full angle
    in radians. The distance is a low quantile, of a spot the median over the same surface; the uncertainty, relative,
    how far these two are apart: little for a wall ahead, more where a wide beam meets a surface at an angle. NaN where
    too little of the beam is known or something in it moves: the sensor may see what the network does not.
    """
    half = max(field_of_view, MIN_BEAM) / 2
    height, width = moving.shape
    # Where the beam can be, looked at closely enough; on the device only, where the lens is known.
    reach = math.ceil(max(math.tan(min(half, 1.5)) * LONGEST_LENS, 1 / 16) * max(height, width))
    rows, columns = (slice(max(0, side // 2 - reach), side // 2 + reach + 1) for side in (height, width))
    step = max(1, min(2 * reach, max(height, width)) // SAMPLES_ACROSS)
    points, confidence, moving = (
        item[rows, columns][::step, ::step].flatten(0, 1) for item in (points, confidence, moving)
    )
    distance = points.norm(dim=-1)
    inside = torch.isfinite(distance) & (distance > 0) & (points[:, 2] >= math.cos(half) * distance)
    usable = inside & (confidence >= min_confidence) & ~moving
    ordered = torch.where(usable, distance, torch.inf).sort().values
    number, total = usable.sum(), inside.sum()
    nearest = _pick(ordered, NEAR_SHARE * number)
    surface = (ordered <= nearest * NEAR_DEPTH).sum()
    middle = _pick(ordered, 0.5 * surface)
    distance = middle if field_of_view <= SPOT else nearest
    seen = (number >= MIN_USABLE * total) & ((inside & moving).sum() <= MAX_MOVING * total) & (number > 0)
    return torch.where(seen, torch.stack((distance, middle / nearest - 1)), torch.nan)


def _pick(ordered: Tensor, place: Tensor) -> Tensor:
    """The element () of a row (N,) at a place (), without the host having to know which."""
    return ordered.gather(0, place.long().clamp(max=len(ordered) - 1)[None])[0]


# --------------------------------------------------------------------------------------------------------- odometry


class OdometryMatcher(_Matcher):
    """Observations from wheel odometry and the network's camera path: lengths of the same straight-line stretches.

    A stretch ends as soon as the odometry is MIN_TRAVEL away from where it began, so that standing still says
    nothing. `mount` (3,) is the camera's position in the robot's base frame, metres; while it is None, stretches in
    which the camera turns are left out, as the camera then travels another way than the base.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mount: np.ndarray | None = None
        self._start: tuple[float, np.ndarray, np.ndarray] | None = None  # stamp, odometry's position, network's pose

    @property
    def mount(self) -> np.ndarray | None:
        """The camera's position (3,) in the base frame, metres."""
        return self._mount

    @mount.setter
    def mount(self, position: np.ndarray | None) -> None:
        position = None if position is None else np.array(position, np.float64)
        if np.array_equal(position, self._mount):
            return
        self._mount = position
        self._samples = _Samples()  # those are of another point
        self._start = None

    def reset(self) -> None:
        """A new world of the network's; the odometry's goes on."""
        super().reset()
        self._start = None

    def add(self, stamp: float, pose: np.ndarray) -> None:
        """Take in a pose (4, 4) of the base in the odometry's frame, metres."""
        position = pose[:3, 3] if self._mount is None else pose[:3, :3] @ self._mount + pose[:3, 3]
        if np.isfinite(position).all():
            self._samples.add(stamp, np.asarray(position, np.float64))

    def _compare(self, stamp: float, frame: np.ndarray) -> Observation | None:
        pair = self._samples.around(stamp)
        if pair is None or pair[1][0] - pair[0][0] > MAX_GAP:
            self._start = None
            return None
        (before, first), (after, second) = pair
        share = (stamp - before) / (after - before) if after > before else 0.0
        position = first + share * (second - first)
        if (
            self._start is None
            or not 0 <= stamp - self._start[0] <= MAX_TIME
            or (self._mount is None and _angle(self._start[2], frame) > MAX_TURN)
        ):
            self._start = stamp, position, frame
            return None
        _, start, start_pose = self._start
        travelled = float(np.linalg.norm(position - start))
        if travelled < MIN_TRAVEL:
            return None
        self._start = stamp, position, frame
        seen = float(np.linalg.norm(frame[:3, 3] - start_pose[:3, 3]))
        return Observation(stamp, math.log(travelled / seen), DEVIATION) if seen > 0 else None


def _angle(first: np.ndarray, second: np.ndarray) -> float:
    """Radians between the rotations of two poses (4, 4)."""
    cosine = (float((first[:3, :3] * second[:3, :3]).sum()) - 1) / 2
    return math.acos(min(max(cosine, -1.0), 1.0))


# ----------------------------------------------------------------------------------------------------------- height


@torch.no_grad()
def height_above_floor(
    points: Tensor,
    confidence: Tensor,
    moving: Tensor,
    min_confidence: float,
    up: tuple[float, float, float] | None = None,
) -> Tensor:
    """The camera's height above the floor in the network's metres, and the floor's relative roughness: (2,).

    `points` (H, W, 3) camera frame, `confidence` (H, W), `moving` (H, W) bool. `up` is the upward direction in the
    camera frame, right to ten degrees; without it the camera is taken to be level to 45 degrees.
    NaN where no floor is seen.

    A floor m . p = -1 has its normal along m and lies 1 / |m| below the camera. An error of depth moves m . p by its
    share of the depth, at any distance, so that one relative band holds all of the floor. First a Hough transform:
    normals about `up` and heights are tried, and each is given the points near to it, less those under it, so that
    a table does not win against the floor that it stands on. Then least squares among the points near the best.
    """
    step = max(1, math.ceil(max(moving.shape) / FLOOR_POINTS))
    points, confidence, moving = (item[::step, ::step].flatten(0, 1) for item in (points, confidence, moving))
    usable = torch.isfinite(points).all(-1) & (confidence >= min_confidence) & ~moving
    points = torch.where(usable[:, None], points, 0.0)

    tilt, stiffness = (ASSUMED_TILT, 0.0) if up is None else (KNOWN_TILT, STIFFNESS)
    normals = _normals(up or (0.0, -1.0, 0.0), tilt, points.device)
    upward = normals[len(normals) // 2]
    below = -normals @ points.T  # (K, P) how far below the camera each point is
    low, high = (math.log(height) for height in HEIGHTS)
    bins = math.ceil((high - low) / HEIGHT_STEP)
    place = ((below.clamp(*HEIGHTS).log() - low) / HEIGHT_STEP).long().clamp(max=bins - 1)
    counted = (usable & (below > HEIGHTS[0])).float()
    histogram = torch.zeros(len(normals), bins, device=points.device)
    total = histogram.scatter_add_(1, place, counted).cumsum(1)
    # Four bins are a band of 10 % to either side.
    near = total[:, 4:] - total[:, :-4]
    under = total[:, -1:] - total[:, 4:]
    # A wall, too, has points near a steep plane through it.
    best = ((near - under) * (normals @ upward).square()[:, None]).flatten().argmax()
    height = torch.exp(low + HEIGHT_STEP * (best % near.shape[1] + 3)).double()
    plane = normals.gather(0, (best // near.shape[1]).expand(1, 3))[0].double() / height
    points, upward = points.double(), upward.double()
    across = torch.eye(3, dtype=torch.float64, device=points.device) - upward[:, None] * upward

    for band in FLOOR_BAND:
        error = points @ plane + 1
        floor = usable & (error.abs() < band)
        plane = _fit_plane(points * floor[:, None], stiffness * floor.sum() * height.square() * across)
    error = points @ plane + 1
    roughness = (floor * error.square()).sum().div(floor.sum()).sqrt()
    length = plane.norm()
    on, above = (usable & (abs(error - middle) < CONTRAST_BAND) for middle in (0, 2 * CONTRAST_BAND))
    found = (
        (on.sum() >= MIN_FLOOR * len(points))
        & (on.sum() >= CONTRAST * above.sum())
        & ((usable & (error < -FLOOR_BAND[0])).sum() < on.sum())
        & (plane @ upward >= math.cos(tilt * 1.2) * length)
        & torch.isfinite(length)
        & (length > 0)
    )
    return torch.where(found, torch.stack((1 / length, roughness)), torch.nan).float()


@functools.lru_cache(maxsize=16)
def _normals(up: tuple[float, float, float], tilt: float, device: torch.device) -> Tensor:
    """Unit vectors (TILTS^2, 3) tilted from `up` by up to `tilt` about two axes; the middle one is `up`."""
    upward = np.asarray(up, np.float64) / np.linalg.norm(up)
    first = np.cross(upward, np.eye(3)[np.abs(upward).argmin()])
    first /= np.linalg.norm(first)
    slopes = np.tan(np.linspace(-tilt, tilt, TILTS))
    a, b = (grid.reshape(-1, 1) for grid in np.meshgrid(slopes, slopes, indexing="ij"))
    normals = upward + a * first + b * np.cross(upward, first)
    with torch.inference_mode(False):
        unit = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        return torch.tensor(unit, dtype=torch.float32, device=device)


def _fit_plane(points: Tensor, prior: Tensor) -> Tensor:
    """m (3,) with the least sum of (m . p + 1)^2 over points (P, 3), those at 0 left out, plus m . prior m; not finite
    where all lie in one plane with the camera. By Cramer's rule: a solver would make a GPU wait."""
    a, b, c = points.T @ points + prior
    right = -points.sum(0)
    cross = torch.linalg.cross
    inverse = torch.stack((cross(b, c), cross(c, a), cross(a, b)), dim=1)
    return inverse @ right / (a @ cross(b, c))


# ------------------------------------------------------------------------------------------------------ all together


class MetricScale:
    """The metric scale of one stream: takes in what the source says and what the frames show, gives the factor.

    `add_range` and `add_odometry` may be called from any thread; the rest belongs to the thread of the frames. Per
    frame: `numbers = scale.look(result, ...)` on the device, then, with these in host memory, `scale.update(...)`.
    """

    def __init__(self, options: ScaleOptions) -> None:
        self.options = options  # replace it where `value` or `camera_height` changes
        self.up: tuple[float, float, float] | None = None  # in the camera frame, where known; for `height`
        self._estimator = ScaleEstimator()
        self._ranges = RangeMatcher()
        self._odometry = OdometryMatcher()
        self._beam: float | None = None
        self._ranger_usable = True
        self._lock = threading.Lock()

    def mount_camera(self, base_from_camera: np.ndarray) -> None:
        """The camera's pose (4, 4) in the robot's base frame, whose z is up: lever arm and upward direction.

        Raises InputError where it is no pose.
        """
        pose = _checked_pose(base_from_camera, "the camera's pose in the base frame")
        with self._lock:
            self._odometry.mount = pose[:3, 3]
        self.up = tuple(pose[2, :3].tolist())

    def mount_ranger(self, camera_from_ranger: np.ndarray) -> None:
        """The range sensor's pose (4, 4) in the camera's optical frame; it measures along its own x axis.

        Raises InputError where it is no pose, or where the sensor looks elsewhere: its readings are of no use then.
        """
        pose = _checked_pose(camera_from_ranger, "the range sensor's pose in the camera's frame")
        angle = math.acos(np.clip(pose[2, 0], -1.0, 1.0))
        self._ranger_usable = angle <= MAX_SQUINT
        if not self._ranger_usable:
            raise InputError(
                f"the range sensor looks {math.degrees(angle):.0f} degrees away from the camera's axis (along x of "
                f"its own frame); allowed: up to {math.degrees(MAX_SQUINT):.0f}"
            )
        with self._lock:
            self._ranges.ahead = float(pose[2, 3])

    def add_range(self, reading: RangeReading) -> None:
        """Take in a reading of the range sensor."""
        with self._lock:
            self._beam = reading.field_of_view
            self._ranges.add(reading)

    def add_odometry(self, stamp: float, pose: np.ndarray) -> None:
        """Take in a pose (4, 4) of the base in the odometry's frame, metres, at `stamp` seconds."""
        with self._lock:
            self._odometry.add(stamp, pose)

    def reset(self) -> None:
        """A new world: the network's metre may be another. Not after a reset of the memory that was aligned."""
        with self._lock:
            self._estimator.reset()
            self._ranges.reset()
            self._odometry.reset()

    def look(self, result: StepResult, min_confidence: float) -> Tensor | None:
        """What `update` needs of a frame's maps: (2,) on the network's device; None where it needs nothing, or where
        nobody knows what moves in them: a mover may stand in the beam, or on the floor."""
        if not result.motion:
            return None
        maps = result.points, result.confidence, result.dynamic_mask
        if self.options.source == "height":
            return height_above_floor(*maps, min_confidence, self.up)
        if self.options.source == "range" and self._beam is not None and self._ranger_usable:
            return distance_ahead(*maps, self._beam, min_confidence)
        return None

    def update(self, stamp: float, pose: np.ndarray, seen: np.ndarray | None) -> ScaleEstimate:
        """The scale at a frame: `pose` (4, 4) is its camera to world in the network's metres, `seen` from `look`."""
        source, otherwise = self.options.source, self.options.value
        if source == "fixed":
            return ScaleEstimate(otherwise, True, 1.0, 0, math.nan)
        for observation in self._observe(source, stamp, pose, seen):
            self._estimator.add(observation)
        return self._estimator.estimate(stamp, otherwise)

    def _observe(self, source: str, stamp: float, pose: np.ndarray, seen: np.ndarray | None) -> list[Observation]:
        if source == "odometry":
            with self._lock:
                return self._odometry.match(stamp, np.asarray(pose, np.float64))
        if seen is None or not np.isfinite(seen).all():
            return []
        if source == "range":
            with self._lock:
                return self._ranges.match(stamp, seen)
        height, roughness = (float(number) for number in seen)
        log_scale = math.log(self.options.camera_height / height)
        return [Observation(stamp, log_scale, math.hypot(DEVIATION, roughness))]


def _checked_pose(pose: np.ndarray, what: str) -> np.ndarray:
    """The pose in float64. Raises InputError where it is none."""
    pose = np.asarray(pose, np.float64)
    if pose.shape != (4, 4) or not np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-3):
        raise InputError(f"{what} is no (4, 4) pose: {pose.tolist()}")
    return pose
