"""Metric scale: the factor from the network's unit of length to metres, estimated from one known quantity.

A source (`sources/`, one file each) yields observations of the factor's logarithm. `ScaleEstimator` combines them
robustly, and `MetricScale` connects the two to a stream.
"""

from raymap3r_ros.mapping.scale.estimator import ScaleEstimate, ScaleEstimator
from raymap3r_ros.mapping.scale.metric_scale import MetricScale
from raymap3r_ros.mapping.scale.options import ScaleOptions
from raymap3r_ros.mapping.scale.source import Observation
from raymap3r_ros.mapping.scale.sources.range_sensor import RangeReading

__all__ = ["MetricScale", "Observation", "RangeReading", "ScaleEstimate", "ScaleEstimator", "ScaleOptions"]
