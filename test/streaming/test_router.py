"""The routers on rotations of known speed."""

import math

import torch

from raymap3r_ros.streaming import METHOD
from raymap3r_ros.streaming.router import RouterState, route_adaptive, route_published


def turning(degrees_per_frame: list[float]) -> list[torch.Tensor]:
    """Quaternions (1, 4) of a camera that rotates about y."""
    total, out = 0.0, []
    for degrees in degrees_per_frame:
        total += math.radians(degrees)
        out.append(torch.tensor([[math.cos(total / 2), 0.0, math.sin(total / 2), 0.0]]))
    return out


def run(route, mode: str, degrees: list[float]) -> list[RouterState]:
    state, states = RouterState.empty(1, torch.device("cpu"), mode), []
    for frame, orientation in enumerate(turning(degrees)):
        state = route(state, orientation, frame, METHOD)
        states.append(state)
    return states


def test_the_published_router_decides_once_at_frame_20():
    for speed, gated in ((1.0, True), (3.0, False)):
        states = run(route_published, "published", [speed] * 30 + [5.0 - speed] * 30)
        assert [bool(state.decided) for state in states[:21]] == [False] * 20 + [True]
        assert not any(state.gated for state in states[:20])
        assert all(bool(state.gated) == gated for state in states[20:])
        assert states[20].rotations[0, 0] == 0
        torch.testing.assert_close(states[20].rotations[0, 1:], torch.full((15,), speed), atol=1e-3, rtol=0)


def test_the_adaptive_router_starts_gated_decides_early_and_revises():
    states = run(route_adaptive, "adaptive", [1.0] * 20 + [6.0] * 20 + [1.0] * 20)
    assert all(bool(state.gated) for state in states[:20])
    assert [bool(state.decided) for state in states[:6]] == [False] * 4 + [True] * 2
    assert not states[39].gated and bool(states[59].gated)
    fast = run(route_adaptive, "adaptive", [6.0] * 8)
    assert [bool(state.gated) for state in fast] == [True] * 4 + [False] * 4


def test_the_adaptive_router_does_not_oscillate_around_its_threshold():
    speeds = [2.3 if index % 2 else 1.7 for index in range(60)]
    assert all(bool(state.gated) for state in run(route_adaptive, "adaptive", speeds))
