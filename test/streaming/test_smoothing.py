"""The smoothers: motion is followed, jitter is damped, and errors do not accumulate."""

import pytest
import torch

from raymap3r_ros.streaming.smoothing import SmootherState, smooth


def run(positions: torch.Tensor, change: float, tied: bool) -> torch.Tensor:
    """Smoothed positions (T, 3) of predicted ones, with a constant change of the state."""
    state, out = SmootherState.empty(1, torch.device("cpu")), []
    for position in positions:
        state = smooth(state, position[None], torch.tensor([change]), tied=tied).state
        out.append(state.position[0])
    return torch.stack(out)


def test_the_published_smoother_changes_nothing_while_the_state_is_constant():
    positions = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(positions, 0.0, False), positions, atol=1e-4, rtol=0)


def test_steady_motion_is_followed():
    positions = torch.arange(200.0)[:, None] * torch.tensor([0.1, -0.05, 0.02])
    torch.testing.assert_close(run(positions, 5.0, True)[1:], positions[1:], atol=1e-3, rtol=0)


def path(kind: str) -> torch.Tensor:
    """(300, 3) metres at 10 frames/s: a swaying hand, a robot that stops and starts, or a robot at rest."""
    time = torch.arange(300.0) / 10
    if kind == "hand":
        return torch.stack(((0.5 * time).sin(), 0.3 * (0.9 * time).cos(), 0.05 * (5 * time).sin()), dim=1)
    going = ((time % 20) < 12).float() if kind == "robot" else torch.zeros(300)
    return torch.stack((0.05 * going.cumsum(0), 0.02 * going.cumsum(0), torch.zeros(300)), dim=1)


@pytest.mark.parametrize("jitter", [0.002, 0.02, 0.2])
@pytest.mark.parametrize("kind", ["hand", "robot", "still"])
def test_tied_is_closer_to_the_truth_and_smoother_than_the_prediction_at_any_jitter(kind: str, jitter: float):
    truth = path(kind)
    raw = truth + jitter * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    tied, published = run(raw, 5.0, True), run(raw, 5.0, False)

    def rms(error: torch.Tensor) -> torch.Tensor:
        return error.square().sum(1).mean().sqrt()

    assert rms(tied - truth) < 1.02 * rms(raw - truth)
    assert rms((tied - truth).diff(dim=0)) < rms((raw - truth).diff(dim=0))
    if jitter > 0.01:  # more than the motion of the hand between frames
        assert rms(tied - truth) < 0.9 * rms(raw - truth) < rms(published - truth)
        assert rms((tied - truth).diff(dim=0)) < 0.7 * rms((raw - truth).diff(dim=0))


def test_a_steady_prediction_is_unchanged():
    truth = path("hand")
    off = (run(truth, 5.0, True) - truth).norm(dim=1)
    assert off[:10].max() < 0.01 and off[10:].max() < 1e-3  # it starts with a line fitted to the first frames


def test_a_jump_is_followed_when_tied_and_never_when_published():
    positions = torch.zeros(120, 3)
    positions[40:] = torch.tensor([1.0, 0.0, 0.0])
    tied, published = run(positions, 10.0, True), run(positions, 10.0, False)
    assert (tied[-1] - positions[-1]).norm() < 1e-3
    assert (published[-1] - positions[-1]).norm() > 0.5


def test_streams_of_a_batch_start_separately():
    state = SmootherState.empty(2, torch.device("cpu"))
    state.started[:] = torch.tensor([True, False])
    result = smooth(state, torch.ones(2, 3), torch.full((2,), 10.0), tied=False)
    assert torch.equal(result.state.position[1], torch.ones(3))  # the first frame is not smoothed
    assert result.trust[1] == 1 and result.trust[0] < 1


def test_trackers_of_a_batch_start_separately():
    positions = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))
    together, alone = SmootherState.empty(2, torch.device("cpu")), SmootherState.empty(1, torch.device("cpu"))
    for frame, position in enumerate(positions):
        if frame == 7:
            together.started[1] = False
        together = smooth(together, position, torch.zeros(2), tied=True).state
        if frame >= 7:
            alone = smooth(alone, position[1:], torch.zeros(1), tied=True).state
            torch.testing.assert_close(together.position[1], alone.position[0])
