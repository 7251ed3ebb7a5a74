"""Exported sequences against their frames, read by independent readers."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from raymap3r_ros import cli
from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.output_folder import MANIFEST, claim
from raymap3r_ros.synthetic import SUITES, Frame, export, suite_sequence
from raymap3r_ros.synthetic.export import TOPICS, export_sequence

SIZE = 24, 32  # height, width
INTRINSICS = np.array([[30.25, 0, 15.5], [0, 31.125, 11.75], [0, 0, 1]])
RATE = 30.0


@dataclass(frozen=True)
class Sequence:
    """The parts of a rendered sequence that the export uses, with values that a renderer never produces."""

    name: str = "made-up-00"
    length: int = 4
    fail_at: int | None = None
    error: BaseException | None = None

    @property
    def intrinsics(self) -> np.ndarray:
        return INTRINSICS

    def frames(self):
        rng = np.random.default_rng(5)
        for index in range(self.length):
            if index == self.fail_at:
                raise self.error
            depth = rng.uniform(0.2, 13.1, SIZE).astype(np.float32)
            depth[0, :5] = 0, np.nan, np.inf, 13.12, 70
            static_depth = (depth + rng.uniform(0, 3, SIZE)).astype(np.float32)
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_rotvec(rng.normal(size=3)).as_matrix()
            pose[:3, 3] = rng.normal(size=3)
            image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            yield Frame(image, depth, static_depth, rng.random(SIZE) < 0.3, pose, INTRINSICS, index / RATE)


def rows_of(path: Path) -> list[list[str]]:
    lines = path.read_text().splitlines()
    assert all(line.startswith("# ") for line in lines[:3])  # as in TUM's own files
    return [line.split() for line in lines[3:]]


def seconds(stamp) -> float:
    return stamp.sec + stamp.nanosec * 1e-9


def bag_messages(path: Path) -> dict[str, list]:
    found = {topic: [] for topic in TOPICS}
    with AnyReader([path]) as reader:
        for connection, recorded, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            header = message.transforms[0].header if connection.topic == "/tf" else message.header
            assert header.stamp.sec * 10**9 + header.stamp.nanosec == recorded
            found[connection.topic].append(message)
    return found


def pixels(message, dtype: type, channels: int = 1) -> np.ndarray:
    rows = message.data.reshape(message.height, message.step).view(dtype)
    return rows.reshape(message.height, message.width, channels).squeeze()


def files_in(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.name != MANIFEST)


# ------------------------------------------------------------------------------------------------------- TUM RGB-D


def test_tum_folder_contains_every_frame(tmp_path):
    sequence = Sequence()
    folder = export_sequence(sequence, tmp_path / "out", "tum")
    assert folder == tmp_path / "out" / "made-up-00" and files_in(tmp_path / "out") == ["made-up-00"]
    lists = {name: rows_of(folder / f"{name}.txt") for name in ("rgb", "depth", "static_depth", "mask")}
    assert all(len(rows) == 4 for rows in lists.values())
    for index, frame in enumerate(sequence.frames()):
        read = {}
        for name, rows in lists.items():
            stamp, file = rows[index]
            assert float(stamp) == pytest.approx(1 + frame.stamp, abs=1e-6)
            with Image.open(folder / file) as picture:
                read[name] = np.asarray(picture)
        assert np.array_equal(read["rgb"], frame.image)
        assert np.array_equal(read["mask"], np.where(frame.moving, 255, 0))
        for name, truth in (("depth", frame.depth), ("static_depth", frame.static_depth)):
            inside = (truth > 0) & (truth < 13.107)
            assert inside.mean() > 0.5 and not inside.all()
            assert np.abs(read[name][inside] / 5000 - truth[inside]).max() <= 0.0001001
            assert not read[name][~inside].any()


def test_tum_trajectory_is_camera_to_world(tmp_path):
    sequence = Sequence()
    folder = export_sequence(sequence, tmp_path, "tum")
    rows = np.array(rows_of(folder / "groundtruth.txt"), float)
    for row, frame in zip(rows, sequence.frames(), strict=True):
        assert row[0] == pytest.approx(1 + frame.stamp, abs=1e-6)
        assert row[1:4] == pytest.approx(frame.pose[:3, 3], abs=1e-8)
        assert Rotation.from_quat(row[4:]).as_matrix() == pytest.approx(frame.pose[:3, :3], abs=1e-8)


def test_tum_camera(tmp_path):
    folder = export_sequence(Sequence(), tmp_path, "tum")
    assert rows_of(folder / "camera.txt") == [["30.25", "31.125", "15.5", "11.75"]]


def test_tum_trajectory_is_read_by_evo(tmp_path):
    file_interface = pytest.importorskip("evo.tools.file_interface", reason="evo is not installed")
    sequence = Sequence()
    folder = export_sequence(sequence, tmp_path, "tum")
    trajectory = file_interface.read_tum_trajectory_file(folder / "groundtruth.txt")
    for pose, frame in zip(trajectory.poses_se3, sequence.frames(), strict=True):
        assert pose == pytest.approx(frame.pose, abs=1e-7)


# ------------------------------------------------------------------------------------------------------------- bag


def test_bag_contains_every_frame(tmp_path):
    sequence = Sequence()
    folder = export_sequence(sequence, tmp_path, "bag")
    assert files_in(folder) == ["bag"]
    messages = bag_messages(folder / "bag")
    assert {topic: len(found) for topic, found in messages.items()} == dict.fromkeys(TOPICS, 4)
    for index, frame in enumerate(sequence.frames()):
        at = {topic: found[index] for topic, found in messages.items()}

        image, depth, mask = at["/camera/image_raw"], at["/camera/depth/image_rect"], at["/camera/moving_mask"]
        assert [item.encoding for item in (image, depth, mask)] == ["rgb8", "32FC1", "mono8"]
        assert np.array_equal(pixels(image, np.uint8, 3), frame.image)
        assert np.array_equal(pixels(mask, np.uint8), np.where(frame.moving, 255, 0))
        known = frame.depth > 0
        assert np.array_equal(pixels(depth, np.float32)[known], frame.depth[known])
        assert np.isnan(pixels(depth, np.float32)[~known]).all() and not known.all()

        for info in (at["/camera/camera_info"], at["/camera/depth/camera_info"]):
            assert (info.height, info.width, info.distortion_model) == (*SIZE, "plumb_bob")
            assert np.array_equal(info.k.reshape(3, 3), INTRINSICS) and not info.d.any() and len(info.d) == 5
            assert np.array_equal(info.p.reshape(3, 4), np.hstack([INTRINSICS, np.zeros((3, 1))]))
            assert np.array_equal(info.r.reshape(3, 3), np.eye(3))

        headers = {topic: message.header for topic, message in at.items() if topic != "/tf"}
        for topic, header in headers.items():
            assert seconds(header.stamp) == pytest.approx(1 + frame.stamp, abs=1e-9)
            assert header.frame_id == ("world" if topic == "/ground_truth/odometry" else "camera_optical_frame")


def test_transform_and_odometry_in_a_bag_are_camera_to_world(tmp_path):
    sequence = Sequence()
    messages = bag_messages(export_sequence(sequence, tmp_path, "bag") / "bag")
    for tf, odometry, frame in zip(
        messages["/tf"], messages["/ground_truth/odometry"], sequence.frames(), strict=True
    ):
        (stamped,) = tf.transforms
        assert (stamped.header.frame_id, stamped.child_frame_id) == ("world", "camera_optical_frame")
        assert odometry.child_frame_id == "camera_optical_frame"
        pose = odometry.pose.pose
        for position, turn in (
            (stamped.transform.translation, stamped.transform.rotation),
            (pose.position, pose.orientation),
        ):
            assert [position.x, position.y, position.z] == pytest.approx(frame.pose[:3, 3])
            rotation = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix()
            assert rotation == pytest.approx(frame.pose[:3, :3])
        assert not odometry.pose.covariance.any()
        assert np.all(np.diag(odometry.twist.covariance.reshape(6, 6)) == 1e6)  # the velocity is unknown


def test_bag_is_read_as_a_recording(tmp_path):
    sequence = Sequence()
    folder = export_sequence(sequence, tmp_path)
    recording = open_recording(folder / "bag", topic="/camera/image_raw")
    assert recording.length == 4
    for played, frame in zip(recording, sequence.frames(), strict=True):
        assert np.array_equal(played.image, frame.image)
        assert np.array_equal(played.intrinsics, INTRINSICS)
        assert played.stamp == pytest.approx(1 + frame.stamp, abs=1e-9)


# --------------------------------------------------------------------------------------------- whole or not at all


def test_frames_can_be_limited(tmp_path):
    folder = export_sequence(Sequence(), tmp_path, max_frames=2)
    assert len(rows_of(folder / "rgb.txt")) == len(list((folder / "mask").iterdir())) == 2
    assert len(bag_messages(folder / "bag")["/camera/image_raw"]) == 2
    assert len(rows_of(export_sequence(Sequence("other"), tmp_path, "tum", max_frames=9) / "rgb.txt")) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")])
def test_an_interrupted_export_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        export_sequence(Sequence(fail_at=2, error=error), tmp_path)
    assert files_in(tmp_path) == []


def test_an_interrupted_export_keeps_the_earlier_sequence(tmp_path):
    folder = export_sequence(Sequence(length=2), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        export_sequence(Sequence(fail_at=1, error=KeyboardInterrupt()), tmp_path, overwrite=True)
    assert files_in(tmp_path) == [folder.name] and len(rows_of(folder / "rgb.txt")) == 2


def test_existing_sequence_is_kept_or_replaced_as_a_whole(tmp_path):
    folder = export_sequence(Sequence(length=2), tmp_path)
    with pytest.raises(InputError, match=r"made-up-00: exists already; .* --overwrite"):
        export_sequence(Sequence(), tmp_path)
    assert len(rows_of(folder / "rgb.txt")) == 2
    export_sequence(Sequence(length=3), tmp_path, "tum", overwrite=True)
    assert files_in(tmp_path) == [folder.name] and len(rows_of(folder / "rgb.txt")) == 3
    assert not (folder / "bag").exists()


def test_a_sequence_that_was_replaced_but_not_removed_is_a_warning(tmp_path, monkeypatch, caplog):
    export_sequence(Sequence(length=1), tmp_path, "tum")
    remove = export.remove_written

    def removed(folder: Path) -> None:
        if folder.name.endswith(".replaced") and folder.exists():
            raise PermissionError(13, "Permission denied")
        remove(folder)

    monkeypatch.setattr(export, "remove_written", removed)
    folder = export_sequence(Sequence(length=2), tmp_path, "tum", overwrite=True)
    assert len(list((folder / "rgb").iterdir())) == 2
    (line,) = caplog.messages
    assert "could not be removed completely: Permission denied; remove it yourself" in line


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o775), (0o022, 0o755), (0o077, 0o700)])
def test_the_folder_of_a_bag_has_the_permissions_of_its_files(tmp_path, umask, mode):
    program = (
        "import os, sys; from pathlib import Path; from raymap3r_ros.io.bag_messages import new_bag\n"
        f"os.umask({umask})\nwith new_bag(Path(sys.argv[1])): pass"
    )
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o2755)
    for parent, special in ((tmp_path, 0), (tmp_path / "group", 0o2000)):
        subprocess.run([sys.executable, "-c", program, parent / "bag"], check=True)
        assert (parent / "bag").stat().st_mode & 0o7777 == special | mode


def test_unrelated_files_are_never_replaced(tmp_path):
    folder = export_sequence(Sequence(), tmp_path, "tum")
    (folder / "notes.md").write_text("mine")
    with pytest.raises(InputError, match=r"made-up-00: holds notes\.md, which is not part of a sequence"):
        export_sequence(Sequence(), tmp_path, overwrite=True)
    assert (folder / "notes.md").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        export_sequence(Sequence("file"), tmp_path, overwrite=True)


def test_a_sequence_does_not_replace_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / "made-up-00"
    link.symlink_to("../elsewhere")
    with pytest.raises(InputError, match="made-up-00: is a link to another folder"):
        export_sequence(Sequence(), tmp_path / "out", overwrite=True)
    assert link.is_symlink() and sorted((tmp_path / "out").iterdir()) == [link]


def test_remains_of_a_killed_run_are_not_included(tmp_path):
    remains = tmp_path / ".made-up-00.partial"
    (remains / "rgb").mkdir(parents=True)
    claim(remains, "rgb/9.000000.png").write_bytes(b"half")
    folder = export_sequence(Sequence(), tmp_path, "tum")
    assert len(list((folder / "rgb").iterdir())) == 4
    assert files_in(tmp_path) == [folder.name]


def test_files_of_others_are_kept_in_every_folder_that_is_replaced(tmp_path):
    export_sequence(Sequence("like-tum"), tmp_path, "tum")
    (tmp_path / "like-tum" / MANIFEST).unlink()  # a sequence of another program with the same layout
    for folder in ("like-tum", ".made-up-00.partial", ".made-up-00.replaced"):
        (tmp_path / folder / "rgb").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "rgb" / "9.000000.png").write_bytes(b"measured")
        with pytest.raises(InputError, match=rf"{folder}: holds .*, which is not part of a sequence"):
            export_sequence(Sequence("like-tum" if folder == "like-tum" else "made-up-00"), tmp_path, overwrite=True)
        assert (tmp_path / folder / "rgb" / "9.000000.png").read_bytes() == b"measured"
        (tmp_path / folder / "rgb" / "9.000000.png").unlink()


@pytest.mark.parametrize("format", ["tum", "bag"])
def test_full_disk_is_one_clear_line(tmp_path, monkeypatch, format):
    """A file size limit stops writing in the middle of a file, as a full disk does."""
    resource = pytest.importorskip("resource", reason="no limits on files on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(InputError, match="made-up-00: cannot be written: File too large"):
            export_sequence(Sequence(), tmp_path, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files_in(tmp_path) == []


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/made-up-00: cannot be written: Not a directory"):
        export_sequence(Sequence(), tmp_path / "file")
    with pytest.raises(InputError, match="made-up-00: cannot be written"):
        export_sequence(Sequence(), Path("/proc/none"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"format": "zip"}, "format is 'zip'; allowed values: tum, bag, both"), ({"max_frames": 0}, "frames is 0")],
)
def test_options_that_are_not_allowed(tmp_path, arguments, message):
    with pytest.raises(OptionError, match=message):
        export_sequence(Sequence(), tmp_path, **arguments)
    assert files_in(tmp_path) == []


# ----------------------------------------------------------------------------------------------------- the command


def test_command_writes_the_selected_sequences(tmp_path, capsys):
    arguments = ["--world", "one_room", "--frames", "3", "--size", "64x48", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["render", "stopgo", "--index", "4", *arguments]) == 0
    (name,) = files_in(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path / name}\n"
    folder = tmp_path / name
    truth = suite_sequence("stopgo", 4, world="one_room", size=(48, 64))
    assert truth.name == name
    played = list(open_recording(folder / "bag", topic="/camera/image_raw"))
    assert len(played) == len(rows_of(folder / "depth.txt")) == 3
    # zip ends with the shorter one: three frames of a longer sequence.
    for frame, other, row in zip(truth.frames(), played, rows_of(folder / "depth.txt"), strict=False):
        assert np.array_equal(other.image, frame.image)
        assert np.array_equal(other.intrinsics, truth.intrinsics)
        with Image.open(folder / row[1]) as picture:
            depth = np.asarray(picture) / 5000
        near = frame.depth < 13.1
        assert near.any() and np.abs(depth - frame.depth)[near].max() <= 0.0001001


def test_command_writes_the_first_sequences_of_a_suite(tmp_path):
    arguments = ["--sequences", "2", "--frames", "1", "--size", "32x24", "--format", "tum", "--device", "cpu"]
    assert cli.main(["render", "static", *arguments, "--out", str(tmp_path)]) == 0
    assert files_in(tmp_path) == [suite_sequence("static", index).name for index in (0, 1)]
    assert not (tmp_path / files_in(tmp_path)[0] / "bag").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--index", "999"], "999"),
        (["--index", "0", "999"], "--index is 999; allowed range: 0 to"),
        (["--index", "1", "0", "1"], "--index is 1 0 1; each may be named once"),
        (["--sequences", "999"], f"--sequences is 999; allowed range: 1 to {SUITES['static'].sequences}"),
        (["--frames", "0"], "--frames is 0; allowed: 1 and more"),
        (
            ["--frames", "150"],
            f"--frames is 150; allowed: 1 to {SUITES['static'].frames}, the length of the sequences",
        ),
        (["--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_command_with_values_out_of_range(tmp_path, capsys, arguments, message):
    assert cli.main(["render", "static", "--out", str(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("raymap3r: error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_command_renders_nothing_if_one_folder_is_in_the_way(tmp_path, capsys):
    name = suite_sequence("static", 1).name
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").touch()
    arguments = ["--sequences", "2", "--frames", "1", "--size", "32x24", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["render", "static", *arguments]) == 2
    assert f"{name}: holds mine" in capsys.readouterr().err and files_in(tmp_path) == [name]


@pytest.mark.parametrize("arguments", [["--size", "64"], ["--size", "0x48"], ["--format", "zip"], ["--world", "moon"]])
def test_command_with_unusable_values(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["render", "static", "--out", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}: " in capsys.readouterr().err
