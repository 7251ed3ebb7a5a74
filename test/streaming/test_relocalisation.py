"""Relocalisation: frames are found among keyframes, and frames of another place are not."""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import test_keyframes as plane
from scipy.spatial.transform import Rotation
from torch import Tensor

from raymap3r_ros.geometry.cameras import from_cameras
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import METHOD, StreamOptions, engine
from raymap3r_ros.streaming.gates import RULES
from raymap3r_ros.streaming.keyframes import Keyframes
from raymap3r_ros.streaming.rehearsal import is_complete, next_step
from raymap3r_ros.streaming.relocalisation import Location, begin, candidates, likeness, locate
from raymap3r_ros.streaming.state import Sight, StepPlan
from raymap3r_ros.streaming.tensors import tensors_of

PLACES = [(x, turn) for x in (0.0, 0.8, 1.6) for turn in (-25.0, 0.0, 25.0)]
# From the keyframes' world to the world of the memory that sees them again: other origin, axes and unit of length
MOVED = Similarity(
    torch.tensor([0.6]),
    torch.from_numpy(Rotation.from_rotvec((0.2, -0.9, 0.4)).as_matrix()).float()[None],
    torch.tensor([[1.0, -2.0, 0.5]]),
)


def sighted(number: int, x: float, turn: float, phase: float = 0.0) -> Keyframes:
    """A view of the plane z = 3 m, whose texture is in the tokens; `phase` selects the texture."""
    view = plane.view(number, x=x, turn=turn)
    ray = view.points @ view.pose[..., :3, :3].mT  # to the plane, whatever the turn
    view = dataclasses.replace(view, points=view.points * (plane.DISTANCE / ray[..., 2:]))
    world = from_cameras(view.pose, view.points)[..., :2]
    texture = torch.cat(
        [((world * k).cumsum(-1) + phase * k + shift).sin() for k in (0.7, 1.1) for shift in (0, 1.6)], -1
    )
    # The last channels identify the view for `Memory`; they are too small to matter.
    mark = torch.tensor((x, turn / 25)).expand(*texture.shape[:-1], 2) * 1e-4
    common = torch.full_like(texture[..., :1], 3.0)  # in all tokens of all places
    return dataclasses.replace(view, tokens=torch.cat((common, texture, mark), -1))


class Memory:
    """Stands in for `engine.look` of a network with the true plane; counts what it takes in."""

    def __init__(self, nearer: float = 1.0) -> None:
        self.taken, self.decoded = 0, 0
        self.nearer = nearer  # factor on distances of a view that was not taken in

    def __call__(self, inputs: tuple[Tensor, Tensor], state: SimpleNamespace) -> tuple[Sight, SimpleNamespace]:
        tokens, takes = inputs
        x, turn = (tokens[0, 0, -2:] * 1e4 * torch.tensor((1.0, 25.0))).tolist()
        view = sighted(0, x, turn)
        known = any(abs(x - px) + abs(turn - pt) < 0.01 for px, pt in PLACES)
        points = (view.points[0] * MOVED.scale * (1.0 if known else self.nearer)).view(1, 8, 11, 3)
        self.decoded += 1
        self.taken += int(takes)
        pose = MOVED.apply_to_pose(view.pose[0])
        if not tokens.any():  # an empty slot
            pose = pose + 5
        # One point for each token: at the centres of patches of 6 x 6 pixels
        return Sight(pose, points.repeat_interleave(6, 1).repeat_interleave(6, 2), torch.tensor([True])), state


def bank(slots: int = 12, places: list[tuple[float, float]] = PLACES) -> Keyframes:
    views = [sighted(number, *place) for number, place in enumerate(places)]
    keyframes = Keyframes.empty(slots, views[0])
    method = dataclasses.replace(METHOD, keyframe_overlap=1.1)
    for view in views:
        keyframes = plane.store(keyframes, view, plane.SIZE, method)
    assert (keyframes.number >= 0).sum() == len(places)
    return keyframes


def found(view: Keyframes, memory: Memory | None = None, keyframes: Keyframes | None = None) -> Location:
    memory, keyframes = memory or Memory(), bank() if keyframes is None else keyframes
    search = begin(SimpleNamespace(), keyframes, view.tokens[:, 0])
    while not is_complete(search):
        search = next_step(memory, keyframes, search)
    return locate(memory, keyframes, search, view)


def test_a_frame_of_a_known_place_is_found_where_it_was_taken():
    memory, view = Memory(), sighted(99, x=0.5, turn=8.0)
    location = found(view, memory)
    assert location.accepted().tolist() == [True]
    assert torch.allclose(location.pose, view.pose[:, 0], atol=2e-3)
    assert location.transform.scale.item() == pytest.approx(1 / 0.6, rel=1e-3)
    assert memory.taken == METHOD.relocalised_keyframes and memory.decoded == 2 * memory.taken + 1


def test_the_pose_and_points_of_the_new_world_do_not_matter():
    view = sighted(99, x=0.5, turn=8.0)
    lost = dataclasses.replace(view, pose=view.pose + 7, points=view.points * 3)
    assert torch.equal(found(view).pose, found(lost).pose)


@pytest.mark.parametrize(
    ("view", "memory"),
    [
        (sighted(99, 0.5, 8.0, phase=2.5), Memory()),  # other surfaces
        (sighted(99, 9.0, 8.0), Memory()),  # another place at the same wall
        (sighted(99, 0.5, 8.0), Memory(nearer=0.6)),  # other distances
    ],
    ids=["texture", "place", "distance"],
)
def test_a_frame_of_another_place_is_refused(view: Keyframes, memory: Memory):
    assert found(view, memory).accepted().tolist() == [False]


def test_without_keyframes_nothing_is_found():
    view = sighted(99, 0.5, 8.0)
    assert found(view, keyframes=Keyframes.empty(12, view)).accepted().tolist() == [False]


def test_empty_slots_change_nothing():
    view, places = sighted(99, 0.5, 8.0), PLACES[2:5]
    full, sparse = (found(view, keyframes=bank(slots, places)) for slots in (3, 12))
    for one, other in zip(tensors_of(full), tensors_of(sparse), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_visible_share_is_the_part_of_the_image_that_both_show():
    # 33 of 64 columns to the side, or 5.5 of 11 tokens
    location = found(sighted(99, plane.DISTANCE * 33 / plane.FOCAL, 0.0), keyframes=bank(1, [(0.0, 0.0)]))
    assert location.visible.item() == pytest.approx(0.5, abs=0.1)
    assert location.depth.item() == 1


def test_each_limit_can_refuse():
    location = found(sighted(99, 0.5, 8.0))
    for name in ("likeness", "visible", "depth", "appearance"):
        low = torch.full((1,), getattr(METHOD, f"relocalised_{name}") - 1e-3)
        assert not dataclasses.replace(location, **{name: low}).accepted().item(), name
        assert not dataclasses.replace(location, **{name: low * torch.nan}).accepted().item(), name


def test_candidates_are_the_most_alike_and_their_neighbours_in_order():
    keyframes = bank()
    view = sighted(99, 0.1, 2.0)
    slot, valid = candidates(keyframes, view.tokens[:, 0], 4)
    alike = likeness(keyframes, view.tokens[:, 0])
    assert (alike[0, len(PLACES) :] == -1).all()  # empty slots
    order = alike[0].argsort(descending=True)
    chosen = slot[0].tolist()
    assert valid.all() and chosen == sorted(chosen) and set(order[:2].tolist()) <= set(chosen)
    others = set(range(len(PLACES))) - set(order[:2].tolist())
    beside = sorted(others, key=lambda index: -keyframes.overlap[0, order[0], index])
    assert set(chosen) - set(order[:2].tolist()) == set(beside[:2])
    # More than there are: the rest is marked, and never an empty slot twice in place of a stored one.
    slot, valid = candidates(keyframes, view.tokens[:, 0], 12)
    assert valid.sum() == len(PLACES) and sorted(slot[0].tolist()) == list(range(12))


def test_each_stream_of_a_batch_is_searched_for_itself(network: Network):
    options, method = StreamOptions(), dataclasses.replace(METHOD, relocalised_keyframes=3)
    look = partial(engine.look, network, StepPlan(options, method, RULES["raymap3r"], False, False))
    width, generator = network.config.encoder_width, torch.Generator().manual_seed(3)
    count = (plane.SIZE[0] // network.config.patch_size) * (plane.SIZE[1] // network.config.patch_size)

    def view(number: int) -> Keyframes:
        one = sighted(number, 0.4 * number, 5.0 * number)
        one = dataclasses.replace(one, points=one.points[:, :, :count], weight=one.weight[:, :, :count])
        tokens = torch.randn(1, 1, count, width, generator=generator)
        return plane.join(*(dataclasses.replace(one, tokens=shown) for shown in (tokens, tokens.flip(2))))

    views = [view(number) for number in range(4)]
    method_all = dataclasses.replace(METHOD, keyframe_overlap=1.1)

    def search(rows: slice) -> Location:
        own = [part(one, rows) for one in views]
        keyframes = Keyframes.empty(4, own[0])
        for one in own[:3]:
            keyframes = plane.store(keyframes, one, plane.SIZE, method_all)
        streams = len(own[0].number)
        fresh = engine.initial_state(network, options, method, streams, plane.SIZE, plane.SIZE, "")
        state = begin(fresh, keyframes, own[3].tokens[:, 0], method)
        with torch.inference_mode():
            while not is_complete(state):
                state = next_step(look, keyframes, state)
            return locate(look, keyframes, state, own[3], method)

    both = search(slice(0, 2))
    for index in range(2):
        alone = search(slice(index, index + 1))
        for value, expected in zip(tensors_of(both), tensors_of(alone), strict=True):
            assert torch.isfinite(expected).all()
            assert torch.allclose(value[index], expected[0], atol=1e-4)


def part(keyframes: Keyframes, rows: slice) -> Keyframes:
    return Keyframes(**{field.name: getattr(keyframes, field.name)[rows] for field in dataclasses.fields(Keyframes)})
