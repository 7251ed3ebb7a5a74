"""README.md and docs/ agree with the package: topics, services, parameters, commands, links."""

import ast
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from rclpy.context import Context
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from raymap3r_ros import cli
from raymap3r_ros.io.intrinsics import write_intrinsics
from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.stream_node import StreamNode
from raymap3r_ros.options import option_fields
from raymap3r_ros.streaming import StreamOptions

ROOT = Path(__file__).resolve().parents[1]
FILES = (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *ROOT.glob("docs/*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}
OPTIONS = {name: item for kind in (NodeOptions, StreamOptions) for name, item in option_fields(kind)}
# Packages whose topics and services every node has.
STANDARD = ("rcl_interfaces", "lifecycle_msgs", "type_description_interfaces")


def prose_and_blocks(text):
    """The text outside fenced blocks, and the blocks."""
    parts = re.split(r"^ *```.*\n", text, flags=re.MULTILINE)
    assert len(parts) % 2 == 1, "a block is not closed"
    return "".join(parts[::2]), parts[1::2]


def spans(text):
    """The spans in backticks in the prose, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose_and_blocks(text)[0])]


def tables(text):
    """Every row of every table in the prose, as a dictionary by the table's header."""
    rows, header = [], None
    for line in prose_and_blocks(text)[0].splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if header is None:
            header = cells
        elif not set(line) <= set("|- :"):
            assert len(cells) == len(header), line
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def rows_with(*columns):
    """The rows of all pages' tables that have these columns."""
    return [row for text in PAGES.values() for row in tables(text) if row.keys() >= set(columns)]


# ------------------------------------------------------------------------------------------- parameters and topics


def test_every_parameter_is_in_one_table_with_its_default():
    found = Counter()
    for row in [*rows_with("parameter", "default", "allowed"), *rows_with("name", "default")]:
        name = re.match(r"`([\w.]+)`", row.get("parameter") or row["name"])[1]
        found[name] += "parameter" in row  # other tables repeat some parameters
        default = OPTIONS[name].default
        shown = default if isinstance(default, str) and default else json.dumps(default)
        assert row["default"] == f"`{shown}`", name
    assert found == Counter(OPTIONS.keys())


def test_parameters_that_can_change_while_the_node_runs_are_marked():
    text = PAGES["docs/ros.md"]
    marked = set(re.findall(r"^\| `([\w.]+)`\\\* \|", text, flags=re.MULTILINE))
    assert marked == {name for name, item in OPTIONS.items() if item.metadata["live"]}


def kind_of(message_type):
    return f"{message_type.__module__.partition('.')[0]}/{message_type.__name__}"


def quality(profile):
    """The name of a quality of service in docs/ros.md."""
    if profile.reliability == ReliabilityPolicy.BEST_EFFORT:
        return "sensor data"
    return "latched" if profile.durability == DurabilityPolicy.TRANSIENT_LOCAL else "reliable"


@pytest.fixture(scope="module")
def contract():
    """A node with all topics: types by name, as in the tables, and QoS of its publishers and subscriptions."""
    kinds, published, taken = {}, {}, {}
    context = Context()
    rclpy.init(context=context)
    for values in (
        {"scale.source": "range", "occupancy.enabled": True},
        {"scale.source": "odometry", "image_transport": "compressed", "every_frame": True},
    ):
        values = {"device": "cpu", "execution": "plain", **values}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = StreamNode(context=context, parameter_overrides=overrides)
        assert node.autostart()
        services = {one.srv_name: one.srv_type for one in node.services}
        publishers = {one.topic_name: one for one in node.publishers}
        subscriptions = {one.topic_name: one for one in node.subscriptions}
        for name, kind in (
            *services.items(),
            *((name, one.msg_type) for name, one in (*publishers.items(), *subscriptions.items())),
        ):
            if not kind_of(kind).startswith(STANDARD):
                kinds[as_shown(name)] = kind_of(kind)
        published |= {as_shown(name): one.qos_profile for name, one in publishers.items()}
        taken |= {
            (as_shown(name), node.get_parameter("every_frame").value): one.qos_profile
            for name, one in subscriptions.items()
        }
        node.close()
        node.destroy_node()
    rclpy.shutdown(context=context)
    return kinds, published, taken


def as_shown(name):
    """A resolved name of a node `raymap3r` without a namespace, as in the tables."""
    if name.startswith("/raymap3r/"):
        return name.replace("/raymap3r/", "~/")
    return name if name in ("/tf", "/tf_static", "/diagnostics") else name.removeprefix("/")


def test_every_topic_and_service_is_in_one_table_with_its_type_and_qos(contract):
    kinds, published, taken = dict(contract[0]), *contract[1:]
    rows = {}
    for row in rows_with("name", "type"):
        name = row["name"].strip("`")
        assert name not in rows, f"{name} is in two tables"
        rows[name] = row
    del kinds["/tf_static"]  # subscribed only; documented in the prose
    assert {name: row["type"] for name, row in rows.items()} == kinds
    for name, profile in published.items():
        if name in rows:
            assert rows[name]["QoS"] == quality(profile), name
    words = {ReliabilityPolicy.BEST_EFFORT: "best effort", ReliabilityPolicy.RELIABLE: "reliable"}
    newest, every = taken["image", False], taken["image/compressed", True]
    assert rows["image"]["QoS"] == (
        f"{words[newest.reliability]}, {newest.depth}; with `every_frame` {words[every.reliability]}, {every.depth}"
    )
    info = taken["camera_info", False]
    assert rows["camera_info"]["QoS"] == f"{words[info.reliability]}, {info.depth}; latched if its publishers are"


def test_topics_in_the_prose_exist(contract):
    known = {*contract[0], "~/change_state", "~/set_parameters"}  # the last two: services of every managed node
    for page, text in PAGES.items():
        for span in spans(text):
            if re.fullmatch(r"~/[a-z_]+", span):
                assert span in known, f"{page}: {span}"


def test_all_diagnostics_are_in_the_table():
    monitor = Monitor()
    monitor.published(0.1, 0.05, {})
    published = {item.key for item in monitor.status("node", "active", {}).values}
    shown = {key for row in tables(PAGES["docs/ros.md"]) if "key" in row for key in re.findall(r"`(.+?)`", row["key"])}
    assert published <= shown


# ------------------------------------------------------------------------------------------------------- commands


def commands(text, program):
    """Arguments of every call of `program` in the blocks, once for each value of a shell loop."""
    found = []
    for block in prose_and_blocks(text)[1]:
        loops = dict(re.findall(r"for (\w+) in ([^;\n]+)", block))
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            match = re.match(rf"\s*(?:\$ )?(?:torchrun .*--no-python )?(?:\S*/)?{program}\s+(.*)", line)
            if match:
                name, values = next(((n, v.split()) for n, v in loops.items() if f"${n}" in line), ("", [""]))
                found += [shlex.split(match[1].replace(f"${name}", value), comments=True) for value in values]
    return found


def parses(arguments):
    """Whether the command line accepts the arguments; a command without arguments is run with --help."""
    if len(arguments) <= 2 and all(re.fullmatch(r"[a-z]+", word) for word in arguments):
        arguments = [*arguments, "--help"]
    try:
        cli.build_parser(arguments).parse_args(arguments)
    except SystemExit as stopped:
        return stopped.code == 0
    return True


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_package_are_valid(page, capsys):
    shown = commands(PAGES[page], "raymap3r")
    shown += [shlex.split(span)[1:] for span in spans(PAGES[page]) if span.startswith("raymap3r ")]
    for arguments in shown:
        assert parses(arguments), f"raymap3r {shlex.join(arguments)}: {capsys.readouterr().err}"


def test_commands_that_are_wrong_are_found(capsys):
    text = "```sh\n$ .venv/bin/raymap3r run clip.mp4 \\\n    --uot results  # a comment\n```\n"
    assert commands(text, "raymap3r") == [["run", "clip.mp4", "--uot", "results"]]
    assert not parses(["run", "clip.mp4", "--uot", "results"]) and not parses(["rum"])
    loop = "```\nfor one in a b; do\n  raymap3r run $one --out o\ndone\n```\n"
    assert commands(loop, "raymap3r") == [["run", "a", "--out", "o"], ["run", "b", "--out", "o"]]
    assert sum(len(commands(text, "raymap3r")) for text in PAGES.values()) > 10


def launch_arguments(path):
    """Names of the arguments of a launch file and of the one that it includes; works without `launch`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        called = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("ARGUMENTS", "STREAM"):
            names.update(key.value for key in node.value.keys)
        elif called == "DeclareLaunchArgument":
            names.update(one.value for one in node.args if isinstance(one, ast.Constant))
        elif called == "mapper_beside":
            names |= launch_arguments(ROOT / "raymap3r_ros" / "node" / "launching.py")
        elif isinstance(node, ast.Constant) and node.value == "stream.launch.py" != path.name:
            names |= launch_arguments(path.with_name("stream.launch.py"))
    return names


LAUNCH = {path.name: launch_arguments(path) for path in ROOT.glob("launch/*.launch.py")}


@pytest.mark.parametrize("page", PAGES)
def test_launch_files_and_arguments_in_commands_exist(page):
    for package, *words in commands(PAGES[page], "ros2 launch"):
        if package == "raymap3r_ros":
            file, *arguments = words
            for argument in arguments:
                name = argument.partition(":=")[0]
                assert name in LAUNCH[file], f"{file} has no argument {name}"


@pytest.mark.parametrize("page", PAGES)
def test_launch_arguments_have_values(page):
    """`ros2 launch` refuses arguments that end with `:=` as malformed."""
    for arguments in commands(PAGES[page], "ros2 launch"):
        assert not [argument for argument in arguments if argument.endswith(":=")]


@pytest.mark.parametrize("page", PAGES)
def test_arguments_in_the_prose_exist(page):
    mapper_topics = set()  # remapped by the launch files
    for file in ROOT.glob("launch/*.launch.py"):
        mapper_topics.update(re.findall(r'^    "(\S+)": "', file.read_text(), flags=re.MULTILINE))
    known = set().union(mapper_topics, OPTIONS, *LAUNCH.values())
    for span in spans(PAGES[page]):
        for name in re.findall(r"(?:^|\s)([\w./]+):=", span):
            assert name in known, f"{page}: {span}"


@pytest.mark.parametrize("page", PAGES)
def test_services_and_parameters_in_ros2_calls_exist(page, contract):
    text, kinds = PAGES[page], contract[0]
    words = [span.split() for span in spans(text)]
    for _, name, kind, *_ in [one[2:] for one in words if one[:3] == ["ros2", "service", "call"]] + [
        ["call", *one] for one in commands(text, "ros2 service call")
    ]:
        assert kinds[name.replace("/raymap3r/", "~/")] == kind.replace("/srv/", "/")
    for name, value in [one[4:6] for one in words if one[:3] == ["ros2", "param", "set"]] + [
        one[1:3] for one in commands(text, "ros2 param set")
    ]:
        assert OPTIONS[name].metadata["live"], name
        assert isinstance(yaml.safe_load(value), type(OPTIONS[name].default))


@pytest.mark.parametrize("page", PAGES)
def test_parameter_files_contain_parameters(page):
    def walk(values, prefix=""):
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                assert isinstance(value, type(OPTIONS[prefix + name].default)), prefix + name

    for block in prose_and_blocks(PAGES[page])[1]:
        if "ros__parameters:" in block:
            for node in yaml.safe_load(block).values():
                walk(node["ros__parameters"])


# ---------------------------------------------------------------------------------------------------------- links


def anchors(text):
    """The fragments of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", "\n".join(prose_and_blocks(text)[0].splitlines()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose_and_blocks(PAGES[page])[0]):
        if link.startswith(("http://", "https://")):
            continue
        path, _, fragment = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists() and target.is_relative_to(ROOT), link
        if fragment:
            assert fragment in anchors(target.read_text()), link


def test_every_page_on_ros_is_in_its_index():
    linked = {f"docs/{link}" for link in re.findall(r"\]\(([\w.]+\.md)", PAGES["docs/ros.md"])}
    not_on_ros = (
        "weights",
        "licences",
        "simulated",
        "synthetic",
        "recordings",
        "batch",
        "performance",
        "architecture",
    )
    others = {"docs/ros.md", *(f"docs/{name}.md" for name in not_on_ros)}
    assert {page for page in PAGES if page.startswith("docs/")} - others <= linked


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_checkout_exist(page):
    folders = "benchmarks|config|docs|examples|launch|raymap3r_ros|test"
    for name in re.findall(rf"(?<![\w/])((?:{folders})/[\w./-]*\w\.\w+)", PAGES[page]):
        assert (ROOT / name).exists(), name


def test_columns_of_the_intrinsics_are_documented(tmp_path, root):
    write_intrinsics(tmp_path / "intrinsics.txt", [], np.empty((0, 3, 3)), [], (1, 1))
    header = (tmp_path / "intrinsics.txt").read_text().strip("# \n")
    assert f"`{header}`" in (root / "docs/recordings.md").read_text()
