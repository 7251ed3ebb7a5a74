"""Parameter files with sections that have no effect: one warning each, with the nearest valid name."""

import itertools
import os
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context

from raymap3r_ros.node.parameter_files import applies, parameter_files, section_warnings

SECTION = "{}:\n  ros__parameters:\n    rate: 1\n"
SECTIONS = (
    "/**", "/*", "/**/raymap3r", "/*/raymap3r", "raymap3r", "/raymap3r", "/front/raymap3r", "front/raymap3r",
    "/front/*", "/front/**", "/**/*", "/raymap3", "/front", "/front/raymap3r/x",
)  # fmt: skip


@pytest.mark.parametrize("namespace", ["", "/front", "/robot/front"])
def test_sections_apply_as_in_rclpy(tmp_path, namespace):
    for number, section in enumerate(SECTIONS):
        file = tmp_path / f"{number}.yaml"
        file.write_text(SECTION.format(section))
        context = Context()
        rclpy.init(args=["--ros-args", "--params-file", str(file)], context=context)
        try:
            node = rclpy.create_node(
                "raymap3r", namespace=namespace, context=context, enable_rosout=False, start_parameter_services=False,
                automatically_declare_parameters_from_overrides=True,
            )  # fmt: skip
            taken = node.has_parameter("rate")
            node.destroy_node()
        finally:
            rclpy.shutdown(context=context)
        assert applies(f"/{section.lstrip('/')}", f"{namespace}/raymap3r") == taken, section
        assert bool(section_warnings(file, [f"{namespace}/raymap3r"])) != taken, section


def warnings(tmp_path, text, *names):
    file = tmp_path / "robot.yaml"
    file.write_text(text)
    return section_warnings(file, names or ["/front/raymap3r"])


@pytest.mark.parametrize(
    ("sections", "remedy"),
    [
        (["raymap3r"], "rename /raymap3r to /front/raymap3r, or to /**"),
        (["camera", "/front/raymap4r"], "rename /front/raymap4r to /front/raymap3r, or to /**"),
    ],
)
def test_file_without_a_section_for_the_node(tmp_path, sections, remedy):
    (line,) = warnings(tmp_path, "".join(map(SECTION.format, sections)))
    assert "robot.yaml has no effect" in line and line.endswith(remedy)
    assert all(section in line for section in sections) and "process are /front/raymap3r;" in line


@pytest.mark.parametrize("text", ["", "# only a comment\n", "raymap3r:\n  ros__parameters:\n"])
def test_file_without_parameters(tmp_path, text):
    (line,) = warnings(tmp_path, text)
    assert "robot.yaml contains no parameters; a parameter file has sections" in line


def test_file_of_launch_for_an_empty_dictionary_is_quiet(tmp_path):
    assert warnings(tmp_path, "/**:\n  ros__parameters: {}\n") == []
    (line,) = warnings(tmp_path, "/rear/raymap3r:\n  ros__parameters: {}\n")
    assert "has no effect" in line


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_file_in_another_encoding(tmp_path, encoding):
    """As written by an editor of another system; the parser of rcl reads them."""
    file = tmp_path / "robot.yaml"
    file.write_text(SECTION.format("/**") + "# ü", encoding=encoding)
    assert section_warnings(file, ["/front/raymap3r"]) == []
    file.write_text(SECTION.format("/rear/raymap3r"), encoding=encoding)
    assert "has no effect" in section_warnings(file, ["/front/raymap3r"])[0]
    file.write_bytes(b"a: \xe4\n")  # Latin-1
    assert "were not checked" in section_warnings(file, ["/front/raymap3r"])[0]


def test_pipe_of_the_shell_is_not_read_again(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert section_warnings(tmp_path / "pipe", ["/front/raymap3r"]) == []


def test_misspelt_section_beside_others(tmp_path):
    text = SECTION.format("/**") + SECTION.format("/front/raymapr") + SECTION.format("raymap3r")
    lines = warnings(tmp_path, text)
    assert [line.partition(" of the")[0] for line in lines] == ["the section /front/raymapr", "the section /raymap3r"]
    assert all(line.endswith("has no effect; rename " + line.split()[2] + " to /front/raymap3r") for line in lines)


def test_file_of_a_whole_robot_is_quiet(tmp_path):
    others = ("/rear/raymap3r", "/front/raymap3r_2", "camera_driver", "controller_server", "/**/amcl")
    nested = "front:\n  raymap3r:\n    ros__parameters:\n      rate: 1\n"
    assert warnings(tmp_path, nested + "".join(map(SECTION.format, others))) == []
    both = "".join(SECTION.format(f"/{name}/raymap3r") for name in ("front", "rear"))
    assert warnings(tmp_path, both, "/front/raymap3r", "/rear/raymap3r") == []


def test_files_of_the_command_line():
    words = ["stream", "--params-file", "no", "--ros-args", "--params-file", "a", "-p", "b:=1", "--params-file", "c"]
    assert parameter_files(words) == [Path("a"), Path("c")]
    for end in itertools.product(["--"], ["--params-file"], ["d"]):
        assert parameter_files([*words, *end]) == [Path("a"), Path("c")]
