"""The SROS 2 policy allows what the node has over DDS, and nothing else."""

from xml.etree import ElementTree

MODES = (
    {"tf_mode": "odom", "scale__source": "range", "occupancy__enabled": True, "use_sim_time": True},
    {"image_transport": "compressed", "scale__source": "odometry"},
)


def allowed(root):
    """By kind and right: the names in the policy, of a node /raymap3r."""
    (profile,) = ElementTree.parse(root / "config" / "sros2_policy.xml").iter("profile")
    assert profile.get("ns") == "/" and profile.get("node") == "raymap3r"
    names = {}
    for group in profile:
        ((right, word),) = group.items()
        assert word == "ALLOW" and (group.tag, right) not in names
        listed = [item.text.replace("~", "/raymap3r") for item in group]
        listed = [name if name.startswith("/") else f"/{name}" for name in listed]
        assert len(listed) == len(set(listed))
        names[group.tag, right] = set(listed)
    return names


def seen(bench):
    """The same of a node, as another participant sees it."""
    ask = {
        ("topics", "publish"): bench.probe.get_publisher_names_and_types_by_node,
        ("topics", "subscribe"): bench.probe.get_subscriber_names_and_types_by_node,
        ("services", "reply"): bench.probe.get_service_names_and_types_by_node,
        ("services", "request"): bench.probe.get_client_names_and_types_by_node,
    }
    return {
        key: {name.removeprefix(bench.namespace) for name, _ in names("raymap3r", bench.namespace)}
        for key, names in ask.items()
    }


def test_policy_is_what_the_node_has(make_bench, root):
    expected = allowed(root)
    found = {}
    for mode in MODES:
        bench = make_bench(image_size=64, **mode)
        assert bench.change_state("configure") and bench.change_state("activate")
        image = "/image/compressed" if mode.get("image_transport") else "/image"
        for group, name in ((("topics", "subscribe"), image), (("topics", "publish"), "/tf")):
            bench.wait(lambda bench=bench, group=group, name=name: name in seen(bench)[group], f"sight of {name}")
        own = set(bench.node.publishers)
        bench.wait(lambda bench=bench, own=own: len(seen(bench)["topics", "publish"]) >= len(own), "all publishers")
        for key, names in seen(bench).items():
            found.setdefault(key, set()).update(names)
    assert found.pop(("services", "request")) == set()  # the node calls nobody
    found["services", "reply"].add("/tf2_frames")  # of a ROS distribution's tf2_ros, not of the overlay's
    assert found == expected
