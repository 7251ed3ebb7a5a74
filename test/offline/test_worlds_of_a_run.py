"""Files of a run over several worlds, late frames, and an early end."""

import dataclasses
import itertools
import json

import cv2
import numpy as np
import pytest
import torch

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.kidnap import FAR, WITHIN
from raymap3r_ros.evaluation.metrics import umeyama
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.output_folder import written_files
from raymap3r_ros.network import load_network
from raymap3r_ros.offline import RunOutputs, run, run_recording
from raymap3r_ros.offline.result_folder import MASK_FOLDER
from raymap3r_ros.streaming import Stream, StreamOptions
from raymap3r_ros.synthetic import suite_sequence

STREAM = StreamOptions(image_size=48)
OUTPUTS = RunOutputs(depth=False, masks=False, preview=False)
WORLDS = {"trajectory_1.txt", "trajectory_2.txt", "static_scene_1.ply", "static_scene_2.ply"}


def restamped(recording, stamps, jumps, ended=""):
    """The recording with other stamps; it ends after them."""

    def frames(opened):
        for frame, stamp, count in zip(recording, stamps, jumps, strict=False):
            yield dataclasses.replace(frame, stamp=stamp, jumps=count)
        opened.ended = ended

    return dataclasses.replace(recording, frames=frames)


def test_files_of_each_world_belong_to_the_run(images, network, tmp_path):
    out = tmp_path / "out"
    looped = restamped(open_recording(images, max_frames=4), (5.0, 5.1, 5.0, 5.1), (0, 0, 1, 1))
    summary = run_recording(looped, network, out, STREAM, outputs=OUTPUTS)
    assert summary.worlds == 2 and {*summary.files} >= WORLDS
    assert {file.name for file in written_files(out)} == {*summary.files}
    run_recording(open_recording(images, max_frames=2), network, out, STREAM, outputs=OUTPUTS, overwrite=True)
    assert not WORLDS & {file.name for file in out.iterdir()} and not (out / MASK_FOLDER).exists()


def test_late_frames_are_not_missing(images, network, tmp_path):
    opened = open_recording(images, max_frames=4)
    cut = restamped(opened, (5.0, 5.1, 5.05), (0, 0, 0), ended="cut off")
    summary = run_recording(cut, network, tmp_path / "out", STREAM, outputs=OUTPUTS)
    assert (summary.frames, summary.frames_late, summary.frames_missing) == (2, 1, 1)
    assert (summary.complete, summary.stopped_by) == (False, "cut off")


@pytest.mark.parametrize(("black", "worlds"), [(4, 1), (5, 2)])
def test_blank_images_are_not_processed_and_may_hide_a_journey(images, network, tmp_path, caplog, black, worlds):
    recording = open_recording(images, max_gap=0.5)

    def frames(opened):
        for index, frame in enumerate(itertools.islice(recording, 4)):
            yield dataclasses.replace(frame, stamp=float(frame.stamp if index < 2 else frame.stamp + black / 10))
            for dark in range(black if index == 1 else 0):
                yield dataclasses.replace(frame, stamp=frame.stamp + 0.05 * (dark + 1), image=0 * frame.image)

    covered = dataclasses.replace(recording, frames=frames, length=4 + black)
    summary = run_recording(covered, network, tmp_path / "out", STREAM, outputs=OUTPUTS)
    assert (summary.frames, summary.frames_blank, summary.worlds, summary.frames_missing) == (4, black, worlds, 0)
    assert [record.message for record in caplog.records if "blank" in record.message] == [
        "the image at 0.083 s is blank (black, or without texture): nothing is written for such images",
        *["the images before 0.567 s are blank for more than 0.5 s (see --max-gap): a new world starts"][: worlds - 1],
    ]
    with pytest.raises(InputError, match="all 3 images are blank"):
        run_recording(
            dataclasses.replace(recording, frames=lambda opened: dark_frames(recording)),
            network, tmp_path / "dark", STREAM, outputs=OUTPUTS,
        )  # fmt: skip


def dark_frames(recording):
    for frame in itertools.islice(recording, 3):
        yield dataclasses.replace(frame, image=0 * frame.image)


# Worlds of eight frames with a jump forward, after which the camera is found again, and a jump back
STAMPS, JUMPS = (5.0, 5.1, 5.2, 50.0, 50.1, 50.2, 50.3, 5.0), (0, 0, 0, 1, 1, 1, 1, 2)
HOME = 40  # frames before the camera is carried away
IN_WORLD, PAST = (0, 0, 0, 1, 1, 0, 0, 2), ((), (), (), (0,), (0,), (), (), ())


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Replaces the worlds of a run's stream by those above; returns the resets and the clouds at each frame.

    In frame n, counted from 0, the camera is at x = 20 n metres, and all that it sees is n + 1 metres in front of it.
    """
    resets, clouds = [], []

    class Scripted(Stream):
        def reset(self, *, relocalize=False):
            resets.append((len(clouds), relocalize))
            super().reset()

        def step(self, *args, **kwargs):
            result, index = super().step(*args, **kwargs), len(clouds)
            clouds.append({file.name for file in (tmp_path / "out").glob("*.ply")})
            points, pose = torch.zeros_like(result.points), torch.eye(4)
            points[..., 2], pose[0, 3] = 1 + index, 20 * index
            return dataclasses.replace(
                result, world=IN_WORLD[index], past_worlds=PAST[index], points=points, pose=pose,
                confidence=torch.full_like(result.confidence, 9), dynamic_mask=torch.zeros_like(result.dynamic_mask),
            )  # fmt: skip

    monkeypatch.setattr(run, "Stream", Scripted)
    return resets, clouds


def test_a_camera_that_is_found_again_continues_the_files_of_its_world(images, network, scripted, tmp_path, caplog):
    opened = restamped(open_recording(images, max_frames=8), STAMPS, JUMPS)
    summary = run_recording(opened, network, tmp_path / "out", STREAM, outputs=OUTPUTS)
    resets, clouds = scripted
    assert resets == [(3, True), (7, False)]  # stamps of a world must rise, so it does not come back after a jump back
    for number, frames in ((1, (0, 1, 2, 5, 6)), (2, (3, 4)), (3, (7,))):
        lines = np.loadtxt(tmp_path / "out" / f"trajectory_{number}.txt", ndmin=2)
        np.testing.assert_allclose(lines[:, :2], [(STAMPS[frame], 20 * frame) for frame in frames])
        header, _, body = (tmp_path / "out" / f"static_scene_{number}.ply").read_bytes().partition(b"end_header\n")
        depths = np.frombuffer(body, np.dtype("3<f4, 3u1"))["f0"][:, 2]
        assert {*depths.round(3).tolist()} == {1 + frame for frame in frames}, header
    # A cloud is written when its world has ended.
    assert clouds[6] == {"static_scene_2.ply"} and clouds[7] == {"static_scene_2.ply"}
    assert "found again in world 1 at frame 5 (50.200 s)" in caplog.text and caplog.text.count("found again") == 1
    assert (summary.worlds, summary.returns, summary.frames) == (3, 1, 8)
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    spans = [(span["world"], span["first"], span["frames"]) for span in written["world_spans"]]
    assert spans == [(1, 0, 3), (2, 3, 2), (1, 5, 2), (3, 7, 1)]
    assert written["duration"] == pytest.approx(0.2 + 0.1 + 0.1)
    assert written["path_length"] == pytest.approx(20 * (2 + 1 + 1))
    assert {*summary.files} >= {f"static_scene_{number}.ply" for number in (1, 2, 3)}


def test_the_shipped_weights_find_the_room_again(tmp_path):
    """Poses after the return are right in the frame of those before the jump; another room comes between."""
    sequence = suite_sequence("kidnap", 0, world="one_room", size=(96, 128))
    stays = itertools.groupby(itertools.islice(sequence.frames(), 225), key=lambda frame: frame.jumps)
    shown = [frame for number, stay in stays for frame in itertools.islice(stay, (HOME, 12, 15)[number])]
    folder = tmp_path / "images"
    folder.mkdir()
    for index, frame in enumerate(shown):
        cv2.imwrite(str(folder / f"{index}.png"), frame.image[..., ::-1])
    opened = open_recording(folder, intrinsics=sequence.intrinsics)
    stamps, jumps = zip(*((1 + frame.stamp, frame.jumps) for frame in shown), strict=True)
    summary = run_recording(
        restamped(opened, stamps, jumps),
        load_network("one_room"),
        tmp_path / "out",
        outputs=RunOutputs(False, False, False, False),
    )
    assert (summary.worlds, summary.returns) == (3, 1)
    back = summary.world_spans[-1]
    assert back.world == 1 and back.first <= HOME + 12 + WITHIN
    path = np.loadtxt(tmp_path / "out" / "trajectory_1.txt")[:, 1:4]
    true = np.stack([frame.pose[:3, 3] for frame in (*shown[:HOME], *shown[back.first :])])
    _, rotation, translation = umeyama(path[:HOME], true[:HOME], scaled=False)
    assert np.linalg.norm(path[HOME:] @ rotation.T + translation - true[HOME:], axis=1).max() < FAR
