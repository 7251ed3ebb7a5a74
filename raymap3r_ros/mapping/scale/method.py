"""Constants of the scale estimation. Lengths are in metres unless stated otherwise."""

from __future__ import annotations

import math

# Estimator.
MAX_FACTOR = 1e3  # limit of the factor and of its inverse; an observation beyond it is damage
MAX_DEVIATION = 1e3  # of an observation's logarithm; one beyond it contains nothing
TOLERANCE = math.log(1.05)  # confidence is the probability that the factor is within 5 %
MEMORY = 30.0  # seconds in which an observation's weight falls to 1/e: short enough to follow a drift
CORRELATION = 1.0  # seconds: depth errors that are closer in time are not independent
MAX_OBSERVATIONS = 512  # kept; more than MEMORY at ten per second
KNOWN_VOTES = 5.0  # independent observations required before the factor is used, and ...
KNOWN_CONFIDENCE = 0.8  # ... the required confidence
MAX_RATE = 0.01  # change of the factor's logarithm per second while in use: poses scaled by it must not jump
MAX_PAUSE = 1.0  # seconds: the most that MAX_RATE is multiplied with, so that a pause causes no jump either
CUTOFF = 2.5  # distance from the centre, in spreads, from which an observation has weight 0
DEVIATION = 0.03  # standard deviation of an observation's logarithm at best, typical of networks and sensors

# Matching of frames and sensor samples.
LATE = 1.0  # seconds: a sample older than the last by less is dropped; by more, the clock was set back
MAX_SAMPLES = 2000  # waiting for a frame
MAX_FRAMES = 100  # waiting for a sample

# Range sensor.
MAX_AGE = 0.1  # seconds between a reading and the image that it is compared with
MIN_BEAM = 0.05  # radians: a narrower beam, such as a laser's, would contain one pixel or none
SPOT = 0.1  # radians: a beam up to this width hits a single surface
NEAR_SHARE = 0.03  # minimum share of the beam that the measured surface covers; fewer pixels are outliers
NEAR_DEPTH = 1.25  # a surface this many times farther than the nearest is another surface
MAX_MOVING = 0.03  # maximum share of moving pixels in the beam
MIN_USABLE = 0.5  # minimum share of confident, static pixels in the beam
MAX_MISALIGNMENT = math.radians(10)  # between the sensor's axis and the camera's
LONGEST_LENS = 2.0  # ratio of focal length to the image's long edge up to which the whole beam is sampled
SAMPLES_ACROSS = 64  # rows and columns sampled in the beam

# Odometry.
MIN_TRAVEL = 0.5  # metres from start to end of a compared stretch
MAX_TIME = 20.0  # seconds for MIN_TRAVEL; a longer stretch is discarded, as the network's path drifts
MAX_TURN = math.radians(5)  # within a stretch, if the camera's distance from the turning point is unknown
MAX_GAP = 0.5  # seconds between two odometry messages across which the robot's position is interpolated

# Height above the floor.
FLOOR_POINTS = 32  # sampled along the image's long edge
KNOWN_TILT, ASSUMED_TILT = math.radians(10), math.radians(45)  # search range of the floor normal about `up`
STIFFNESS = 0.5  # of a known `up`: a tilt of 3 degrees costs as much as points that are off by 4 %
TILTS = 13  # tried about each of two axes
HEIGHTS = (1e-2, 1e3)  # search range of the height, in network units
HEIGHT_STEP = 0.05  # of the height's logarithm
# Relative distance from the floor within which points belong to it, in each step of the refinement.
FLOOR_BAND = (0.2, 0.15, 0.1, 0.07, 0.05, 0.05)
MIN_FLOOR = 0.1  # minimum share of the image
# A band about the floor contains this many times more points than the band above it. For a wall, both are alike.
CONTRAST_BAND, CONTRAST = 0.1, 3.0
