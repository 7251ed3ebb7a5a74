"""Ground truth from the TF tree and the odometry of a recording."""

import sys
from pathlib import Path

import pytest
import rclpy
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry

sys.path.insert(0, str(Path(__file__).parent))
from bags import START, header, images_bag, make, sensors_bag, stamps_of, transform, transforms, wheels

from raymap3r_ros.clients import bag, replay
from raymap3r_ros.clients.bag import ReplayOptions, open_bag
from raymap3r_ros.clients.ground_truth import GroundTruthCollector
from raymap3r_ros.errors import InputError
from raymap3r_ros.io.bag_reader import BagReader


def ros_transform(time, parent, child, place):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = rclpy.time.Time(nanoseconds=stamps_of([time])[0]).to_msg()
    t = message.transform.translation
    t.x, t.y, t.z = place
    message.transform.rotation.w = 1.0
    return message


def ros_odometry(time, child, place):
    message = Odometry(child_frame_id=child)
    message.header.frame_id = "somewhere"
    message.header.stamp = rclpy.time.Time(nanoseconds=stamps_of([time])[0]).to_msg()
    p = message.pose.pose.position
    p.x, p.y, p.z = place
    message.pose.pose.orientation.w = 1.0
    return message


class TestGroundTruth:
    def robot(self, root="world"):
        truth = GroundTruthCollector("camera")
        truth.add_transforms([ros_transform(0, "base", "camera", (0.0, 0.0, 1.0))], static=True)
        for i in range(3):
            truth.add_transforms([ros_transform(i / 10, f"/{root}", "base", (2.0 * i, 0.0, 0.0))], static=False)
        return truth

    def test_interpolation_through_the_tree(self):
        found = self.robot().poses(stamps_of([-0.1, 0, 0.05, 0.2]))
        assert found.source == "TF world -> camera"
        places = {round(stamp / 1e9 - START, 3): pose[:3, 3].tolist() for stamp, pose in found.poses.items()}
        assert places == {0.0: [0, 0, 1], 0.05: pytest.approx([1, 0, 1], abs=1e-5), 0.2: [4, 0, 1]}

    def test_root_with_another_name_must_be_selected(self):
        truth = self.robot("odom")
        with pytest.raises(InputError, match=r"above the camera's \(base, odom\)"):
            truth.poses(stamps_of([0]))
        assert truth.poses(stamps_of([0]), "odom").source == "TF odom -> camera"

    def test_odometry_of_the_base_is_transformed_to_the_camera(self):
        truth = self.robot("odom")
        truth.add_odometry("/wheels", ros_odometry(0, "base", (9.0, 9.0, 9.0)))
        for i in range(2):
            truth.add_odometry("/ground_truth/state", ros_odometry(i / 10, "base", (0.0, 3.0 * i, 0.0)))
        found = truth.poses(stamps_of([0.05]))
        assert found.source == "odometry /ground_truth/state of base"
        assert next(iter(found.poses.values()))[:3, 3].tolist() == pytest.approx([0.0, 1.5, 1.0], abs=1e-5)

    def test_odometry_of_an_unknown_frame_is_used_unchanged_and_reported(self):
        truth = GroundTruthCollector("camera")
        truth.add_odometry("/mocap/rig", ros_odometry(0, "rig", (1.0, 2.0, 3.0)))
        found = truth.poses(stamps_of([0]))
        assert "the pose of the camera in rig is unknown" in found.source
        assert next(iter(found.poses.values()))[:3, 3].tolist() == [1.0, 2.0, 3.0]

    @pytest.mark.parametrize("lost", [float("nan"), 0.0])
    @pytest.mark.parametrize("source", ["odometry", "transform"])
    def test_poses_marked_as_lost_are_left_out_with_their_gap(self, source, lost):
        """Motion capture publishes NaN or zero quaternions while it does not see the body."""
        truth = GroundTruthCollector("camera")
        for i in range(6):
            if source == "odometry":
                message = ros_odometry(i / 10, "camera", (float(i), 0.0, 0.0))
                rotation = message.pose.pose.orientation
            else:
                message = ros_transform(i / 10, "mocap", "camera", (float(i), 0.0, 0.0))
                rotation = message.transform.rotation
            if i in (2, 3):
                rotation.w = lost
            if source == "odometry":
                truth.add_odometry("/mocap/body", message)
            else:
                truth.add_transforms([message], static=False)
        found = truth.poses(stamps_of([0.05, 0.1, 0.15, 0.2, 0.35, 0.4, 0.45]))
        assert [round(stamp / 1e9 - START, 3) for stamp in found.poses] == [0.05, 0.1, 0.4, 0.45]
        assert "without 2 poses of" in found.source

    @pytest.mark.parametrize("source", ["odometry", "transform"])
    def test_gaps_are_not_interpolated(self, source):
        """Motion capture publishes nothing while it does not see the body; some messages of TF at 20 Hz are lost."""
        truth = GroundTruthCollector("camera")
        truth.add_transforms([ros_transform(0, "base", "camera", (0.0, 0.0, 1.0))], static=True)
        truth.add_transforms([ros_transform(i, "shelf", "mocap", (0.0, 0.0, 1.0)) for i in range(4)], static=False)
        truth.add_transforms([ros_transform(i, "odom", "shelf", (float(i), 0.0, 0.0)) for i in range(4)], static=False)
        times = [0.0, 0.05, 0.2, 0.25, 1.25, 1.3]
        for time in times:
            if source == "odometry":
                truth.add_odometry("/mocap/body", ros_odometry(time, "base", (time, 0.0, 0.0)))
            else:
                truth.add_transforms([ros_transform(time, "mocap", "base", (time, 0.0, 0.0))], static=False)
        wanted = stamps_of([0.02, 0.1, 0.25, 0.3, 0.75, 1.2, 1.25, 1.28])
        # A transform that does not change has no gaps, however rare it is.
        for selected in ["/mocap/body"] if source == "odometry" else ["mocap", "shelf"]:
            found = truth.poses(wanted, selected)
            places = {round(stamp / 1e9 - START, 3): pose[0, 3] for stamp, pose in found.poses.items()}
            assert places == pytest.approx({time: time for time in (0.02, 0.1, 0.25, 1.25, 1.28)}, abs=1e-5)
            assert found.source.endswith(", without 3 images in gaps")
        if source == "transform":
            with pytest.raises(InputError, match=r"gaps of more than 0\.2 s, or of lost poses, around all of them"):
                truth.poses(wanted, "odom")

    @pytest.mark.parametrize(("selected", "source"), [("odom", "TF odom"), ("/odom", "odometry /odom")])
    def test_a_frame_and_a_topic_of_one_name(self, selected, source):
        truth = self.robot("odom")
        for time in (0.0, 0.1, 0.2):
            truth.add_odometry("/odom", ros_odometry(time, "base", (9 * time, 0.0, 0.0)))
        assert truth.poses(stamps_of([0.05]), selected).source.startswith(source)

    def test_frame_without_a_connection_to_the_camera(self):
        with pytest.raises(InputError, match="unknown at the time of every frame"):
            self.robot().poses(stamps_of([0]), "moon")


# ------------------------------------------------------------------------------------------------- selected by name


def robot_bag(folder):
    """A camera on a base with a gripper below the camera, wheel odometry, and motion capture as PoseStamped."""
    pose = make(
        "geometry_msgs/msg/Pose",
        position=make("geometry_msgs/msg/Point", x=0.0, y=0.0, z=0.0),
        orientation=make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
    )
    return sensors_bag(
        folder,
        ("/wheels", wheels),
        ("/vrpn/rig", lambda i: make("geometry_msgs/msg/PoseStamped", header=header(i / 10), pose=pose)),
        ("/tf", lambda i: transforms(transform(i / 10, "odom", "/base"), transform(i / 10, "odom", "marker"))),
        first=[(0, "/tf_static", transforms(transform(0, "base", "camera"), transform(0, "camera", "gripper")))],
    )


@pytest.mark.parametrize("truth", ["", "wheels", "/wheels", "odom", "/odom", "base"])
def test_ground_truth_of_the_bag_is_accepted(tmp_path, truth):
    assert open_bag(robot_bag(tmp_path / "bag"), ReplayOptions(truth=truth)).frame == "camera"


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ("/vrpn/rig", r"the topic /vrpn/rig has the type geometry_msgs/msg/PoseStamped"),
        ("gripper", r"the frame gripper is not above the frame of the camera, camera"),
        ("marker", r"the frame marker is not above the frame of the camera, camera"),
        ("camera", r"the frame camera is not above the frame of the camera, camera"),
        ("whels", r"the bag has neither a topic nor a frame whels"),
    ],
)
def test_other_ground_truth_is_refused_before_the_replay(tmp_path, truth, problem):
    path = robot_bag(tmp_path / "bag")
    allowed = (
        r"allows topics of the type nav_msgs/msg/Odometry \(/wheels\) and the frames above camera \(base, odom\)$"
    )
    with pytest.raises(InputError, match=f"{problem}; --truth {allowed}"):
        replay.run(path, ReplayOptions(truth=truth), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tf_is_not_read_to_its_end_before_a_replay(tmp_path, monkeypatch, caplog):
    """A frame may appear late, as the one of SLAM does: it is a warning if it is not in the first messages."""
    read, original = [], BagReader.messages

    def messages(self, topics):
        for one in original(self, topics):
            read.append(one[0])
            yield one

    monkeypatch.setattr(BagReader, "messages", messages)
    path = robot_bag(tmp_path / "bag")
    monkeypatch.setattr(bag, "LOOKED_THROUGH", 4)  # all
    with pytest.raises(InputError):
        open_bag(path, ReplayOptions(truth="map"))
    monkeypatch.setattr(bag, "LOOKED_THROUGH", 2)
    read.clear()
    assert open_bag(path, ReplayOptions(truth="map")).frame == "camera"
    assert sum(topic in (bag.TF, bag.TF_STATIC) for topic in read) == 3
    assert "bag: according to its first 2 messages of TF, the bag has neither a topic nor a frame map" in caplog.text
    assert "the frames above camera, there base, odom" in caplog.text


def test_a_frame_that_cannot_be_found_without_transforms_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither a topic nor a frame map; .* \(none\) and .* camera \(none\)$"):
        open_bag(images_bag(tmp_path / "bag"), ReplayOptions(truth="map"))
