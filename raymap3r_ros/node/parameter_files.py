"""Parameter files of a process: warnings about sections that have no effect."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raymap3r_ros.text import listing

PARAMETERS = "ros__parameters"
SIMILAR = 0.8  # of two names, from which one is probably a misspelling of the other
FORM = (
    f"a parameter file has sections, each with the name of a node or /**, and below it {PARAMETERS} with the "
    "parameters; config/stream.yaml of this package is an example"
)


def parameter_files(arguments: Sequence[str]) -> list[Path]:
    """The parameter files in the arguments of a process."""
    files, is_ros = [], False
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word in ("--ros-args", "--"):
            is_ros = word == "--ros-args"
        elif is_ros and word == "--params-file":
            files.append(Path(following))
    return files


def section_warnings(file: Path, names: Sequence[str]) -> list[str]:
    """A line for each section of a valid parameter file that has no effect by mistake, with the nearest valid name.

    Sections for other nodes are no mistake in a file for several, if one of them is for a node of this process.

    Args:
        names: full names of the nodes of this process.
    """
    if not file.is_file():  # a pipe of the shell, <(...), can be read only once
        return []
    try:
        sections = list(_sections(yaml.safe_load(file.read_bytes())))  # may be UTF-16
    except (OSError, ValueError, yaml.YAMLError) as error:
        return [f"the sections of the parameter file {file} were not checked: {error}"]
    if not sections:
        return [f"the parameter file {file} contains no parameters; {FORM}"]
    others = [section for section in sections if not any(applies(section, name) for name in names)]
    if len(others) == len(sections):
        nearest = max(others, key=lambda section: max(_similarity(section, name) for name in names))
        return [
            f"the parameter file {file} has no effect: its sections are for {listing(others)}, and the nodes of this "
            f"process are {listing(names)}; {_rename(nearest, names)}, or to /**"
        ]
    return [
        f"the section {section} of the parameter file {file} has no effect; {_rename(section, names)}"
        for section in others
        if any(_is_misspelt(section, name) for name in names)
    ]


def applies(section: str, name: str) -> bool:
    """Whether a section with the full name `section` is for the node with the full name `name`; as in rcl."""
    pattern = re.escape(section).replace(r"/\*\*", r"(/\w+)*").replace(r"/\*", r"/\w+")
    return re.fullmatch(pattern, name) is not None


def _sections(tree: Any, path: str = "") -> Iterator[str]:
    """The full names of all sections with parameters. Namespaces may be nested."""
    for key, below in tree.items() if isinstance(tree, Mapping) else ():
        if key == PARAMETERS:
            if below is not None:  # {} is no mistake: launch writes it for an empty dictionary
                yield path
        else:
            yield from _sections(below, f"{path}/{str(key).lstrip('/')}")


def _rename(section: str, names: Sequence[str]) -> str:
    return f"rename {section} to {max(names, key=lambda name: _similarity(section, name))}"


def _is_misspelt(section: str, name: str) -> bool:
    """Whether a section that is not for the node `name` was probably written for it, and not for another node."""
    (namespace, _, base), other = section.rpartition("/"), name.rpartition("/")[2]
    if base == other:
        return not namespace  # with a namespace, it is for another camera
    numbered = re.sub(r"[_\d]+$", "", base) == re.sub(r"[_\d]+$", "", other)
    return not numbered and _similarity(base, other) >= SIMILAR


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
