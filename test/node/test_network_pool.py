"""Several nodes that share one network."""

from scripted import wait_for_stamp
from std_srvs.srv import SetBool

from raymap3r_ros.node.network_pool import NetworkPool


def test_each_camera_has_its_own_services_and_intrinsics(make_bench):
    pool = NetworkPool(2)
    front, rear = cameras = [make_bench(pool=pool, every_frame=True) for _ in range(2)]
    for bench in cameras:
        bench.start("pose", "trajectory", "camera_info")
    assert front.node.stream.network is rear.node.stream.network
    for bench, focal in ((front, 50.0), (rear, 70.0)):
        bench.send_camera_info(width=64, height=48, k=[focal, 0.0, 31.5, 0.0, focal, 23.5, 0.0, 0.0, 1.0])
        bench.wait_for_camera_info()

    def poses_after(bench, index):
        """Number of poses in the trajectory after an image."""
        sent = bench.send(index, time=index / 2)
        return len(wait_for_stamp(bench, "trajectory", sent).poses)

    for index in range(2):
        assert [poses_after(bench, index) for bench in cameras] == [index + 1] * 2
    for bench, focal in ((front, 50.0), (rear, 70.0)):
        bench.wait_for("camera_info", 2)  # of images of 128x96 pixels
        assert {(info.k[0], info.k[4]) for info in bench.messages["camera_info"]} == {(2 * focal, 2 * focal)}
    assert front.reset().success
    assert (poses_after(rear, 2), poses_after(front, 2)) == (3, 1)
    assert rear.set_parameter("points.stride", 2).successful
    assert [bench.node.get_parameter("points.stride").value for bench in cameras] == [1, 2]
    assert front.call(SetBool, "set_paused", SetBool.Request(data=True)).success
    front.send(3)
    assert poses_after(rear, 3) == 4
    front.wait_for_diagnostics("frames paused", 1)
    rear.wait_for_diagnostics("frames out", 4)
    assert (front.diagnostics["resets"], rear.diagnostics["resets"], rear.diagnostics["frames paused"]) == (
        "1",
        "0",
        "0",
    )
    assert front.change_state("deactivate") and front.change_state("cleanup")
    assert (front.state(), rear.state()) == ("unconfigured", "active")
    assert poses_after(rear, 4) == 5
