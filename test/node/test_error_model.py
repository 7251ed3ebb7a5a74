"""The error model of a checkpoint: the node reads it at configure and uses it in ~/odometry."""

import dataclasses

import numpy as np
import pytest

from raymap3r_ros.mapping.uncertainty import DEFAULT, METADATA_KEY
from raymap3r_ros.network import PRESETS, save_network, shipped_weights, untrained_network
from raymap3r_ros.network.metadata import copy_with_metadata


def first_pose_covariance(bench):
    """(6, 6) covariance of the first frame, before any travel."""
    bench.start("odometry")
    bench.send()
    return bench.wait_for("odometry").pose.covariance.reshape(6, 6)


def test_coefficients_come_from_the_checkpoint(make_bench, tmp_path):
    groups = {name: getattr(DEFAULT, name) for name in ("position", "rotation")}
    doubled = {name: dataclasses.replace(group, start=2 * group.start) for name, group in groups.items()}
    path = tmp_path / "doubled.safetensors"
    model = dataclasses.replace(DEFAULT, **doubled)
    copy_with_metadata(shipped_weights()["one_room"], path, {METADATA_KEY: model.to_json()})
    shipped, other = (make_bench(checkpoint=name) for name in ("one_room", str(path)))
    np.testing.assert_array_equal(first_pose_covariance(other), 4 * first_pose_covariance(shipped))
    assert shipped.count_logs("error model") == other.count_logs("error model") == 0


def test_missing_model_is_replaced_by_the_default_with_one_warning(make_bench, tmp_path):
    path = tmp_path / "plain.safetensors"
    save_network(untrained_network(PRESETS["mini"]), path)
    bench = make_bench(checkpoint=str(path), image_size=48)
    assert bench.change_state("configure")
    bench.wait_for_log("plain.safetensors; device")
    assert bench.count_logs("plain.safetensors has no error model of its own (metadata 'covariance')") == 1


@pytest.mark.parametrize("text", ["", "{}", DEFAULT.to_json().replace("0.133,", "-1,")])
def test_malformed_model_fails_to_configure(make_bench, tmp_path, text):
    path = tmp_path / "broken.safetensors"
    copy_with_metadata(shipped_weights()["one_room"], path, {METADATA_KEY: text})
    bench = make_bench(checkpoint=str(path))
    assert not bench.change_state("configure")
    bench.wait_for_log("configure failed: metadata 'covariance' of broken.safetensors is not an error model: ")
    assert bench.state() == "unconfigured"
