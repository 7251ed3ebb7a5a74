"""The smoother: what it lets pass, what it damps, and what it pays back."""

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


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_changes_while_the_memory_is_sure(tied: bool):
    positions = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(positions, 0.0, tied), positions, atol=1e-4, rtol=0)


def test_steady_motion_is_followed():
    positions = torch.arange(200.0)[:, None] * torch.tensor([0.1, -0.05, 0.02])
    torch.testing.assert_close(run(positions, 5.0, True)[50:], positions[50:], atol=1e-3, rtol=0)


def test_jitter_is_damped():
    noise = 0.05 * torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(400.0)[:, None] * torch.tensor([0.02, 0.0, 0.0]) + noise
    truth = positions - noise
    smoothed = run(positions, 20.0, True)
    assert (smoothed - truth)[50:].norm(dim=1).mean() < 0.8 * noise[50:].norm(dim=1).mean()


def test_a_jump_is_paid_back_when_tied_and_never_when_published():
    positions = torch.zeros(120, 3)
    positions[40:] = torch.tensor([1.0, 0.0, 0.0])
    tied, published = run(positions, 10.0, True), run(positions, 10.0, False)
    assert (tied[-1] - positions[-1]).norm() < 1e-3
    assert (published[-1] - positions[-1]).norm() > 0.5


def test_streams_of_a_batch_start_apart():
    state = SmootherState.empty(2, torch.device("cpu"))
    state.started[:] = torch.tensor([True, False])
    result = smooth(state, torch.ones(2, 3), torch.full((2,), 10.0), tied=False)
    assert torch.equal(result.state.position[1], torch.ones(3))  # a first frame is taken as it is
    assert result.trust[1] == 1 and result.trust[0] < 1
