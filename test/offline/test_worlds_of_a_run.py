"""Files of a run over several worlds, late frames, and an early end."""

import dataclasses

from raymap3r_ros.io import open_recording
from raymap3r_ros.io.output_folder import written_files
from raymap3r_ros.offline import RunOutputs, run_recording
from raymap3r_ros.offline.result_folder import MASK_FOLDER
from raymap3r_ros.streaming import StreamOptions

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
