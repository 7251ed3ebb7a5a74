"""The SROS 2 policy allows the topics and services of the node and nothing else."""

from xml.etree import ElementTree

MODES = (
    {"tf_mode": "odom", "scale__source": "range", "occupancy__enabled": True, "use_sim_time": True},
    {"image_transport": "compressed", "scale__source": "odometry"},
)


def allowed(root):
    """The names in the policy of a node /raymap3r, by kind and permission."""
    (profile,) = ElementTree.parse(root / "config" / "sros2_policy.xml").iter("profile")
    assert profile.get("ns") == "/" and profile.get("node") == "raymap3r"
    names = {}
    for group in profile:
        ((permission, word),) = group.items()
        assert word == "ALLOW" and (group.tag, permission) not in names
        listed = [item.text.replace("~", "/raymap3r") for item in group]
        listed = [name if name.startswith("/") else f"/{name}" for name in listed]
        assert len(listed) == len(set(listed))
        names[group.tag, permission] = set(listed)
    return names


def discovered(bench):
    """The same for a running node, as discovered by another participant."""
    queries = {
        ("topics", "publish"): bench.probe.get_publisher_names_and_types_by_node,
        ("topics", "subscribe"): bench.probe.get_subscriber_names_and_types_by_node,
        ("services", "reply"): bench.probe.get_service_names_and_types_by_node,
        ("services", "request"): bench.probe.get_client_names_and_types_by_node,
    }
    return {
        key: {name.removeprefix(bench.namespace) for name, _ in names("raymap3r", bench.namespace)}
        for key, names in queries.items()
    }


def test_policy_matches_the_node(make_bench, root):
    expected = allowed(root)
    found = {}
    for mode in MODES:
        bench = make_bench(image_size=64, **mode)
        assert bench.change_state("configure") and bench.change_state("activate")
        image = "/image/compressed" if mode.get("image_transport") else "/image"
        for group, name in ((("topics", "subscribe"), image), (("topics", "publish"), "/tf")):
            bench.wait(
                lambda bench=bench, group=group, name=name: name in discovered(bench)[group], f"discovery of {name}"
            )
        own = set(bench.node.publishers)
        bench.wait(
            lambda bench=bench, own=own: len(discovered(bench)["topics", "publish"]) >= len(own), "all publishers"
        )
        for key, names in discovered(bench).items():
            found.setdefault(key, set()).update(names)
    assert found.pop(("services", "request")) == set()  # the node has no service clients
    found["services", "reply"].add("/tf2_frames")  # not in every version of tf2_ros
    assert found == expected
